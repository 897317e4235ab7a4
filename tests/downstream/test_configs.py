"""The dense tasks' models, built from the configurations that mmdetection and mmsegmentation ship.

mm_configs.json holds each task's configuration at scales smoke and paper, written out. The model that starts
from a shipped configuration must be the one that this builds, setting by setting and weight by weight.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict

from downstream import detection, openmmlab, segmentation
from downstream.transfer import seed_weights
from mimbench.errors import RunFailed
from mimbench.ops import ensure_mmcv_ops

WRITTEN_OUT = json.loads(Path(__file__).with_name("mm_configs.json").read_text(encoding="utf-8"))
TASKS = {"detection": (detection, "mmdet", 12), "segmentation": (segmentation, "mmseg", 150)}
# What a shipped configuration says beyond ours: the defaults of the classes that it configures.
DEFAULTS = {
    ("loss_weight", 1.0),
    ("pad_val", 0),
    ("pretrained", None),
    ("reg_class_agnostic", False),
    ("use_sigmoid", False),
}

Case = tuple[ModuleType, str, int, Any, dict[str, Any]]


@pytest.fixture(params=WRITTEN_OUT)
def case(request: pytest.FixtureRequest, encoder_file: Path) -> Case:
    """Task, package, number of classes, recipe, and the written-out configuration on this machine."""
    name, scale = request.param.split("/")
    task, package, num_classes = TASKS[name]
    openmmlab.import_quietly(f"{package}.models")
    text = json.dumps(WRITTEN_OUT[request.param]).replace('"ENCODER"', json.dumps(str(encoder_file)))
    ours = json.dumps(ensure_mmcv_ops() == "torchvision")
    text = text.replace('"use_torchvision": true', f'"use_torchvision": {ours}')
    return task, package, num_classes, task.recipes()[scale], json.loads(text)


def settings(thing: Any, path: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every plain value and tensor inside a thing, with the way to it, through objects and containers."""
    if isinstance(thing, torch.Tensor):
        yield path, (tuple(thing.shape), thing.requires_grad, thing.detach().numpy().tobytes())
    elif isinstance(thing, type):
        yield path, thing.__name__
    elif isinstance(thing, (dict, list, tuple)) or hasattr(thing, "__dict__"):
        if isinstance(thing, (list, tuple)):
            parts = dict(enumerate(thing))
        elif isinstance(thing, dict):
            parts = thing
        else:
            parts = vars(thing)
            yield path, getattr(thing, "__qualname__", type(thing).__qualname__)
        for name, part in parts.items():
            if id(part) not in above:
                yield from settings(part, f"{path}.{name}", (*above, id(thing)))
    else:
        yield path, thing


def test_the_shipped_configuration_says_what_ours_said(case: Case, encoder_file: Path) -> None:
    task, _, num_classes, recipe, config = case
    wanted = dict(settings(config))
    found = dict(settings(dict(task.model_config(encoder_file, recipe, num_classes))))
    assert {path: found.get(path, "missing") for path in wanted} == wanted
    more = {(path.rpartition(".")[2], value) for path, value in found.items() if path not in wanted}
    assert more <= DEFAULTS


def test_the_model_is_that_of_the_written_out_configuration(case: Case, encoder_file: Path) -> None:
    task, package, num_classes, recipe, config = case
    seed_weights(3)
    found = task.build_model(encoder_file, recipe, num_classes)
    seed_weights(3)
    wanted = openmmlab.build(ConfigDict(config), package)
    weights = {name: tensor.shape for name, tensor in wanted.state_dict().items()}
    assert {name: tensor.shape for name, tensor in found.state_dict().items()} == weights
    found_settings, wanted_settings = dict(settings(found)), dict(settings(wanted))
    assert len(wanted_settings) > 1000
    differ = [
        path
        for path in {*found_settings, *wanted_settings}
        if found_settings.get(path, "missing") != wanted_settings.get(path, "missing")
    ]
    assert differ == []


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (detection, {"img_size": 48, "resize": "detr", "fpn_channels": 24, "anchor_scale": 2.0, "window": 2}),
        (detection, {"num_proposals": 5, "rpn_samples": 6, "roi_samples": 7, "roi_points": 1}),
        (detection, {"box_convs": 1, "box_channels": 24, "box_loss": "giou"}),
        (detection, {"mask_convs": 2, "mask_roi_size": 6}),
        (segmentation, {"img_size": 48, "slide_stride": 9, "window": 2, "dropout": 0.2}),
        (segmentation, {"head_channels": 24, "aux_channels": 24, "aux_weight": 0.7}),
    ],
)
def test_every_field_of_the_model_reaches_its_configuration(
    task: ModuleType, changes: dict[str, Any], encoder_file: Path
) -> None:
    recipe = task.recipes()["smoke"]
    before = dict(settings(dict(task.model_config(encoder_file, recipe, 12))))
    for name, value in changes.items():
        changed = task.model_config(encoder_file, recipe.vary("test", **{name: value}), 12)
        assert dict(settings(dict(changed))) != before, name


@pytest.mark.parametrize("place", ["installed/.mim/configs", "configs"])
def test_a_configuration_is_found_in_the_package_or_beside_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mm_{place.count('/')}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RunFailed, match=rf"{name}.*_base_/models/net\.py.*\.mim.*pip install.*{name}"):
        openmmlab.shipped_config(name, "net")
    file = tmp_path / place.replace("installed", name) / "_base_/models/net.py"
    file.parent.mkdir(parents=True)
    file.write_text("model = dict(type='Net', head=dict(num_classes=80))\n")
    model = openmmlab.shipped_config(name, "net")
    model.head.num_classes = 3
    assert openmmlab.shipped_config(name, "net").head.num_classes == 80, "each caller has a copy of its own"
    assert importlib.import_module(name).__file__ == str(package / "__init__.py")
