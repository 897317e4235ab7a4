"""Sizes of the plain ViT, by name. Numbers only: planning a table must not load torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from mimbench.errors import UserError


class Size(NamedTuple):
    embed_dim: int
    depth: int
    num_heads: int


ARCHS = {
    "vit_smoke": Size(32, 4, 2),  # ours: seconds, for tests
    "vit_toy": Size(96, 4, 3),  # ours: minutes on two CPU cores
    "vit_mini": Size(192, 12, 3),  # ours: one GPU or patience; ViT-Ti of DeiT (Touvron et al., 2021)
    "vit_small": Size(384, 12, 6),  # DeiT, Table 1
    "vit_base": Size(768, 12, 12),  # ViT (Dosovitskiy et al., 2021), Table 1
    "vit_large": Size(1024, 24, 16),  # ViT, Table 1
    "vit_huge": Size(1280, 32, 16),  # ViT, Table 1
}


def size_of(arch: str) -> Size:
    """The size called `arch`. Raises UserError with the nearest valid name."""
    if arch not in ARCHS:
        raise UserError("arch", arch, allowed=ARCHS)
    return ARCHS[arch]


@dataclass(frozen=True)
class ViTConfig:
    """Everything that determines the shape of a plain ViT encoder; stored in the encoder file's header."""

    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    pos_embed: Literal["sincos", "learned", "none"] = "sincos"
    rel_pos: Literal["none", "block", "shared", "block+shared"] = "none"  # relative position bias tables
    layer_scale_init: float | None = None
    key_bias: bool = True  # False: query and value biases only (BEiT family)

    @classmethod
    def named(cls, arch: str, **rest: Any) -> ViTConfig:
        size = size_of(arch)
        return cls(embed_dim=size.embed_dim, depth=size.depth, num_heads=size.num_heads, **rest)

    @property
    def grid_size(self) -> int:
        return self.img_size // self.patch_size

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def transformer_flops(embed_dim: int, depth: int, num_tokens: int, mlp_ratio: float = 4.0) -> float:
    """Forward FLOPs of `depth` transformer blocks over `num_tokens` tokens (a multiply-add counts as two)."""
    projections = (4 + 2 * mlp_ratio) * num_tokens * embed_dim**2
    attention = 2 * num_tokens**2 * embed_dim
    return 2.0 * depth * (projections + attention)


def patch_embed_flops(embed_dim: int, num_patches: int, patch_size: int) -> float:
    """Forward FLOPs of the patch embedding of an RGB image."""
    return 2.0 * num_patches * embed_dim * 3 * patch_size**2
