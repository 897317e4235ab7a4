"""DTM: Morphing Tokens Draw Strong Masked Image Models (Kim et al., ICLR 2025, arXiv 2401.00254).

A masked student regresses CLIP's patch tokens, but not one by one: similar *target* tokens are merged into
morphed tokens. The student's tokens are merged in the same groups, then the two are compared. Every step
draws how many tokens merge and in how many rounds (dynamic scheduling). Algorithm 1 is `morph` and `match`,
the scheduler `draw_schedule`, the loss `DTM.forward_loss`.

Follows the released code (naver-ai/dtm@322df2e); golden: dtm_morph.npz, dtm_tiny_engine.npz. Points where the
paper's text and the code differ, and its ablations, are recipe fields; the code's value comes first:

    split          alternate | random            even and odd positions, or a random half (Algorithm 1)
    merge          group_mean | row_normalised   mean of all members, or product of row-normalised matrices
    protect_first  True | False                  patch (0, 0) never merges (ToMe's class token protection)
    rounds         ceil_floor | exact            merges per round rounded, or exactly the drawn number in all
    weigh_groups   True | False                  mean loss over all N tokens, or over the morphed tokens
    loss_type      smoothl1 | negcosine | l1 | l2
    dynamic        True | False                  off: always half of the tokens in half of the rounds
    matching       bipartite | kmeans | random | grid    the ablation's other groups (pretrain/grouping.py)
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from mimbench.contract import MethodCard, Provenance
from mimbench.errors import UserError
from mimbench.recipe import Cited, PretrainRecipe, cite, require_range
from pretrain.feature_student import FeatureRecipe, token_distance
from pretrain.grouping import GROUPINGS, Morphing, averaging
from pretrain.methods.feature_mim import FeatureMIM, base_recipes, transfer
from pretrain.target import standardise


class Branch(NamedTuple):
    """One morphing: `num_merged` (r) tokens merge in each of `num_rounds` (k) rounds.

    In the first `num_longer` rounds one more merges.
    """

    num_merged: int
    num_rounds: int
    num_longer: int = 0

    def merged_in(self, p: int, num_tokens: int) -> int:
        """How many of `num_tokens` tokens merge in round p (from 0)."""
        return min(self.num_merged + (p < self.num_longer), (num_tokens - 1) // 2)

    def num_groups(self, num_tokens: int) -> int:
        """How many of `num_tokens` tokens are left after all rounds."""
        for p in range(self.num_rounds):
            num_tokens -= self.merged_in(p, num_tokens)
        return num_tokens


def draw_schedule(
    max_merged: tuple[int, int], max_rounds: tuple[int, int], num_branches: int, rounds: str = "ceil_floor"
) -> list[Branch]:
    """Dynamic scheduling: draw m1, m2 ~ U{0..n} and k1, k2 ~ U{1..K} in this order (Python's `random`).

    m is the number of tokens to remove. A branch removes r = ceil(m / k) in each of k rounds, or floor(m / k)
    if r k would exceed n1 (engine_for_dtm.py@322df2e, which compares both branches with n1).
    """
    m = [random.randint(0, n) for n in max_merged]
    k = [random.randint(1, limit) for limit in max_rounds]
    return [branch_of(m[i], k[i], max_merged[0], rounds) for i in range(num_branches)]


def branch_of(num_removed: int, num_rounds: int, limit: int, rounds: str = "ceil_floor") -> Branch:
    """Rounds that remove about `num_removed` tokens; with `exact`, exactly so many if no round is capped."""
    if rounds == "exact":
        return Branch(num_removed // num_rounds, num_rounds, num_removed % num_rounds)
    r = -(-num_removed // num_rounds)
    return Branch(num_removed // num_rounds if r * num_rounds > limit else r, num_rounds)


def match(x: Tensor, num_merged: int, *, split: str, protect_first: bool) -> tuple[Tensor, int]:
    """One round of balanced bipartite matching of tokens x `[B, t, C]`.

    The tokens are split into two halves A and B. Every A token finds its most similar B token, and the
    `num_merged` most similar pairs merge. The new order is: kept A tokens in their order, then B tokens in
    their order.

    Returns:
        The new position `[B, t]` of every token, and the new number of tokens.
    """
    batch, num_tokens, _ = x.shape
    order = torch.arange(num_tokens, device=x.device)
    if split == "random":
        first = int(protect_first)  # a protected token stays first: in A, and afterwards again
        order[first:] = first + torch.rand(num_tokens - first, device=x.device).argsort()
    half_a, half_b = order[::2], order[1::2]
    unit = x / x.norm(dim=-1, keepdim=True)
    scores = unit[:, half_a] @ unit[:, half_b].transpose(1, 2)  # [B, a, b]
    if protect_first:
        scores = scores.masked_fill((half_a == 0)[:, None], -torch.inf)
    best, partner = scores.max(dim=-1)  # [B, a]
    merging = best.argsort(dim=-1, descending=True)[:, :num_merged]  # [B, r]
    merges = torch.zeros_like(best, dtype=torch.bool).scatter(1, merging, True)
    num_kept = half_a.numel() - num_merged
    position_a = torch.where(merges, num_kept + partner, (~merges).cumsum(dim=1) - 1)
    position_b = num_kept + torch.arange(half_b.numel(), device=x.device).expand(batch, -1)
    position = torch.empty(batch, num_tokens, dtype=torch.long, device=x.device)
    position[:, half_a], position[:, half_b] = position_a, position_b
    return position, num_kept + half_b.numel()


@torch.no_grad()
def morph(target: Tensor, branch: Branch, *, split: str, merge: str, protect_first: bool) -> Morphing:
    """Algorithm 1: match and merge the target's tokens `[B, N, C]`, round by round."""
    batch, num_tokens, dim = target.shape
    group = torch.arange(num_tokens, device=target.device).expand(batch, -1)
    weight = target.new_ones(batch, num_tokens)
    x, size = target, target.new_ones(batch, num_tokens)
    for p in range(branch.num_rounds):
        num_merged = branch.merged_in(p, x.shape[1])
        if num_merged == 0:
            break
        position, count = match(x, num_merged, split=split, protect_first=protect_first)
        share = size if merge == "group_mean" else torch.ones_like(size)
        total = x.new_zeros(batch, count).scatter_add(1, position, share)  # [B, t']
        index = position.unsqueeze(-1).expand_as(x)
        x = x.new_zeros(batch, count, dim).scatter_add(1, index, x * share.unsqueeze(-1)) / total.unsqueeze(
            -1
        )
        size = size.new_zeros(batch, count).scatter_add(1, position, size)
        weight = weight / total.gather(1, position).gather(1, group) if merge == "row_normalised" else weight
        group = position.gather(1, group)
    return averaging(group, x.shape[1]) if merge == "group_mean" else Morphing(group, weight, x.shape[1])


def draw_branches(recipe: MorphRecipe) -> list[Branch]:
    """The morphings of a step, the same for the whole batch."""
    n, rounds = recipe.max_merged, recipe.max_rounds
    if recipe.dynamic:
        return draw_schedule((n, n), (rounds, rounds), recipe.num_branches, recipe.rounds)
    return [branch_of(n // 2, max(rounds // 2, 1), n, recipe.rounds)] * recipe.num_branches


def morph_by(recipe: MorphRecipe, target: Tensor, branch: Branch) -> Morphing:
    """Group the target's tokens `[B, N, C]` by the recipe's matching; all matchings give as many groups."""
    if recipe.matching != "bipartite":
        return GROUPINGS[recipe.matching](target, branch.num_groups(target.shape[1]))
    return morph(target, branch, split=recipe.split, merge=recipe.merge, protect_first=recipe.protect_first)


class DTM(FeatureMIM):
    """Feature MIM with dynamically morphed tokens."""

    recipe: DTMRecipe

    def draw_branches(self) -> list[Branch]:
        return draw_branches(self.recipe)

    def forward_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Distance between morphed pred and morphed target, both `[B, N, C]`; mean over the branches."""
        r = self.recipe
        pred, target = pred.float(), target.float()  # for sums over a group; similarities follow autocast
        losses = []
        for branch in self.draw_branches():
            morphing = morph_by(r, target, branch)
            apply = morphing if r.weigh_groups else morphing.merge
            morphed_target = apply(target)
            if r.normalize_target:
                morphed_target = standardise(morphed_target)
            losses.append(token_distance(apply(pred), morphed_target, r.loss_type))
        return r.dtm_weight * torch.stack(losses).mean()


@dataclass(frozen=True, kw_only=True)
class MorphRecipe(PretrainRecipe):
    """How tokens are morphed, for DTM and for its other hosts."""

    matching: Literal["bipartite", "kmeans", "random", "grid"]
    max_merged: int  # n: largest number of tokens removed in a step
    max_rounds: int  # K
    num_branches: int  # L: 1 or 2
    split: Literal["alternate", "random"]  # this, merge and protect_first: for bipartite matching only
    merge: Literal["group_mean", "row_normalised"]
    protect_first: bool
    rounds: Literal["ceil_floor", "exact"]
    dynamic: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("max_merged", self.max_merged, 0, self.num_patches)
        require_range("max_rounds", self.max_rounds, 1)
        if self.num_branches not in (1, 2):
            raise UserError(
                "num_branches", self.num_branches, allowed=(1, 2), remedy="Two schedules are drawn."
            )


@dataclass(frozen=True, kw_only=True)
class DTMRecipe(MorphRecipe, FeatureRecipe):
    dtm_weight: float
    weigh_groups: bool


PARSER = "DTM code, parser defaults of run_pretrain_dtm.py@322df2e"
ENGINE = "DTM code, bm/merge.py and engine_for_dtm.py@322df2e"
MATCHING = cite(ENGINE, matching="bipartite", split="alternate", merge="group_mean", protect_first=True)
SCHEDULE = cite(ENGINE, rounds="ceil_floor", dynamic=True)
LOSS = cite(ENGINE, weigh_groups=True)
R = TypeVar("R", bound=MorphRecipe)


def with_morphing(kind: type[R], host: PretrainRecipe, *groups: Cited, prefix: str = "") -> R:
    """The host's recipe with DTM's morphing fields and `groups` added, as in `Recipe.based_on`."""
    scaled = "ours: all patches and one side of the grid, as in the code"
    source = PARSER if host.num_patches == 196 else scaled
    limits = cite(source, max_merged=host.num_patches, max_rounds=round(host.num_patches**0.5))
    branches = cite(PARSER, num_branches=2)
    return kind.based_on(host, MATCHING, SCHEDULE, branches, limits, *groups, prefix=prefix)


def recipes() -> Mapping[str, DTMRecipe]:
    own = LOSS, cite(PARSER, dtm_weight=1.0)
    return {scale: with_morphing(DTMRecipe, base, *own) for scale, base in base_recipes().items()}


def provenance(recipe: DTMRecipe) -> Provenance:
    """`reconstruction` if a field has a value that only the paper's text or its ablations have."""
    released = {**MATCHING.values, **SCHEDULE.values, **LOSS.values}
    is_released = all(getattr(recipe, name) == value for name, value in released.items())
    return "official" if is_released else "reconstruction"


METHOD = MethodCard(
    name="dtm",
    title="DTM",
    paper="Kim et al., Morphing Tokens Draw Strong Masked Image Models, ICLR 2025",
    code="naver-ai/dtm@322df2e",
    provenance=provenance,
    recipes=recipes,
    build=DTM,
    needs={"teacher": "clip"},
    transfer=transfer,
    golden=("dtm_morph.npz", "dtm_tiny_engine.npz"),
    points=16,
)
