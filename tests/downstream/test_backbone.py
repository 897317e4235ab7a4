"""The adapter: taps, positions, strict loading, pyramid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from downstream.backbone import ViTBackbone, default_taps
from downstream.neck import MultiTapPyramid
from mimbench import catalog
from mimbench.checkpoint.encoder import load_encoder
from mimbench.errors import UserError


@pytest.mark.parametrize(
    ("depth", "taps"), [(4, (0, 1, 2, 3)), (8, (1, 3, 5, 7)), (12, (3, 5, 7, 11)), (24, (7, 11, 15, 23))]
)
def test_taps_are_the_official_ones_or_evenly_spaced(depth: int, taps: tuple[int, ...]) -> None:
    assert default_taps(depth) == taps


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_maps_equal_a_manual_loop_over_the_blocks(encoder_file: Path, size: tuple[int, int]) -> None:
    backbone = ViTBackbone(encoder_file).eval()
    images = torch.randn(2, 3, *size)
    vit, _ = load_encoder(encoder_file)
    h, w = size[0] // 8, size[1] // 8
    patches = vit.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, (h, w), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    x = vit.patch_embed(images) + (vit.pos_embed[:, 1:] if size == (32, 32) else patches)
    x = torch.cat([(vit.cls_token + vit.pos_embed[:, :1]).expand(2, -1, -1), x], dim=1)
    maps = backbone(images)
    assert isinstance(maps, tuple) and len(maps) == 4
    for block, found in zip(vit.blocks, maps, strict=True):
        x = block(x)
        wanted = x[:, 1:].transpose(1, 2).reshape(2, -1, h, w)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_position_embedding_is_resized_as_the_official_codes_do(encoder_file: Path) -> None:
    vit, _ = load_encoder(encoder_file)
    backbone = ViTBackbone(encoder_file, img_size=48)
    before = vit.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    wanted = F.interpolate(before, size=(6, 6), mode="bicubic", align_corners=False)
    antialiased = F.interpolate(before, size=(6, 6), mode="bicubic", align_corners=False, antialias=True)
    found = backbone.net.pos_embed[:, 1:].reshape(1, 6, 6, -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, wanted)
    assert (wanted - antialiased).abs().max() > 1e-3  # or the line above would show nothing
    assert torch.equal(backbone.net.pos_embed[:, 0], vit.pos_embed[:, 0])
    assert backbone.load_report.interpolated == ["pos_embed"]


def test_final_norm_is_reported_as_dropped_or_applied(encoder_file: Path) -> None:
    images = torch.randn(1, 3, 32, 32)
    plain, normed = ViTBackbone(encoder_file).eval(), ViTBackbone(encoder_file, norm=True).eval()
    assert plain.load_report.dropped == ["norm.weight", "norm.bias"]
    assert not list(plain.net.norm.parameters())
    vit, _ = load_encoder(encoder_file)
    wanted = vit.eval()(images)[:, 1:].transpose(1, 2).reshape(1, -1, 4, 4)
    torch.testing.assert_close(normed(images)[-1], wanted)


def test_frozen_blocks_do_not_train(encoder_file: Path) -> None:
    net = ViTBackbone(encoder_file, frozen_blocks=2).net
    trains = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trains == {
        name for name, _ in net.named_parameters() if name.startswith(("blocks.2.", "blocks.3."))
    }


def test_wrong_shape_names_the_tensor_and_both_shapes(encoder_file: Path, tmp_path: Path) -> None:
    with safe_open(encoder_file, framework="pt") as file:
        header = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}
    state["blocks.1.mlp.fc1.weight"] = torch.zeros(100, 32)
    save_file(state, tmp_path / "wrong.safetensors", metadata=header)
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.weight.*\(100, 32\).*\(128, 32\)"):
        ViTBackbone(tmp_path / "wrong.safetensors")


def test_pyramid_strides_and_parts() -> None:
    taps = [torch.randn(2, 8, 4, 6) for _ in range(4)]
    neck = MultiTapPyramid(8)
    outputs = neck(taps)
    assert [tuple(x.shape[2:]) for x in outputs] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert outputs[2] is taps[2]
    assert torch.equal(outputs[3], F.max_pool2d(taps[3], 2))


def test_pyramid_equals_mmsegmentations_feature2pyramid() -> None:
    from downstream.openmmlab import import_quietly

    import_quietly("mmseg.models")
    from mmseg.models.necks import Feature2Pyramid

    ours, theirs = MultiTapPyramid(8), Feature2Pyramid(8, norm_cfg={"type": "BN"})
    theirs.upsample_4x.load_state_dict(ours.up4.state_dict())
    theirs.upsample_2x[0].load_state_dict(ours.up2.state_dict())
    taps = [torch.randn(2, 8, 4, 4) for _ in range(4)]
    for a, b in zip(ours(taps), theirs(taps), strict=True):
        torch.testing.assert_close(a, b)


def test_a_dense_recipe_reaches_the_network(encoder_file: Path) -> None:
    recipe = catalog.task("segmentation").recipes()["smoke"]
    recipe = recipe.vary("test", add_rel_pos=True, add_layer_scale=1.0, window=2, checkpoint_blocks=True)
    arguments = recipe.backbone(encoder_file)
    backbone = arguments.pop("type")(**arguments)
    assert (backbone.net.window, backbone.net.global_blocks) == (2, (0, 1, 2, 3))
    assert backbone.net.checkpoint_blocks and backbone.net.config.layer_scale_init == 1.0
    assert "blocks.0.attn.rel_pos_bias.table" in backbone.load_report.new
