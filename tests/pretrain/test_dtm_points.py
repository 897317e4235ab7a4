"""DTM's faithfulness, point by point. The official code's numbers are checked in tests/golden/test_dtm.py."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import ViTConfig
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.vit import ViT
from pretrain.clip_vit import ClipVisual
from pretrain.feature_student import FeatureStudent, to_clip_statistics, token_distance
from pretrain.grouping import Morphing, grid_groups
from pretrain.methods.dtm import DTM, METHOD, Branch, branch_of, draw_schedule, match, morph

CODE = {"split": "alternate", "merge": "group_mean", "protect_first": True}
PAPER = {"split": "random", "merge": "row_normalised", "protect_first": False}
SMOKE = METHOD.recipes()["smoke"]
BRANCHES = [Branch(*pair) for pair in ((0, 3), (1, 1), (5, 1), (24, 2), (7, 7), (10, 14), (49, 1))]


@pytest.fixture
def tokens() -> Tensor:
    """Target tokens `[2, 49, 8]`."""
    return torch.randn(2, 49, 8)


@pytest.fixture
def method() -> DTM:
    teacher = ClipVisual(
        img_size=32, patch_size=8, width=32, depth=1, num_heads=1, output_dim=SMOKE.target_dim
    )
    return DTM(SMOKE, teacher.eval().requires_grad_(False)).train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32)


def membership(group: Tensor, num_groups: int) -> Tensor:
    """S `[B, G, N]`: 1 where token n belongs to group g."""
    return F.one_hot(group, num_groups).transpose(1, 2).float()


def smooth_l1(u: Tensor, v: Tensor) -> Tensor:
    """Smooth L1 of beta = 2 for each token `[B, N]`, by its formula."""
    d = (u - v).abs()
    return torch.where(d < 2, d**2 / 4, d - 1).mean(dim=2)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smoothl1": smooth_l1,
    "l1": lambda u, v: (u - v).abs().mean(dim=2),
    "l2": lambda u, v: (u - v).square().mean(dim=2),
    "negcosine": lambda u, v: 1 - (u * v).sum(dim=2) / (u.norm(dim=2) * v.norm(dim=2)),
}


def loss_of_groups(
    morphing: Morphing,
    u: Tensor,
    v: Tensor,
    *,
    loss_type: str = "smoothl1",
    weigh_groups: bool = True,
    normalize_target: bool = False,
) -> Tensor:
    """A branch's loss, group by group: each by its share of the tokens, or all alike."""
    s = membership(morphing.group, morphing.num_groups)
    u, v = ((s * morphing.weight[:, None]) @ x for x in (u, v))  # [B, G, C]
    if normalize_target:
        v = (v - v.mean(dim=2, keepdim=True)) / (v.var(dim=2, keepdim=True) + 1e-6).sqrt()
    size = s.sum(dim=2) if weigh_groups else torch.ones(s.shape[:2])
    return (DISTANCES[loss_type](u, v) * size / size.sum(dim=1, keepdim=True)).sum(dim=1).mean()


