"""The ablation's groupings: exact numbers, no empty group, and what each of them promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.grouping import GROUPINGS, averaging, fill_empty, grid_groups, kmeans_groups, random_groups
from pretrain.methods.dtm import DTM, METHOD, Branch, morph, morph_by


def sizes(group: Tensor, num_groups: int) -> Tensor:
    return F.one_hot(group, num_groups).sum(dim=1)  # [B, G]


@pytest.mark.parametrize("name", GROUPINGS)
@pytest.mark.parametrize("num_groups", [1, 2, 7, 16, 33, 63, 64])
def test_exactly_the_wanted_number_of_groups_and_none_empty(name: str, num_groups: int) -> None:
    morphing = GROUPINGS[name](torch.randn(3, 64, 8), num_groups)
    assert morphing.num_groups == num_groups
    size = sizes(morphing.group, num_groups)
    assert size.shape == (3, num_groups) and size.min() >= 1 and (size.sum(dim=1) == 64).all()


@pytest.mark.parametrize("name", GROUPINGS)
def test_morphed_tokens_are_group_means(name: str) -> None:
    x, y = torch.randn(2, 2, 64, 8)
    morphing = GROUPINGS[name](x, 9)
    for b in range(2):
        for g in range(9):
            members = morphing.group[b] == g
            mean = y[b, members].mean(dim=0)
            torch.testing.assert_close(morphing.merge(y)[b, g], mean, rtol=0, atol=1e-5)
            torch.testing.assert_close(
                morphing(y)[b, members], mean.expand(members.sum(), -1), rtol=0, atol=1e-5
            )


def test_a_grid_of_a_square_number_has_square_cells() -> None:
    group = grid_groups(torch.randn(2, 64, 8), 16).group.reshape(2, 8, 8)
    cells = group.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)  # [B, 4, 4, 4]
    assert (cells == cells[..., :1]).all() and len(group[0].unique()) == 16
    assert torch.equal(group[0], group[1])


@pytest.mark.parametrize("num_groups", [3, 7, 40, 98, 150, 195])
def test_a_grids_cells_are_rectangles(num_groups: int) -> None:
    group = grid_groups(torch.randn(1, 196, 8), num_groups).group.reshape(14, 14)
    for cell in range(num_groups):
        rows, columns = (group == cell).nonzero(as_tuple=True)
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert height * width == len(rows)
        assert max(height, width) <= 3 * min(height, width)


def test_random_groups_are_of_even_size_and_drawn_for_each_image() -> None:
    morphing = random_groups(torch.zeros(4, 64, 8), 10)
    size = sizes(morphing.group, 10)
    assert size.min() == 6 and size.max() == 7
    assert not torch.equal(morphing.group[0], morphing.group[1])
    torch.manual_seed(0)
    again = random_groups(torch.zeros(4, 64, 8), 10).group
    torch.manual_seed(0)
    assert torch.equal(random_groups(torch.ones(4, 64, 8), 10).group, again)


def test_kmeans_finds_separate_clusters() -> None:
    """Groups of three directions, of any length; k-means compares directions."""
    truth = torch.randint(3, (64,))
    x = torch.eye(8)[truth] * (0.5 + torch.rand(64, 1)) + 0.02 * torch.randn(64, 8)
    found = kmeans_groups(x.expand(20, -1, -1), 3).group
    pairs = truth[:, None] == truth
    right = ((found[:, :, None] == found[:, None]) == pairs).all(dim=(1, 2))
    assert right.float().mean() > 0.2, "no start of twenty found them"


def test_kmeans_groups_are_tighter_than_random_ones() -> None:
    x = torch.randn(8, 64, 16)

    def spread(group: Tensor) -> Tensor:
        return (x - averaging(group, 12)(x)).square().mean()

    assert spread(kmeans_groups(x, 12).group) < 0.9 * spread(random_groups(x, 12).group)
    assert spread(kmeans_groups(x, 12).group) < spread(kmeans_groups(x, 12, rounds=0).group)


def test_an_empty_group_gets_the_token_that_fits_worst_elsewhere() -> None:
    group = torch.tensor([[0, 0, 0, 2, 2, 4]])
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2, 0.3, 0.0]])
    assert fill_empty(group, similarity, 5).tolist() == [[0, 1, 0, 3, 2, 4]]
    equal = torch.zeros(1, 6, dtype=torch.long)  # all tokens alike: still one for every group
    assert sorted(fill_empty(equal, torch.ones(1, 6), 6)[0].tolist()) == [0, 1, 2, 3, 4, 5]
    full = torch.tensor([[0, 1, 1]])
    assert torch.equal(fill_empty(full, torch.rand(1, 3), 2), full)


@pytest.mark.parametrize("branch", [Branch(0, 3), Branch(3, 2), Branch(5, 4), Branch(64, 8), Branch(2, 4, 3)])
def test_every_matching_makes_as_many_groups_as_bipartite_matching(branch: Branch) -> None:
    target = torch.randn(2, 64, 8)
    bipartite = morph(target, branch, split="alternate", merge="group_mean", protect_first=True)
    for name in GROUPINGS:
        recipe = METHOD.recipes()["toy"].vary("test", matching=name)
        assert morph_by(recipe, target, branch).num_groups == bipartite.num_groups


def test_matching_decides_the_loss() -> None:
    pred, target = torch.randn(2, 2, 64, 64)
    losses = {}
    for name in ("bipartite", *GROUPINGS):
        recipe = METHOD.recipes()["toy"].vary("test", matching=name, dynamic=False)
        losses[name] = DTM(recipe, torch.nn.Identity()).forward_loss(pred, target).item()
    assert len(set(losses.values())) == 4


@pytest.mark.parametrize("name", GROUPINGS)
def test_grouping_needs_no_value_from_the_device(name: str) -> None:
    morphing = GROUPINGS[name](torch.randn(2, 64, 8, device="meta"), 12)
    assert morphing(torch.randn(2, 64, 8, device="meta")).shape == (2, 64, 8)
