"""The plain ViT that every method pretrains and every task fine-tunes: timm's blocks, positions, taps.

Parameter names are timm's. Dosovitskiy et al., 2021, with the variants of the MIM families: fixed sin-cos or
learned positions (MAE, iBOT), relative position bias per block and shared, no key bias, layer scale (BEiT,
DTM).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, trunc_normal_
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mimbench.arch import ViTConfig

LAYER_NORM_EPS = 1e-6  # all MIM families; PyTorch's own default is 1e-5


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the eps of the MIM families."""

    def __init__(self, dim: int, eps: float = LAYER_NORM_EPS, **kwargs: object) -> None:
        super().__init__(dim, eps=eps, **kwargs)  # type: ignore[arg-type]


def sincos_position_embedding(embed_dim: int, grid_size: int, *, cls_token: bool = True) -> Tensor:
    """Fixed 2-D sin-cos positions, `[1, (1+)G*G, D]`; the first half of the channels encodes the column.

    MAE, util/pos_embed.py@efb2a80: for cell (r, c), `[sin(c w) | cos(c w) | sin(r w) | cos(r w)]` with
    `w_k = 10000^(-k / (D/4))`, computed in float64; the class token's row is zero.
    """
    omega = 10000.0 ** -(torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))
    axis = torch.arange(grid_size, dtype=torch.float64)
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    angles = [column.reshape(-1, 1) * omega, row.reshape(-1, 1) * omega]  # 2 x [G*G, D/4]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)  # [G*G, D]
    if cls_token:
        table = torch.cat([torch.zeros(1, embed_dim, dtype=torch.float64), table])
    return table.float().unsqueeze(0)


