"""Deep dynamic supervision (Chen et al., DDAE, AAAI 2024), for any method that reconstructs masked patches.

Several blocks of the encoder are supervised. A block's loss on each masked patch is weighted with d^beta,
where d is the distance to the nearest visible patch: beta > 0 stresses far, hard patches, beta < 0 near,
easy ones. Every block has its own beta, which changes during training.

RECONSTRUCTION. Read in the paper (abstract, head of the introduction, Figure 2): patches are weighted by
their distance to visible ones, the emphasis changes over time and depth, several blocks are supervised. The
exponent is recalled, not read. The metric, the normalisation and the schedule of beta are ours. There is no
official code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mimbench.arch import size_of
from mimbench.errors import UserError
from mimbench.recipe import PretrainRecipe, require_range


@dataclass(frozen=True, kw_only=True)
class DeepDynamicRecipe(PretrainRecipe):
    """Fields of every method with deep dynamic supervision."""

    taps: tuple[int, ...]  # the supervised blocks, from 1, ascending; the last is the encoder's last
    beta_mode: Literal["schedule", "learnable", "fixed"]  # see `DeepDynamicSupervision.betas`
    beta: float  # largest |beta| of the first and last tap; with `fixed`, the beta of every tap
    depth_sign: Literal[1, -1]  # 1: deep taps stress far patches, shallow ones near patches; -1: the reverse
    normalize_weights: bool  # scale the weights of an image's masked patches to mean 1; off: plain d^beta

    def __post_init__(self) -> None:
        super().__post_init__()
        depth = size_of(self.arch).depth
        ascending = self.taps and all(a < b for a, b in zip((0, *self.taps), self.taps, strict=False))
        if not ascending or self.taps[-1] != depth:
            remedy = (
                f"Name blocks in ascending order, counted from 1, the last of them {depth} ({self.arch})."
            )
            raise UserError("taps", self.taps, remedy=remedy)
        if self.beta_mode != "fixed":
            require_range("beta", self.beta, 0)

    @property
    def tap_indices(self) -> list[int]:
        """The supervised blocks, counted from 0."""
        return [tap - 1 for tap in self.taps]


class DeepDynamicSupervision(nn.Module):
    """Reduces the loss of every tap on every patch to one number.

    Args:
        grid_size: side G of the patch grid.
    """

    def __init__(self, recipe: DeepDynamicRecipe, grid_size: int) -> None:
        super().__init__()
        self.mode, self.beta = recipe.beta_mode, recipe.beta
        self.taps, self.normalize = recipe.taps, recipe.normalize_weights
        # A single tap counts as the deepest.
        rank = torch.linspace(1, -1, len(recipe.taps)).flip(0) * recipe.depth_sign
        direction = torch.ones_like(rank) if self.mode == "fixed" else rank
        self.register_buffer("direction", direction, persistent=False)  # [S]
        self.register_buffer("grid_distances", grid_distances(grid_size), persistent=False)  # [N, N]
        if self.mode == "learnable":
            self.free_beta = nn.Parameter(torch.atanh(0.5 * direction))

    def betas(self, step_fraction: float) -> Tensor:
        """Every tap's exponent, `[S]`.

        `schedule`: from 0 (plain deep supervision) along half a cosine to -beta at the shallowest tap, +beta
        at the deepest, evenly spaced between them. `learnable`: beta * tanh(b), which starts at half of these
        final values. `fixed`: beta. With `depth_sign` -1 the signs of the first two are reversed.
        """
        if self.mode == "learnable":
            return self.beta * self.free_beta.tanh()
        grown = 0.5 * (1 - math.cos(math.pi * step_fraction)) if self.mode == "schedule" else 1.0
        return self.direction * (self.beta * grown)

    def weights(self, mask: Tensor, step_fraction: float) -> Tensor:
        """Weights `[S, B, N]` for mask `[B, N]` (1 = masked): zero on visible patches.

        If normalised, the weights of an image sum to its number of masked patches. Then beta moves the loss
        between patches but cannot shrink it.
        """
        # [B, N], 0 where visible
        log_distance = nearest_visible(mask, self.grid_distances).clamp(min=1).log()
        weights = mask * (self.betas(step_fraction)[:, None, None] * log_distance).exp()  # [S, B, N]
        if self.normalize:
            weights = weights * (mask.sum(dim=-1) / weights.sum(dim=-1)).unsqueeze(-1)
        return weights

    def forward(self, losses: Tensor, mask: Tensor, step_fraction: float) -> Tensor:
        """Mean over taps and masked patches of the weighted losses.

        Args:
            losses: `[..., S, B, N]`, taps in the recipe's order; leading axes keep several targets apart.
            mask: `[B, N]`, 1 = masked.
        """
        weighted = losses * self.weights(mask, step_fraction)
        return weighted.mean(dim=-3).sum(dim=(-2, -1)) / mask.sum()

    def log(self, step_fraction: float) -> dict[str, Tensor]:
        """The betas as scalars, `beta_6` for block 6."""
        betas = self.betas(step_fraction).detach()
        return {f"beta_{tap}": beta for tap, beta in zip(self.taps, betas.unbind(), strict=True)}


class PerTap(nn.ModuleList):
    """A module for each tap. The input stacks the taps along the batch, `[S*B, ...]`; each gets its part."""

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self, x.chunk(len(self)), strict=True)
        return torch.cat([module(part) for module, part in parts])


def grid_distances(grid_size: int) -> Tensor:
    """Euclidean distance between any two cells of a G x G grid, `[N, N]`, in cells."""
    axis = torch.arange(grid_size, dtype=torch.float32)
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    return (cells[:, None] - cells[None]).square().sum(dim=-1).sqrt()


def nearest_visible(mask: Tensor, distances: Tensor) -> Tensor:
    """Each patch's distance to the nearest visible one, `[B, N]`: 0 on visible patches, at least 1 elsewhere.

    Args:
        mask: `[B, N]`, 1 = masked.
        distances: `[N, N]`, between patches.
    """
    return distances.masked_fill(mask.unsqueeze(1) > 0, torch.inf).amin(dim=-1)
