"""Learning-rate scales and weight decay by parameter name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from downstream.layer_decay import layer_id, param_groups
from mimbench.arch import ViTConfig
from mimbench.vit import ViT


class Model(nn.Module):
    def __init__(self, arch: str) -> None:
        super().__init__()
        with torch.device("meta"):
            config = ViTConfig.named(arch, img_size=224, patch_size=16, rel_pos="block")
            self.encoder = ViT(config)
            self.fc_norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)


@pytest.fixture(scope="module")
def by_name() -> dict[str, tuple[float, float]]:
    """vit_base at 0.65: name to (lr_scale, weight_decay)."""
    model = Model("vit_base")
    groups = param_groups(model, weight_decay=0.05, layer_decay=0.65, depth=12, prefix="encoder.")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert set(found) == set(names.values())  # everything is trained, and
    assert sum(len(g["params"]) for g in groups) == len(names)  # nothing twice
    return found


@pytest.mark.parametrize(
    ("name", "exponent", "weight_decay"),
    [
        ("encoder.cls_token", 13, 0.0),
        ("encoder.pos_embed", 13, 0.0),
        ("encoder.patch_embed.proj.weight", 13, 0.05),
        ("encoder.patch_embed.proj.bias", 13, 0.0),
        ("encoder.blocks.0.attn.qkv.weight", 12, 0.05),
        ("encoder.blocks.0.norm1.weight", 12, 0.0),
        ("encoder.blocks.5.attn.rel_pos_bias.table", 7, 0.05),
        ("encoder.blocks.11.mlp.fc2.weight", 1, 0.05),
        ("encoder.blocks.11.mlp.fc2.bias", 1, 0.0),
        ("encoder.norm.weight", 0, 0.0),
        ("fc_norm.weight", 0, 0.0),
        ("head.weight", 0, 0.05),
        ("head.bias", 0, 0.0),
    ],
)
def test_scales_of_vit_base(
    by_name: dict[str, tuple[float, float]], name: str, exponent: int, weight_decay: float
) -> None:
    assert by_name[name] == pytest.approx((0.65**exponent, weight_decay))


def test_embedding_scale_is_the_published_one(by_name: dict[str, tuple[float, float]]) -> None:
    assert by_name["encoder.patch_embed.proj.weight"][0] == pytest.approx(0.0037, abs=5e-5)  # .65^13


def test_same_scales_as_timms_helper(by_name: dict[str, tuple[float, float]]) -> None:
    import timm
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        net = timm.create_model("vit_base_patch16_224", num_classes=4)
    groups = param_groups_layer_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay(), layer_decay=0.65)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    compared = 0
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            ours = by_name.get(name if name.startswith("head") else f"encoder.{name}")
            if ours is not None and not name.startswith("norm."):  # timm counts it to the last block
                assert ours == pytest.approx((group["lr_scale"], group["weight_decay"])), name
                compared += 1
    assert compared > 140


def test_a_shared_table_and_the_mask_token_belong_to_the_embedding() -> None:
    assert layer_id("rel_pos_bias.table", 12) == layer_id("mask_token", 12) == 0


def test_without_decay_all_scales_are_one() -> None:
    groups = param_groups(Model("vit_smoke"), weight_decay=0.1, layer_decay=1.0, depth=4, prefix="encoder.")
    assert {group["lr_scale"] for group in groups} == {1.0}
