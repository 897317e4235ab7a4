"""Makes `mmcv.ops` work without compiled operators, by using torchvision's.

`pip install onedl-mmcv` installs no compiled operators, and without them `mmdet.models` cannot be imported.
Mask R-CNN needs two, NMS and RoIAlign, and torchvision has both.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, Literal

Ops = Literal["compiled", "torchvision"]
_NAME = "mmcv._ext"


class _TorchvisionExt(types.ModuleType):
    """Replaces `mmcv._ext`. Operators that torchvision lacks raise RuntimeError when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):  # the import system and inspect ask for these; they must stay absent
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise RuntimeError(
                f"mmcv's operator {name!r} is not compiled here and torchvision has no equivalent; "
                "install an mmcv with compiled operators to use it."
            )

        return missing


def ensure_mmcv_ops() -> Ops:
    """Make `mmcv.ops` importable; call it before anything that imports mmseg's or mmdet's models.

    Returns:
        `compiled` if mmcv has its own operators (then nothing changes); `torchvision` if torchvision's
        replace them.
    """
    if _NAME in sys.modules:
        return "torchvision" if isinstance(sys.modules[_NAME], _TorchvisionExt) else "compiled"
    if importlib.util.find_spec(_NAME) is not None:
        return "compiled"
    module = _TorchvisionExt(_NAME, "torchvision's operators under the names of mmcv's.")
    module.__spec__ = importlib.machinery.ModuleSpec(_NAME, loader=None)  # mmengine looks for it by find_spec
    module.nms = _nms  # type: ignore[attr-defined]
    module.roi_align_forward = _roi_align_forward  # type: ignore[attr-defined]
    sys.modules[_NAME] = module
    return "torchvision"


def roi_align(output_size: int, sampling_ratio: int = 0) -> dict[str, Any]:
    """The config of an mmdet RoIAlign layer that has a gradient with either kind of operators."""
    use_torchvision = ensure_mmcv_ops() == "torchvision"
    return {
        "type": "RoIAlign",
        "output_size": output_size,
        "sampling_ratio": sampling_ratio,
        "use_torchvision": use_torchvision,
    }


def _nms(boxes: Any, scores: Any, iou_threshold: float, offset: int = 0) -> Any:
    from torchvision.ops import nms

    if offset:  # the older convention, in which a box from x to x is one pixel wide
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return nms(boxes, scores, iou_threshold)


def _roi_align_forward(
    features: Any,
    rois: Any,
    output: Any,
    argmax_y: Any,
    argmax_x: Any,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes into `output`. Inference only: a gradient needs `use_torchvision`, see `roi_align`."""
    from torchvision.ops import roi_align

    if pool_mode != 1:
        raise RuntimeError(
            "torchvision's roi_align has average pooling only; install an mmcv with compiled operators."
        )
    size = (aligned_height, aligned_width)
    output.copy_(roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned))
