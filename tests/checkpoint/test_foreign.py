"""Other people's checkpoints: their names, the variant that the names tell, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.arch import ViTConfig
from mimbench.checkpoint import foreign
from mimbench.errors import UserError
from mimbench.vit import ViT

SIZE = ViTConfig(32, 8, 16, 2, 2)
BEIT = {"pos_embed": "none", "rel_pos": "shared", "layer_scale_init": 0.1, "key_bias": False}


def vit_of(**variant: Any) -> ViT:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(32, 8, 16, 2, 2, **variant)).eval()
    for name, parameter in vit.named_parameters():
        if name != "pos_embed" or variant.get("pos_embed") == "learned":
            torch.nn.init.normal_(parameter, std=0.2)
    return vit


def as_beit_names_it(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "rel_pos_bias.table": "rel_pos_bias.relative_position_bias_table",
        **{f"blocks.{i}.ls{k}.gamma": f"blocks.{i}.gamma_{k}" for i in range(2) for k in (1, 2)},
    }
    return {names.get(name, name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("nesting", ["model", "teacher", None])
def test_mae_and_ibot_checkpoints_give_the_same_output(nesting: str | None, tmp_path: Path) -> None:
    vit = vit_of(pos_embed="learned" if nesting == "teacher" else "sincos")
    prefix = "backbone." if nesting == "teacher" else ""
    state = {f"{prefix}{name}": tensor for name, tensor in vit.state_dict().items()}
    state |= {"decoder_embed.weight": torch.zeros(3, 3), "mask_token": torch.zeros(1)}
    path = tmp_path / "official.pth"
    torch.save({nesting: state, "epoch": 3} if nesting else state, path)
    found, report = foreign.convert(foreign.read(path), SIZE, path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.eval()(images), vit(images))
    assert found.config.pos_embed == ("learned" if nesting == "teacher" else "sincos")
    assert report.dropped == ["decoder_embed.weight", "mask_token"]
    assert sorted(report.loaded) == sorted(vit.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fixed_positions_in_half_precision_stay_fixed(dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in vit_of(pos_embed="sincos").state_dict().items()}
    assert foreign.convert(state, SIZE, Path("x"))[0].config.pos_embed == "sincos"


def test_beits_biases_tables_and_layer_scale_find_their_places(tmp_path: Path) -> None:
    vit = vit_of(**BEIT)
    path = tmp_path / "beit.safetensors"
    save_file({k: v.clone() for k, v in as_beit_names_it(vit.state_dict()).items()}, path)
    found, _ = foreign.convert(foreign.read(path), SIZE, path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.eval()(images), vit(images))
    assert (found.config.rel_pos, found.config.key_bias) == ("shared", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.mlp.fc1.weight": None}, "blocks.1.mlp.fc1.weight.*lacks it"),
        ({"norm.weight": torch.ones(17)}, r"norm.weight.*\(17,\); the recipe needs \(16,\)"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {**vit_of().state_dict(), **change}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(UserError, match=message):
        foreign.convert(state, SIZE, tmp_path / "x.pth")


@pytest.mark.parametrize("content", [b"not a checkpoint", b""])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="without running code"):
            foreign.read(tmp_path / name)
