"""Groups of tokens, and the mean over a group: the parts of token morphing.

DTM's own grouping, iterated bipartite matching, is in methods/dtm.py. Here are the alternatives of its
ablation. Each makes exactly the wanted number of groups for every image of a batch; no group is empty. How
the paper sets them up could not be read: they are reconstructions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.masking import gather_tokens

KMEANS_ROUNDS = 10  # ours; BEiT v2 initialises its codebook with as many


class Morphing(NamedTuple):
    """The group of each token, `group: [B, N]`, and its weight in the group's mean, `weight: [B, N]`."""

    group: Tensor
    weight: Tensor
    num_groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Morph x `[B, N, C]` and give each token the morphed feature of its group, `[B, N, C]`.

        Because every token gets a copy, a loss over the N tokens weights a group by its size.
        """
        return gather_tokens(self.merge(x), self.group)

    def merge(self, x: Tensor) -> Tensor:
        """The morphed tokens of x `[B, N, C]`: `[B, num_groups, C]`."""
        return _sums(x * self.weight.unsqueeze(-1), self.group, self.num_groups)


def averaging(group: Tensor, num_groups: int) -> Morphing:
    """The morphing that takes the plain mean over each group; `group` is `[B, N]`."""
    size = _sizes(group, num_groups).gather(1, group)
    return Morphing(group, 1 / (size + 1e-6), num_groups)  # the divisor of DTM's code


def random_groups(x: Tensor, num_groups: int) -> Morphing:
    """Random groups of the tokens x `[B, N, C]`; their sizes differ by one at most."""
    order = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)
    return averaging(order % num_groups, num_groups)


def grid_groups(x: Tensor, num_groups: int) -> Morphing:
    """Cells of a fixed grid over the patches of x `[B, N, C]`: squares if N and `num_groups` allow it.

    The rows of patches are cut into about sqrt(num_groups) bands. Each band is cut into about as many cells,
    so that there are exactly num_groups.
    """
    batch, num_tokens, _ = x.shape
    side, bands = math.isqrt(num_tokens), round(math.sqrt(num_groups))
    patch = torch.arange(num_tokens, device=x.device)
    row, column = patch // side, patch % side
    band = row * bands // side
    first = band * num_groups // bands  # the band's first cell
    cells = (band + 1) * num_groups // bands - first
    return averaging((first + column * cells // side).expand(batch, -1), num_groups)


@torch.no_grad()
def kmeans_groups(x: Tensor, num_groups: int, rounds: int = KMEANS_ROUNDS) -> Morphing:
    """Spherical k-means of tokens x `[B, N, C]`, from random tokens, for a fixed number of rounds."""
    unit = F.normalize(x.float(), dim=-1)
    start = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)[:, :num_groups]
    centre = gather_tokens(unit, start)  # [B, G, C]
    similarity, group = (unit @ centre.mT).max(dim=-1)  # [B, N]
    for _ in range(rounds):
        total = _sums(unit, group, num_groups)
        empty = _sizes(group, num_groups) == 0
        centre = torch.where(empty.unsqueeze(-1), centre, F.normalize(total, dim=-1))
        similarity, group = (unit @ centre.mT).max(dim=-1)
    return averaging(fill_empty(group, similarity, num_groups), num_groups)


def fill_empty(group: Tensor, similarity: Tensor, num_groups: int) -> Tensor:
    """Move one of the worst-fitting tokens to each empty group; the best token of every group stays.

    Args:
        group: `[B, N]`, each token's group.
        similarity: `[B, N]`, how well the token fits its group.
    """
    batch, num_tokens = group.shape
    rank = similarity.argsort(dim=1, descending=True).argsort(dim=1)  # [B, N], 0 fits best
    best = torch.full((batch, num_groups), num_tokens, device=group.device)
    best = best.scatter_reduce(1, group, rank, "amin")  # [B, G]
    worst = rank.masked_fill(rank == best.gather(1, group), -1).argsort(dim=1, descending=True)
    worst = worst[:, :num_groups]
    empty = _sizes(group, num_groups) == 0  # [B, G]
    empty_first = empty.int().argsort(dim=1, descending=True, stable=True)
    moves = torch.arange(num_groups, device=group.device) < empty.sum(dim=1, keepdim=True)
    return group.scatter(1, worst, torch.where(moves, empty_first, group.gather(1, worst)))


def _sizes(group: Tensor, num_groups: int) -> Tensor:
    """Members of each group, `[B, num_groups]`."""
    size = torch.zeros(group.shape[0], num_groups, device=group.device)
    return size.scatter_add(1, group, size.new_ones(group.shape))


def _sums(x: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Sum of x `[B, N, C]` over each group, `[B, num_groups, C]`."""
    total = x.new_zeros(x.shape[0], num_groups, x.shape[2])
    return total.scatter_add(1, group.unsqueeze(-1).expand_as(x), x)


GROUPINGS: Mapping[str, Callable[[Tensor, int], Morphing]] = {
    "kmeans": kmeans_groups,
    "random": random_groups,
    "grid": grid_groups,
}