def resize_position_embedding(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize `[1, 1+G*G, D]` to `[1, 1+h*w, D]` as the official codes do: bicubic, no antialiasing."""
    cls_pos, patch_pos = pos_embed[:, :1], pos_embed[:, 1:]
    side = round(patch_pos.shape[1] ** 0.5)
    if grid == (side, side):
        return pos_embed
    patch_pos = patch_pos.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, G, G]
    patch_pos = F.interpolate(patch_pos, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([cls_pos, patch_pos.flatten(2).transpose(1, 2)], dim=1)


@lru_cache(maxsize=64)
def relative_position_index(height: int, width: int, device: torch.device) -> Tensor:
    """Row of the bias table for each (query, key), `[1+N, 1+N]`, class token first (BEiT, Bao et al., 2022).

    Rows 0..(2h-1)(2w-1)-1 are the offsets query - key; the last three serve cls->patch, patch->cls, cls->cls.
    """
    coords = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
    offset = coords[:, :, None] - coords[:, None, :]  # [2, N, N]
    num_offsets = (2 * height - 1) * (2 * width - 1)
    index = torch.empty(1 + height * width, 1 + height * width, dtype=torch.long)
    index[1:, 1:] = (offset[0] + height - 1) * (2 * width - 1) + (offset[1] + width - 1)
    index[0, :] = num_offsets
    index[:, 0] = num_offsets + 1
    index[0, 0] = num_offsets + 2
    return index.to(device)


class RelativePositionBias(nn.Module):
    """A learned bias per head and relative position, `table: [(2G-1)^2 + 3, heads]`, zero at the start."""

    def __init__(self, grid_size: int, num_heads: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.table = nn.Parameter(torch.zeros((2 * grid_size - 1) ** 2 + 3, num_heads))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The bias `[heads, 1+N, 1+N]` on a grid of tokens; interpolated if that is not the table's grid."""
        table: Tensor = self.table
        if grid != (self.grid_size, self.grid_size):
            side = 2 * self.grid_size - 1
            offsets = table[:-3].T.reshape(1, -1, side, side)  # [1, heads, 2G-1, 2G-1]
            size = (2 * grid[0] - 1, 2 * grid[1] - 1)
            offsets = F.interpolate(offsets, size=size, mode="bicubic", align_corners=False)
            table = torch.cat([offsets.flatten(2)[0].T, table[-3:]])
        index = relative_position_index(*grid, table.device)
        return F.embedding(index, table).permute(2, 0, 1)

    def window(self, side: int) -> Tensor:
        """The bias `[heads, S*S, S*S]` between a window's patches: the table's entries for near offsets."""
        grid, full = self.grid_size, 2 * self.grid_size - 1
        if side > grid:
            return self((side, side))[:, 1:, 1:]
        near = slice(grid - side, grid + side - 1)
        body = self.table[:-3].reshape(full, full, -1)[near, near].flatten(0, 1)
        table = torch.cat([body, self.table[-3:]])
        index = relative_position_index(side, side, table.device)
        return F.embedding(index, table).permute(2, 0, 1)[:, 1:, 1:]


class Attention(nn.Module):
    """Multi-head self-attention, with or without key bias and relative position bias.

    Attributes:
        attend: the function from q, k, v (each `[B, heads, N, D/heads]`) to the input of the output
            projection. A method may replace it while it pretrains; the encoder file does not record that.
    """

    attend: Callable[..., Tensor]

    def __init__(self, dim: int, num_heads: int, *, key_bias: bool, rel_pos_grid: int | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        if not key_bias:
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.key_bias = key_bias
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_bias = RelativePositionBias(rel_pos_grid, num_heads) if rel_pos_grid else None
        self.attend = F.scaled_dot_product_attention

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, length, dim = x.shape
        bias: Tensor | None = self.qkv.bias
        if not self.key_bias:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).reshape(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, D/heads]
        x = self.attend(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class Block(TimmBlock):
    """timm's pre-norm block with the attention above.

    Args:
        rel_pos_grid: side of the token grid, for the block's own relative position table; None = no table.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        drop_path: float = 0.0,
        layer_scale_init: float | None = None,
        key_bias: bool = True,
        rel_pos_grid: int | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            mlp_ratio,
            qkv_bias=key_bias,
            init_values=layer_scale_init,
            drop_path=drop_path,
            norm_layer=LayerNorm,
        )
        self.attn = Attention(dim, num_heads, key_bias=key_bias, rel_pos_grid=rel_pos_grid)

    def relative_bias(self, grid: tuple[int, int]) -> Tensor | None:
        """This block's own relative position bias, if it has one."""
        table: RelativePositionBias | None = self.attn.rel_pos_bias  # type: ignore[assignment]
        return table(grid) if table is not None else None

    def windowed(self, x: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
        """The block with attention within windows of `side` x `side` patches (ViTDet, Li et al., 2022).

        The class token skips the attention. Windows at the lower and right edge are padded with zeros.

        Args:
            x: `[B, 1+h*w, D]` on the grid (h, w).
        """
        (batch, _, dim), (height, width) = x.shape, grid
        rows, columns = -(-height // side), -(-width // side)
        y = self.norm1(x)[:, 1:].reshape(batch, height, width, dim)
        y = F.pad(y, (0, 0, 0, columns * side - width, 0, rows * side - height))
        y = y.reshape(batch, rows, side, columns, side, dim).transpose(2, 3).reshape(-1, side * side, dim)
        table: RelativePositionBias | None = self.attn.rel_pos_bias  # type: ignore[assignment]
        y = self.attn(y, attn_mask=table.window(side) if table is not None else None)
        y = y.reshape(batch, rows, columns, side, side, dim).transpose(2, 3)
        y = y.reshape(batch, rows * side, columns * side, dim)[:, :height, :width].reshape(batch, -1, dim)
        y = torch.cat([torch.zeros_like(x[:, :1]), y], dim=1)
        x = x + self.drop_path1(self.ls1(y))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ViT(nn.Module):
    """The plain Vision Transformer encoder.

    Args:
        config: shape and variant.
        drop_path: stochastic depth of the last block; it rises linearly from 0.

    Attributes:
        window: side of the attention windows in patches; 0 = no windows. Downstream tasks set this and the
            next two.
        global_blocks: 0-based blocks without windows.
        checkpoint_blocks: recompute the blocks in the backward pass to save memory.
    """

    window: int
    global_blocks: tuple[int, ...]

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = dim = config.embed_dim
        grid = config.grid_size
        self.patch_embed = PatchEmbed(
            config.img_size, config.patch_size, embed_dim=dim, strict_img_size=False, dynamic_img_pad=False
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.pos_embed == "sincos":
            self.pos_embed = nn.Parameter(sincos_position_embedding(dim, grid))
        elif config.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, dim))
        else:
            self.register_parameter("pos_embed", None)
        self.rel_pos_bias = (
            RelativePositionBias(grid, config.num_heads) if "shared" in config.rel_pos else None
        )
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.num_heads,
                config.mlp_ratio,
                drop_path=drop_path * i / max(config.depth - 1, 1),
                layer_scale_init=config.layer_scale_init,
                key_bias=config.key_bias,
                rel_pos_grid=grid if "block" in config.rel_pos else None,
            )
            for i in range(config.depth)
        )
        self.norm: nn.Module = LayerNorm(dim)
        self.window, self.global_blocks = 0, ()
        self.checkpoint_blocks = False
        self.apply(_init_weights)
        for token in (self.cls_token, self.pos_embed if config.pos_embed == "learned" else None):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def embed(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Patch tokens with their positions, `[B, N, D]`, in raster order.

        Args:
            images: `[B, 3, H, W]`; H and W multiples of the patch size.
            mask: `[B, N]`, 1 = masked: `mask_token` replaces those embeddings before positions are added.
        """
        x = self.patch_embed(images)  # [B, N, D]
        if mask is not None and mask_token is not None:
            w = mask.unsqueeze(-1).type_as(x)
            x = x * (1 - w) + mask_token * w
        if self.pos_embed is not None:
            x = x + resize_position_embedding(self.pos_embed, self.grid_of(images))[:, 1:]
        return x

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of a batch of images."""
        return images.shape[-2] // self.config.patch_size, images.shape[-1] // self.config.patch_size

    def encode(
        self, x: Tensor, grid: tuple[int, int] | None = None, taps: Sequence[int] = ()
    ) -> list[Tensor]:
        """Prepend the class token and run the blocks.

        Args:
            x: patch tokens from `embed`, all of them or a subset, `[B, N', D]`.
            grid: the token grid if it is not the pretraining one (relative positions and windows need it).
            taps: 0-based blocks whose raw outputs are returned too.

        Returns:
            The tapped outputs in the order of the blocks, then the last block's output, each `[B, 1+N', D]`,
            without the final norm.
        """
        cls_token: Tensor = self.cls_token
        if self.pos_embed is not None:
            cls_token = cls_token + self.pos_embed[:, :1]
        x = torch.cat([cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        grid = grid or (self.config.grid_size, self.config.grid_size)
        shared = self.rel_pos_bias(grid) if self.rel_pos_bias is not None else None
        outputs = []
        for i, block in enumerate(self.blocks):
            if self.window and i not in self.global_blocks:
                x = self._run(block.windowed, x, self.window, grid)  # type: ignore[arg-type]
            else:
                own = block.relative_bias(grid)  # type: ignore[operator]
                x = self._run(block, x, shared if own is None else own if shared is None else own + shared)
            if i in taps:
                outputs.append(x)
        return [*outputs, x]

    def _run(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.checkpoint_blocks and self.training:
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def forward(self, images: Tensor) -> Tensor:
        """All tokens after the final norm, `[B, 1+N, D]`, the class token first."""
        return self.norm(self.encode(self.embed(images), self.grid_of(images))[-1])

    def taps(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Feature maps `[B, D, h, w]` after the listed blocks (0-based, ascending), without the norm."""
        grid = self.grid_of(images)
        outputs = self.encode(self.embed(images), grid, indices)[: len(indices)]
        return [x[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, *grid) for x in outputs]

    def no_weight_decay(self) -> set[str]:
        """Names that are not decayed although they have more than one dimension."""
        return {"pos_embed", "cls_token"}


def _init_weights(module: nn.Module) -> None:
    """timm's and BEiT's fine-tuning initialisation: N(0, 0.02^2) weights, zero biases."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
