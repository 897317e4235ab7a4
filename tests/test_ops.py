"""mmcv's operators: torchvision's where they are absent, mmcv's own where they are compiled."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch
from torchvision import ops as tv

from mimbench.ops import ensure_mmcv_ops, roi_align

fallback = pytest.mark.skipif(ensure_mmcv_ops() != "torchvision", reason="mmcv's operators are compiled here")


def _boxes(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = 30 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corner, corner + 1 + 20 * torch.rand(count, 2, generator=generator)], dim=1)
    return boxes, torch.rand(count, generator=generator)


@fallback
def test_absent_operators_are_registered_as_a_findable_module() -> None:
    spec = importlib.util.find_spec("mmcv._ext")  # how mmengine asks
    assert spec is not None and spec.name == "mmcv._ext"
    import mmcv.ops

    assert hasattr(mmcv.ops, "nms")


def test_compiled_operators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = types.ModuleType("mmcv._ext")
    compiled.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", loader=None)
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert ensure_mmcv_ops() == "compiled"
    assert sys.modules["mmcv._ext"] is compiled
    assert roi_align(7)["use_torchvision"] is False


def test_compiled_operators_are_found_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not imported yet, but there: nothing may be put in its place."""
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    found = importlib.machinery.ModuleSpec("mmcv._ext", loader=None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "mmcv._ext" else None)
    assert ensure_mmcv_ops() == "compiled"
    assert "mmcv._ext" not in sys.modules


@fallback
@pytest.mark.parametrize("offset", [0, 1])
def test_nms_equals_torchvision(offset: int) -> None:
    from mmcv.ops import nms

    boxes, scores = _boxes()
    kept, indices = nms(boxes, scores, iou_threshold=0.4, offset=offset)
    widened = boxes + torch.tensor([0, 0, offset, offset])
    assert torch.equal(indices, tv.nms(widened, scores, 0.4))
    assert 0 < len(indices) < len(boxes)
    torch.testing.assert_close(kept, torch.cat([boxes, scores[:, None]], dim=1)[indices])


@fallback
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_equals_torchvision(aligned: bool) -> None:
    from mmcv.ops import RoIAlign

    features = torch.randn(2, 4, 16, 16)
    boxes, _ = _boxes(10)
    rois = torch.cat([torch.arange(10)[:, None] % 2, boxes], dim=1).float()
    wanted = tv.roi_align(features, rois, 7, spatial_scale=0.25, sampling_ratio=0, aligned=aligned)
    for use_torchvision in (True, False):  # False goes through the registered module
        layer = RoIAlign(7, spatial_scale=0.25, aligned=aligned, use_torchvision=use_torchvision)
        torch.testing.assert_close(layer(features, rois), wanted)


@fallback
def test_gradient_flows_through_the_configured_layer() -> None:
    from mmcv.ops import RoIAlign

    cfg = roi_align(7)
    assert cfg.pop("type") == "RoIAlign"
    features = torch.randn(1, 4, 16, 16, requires_grad=True)
    RoIAlign(**cfg)(features, torch.tensor([[0.0, 2.0, 2.0, 9.0, 9.0]])).sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0


@fallback
def test_any_other_operator_says_what_to_do() -> None:
    from mmcv.ops import nms_match

    with pytest.raises(RuntimeError, match="nms_match.*not compiled"):
        nms_match(torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5]]), 0.5)
