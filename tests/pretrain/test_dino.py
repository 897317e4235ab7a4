"""The DINO teacher: its loss, what it hands over, and weights that come from elsewhere."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from mimbench.errors import UserError
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.train import pretraining
from mimbench.vit import ViT
from pretrain.self_distillation import backbone
from pretrain.teachers.dino import DINO, METHOD, load, load_backbone, read_weights

SMOKE = METHOD.recipes()["smoke"]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(0)
    vit = backbone(SMOKE)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def test_loss_by_hand() -> None:
    """Algorithm 1, written out for two views and no local ones."""
    torch.manual_seed(0)
    temps = {"warmup_teacher_temp": 0.04, "teacher_temp": 0.04, "student_temp": 0.1}
    method = DINO(SMOKE.vary("test", num_local_crops=0, **temps)).train()
    torch.nn.init.normal_(method.student.encoder.cls_token)  # so that student and teacher differ
    torch.nn.init.normal_(method.center.mean, std=0.1)
    views = IMAGES, IMAGES.flip(3)

    def logits(network: torch.nn.Module, view: Tensor) -> Tensor:
        return network.head(network.encoder(view)[:, 0])

    def h(target: Tensor, pred: Tensor) -> Tensor:
        target = ((target - method.center.mean) / 0.04).softmax(dim=1)
        return -(target * F.log_softmax(pred / 0.1, dim=1)).sum(dim=1).mean()

    s1, s2 = (logits(method.student, view) for view in views)
    t1, t2 = (logits(method.teacher, view) for view in views)
    torch.testing.assert_close(method(views, 0.0)["loss"], (h(t1, s2) + h(t2, s1)) / 2)


def test_a_run_hands_over_the_moving_average(pretraining_folder: Callable[..., RunFolder]) -> None:
    folder = pretraining_folder(METHOD, steps=3)
    pretraining.run(folder, METHOD)
    trained, network = load_file(folder.path / "teacher.safetensors"), load(folder)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, trained[f"teacher.encoder.{name}"]), name
    assert not torch.equal(trained["teacher.encoder.cls_token"], trained["student.encoder.cls_token"])
    with torch.no_grad():
        tokens = network(IMAGES)  # [B, 1+N, D] after the final norm
    assert tokens.shape == (2, 17, 32)
    torch.testing.assert_close(network.norm(network.encode(network.embed(IMAGES))[-1]), tokens)


@pytest.mark.parametrize(
    "kind", ["backbone", "full", "official", "ibot", "safetensors", "lightning", "compiled"]
)
def test_weights_from_elsewhere(vit: ViT, tmp_path: Path, kind: str) -> None:
    state = vit.state_dict()
    wrapped = {f"module.backbone.{name}": w for name, w in state.items()} | {"module.head.mlp.0.bias": IMAGES}
    path = tmp_path / ("dino.safetensors" if kind == "safetensors" else "dino.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        other = {name: w + 1 for name, w in wrapped.items()}
        full = {"student": other, "teacher": wrapped}
        student = {name.replace("module.backbone", "module.module.backbone"): w for name, w in other.items()}
        options = Namespace(arch="vit_small", out_dim=65536)
        kinds = {
            "backbone": state,
            "full": full,
            "official": {
                "student": student,
                "teacher": wrapped,
                "optimizer": {},
                "epoch": 1,
                "args": options,
            },
            "ibot": {"state_dict": state},
            "lightning": {"state_dict": {f"teacher.{n}": w for n, w in state.items()}, "epoch": 1},
            "compiled": {f"_orig_mod.{n}": w for n, w in state.items()},
        }
        torch.save(kinds[kind], path)
    loaded = load_backbone(read_weights(path), SMOKE, path)
    assert all(torch.equal(state[name], w) for name, w in loaded.state_dict().items())


def test_a_run_that_names_weights_loads_what_the_user_gave(vit: ViT, tmp_path: Path) -> None:
    save_file(vit.state_dict(), tmp_path / "mine.safetensors")
    values = SMOKE.vary("test", weights="dino").values()
    spec = RunSpec("teacher", "dino", "vit_smoke", values, {}, 0)
    folder = RunStore(tmp_path).create(spec, Inputs(weights={"dino": str(tmp_path / "mine.safetensors")}))
    with torch.no_grad():
        torch.testing.assert_close(load(folder)(IMAGES), vit(IMAGES))
    assert sorted(folder.details["load_report"]["loaded"]) == sorted(vit.state_dict())


def test_weights_of_another_shape_are_refused_by_name(vit: ViT, tmp_path: Path) -> None:
    state = {**vit.state_dict(), "cls_token": torch.zeros(1, 1, 768)}
    with pytest.raises(UserError, match=r"pos_embed.*\(1, 17, 32\).*\(1, 197, 768\)"):
        load_backbone(state, METHOD.recipes()["paper"], tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("register_tokens", torch.zeros(1, 4, 32)),
        ("blocks.4.norm1.weight", torch.ones(32)),
        ("norm.bias", torch.full((32,), torch.nan)),
        ("pos_embed", None),
    ],
)
def test_the_rules_are_those_of_every_checkpoint(
    name: str, tensor: Tensor | None, vit: ViT, tmp_path: Path
) -> None:
    state = {key: w for key, w in {**vit.state_dict(), name: tensor}.items() if w is not None}
    with pytest.raises(UserError, match=f"--weights dino .*{name}"):
        load_backbone(state, SMOKE, tmp_path)


def test_a_student_alone_is_refused(vit: ViT, tmp_path: Path) -> None:
    state = {f"student.backbone.{name}": w for name, w in vit.state_dict().items()}
    with pytest.raises(UserError, match="hands over the teacher"):
        load_backbone(state, SMOKE, tmp_path)


def test_a_damaged_teacher_of_our_own_is_named(pretraining_folder: Callable[..., RunFolder]) -> None:
    folder = pretraining_folder(METHOD, steps=1)
    pretraining.run(folder, METHOD)
    path = folder.path / "teacher.safetensors"
    state = load_file(path)
    state["teacher.encoder.norm.bias"][3] = torch.nan
    save_file(state, path)
    with pytest.raises(UserError, match=r"teacher\.safetensors: 'teacher\.encoder\.norm\.bias'.*runs rm"):
        load(folder)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"teacher\.safetensors.*damaged.*runs rm"):
        load(folder)


def test_a_file_that_holds_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dino.pth"
    torch.save({"teacher": {}, "args": Path("x")}, path)
    with pytest.raises(UserError, match="weights dino"):
        read_weights(path)
