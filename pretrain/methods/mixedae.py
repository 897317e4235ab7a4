"""MixedAE: Mixed Autoencoder for Self-supervised Visual Representation Learning (Chen et al., CVPR 2023).

MAE on mixed images. Groups of 1/r images are cut into patches and mixed into one image. Each image gives its
patches at N r random places; the places it does not give are those that MAE would mask. The encoder sees the
mixed image (`MixedAE.mix`). The decoder gets each image's own tokens, with mask tokens elsewhere
(`MixedAE.unmix`), and reconstructs this image as MAE does. Mixing alone makes the encoder's task easier and
the encoder worse; *homologous recognition*, knowing which patches come from the same image, repairs it:

    attention            topk | standard        each query keeps its N r largest logits; no parameters;
                                                evaluation uses standard attention
    segment_embed        encoder | none         a learned vector for each of the group's images
    contrastive_weight                          tokens of the same image attract each other, others repel

With all three off this is the paper's naive mixing; with `mixing_ratio = 1` as well it is MAE.

A reconstruction: no official code exists, and only the abstract, the introduction and a figure of the paper
(arXiv 2303.17152) could be read. The three parts are recalled, and so are some of their settings (each recipe
value has its source). Nothing, or only the name, is known of:

    mixing               compose | full         one mixed image per group, or one for each of its images
    cls_attention        plain | always_keep    the class token competes for the top k, or is always kept

With full mixing, each mixed image is decoded only for the image it was made for, so every image is decoded
once, as with compose. The contrastive term is the mean over a token's positives, on normed encoder tokens,
without projector. Segment vectors are drawn from N(0, 0.02). The top k are selected per head, in all blocks,
for every query alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import size_of, transformer_flops
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.errors import UserError
from mimbench.recipe import cite, require_range
from pretrain.contrastive import homologous_contrast
from pretrain.masking import gather_tokens, random_masking
from pretrain.methods import mae
from pretrain.methods.mae import MAE, MAERecipe


def topk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    num_kept: int,
    keep_cls: bool,
) -> Tensor:
    """softmax(TopK(q k^T / sqrt(d))) v: each query attends to the keys with its `num_kept` largest logits.

    Args:
        q, k, v: `[B, heads, N, d]`, the class token first.
        keep_cls: always keep the class token's key, in addition to `num_kept` patches.
    """
    assert attn_mask is None and not is_causal
    if num_kept + keep_cls >= k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v)
    logits = (q * q.shape[-1] ** -0.5) @ k.mT  # [B, heads, N, N]
    kept, index = logits[..., int(keep_cls) :].topk(num_kept, sorted=False)  # [B, heads, N, num_kept]
    if keep_cls:
        kept = torch.cat([logits[..., :1], kept], dim=-1)
        index = F.pad(index + 1, (1, 0))
    weights = kept.softmax(dim=-1)
    return torch.zeros_like(logits, dtype=weights.dtype).scatter_(-1, index, weights) @ v


class MixedAE(MAE):
    """The mixed autoencoder.

    In shape comments, a group has G images, each gives K = N / G patches to a mixed image, and there are M
    mixed images: B / G with compose mixing, B with full mixing.
    """

    def __init__(self, recipe: MixedAERecipe) -> None:
        super().__init__(recipe)
        self.group_size, self.num_views = recipe.group_size, recipe.num_views
        self.temperature, self.contrastive_weight = recipe.temperature, recipe.contrastive_weight
        self.homologous, self.keep_cls = recipe.attention == "topk", recipe.cls_attention == "always_keep"
        self.num_kept = recipe.num_patches // recipe.group_size
        self.register_parameter("segment_embed", None)
        if recipe.segment_embed == "encoder":
            table = torch.empty(self.group_size, self.encoder.embed_dim)
            self.segment_embed = nn.Parameter(nn.init.normal_(table, std=0.02))
        self.train()

    def train(self, mode: bool = True) -> MixedAE:
        """Homologous attention in training, standard attention in evaluation."""
        super().train(mode)
        attend = F.scaled_dot_product_attention
        if mode and self.homologous:
            attend = partial(topk_attention, num_kept=self.num_kept, keep_cls=self.keep_cls)
        for block in self.encoder.blocks:
            block.attn.attend = attend
        return self

    def mix(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mixed images' tokens `[M, G*K, D]`, sorted by source, then by noise; and ids_restore `[M, N]`.

        A random permutation of the places is cut into G equal parts; image i gives the places of part i.

        Args:
            noise: `[M, N]`; see `random_masking`.
        """
        x = self.encoder.embed(images)  # [B, N, D]
        (batch, num_patches, dim), size, views = x.shape, self.group_size, self.num_views
        masked = self.mask_ratio if size == 1 else 0.0  # a mixed image is full
        ids, ids_restore, _ = random_masking(batch // size * views, num_patches, masked, x.device, noise)
        ids = ids.unflatten(1, (size, -1)).unflatten(0, (-1, views))  # [B/G, views, G, K]
        ids = ids.transpose(1, 2).reshape(batch, -1)  # [B, views*K]
        x = gather_tokens(x, ids).reshape(batch // size, size, views, -1, dim)
        x = x.transpose(1, 2)  # [B/G, views, G, K, D]
        if self.segment_embed is not None:
            x = x + self.segment_embed.unsqueeze(1)
        return x.reshape(len(ids_restore), -1, dim), ids_restore

    def unmix(self, latent: Tensor, ids_restore: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each image's own tokens `[B, 1+K, D]`, its ids_restore `[B, N]` and mask `[B, N]` (1 = masked).

        Args:
            latent: mixed images, `[M, 1+G*K, D]`; all images of a group share the class token.
            ids_restore: `[M, N]`; for image i it is shifted by i K places.
        """
        size, num_patches = self.group_size, ids_restore.shape[1]
        tokens = latent[:, 1:].unflatten(1, (size, -1))  # [M, G, K, D]
        cls_token = latent[:, None, :1].expand(-1, size, -1, -1)
        tokens = torch.cat([cls_token, tokens], dim=2)  # [M, G, 1+K, D]
        first = torch.arange(size, device=latent.device) * (tokens.shape[2] - 1)
        ids_restore = (ids_restore[:, None] - first[:, None]) % num_patches  # [M, G, N]
        if self.num_views > 1:  # of view i keep only source i
            tokens, ids_restore = (
                x.unflatten(0, (-1, size)).diagonal(dim1=1, dim2=2).movedim(-1, 1)
                for x in (tokens, ids_restore)
            )
        tokens, ids_restore = tokens.flatten(0, 1), ids_restore.flatten(0, 1)
        return tokens, ids_restore, (ids_restore >= tokens.shape[1] - 1).float()

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        x, mixed_restore = self.mix(images)
        latent = self.encoder.norm(self.encoder.encode(x)[-1])  # [M, 1+G*K, D]
        tokens, ids_restore, mask = self.unmix(latent, mixed_restore)
        pred = self.decoder(tokens, ids_restore)  # [B, N, p*p*3]
        reconstruction = self.forward_loss(images, pred, mask)
        if self.contrastive_weight == 0:
            return {"loss": reconstruction}
        contrast = homologous_contrast(latent[:, 1:].unflatten(1, (self.group_size, -1)), self.temperature)
        loss = reconstruction + self.contrastive_weight * contrast
        return {"loss": loss, "reconstruction": reconstruction, "contrast": contrast}


@dataclass(frozen=True, kw_only=True)
class MixedAERecipe(MAERecipe):
    mixing_ratio: float  # r: the share of an image's patches that it gives; 1 = no mixing, MAE's masking
    mixing: Literal["compose", "full"]
    attention: Literal["topk", "standard"]
    cls_attention: Literal["plain", "always_keep"]
    segment_embed: Literal["encoder", "none"]
    contrastive_weight: float  # lambda; 0 = off
    temperature: float  # tau

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("mixing_ratio", self.mixing_ratio, 1 / self.num_patches, 1)
        if self.num_patches % self.group_size or abs(self.group_size * self.mixing_ratio - 1) > 1e-6:
            remedy = f"It must be 1 / G, where G divides the number of patches, {self.num_patches}."
            raise UserError("mixing_ratio", self.mixing_ratio, remedy=remedy)
        if self.global_batch_size % self.group_size:
            remedy = f"Groups of 1 / mixing_ratio = {self.group_size} images must divide it."
            raise UserError("global_batch_size", self.global_batch_size, remedy=remedy)
        if self.group_size > 1 and abs(self.mask_ratio - (1 - self.mixing_ratio)) > 1e-6:
            remedy = f"What an image does not give is masked: it must be {1 - self.mixing_ratio:g}."
            raise UserError("mask_ratio", self.mask_ratio, remedy=remedy)
        if self.contrastive_weight and self.num_patches < 2 * self.group_size:
            raise UserError("mixing_ratio", self.mixing_ratio, remedy="Each image must give two patches.")

    @property
    def group_size(self) -> int:
        """G: images that are mixed with each other."""
        return round(1 / self.mixing_ratio)

    @property
    def num_views(self) -> int:
        """Number of mixed images made from a group."""
        return self.group_size if self.mixing == "full" else 1

    def step_flops(self) -> float:
        size, num_mixed = size_of(self.arch), self.num_visible * self.group_size
        mixed = transformer_flops(size.embed_dim, size.depth, num_mixed + 1)
        if self.contrastive_weight:
            mixed += 2.0 * num_mixed**2 * size.embed_dim
        alone = transformer_flops(size.embed_dim, size.depth, self.num_visible + 1)
        return super().step_flops() + 3 * (mixed * self.num_views / self.group_size - alone)


def recipes() -> Mapping[str, MixedAERecipe]:
    """MAE's recipe at every scale, with the fields of mixing added."""
    named = "named in a summary of the paper; where they act, recalled"
    mixing = (
        cite("paper, recalled", mixing_ratio=0.25, mixing="compose"),
        cite("paper, recalled: what an image does not give is masked", mask_ratio=0.75),
        cite(named, attention="topk", segment_embed="encoder"),
        cite("ours: not known; the plainer choice", cls_attention="plain"),
        cite("paper, recalled", contrastive_weight=0.1, temperature=0.25),
    )
    result = {
        scale: MixedAERecipe.based_on(base, *mixing, prefix="as MAE: ")
        for scale, base in mae.recipes().items()
    }
    longest = result["paper"].vary("author's figure: the longest of 300, 800 and 1600", epochs=1600.0)
    few = "ours: 16 of 64 patches are too few to learn from in minutes, of 1/4 and 1/2"
    toy = result["toy"].vary(few, mixing_ratio=0.5, mask_ratio=0.5, base_lr=3e-3, epochs=16.0)
    return {**result, "paper": longest, "toy": toy}


def transfer() -> TransferOverrides:
    source = "paper, recalled: iBOT's learning rate, batch and steps"
    return {
        "detection": {"paper": [cite(source, base_lr=1e-4, global_batch_size=16, milestones=(8.0, 11.0))]}
    }


METHOD = MethodCard(
    name="mixedae",
    title="MixedAE",
    paper="Chen et al., Mixed Autoencoder for Self-supervised Visual Representation Learning, CVPR 2023",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=MixedAE,
    transfer=transfer,
    points=13,
)