@pytest.mark.parametrize("branch", [0, 1])
def test_f01_without_merging_either_branch_is_smooth_l1_on_all_patch_tokens(
    method: DTM, branch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    u, v = torch.randn(2, 4, 16, 64) * 3  # differences beyond beta, too
    branches = [Branch(3, 2), Branch(3, 2)]
    branches[branch] = Branch(0, 5)
    monkeypatch.setattr(method, "draw_branches", lambda: branches)
    unmerged = smooth_l1(u, v).mean()
    torch.testing.assert_close(unmerged, F.smooth_l1_loss(u, v, beta=2.0))
    morphed = loss_of_groups(morph(v, Branch(3, 2), **CODE), u, v)
    assert abs(unmerged - morphed) > 0.1
    torch.testing.assert_close(method.forward_loss(u, v), (unmerged + morphed) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rules", [CODE, PAPER], ids=["code", "paper"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_f02_every_token_is_in_exactly_one_group(tokens: Tensor, branch: Branch, rules: dict) -> None:
    morphing = morph(tokens, branch, **rules)
    s = membership(morphing.group, morphing.num_groups)
    assert torch.equal(s.sum(dim=1), torch.ones(2, 49))
    assert s.sum(dim=2).min() >= 1, "a group has no token"


@pytest.mark.parametrize("branch", BRANCHES)
def test_f03_averaging_operator_is_a_projection(tokens: Tensor, branch: Branch) -> None:
    morphing = morph(tokens, branch, **CODE)
    p = morphing(torch.eye(49).expand(2, -1, -1))  # [B, N, N]
    s = membership(morphing.group, morphing.num_groups)
    torch.testing.assert_close(p, s.mT @ torch.diag_embed(1 / s.sum(dim=2)) @ s, rtol=0, atol=2e-6)
    torch.testing.assert_close(p, p.mT, rtol=0, atol=1e-6)
    torch.testing.assert_close(p @ p, p, rtol=0, atol=2e-6)
    torch.testing.assert_close(p.sum(dim=2), torch.ones(2, 49), rtol=0, atol=2e-6)


def test_f04_groups_come_from_the_target_alone(method: DTM, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.methods import dtm

    seen: list[Tensor] = []

    def spy(target: Tensor, *args: object, **kwargs: object) -> object:
        seen.append(target.clone())
        assert not torch.is_grad_enabled() or not target.requires_grad
        return morph(target, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(dtm, "morph", spy)
    target = torch.randn(2, 16, 64)
    for _ in range(2):
        method.forward_loss(torch.randn(2, 16, 64, requires_grad=True), target)
    assert len(seen) == 4
    assert all(torch.equal(x, target) for x in seen)


def test_f05_same_groups_for_predictions_and_targets(tokens: Tensor) -> None:
    morphing = morph(tokens, Branch(7, 7), **CODE)
    pred = torch.randn_like(tokens)

    def loss(x: Tensor) -> Tensor:
        return token_distance(morphing(x), morphing(tokens), "smoothl1")

    group = morphing.group[0]
    biggest = (group == group.bincount().argmax()).nonzero().flatten()
    other = (group != group.bincount().argmax()).nonzero().flatten()[0]
    assert len(biggest) > 2
    inside, across = pred.clone(), pred.clone()
    inside[0, biggest] = pred[0, biggest.roll(1)]
    across[0, [biggest[0], other]] = pred[0, [other, biggest[0]]]
    torch.testing.assert_close(loss(inside), loss(pred), rtol=1e-6, atol=0)
    assert abs(loss(across) - loss(pred)) > 1e-4


@pytest.mark.parametrize(
    ("num_tokens", "branch", "groups"),
    [
        (196, (14, 14), 8),
        (196, (97, 1), 99),
        (196, (196, 1), 99),
        (196, (98, 2), 50),
        (196, (7, 14), 98),
        (196, (1, 14), 182),
        (49, (10, 3), 19),
        (49, (10, 14), 2),
    ],
)
@pytest.mark.parametrize("rules", [CODE, PAPER], ids=["code", "paper"])
def test_f06_number_of_groups(num_tokens: int, branch: tuple[int, int], groups: int, rules: dict) -> None:
    t = num_tokens
    for _ in range(branch[1]):
        t -= min(branch[0], (t - 1) // 2)
    assert t == groups
    assert morph(torch.randn(1, num_tokens, 8), Branch(*branch), **rules).num_groups == groups


@pytest.mark.parametrize("split", ["alternate", "random"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_f07_first_patch_stays_alone_where_protected(tokens: Tensor, branch: Branch, split: str) -> None:
    tokens[:, 1:5] = tokens[:, :1] * 1.001  # the most similar ones of all
    group = morph(tokens, branch, **{**CODE, "split": split}).group
    assert ((group == group[:, :1]).sum(dim=1) == 1).all()


def test_f07_first_patch_merges_where_not_protected(tokens: Tensor) -> None:
    tokens[:, 1] = tokens[:, 0] * 1.001  # the most similar pair of all
    group = morph(tokens, Branch(1, 1), **{**CODE, "protect_first": False}).group
    assert torch.equal(group[:, 0], group[:, 1])


@pytest.mark.parametrize(
    ("merge", "shares"), [("group_mean", (1 / 3, 1 / 3, 1 / 3)), ("row_normalised", (1 / 4, 1 / 4, 1 / 2))]
)
def test_f08_mean_of_members_or_mean_of_means(merge: str, shares: tuple[float, float, float]) -> None:
    angles = torch.tensor([0.0, 0.1, 2.0, 0.6])  # token 0 joins 1 first, then 3 joins them; 2 stays alone
    x = torch.stack([angles.cos(), angles.sin()], dim=1)[None] * torch.tensor([1.0, 2.0, 1.0, 3.0])[:, None]
    morphing = morph(x, Branch(1, 2), split="alternate", merge=merge, protect_first=False)
    group = morphing.group[0]
    assert morphing.num_groups == 2 and group[0] == group[1] == group[3] != group[2]
    expected = shares[0] * x[0, 0] + shares[1] * x[0, 1] + shares[2] * x[0, 3]
    torch.testing.assert_close(morphing(x)[0, 0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rules", [CODE, {**CODE, "merge": "row_normalised"}], ids=["mean", "means"])
def test_f08_equals_the_product_of_matrices(tokens: Tensor, rules: dict) -> None:
    """M is the product of the rounds' matrices: 0/1 ones and a mean at the end, or row-normalised ones."""
    row_normalised = rules["merge"] == "row_normalised"
    x, m, s = tokens.double(), torch.eye(49).double().expand(2, -1, -1), torch.eye(49).double()
    for _ in range(4):
        position, count = match(x.float(), 8, split="alternate", protect_first=True)
        step = membership(position, count).double()  # [B, t', t]
        s = step @ s
        m = step / step.sum(dim=2, keepdim=True) @ m if row_normalised else s / s.sum(dim=2, keepdim=True)
        x = m @ tokens.double()
    morphing = morph(tokens, Branch(8, 4), **rules)
    torch.testing.assert_close(morphing(tokens).double(), s.mT @ x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["smoothl1", "negcosine"])
def test_f09_groups_weigh_by_their_size(loss_type: str) -> None:
    u, v = torch.randn(2, 1, 196, 8) * 3
    morphing = morph(v, Branch(14, 9), **CODE)
    s = membership(morphing.group, morphing.num_groups)[0]  # [G, N]
    size = s.sum(dim=1)
    u_group, v_group = (s @ x[0] / size[:, None] for x in (u, v))
    if loss_type == "smoothl1":
        per_group = F.smooth_l1_loss(u_group, v_group, beta=2.0, reduction="none").mean(dim=1)
        expected = (size / 196 * per_group).sum()
    else:
        expected = 1 - (size / 196 * F.cosine_similarity(u_group, v_group, dim=1)).sum()
    assert size.max() > 2
    found = token_distance(morphing(u), morphing(v), loss_type)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_f10_visible_and_masked_predictions_both_count(method: DTM, images: Tensor) -> None:
    mask = method.student.draw_masks(images)
    pred = method.student(images, mask).detach().requires_grad_()
    method.forward_loss(pred, torch.randn(4, 16, 64)).backward()
    touched = pred.grad.abs().sum(dim=2)
    assert (touched[mask == 1] > 0).all() and (touched[mask == 0] > 0).all()


def test_f10_mask_is_absent_from_the_loss(
    method: DTM, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pred = torch.randn(4, 16, 64)
    monkeypatch.setattr(method.student, "forward", lambda images, mask: pred)
    losses = []
    for mask in (torch.zeros(4, 16), torch.ones(4, 16)):
        monkeypatch.setattr(method.student, "draw_masks", lambda images, mask=mask: mask)
        random.seed(1)
        losses.append(method(images, 0.0)["loss"])
    assert torch.equal(*losses)


def test_f11_teacher_is_frozen_and_every_new_part_learns(method: DTM, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    method.train()
    assert not method.teacher.training and method.student.training
    method(images, 0.0)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in method.teacher.state_dict().items())
    encoder = method.encoder
    learning = [
        method.student.mask_token,
        method.student.head.weight,
        encoder.rel_pos_bias.table,
        *(block.attn.rel_pos_bias.table for block in encoder.blocks),
    ]
    assert all(p.grad.abs().max() > 0 for p in learning)


def test_f12_class_token_gets_no_gradient_from_the_head(method: DTM, images: Tensor) -> None:
    normed: list[Tensor] = []

    def keep(module: object, args: object, output: Tensor) -> None:
        output.retain_grad()
        normed.append(output)

    method.encoder.norm.register_forward_hook(keep)
    method(images, 0.0)["loss"].backward()
    assert normed[0].grad[:, 0].abs().max() == 0
    assert normed[0].grad[:, 1:].abs().sum(dim=2).min() > 0
    assert method.encoder.cls_token.grad.abs().max() > 0  # through attention


def test_f13_exactly_75_masked_with_the_block_fingerprint() -> None:
    recipe = METHOD.recipes()["paper"].vary("test", arch="vit_smoke")
    masks = FeatureStudent(recipe).draw_masks(torch.empty(1, 3, 224, 224).expand(3000, -1, -1, -1))
    assert masks.shape == (3000, 196)
    assert (masks.sum(dim=1) == 75).all()
    frequency = masks.mean(dim=0).reshape(14, 14)
    corners = frequency[[0, 0, -1, -1], [0, -1, 0, -1]]
    edge_middles = frequency[[0, -1, 6, 7], [6, 7, 0, -1]]
    assert frequency[6:8, 6:8].mean() == pytest.approx(0.73, abs=0.03)
    assert edge_middles.mean() == pytest.approx(0.19, abs=0.025)
    assert corners.mean() == pytest.approx(0.04, abs=0.01)


def test_f14_schedule_is_drawn_from_pythons_generator_in_order() -> None:
    random.seed(5)
    m = random.randint(0, 196), random.randint(0, 196)
    k = random.randint(1, 14), random.randint(1, 14)
    random.seed(5)
    assert draw_schedule((196, 196), (14, 14), 2) == [branch_of(m[i], k[i], 196) for i in range(2)]
    after = random.random()
    random.seed(5)
    assert draw_schedule((196, 196), (14, 14), 1) == [branch_of(m[0], k[0], 196)]
    assert random.random() == after, "all four numbers are drawn, also for one branch"


def test_f14_rounds_and_removed_tokens_stay_in_range() -> None:
    for m in range(197):
        for k in range(1, 15):
            r, rounds, longer = branch_of(m, k, 196)
            assert (rounds, longer) == (k, 0)
            assert r == math.ceil(m / k) if math.ceil(m / k) * k <= 196 else r == m // k
            assert r * k <= 196 and (r > 0 or m == 0)
    draws = [draw_schedule((196, 196), (14, 14), 2) for _ in range(2000)]
    groups = torch.tensor([_count(branch) for pair in draws for branch in pair]).float()
    assert groups.mean() == pytest.approx(98.5, abs=3)
    assert groups.min() >= 8 and groups.max() <= 196
    assert groups.quantile(0.05) == pytest.approx(15, abs=3)
    assert groups.quantile(0.95) == pytest.approx(184, abs=3)
    rounds = {branch.num_rounds for pair in draws for branch in pair}
    assert rounds == set(range(1, 15))


def _count(branch: Branch) -> int:
    t = 196
    for _ in range(branch.num_rounds):
        t -= min(branch.num_merged, (t - 1) // 2)
    return t


def test_f15_learning_rate_of_the_papers_recipe() -> None:
    recipe = METHOD.recipes()["paper"]
    assert recipe.global_batch_size == 1024
    assert (
        recipe.peak_lr
        == pytest.approx(1.5e-3 * math.sqrt(1024 / 2048))
        == pytest.approx(1.06066e-3, rel=1e-5)
    )
    epoch = 1_281_167 // 1024
    total, warmup = 300 * epoch, 10 * epoch
    lr = [recipe.lr_at(step, total) for step in (0, warmup - 1, warmup, (total + warmup) // 2, total - 1)]
    middle = 1e-5 + (recipe.peak_lr - 1e-5) / 2
    assert lr == pytest.approx([0, recipe.peak_lr, recipe.peak_lr, middle, 1e-5], rel=1e-5)


def test_f16_fine_tuning_adds_the_shared_table_to_every_block(tmp_path: Path) -> None:
    config = ViTConfig.named(
        "vit_smoke",
        img_size=32,
        patch_size=8,
        pos_embed="none",
        rel_pos="block+shared",
        layer_scale_init=0.1,
        key_bias=False,
    )
    vit = ViT(config).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_encoder(vit, tmp_path / "e.safetensors", method="dtm")
    loaded, report = load_encoder(tmp_path / "e.safetensors")
    assert loaded.config.rel_pos == "block" and loaded.rel_pos_bias is None
    assert report.folded == [f"blocks.{i}.attn.rel_pos_bias.table" for i in range(config.depth)]
    for old, new in zip(vit.blocks, loaded.blocks, strict=True):
        expected = old.attn.rel_pos_bias.table + vit.rel_pos_bias.table
        assert torch.equal(new.attn.rel_pos_bias.table, expected)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(images), vit(images), rtol=0, atol=1e-5)


# -- variants of sections a and e that are recipe fields ---------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("split", "random"),
        ("merge", "row_normalised"),
        ("protect_first", False),
        ("matching", "grid"),
        ("weigh_groups", False),
        ("normalize_target", True),
        ("loss_type", "l1"),
        ("loss_type", "l2"),
        ("loss_type", "negcosine"),
        ("dtm_weight", 0.3),
    ],
)
def test_the_loss_is_the_one_that_the_recipe_names(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    u, v = torch.randn(2, 2, 16, 64) * 3
    v[:, 1] = v[:, 0] * 1.001  # they merge where the first is not protected
    branches = [Branch(3, 3), Branch(2, 4)]
    recipe = SMOKE.vary("test", **{name: value})
    rules = {rule: getattr(recipe, rule) for rule in CODE}
    measure = {of: getattr(recipe, of) for of in ("loss_type", "weigh_groups", "normalize_target")}
    grid = recipe.matching == "grid"
    torch.manual_seed(7)
    morphings = [grid_groups(v, b.num_groups(16)) if grid else morph(v, b, **rules) for b in branches]
    expected = recipe.dtm_weight * sum(loss_of_groups(m, u, v, **measure) for m in morphings) / 2
    losses = []
    for varied in (recipe, SMOKE):
        method = DTM(varied, nn.Identity())
        monkeypatch.setattr(method, "draw_branches", lambda: branches)
        torch.manual_seed(7)
        losses.append(method.forward_loss(u, v))
    torch.testing.assert_close(losses[0], expected, rtol=1e-5, atol=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("rounds", ["ceil_floor", "exact"])
@pytest.mark.parametrize("num_branches", [1, 2])
def test_branches_are_as_many_and_as_long_as_the_recipe_says(num_branches: int, rounds: str) -> None:
    recipe = SMOKE.vary("test", num_branches=num_branches, rounds=rounds, max_merged=14, max_rounds=5)
    method = DTM(recipe, nn.Identity())
    for seed in range(20):
        random.seed(seed)
        m = random.randint(0, 14), random.randint(0, 14)
        k = random.randint(1, 5), random.randint(1, 5)
        random.seed(seed)
        branches = method.draw_branches()
        assert len(branches) == num_branches
        for branch, removed, count in zip(branches, m, k, strict=False):
            if rounds == "exact":
                assert branch == Branch(removed // count, count, removed % count)
            else:
                assert branch == branch_of(removed, count, 14)
    fixed = DTM(recipe.vary("test", dynamic=False), nn.Identity()).draw_branches()
    assert fixed == [{"exact": Branch(3, 2, 1), "ceil_floor": Branch(4, 2)}[rounds]] * num_branches


@pytest.mark.parametrize(("removed", "rounds"), [(0, 3), (7, 3), (13, 5), (14, 14), (5, 9)])
def test_exact_rounds_remove_the_drawn_number(removed: int, rounds: int) -> None:
    """Where no round meets the cap, N - m tokens remain; the released rule may miss it."""
    branch = branch_of(removed, rounds, 49, "exact")
    assert morph(torch.randn(1, 49, 8), branch, **CODE).num_groups == 49 - removed


def test_a_fixed_schedule_is_the_middle_of_the_drawn_one() -> None:
    method = DTM(METHOD.recipes()["paper"].vary("test", arch="vit_smoke", dynamic=False), nn.Identity())
    assert method.draw_branches() == [Branch(14, 7), Branch(14, 7)] == method.draw_branches()


def test_morphed_tokens_alike_or_weighted_by_their_size(tokens: Tensor) -> None:
    """Unweighted: the mean over the morphed tokens; weighted: over all tokens."""
    pred = torch.randn_like(tokens)
    morphing = morph(tokens, Branch(7, 2), **CODE)
    error = (morphing.merge(pred) - morphing.merge(tokens)).abs().mean(dim=2)  # [B, groups]
    sizes = torch.stack([group.bincount(minlength=morphing.num_groups) for group in morphing.group])
    weighted = (error * sizes).sum(dim=1) / tokens.shape[1]
    torch.testing.assert_close(token_distance(morphing(pred), morphing(tokens), "l1"), weighted.mean())
    alike = token_distance(morphing.merge(pred), morphing.merge(tokens), "l1")
    torch.testing.assert_close(alike, error.mean())
    assert abs(alike - weighted.mean()) > 1e-4


def test_clip_statistics_round_trip() -> None:
    """An image in [0, 1], normalised by ImageNet's statistics, becomes the one normalised by CLIP's."""
    image = torch.rand(2, 3, 8, 8)
    imagenet = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    clip = (image - torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    ).view(3, 1, 1)
    torch.testing.assert_close(to_clip_statistics(imagenet), clip, atol=1e-6, rtol=0)


def test_what_only_the_paper_has_is_a_reconstruction() -> None:
    toy = METHOD.recipes()["toy"]
    for change in ({}, {"loss_type": "l1", "num_branches": 1}):
        assert METHOD.provenance_of(toy.vary("t", **change)) == "official", change
    for change in ({"matching": "kmeans"}, {"dynamic": False}, {"weigh_groups": False}, {"split": "random"},
                   {"merge": "row_normalised"}, {"protect_first": False}, {"rounds": "exact"}):  # fmt: skip
        assert METHOD.provenance_of(toy.vary("t", **change)) == "reconstruction", change
