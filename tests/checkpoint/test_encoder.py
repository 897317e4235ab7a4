"""The encoder file: what is saved comes back, positions are resized, anything else is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mimbench.arch import ViTConfig
from mimbench.checkpoint.encoder import load_encoder, read_encoder, resize_relative_table, save_encoder
from mimbench.errors import UserError
from mimbench.vit import RelativePositionBias, ViT, sincos_position_embedding

VARIANTS: dict[str, dict[str, Any]] = {
    "mae": {},
    "learned": {"pos_embed": "learned"},
    "beit": {"pos_embed": "none", "rel_pos": "shared", "layer_scale_init": 0.1, "key_bias": False},
    "block": {"pos_embed": "none", "rel_pos": "block", "layer_scale_init": 0.1, "key_bias": False},
    "dtm": {"pos_embed": "none", "rel_pos": "block+shared", "layer_scale_init": 0.1, "key_bias": False},
}


def vit_of(variant: str, **changes: Any) -> ViT:
    torch.manual_seed(0)
    config = ViTConfig(32, 8, 16, 2, 2, **VARIANTS[variant])
    vit = ViT(dataclasses.replace(config, **changes)).eval()
    for name, parameter in vit.named_parameters():
        if name != "pos_embed" or variant == "learned":
            torch.nn.init.normal_(parameter, std=0.2)
    return vit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "encoder.safetensors"


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_gives_the_same_output(variant: str, path: Path, images: Tensor) -> None:
    vit = vit_of(variant)
    save_encoder(vit, path, method="x")
    loaded, report = load_encoder(path)
    torch.testing.assert_close(loaded.eval()(images), vit(images), rtol=0, atol=1e-6)
    assert sorted([*report.loaded, *report.folded]) == sorted(loaded.state_dict())
    assert report.interpolated == report.new == report.dropped == []
    assert (report.folded != []) == ("shared" in vit.config.rel_pos)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing else is left behind"


def test_drop_path_is_the_fine_tuned_networks(path: Path, images: Tensor) -> None:
    save_encoder(vit_of("mae"), path, method="x")
    vit, _ = load_encoder(path, drop_path=0.5)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == [0.0, 0.5]
    assert torch.equal(vit.eval()(images), load_encoder(path)[0].eval()(images))


@pytest.mark.parametrize("img_size", [64, 24, 32])
@pytest.mark.parametrize("variant", ["mae", "learned"])
def test_positions_are_resized_as_the_official_codes_do(variant: str, img_size: int, path: Path) -> None:
    vit = vit_of(variant)
    save_encoder(vit, path, method="x")
    loaded, report = load_encoder(path, img_size=img_size)
    grid = img_size // 8
    patches = vit.pos_embed[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    expected = torch.cat([vit.pos_embed[:, :1], patches.flatten(2).mT], dim=1)
    torch.testing.assert_close(loaded.pos_embed, expected, rtol=0, atol=0 if grid == 4 else 1e-6)
    assert report.interpolated == ([] if grid == 4 else ["pos_embed"])
    assert loaded.config.img_size == img_size
    assert loaded(torch.randn(1, 3, img_size, img_size)).shape == (1, 1 + grid**2, 16)


def test_relative_tables_are_folded_then_resized(path: Path) -> None:
    vit = vit_of("dtm")
    save_encoder(vit, path, method="x")
    loaded, report = load_encoder(path, img_size=48)
    names = [f"blocks.{i}.attn.rel_pos_bias.table" for i in range(2)]
    assert report.folded == report.interpolated == names
    for old, new in zip(vit.blocks, loaded.blocks, strict=True):
        both = (old.attn.rel_pos_bias.table + vit.rel_pos_bias.table).detach()
        assert torch.equal(new.attn.rel_pos_bias.table, resize_relative_table(both, 4, 6))
    assert loaded(torch.randn(1, 3, 48, 48)).shape == (1, 37, 16)


@pytest.mark.parametrize("new_grid", [6, 14, 3])
def test_resized_table_keeps_its_centre_and_the_class_rows(new_grid: int) -> None:
    old_grid = 4
    table = torch.randn((2 * old_grid - 1) ** 2 + 3, 2)
    resized = resize_relative_table(table, old_grid, new_grid)
    assert resized.shape == ((2 * new_grid - 1) ** 2 + 3, 2) and torch.isfinite(resized).all()
    assert torch.equal(resized[-3:], table[-3:])
    old, new = (x[:-3].reshape(2 * g - 1, 2 * g - 1, 2) for x, g in ((table, old_grid), (resized, new_grid)))
    torch.testing.assert_close(new[new_grid - 1, new_grid - 1], old[old_grid - 1, old_grid - 1])
    for corner in ((0, 0), (0, -1), (-1, -1)):  # the ends of the range meet
        torch.testing.assert_close(new[corner], old[corner], rtol=0, atol=1e-3)
    assert torch.equal(resize_relative_table(table, old_grid, old_grid), table)


def test_near_offsets_keep_their_values_on_a_larger_grid() -> None:
    """The geometric sequence starts at steps of one, so offset 1 stays where it was."""
    distance = torch.arange(-13, 14).float()
    table = torch.cat([(distance[:, None] ** 2 + distance[None] ** 2).reshape(-1, 1), torch.zeros(3, 1)])
    new = resize_relative_table(table, 14, 32)[:-3].reshape(63, 63).numpy()
    old = table[:-3].reshape(27, 27).numpy()
    np.testing.assert_allclose(new[31, 30:33], old[13, 12:15], atol=1e-3)


def rewritten(path: Path, change: dict[str, Tensor | None], header: dict[str, str] | None = None) -> None:
    """The same file with tensors replaced, added or (None) removed."""
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}
    state = {**state, **change}
    save_file(
        {name: tensor for name, tensor in state.items() if tensor is not None},
        path,
        metadata=found if header is None else header,
    )


@pytest.mark.parametrize("img_size", [None, 48])
@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blocks.1.mlp.fc1.weight", None, "missing from the file"),
        ("rel_pos_bias.table", None, "missing from the file"),
        ("head.weight", torch.zeros(3, 3), "unknown to the encoder"),
        ("cls_token", torch.zeros(1, 1, 17), r"shape is \(1, 1, 17\); the encoder needs \(1, 1, 16\)"),
        ("rel_pos_bias.table", torch.zeros(28, 2), r"shape is \(28, 2\); the encoder needs \(52, 2\)"),
        ("blocks.0.attn.rel_pos_bias.table", torch.zeros(52, 1), r"\(52, 1\).*\(52, 2\)"),
    ],
)
def test_a_wrong_tensor_is_named_with_both_shapes(
    name: str, tensor: Tensor | None, message: str, img_size: int | None, path: Path
) -> None:
    save_encoder(vit_of("dtm"), path, method="x")
    rewritten(path, {name: tensor})
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        load_encoder(path, img_size=img_size)


def test_a_file_that_is_none_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_encoder(path)
    with pytest.raises(UserError, match="No such file"):
        load_encoder(tmp_path)
    path.write_bytes(b"PK\x03\x04 not safetensors")
    with pytest.raises(UserError, match="Not readable as safetensors"):
        load_encoder(path)
    save_encoder(vit_of("mae"), path, method="x")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="Not readable as safetensors"):
        load_encoder(path)


@pytest.mark.parametrize("header", [{}, {"format": "pt"}, {"mimbench-encoder-2": "{}"}])
def test_another_projects_file_is_refused(header: dict[str, str], path: Path) -> None:
    save_encoder(vit_of("mae"), path, method="x")
    rewritten(path, {}, header)
    with pytest.raises(UserError, match="encoder"):
        load_encoder(path)


def test_header_tells_method_and_shape(path: Path) -> None:
    vit = vit_of("dtm")
    save_encoder(vit, path, method="dtm")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["mimbench-encoder-1"])
    assert header == {"method": "dtm", "config": vit.config.as_dict()}
    config, state = read_encoder(path)
    assert config == vit.config and set(state) == set(vit.state_dict())


def test_equal_encoders_are_equal_files(path: Path) -> None:
    vit, files = vit_of("dtm"), set()
    for _ in range(5):
        save_encoder(vit, path, method="dtm")
        files.add(path.read_bytes())
    assert len(files) == 1


# -- what a dense task adds --------------------------------------------------------------------------------


def test_added_tables_and_layer_scale_start_as_nothing(path: Path, images: Tensor) -> None:
    vit = vit_of("mae")
    save_encoder(vit, path, method="x")
    loaded, report = load_encoder(path, add_rel_pos=True, add_layer_scale=1.0)
    torch.testing.assert_close(loaded.eval()(images), vit(images), rtol=0, atol=1e-6)
    added = [
        f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.rel_pos_bias.table", "ls1.gamma", "ls2.gamma")
    ]
    assert sorted(report.new) == sorted(added)
    assert not set(report.new) & set(report.loaded)
    loaded.train()(images).square().sum().backward()
    assert loaded.blocks[0].attn.rel_pos_bias.table.grad.abs().sum() > 0


@pytest.mark.parametrize("variant", ["beit", "dtm"])
def test_an_encoder_that_has_them_keeps_its_own(variant: str, path: Path, images: Tensor) -> None:
    save_encoder(vit_of(variant), path, method="x")
    loaded, report = load_encoder(path, add_rel_pos=True, add_layer_scale=1.0)
    assert report.new == []
    assert torch.equal(loaded.eval()(images), load_encoder(path)[0].eval()(images))


def test_fixed_positions_can_be_computed_anew(path: Path) -> None:
    save_encoder(vit_of("mae"), path, method="x")
    loaded, report = load_encoder(path, img_size=64, positions="regenerate")
    assert torch.equal(loaded.pos_embed, sincos_position_embedding(16, 8)) and report.new == ["pos_embed"]
    assert not torch.equal(loaded.pos_embed, load_encoder(path, img_size=64)[0].pos_embed)


# -- windows and recomputation -----------------------------------------------------------------------------


def windowed(vit: ViT, side: int, *global_blocks: int) -> ViT:
    vit.window, vit.global_blocks = side, global_blocks
    return vit


@pytest.mark.parametrize("variant", ["mae", "block"])
def test_a_window_sees_nothing_of_the_others(variant: str) -> None:
    vit = windowed(vit_of(variant), 2)
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 16:, 16:] = 0  # the last of the four windows of 2 x 2 patches
    before, after = (vit.taps(x, [1])[0] for x in (images, changed))
    assert torch.equal(before[..., :2, :], after[..., :2, :]) and torch.equal(before[..., :2], after[..., :2])
    assert not torch.equal(before[..., 2:, 2:], after[..., 2:, 2:])
    windowed(vit, 2, 1)  # one global block, and everything sees everything
    assert not torch.equal(vit.taps(images, [1])[0][..., :2, :2], vit.taps(changed, [1])[0][..., :2, :2])


@pytest.mark.parametrize("variant", ["mae", "block"])
def test_a_window_as_large_as_the_image_is_global_attention_of_the_patches(variant: str) -> None:
    vit = windowed(vit_of(variant), 4)
    images = torch.randn(2, 3, 32, 32)
    x = vit.embed(images)
    for block in vit.blocks:
        bias = block.relative_bias((4, 4))
        x = block(x, attn_mask=None if bias is None else bias[:, 1:, 1:])
    torch.testing.assert_close(vit.taps(images, [1])[0].flatten(2).transpose(1, 2), x)


def test_a_windows_bias_is_the_tables_own_for_near_offsets() -> None:
    bias = RelativePositionBias(8, 1)
    offsets = torch.arange(-7.0, 8.0)
    with torch.no_grad():
        bias.table[:-3, 0] = (100 * offsets[:, None] + offsets).flatten()  # row offset, column offset
    window = bias.window(3)[0]
    row, column = torch.arange(9) // 3, torch.arange(9) % 3
    wanted = 100 * (row[:, None] - row) + (column[:, None] - column)
    assert torch.equal(window, wanted.float())


def test_stochastic_depth_drops_whole_images_in_windows_too() -> None:
    vit = windowed(ViT(ViTConfig(32, 8, 16, 2, 2), drop_path=0.5), 2).train()
    x = torch.randn(64, 17, 16)
    torch.manual_seed(0)
    y = vit.blocks[1].windowed(x, 2, (4, 4))[:, 1:] - x[:, 1:]
    untouched = (y == 0).all(dim=-1)  # [64, 16]
    assert torch.equal(untouched.any(dim=1), untouched.all(dim=1)) and untouched.any()


def test_windows_need_not_fit() -> None:
    maps = windowed(vit_of("block"), 3).taps(torch.randn(2, 3, 40, 24), [1])[0]
    assert maps.shape == (2, 16, 5, 3) and torch.isfinite(maps).all()


def test_recomputed_blocks_give_the_same_gradients(images: Tensor) -> None:
    gradients = []
    for recompute in (False, True):
        vit = vit_of("dtm").train()
        vit.checkpoint_blocks = recompute
        vit(images).square().sum().backward()
        gradients.append([p.grad for p in vit.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_and_explicit_attention_agree(variant: str, images: Tensor) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    vit = vit_of(variant)
    fused = vit(images)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(vit(images), fused, rtol=0, atol=1e-5)


# -- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["norm.bias", "blocks.1.mlp.fc2.weight", "pos_embed"])
def test_weights_that_are_not_finite_are_named(name: str, value: float, path: Path) -> None:
    vit = vit_of("learned")
    with torch.no_grad():
        vit.state_dict()[name].view(-1)[-1] = value
    save_encoder(vit, path, method="x")
    for read in (read_encoder, load_encoder):
        with pytest.raises(UserError, match=f"encoder.safetensors: '{name}'.*mimbench runs rm"):
            read(path)


@pytest.mark.parametrize("name", ["cls_token", "blocks.0.attn.qkv.weight", "patch_embed.proj.bias"])
def test_a_flipped_exponent_bit_is_named(name: str, path: Path) -> None:
    vit = vit_of("mae")
    save_encoder(vit, path, method="x")
    weight = vit.state_dict()[name].flatten()[-1].numpy()
    whole = path.read_bytes()
    flipped = (weight.view(np.uint32) ^ np.uint32(1 << 30)).tobytes()
    assert whole.count(weight.tobytes()) == 1
    path.write_bytes(whole.replace(weight.tobytes(), flipped))
    with pytest.raises(UserError, match=f"{name}.*It holds .*no sound network"):
        load_encoder(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {"depth": 2}}', '{"config": {"wide": 2}}'])
def test_a_damaged_header_is_named(text: str, path: Path) -> None:
    save_encoder(vit_of("mae"), path, method="x")
    rewritten(path, {}, {"mimbench-encoder-1": text})
    with pytest.raises(UserError, match=r"encoder\.safetensors.*header is damaged"):
        read_encoder(path)
