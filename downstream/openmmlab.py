"""Helpers for mmsegmentation and mmdetection: shipped configurations, models, datasets and metrics."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from mimbench.data.decode import CorruptImage, decode, label_map
from mimbench.device import device
from mimbench.errors import RunFailed, UserError
from mimbench.ops import ensure_mmcv_ops
from mimbench.train.worker_errors import Loader

if TYPE_CHECKING:
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel

    from mimbench.store.folder import RunFolder


def import_quietly(*modules: str) -> None:
    """Set up mmcv's operators, then import mm-series modules without their messages about optional parts."""
    ensure_mmcv_ops()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            importlib.import_module(name)


def shipped_config(package: str, name: str) -> ConfigDict:
    """The model config in `_base_/models/{name}.py`, one of the configurations that `mmseg` or `mmdet` ships.

    We look the file up by path: mmengine.hub.get_config would run pip for a package that it does not know.

    Raises:
        RunFailed: the package was installed without its configurations.
    """
    folder = Path(str(importlib.import_module(package).__file__)).parent
    # A wheel has them inside the package; an editable install has them beside it.
    roots = (folder / ".mim" / "configs", folder.parent / "configs")
    file = f"_base_/models/{name}.py"
    for root in roots:
        if (root / file).is_file():
            return Config.fromfile(root / file).model
    distribution = packages_distributions().get(package, [package])[0]
    raise RunFailed(
        f"{package}: its configuration {file} is neither in {roots[0]} nor in {roots[1]}. "
        f"Install it again: pip install --force-reinstall --no-deps {distribution}"
    )


def build(config: ConfigDict, package: str) -> BaseModel:
    """Build the model of an `mmseg` or `mmdet` configuration; new weights are drawn from torch's generator.

    Builds without warnings and in the package's registry scope, whatever was built before.
    """
    if not MMLogger.check_instance_created("mimbench"):
        # mm-series models log every parameter that they initialise.
        MMLogger.get_instance("mimbench", log_level="WARNING")
    models = importlib.import_module(f"{package}.registry").MODELS
    with DefaultScope.overwrite_default_scope(package), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.build(config)
        model.init_weights()
    return model


class LoadImage:
    """The first transform of an mm-series pipeline; mmcv's own does not name a file that it cannot read."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        path = Path(results["img_path"])
        image = np.ascontiguousarray(decode(path, upright=True)[..., ::-1])  # BGR, as mmcv keeps it
        if "height" in results and (results["height"], results["width"]) != image.shape[:2]:
            stated = f"{results['width']}x{results['height']}"
            remedy = f"It is {image.shape[1]}x{image.shape[0]} pixels; the annotations say {stated}."
            raise UserError("image", str(path), remedy=remedy)
        return {**results, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


def usable(dataset: Any, folder: RunFolder, root: Path) -> Any:
    """The dataset; with `--skip-corrupt`, without the images that do not decode.

    What was converted while it was read is recorded in the run's details.

    Raises:
        UserError: no image is left.
    """
    if dataset.converted:
        folder.details["converted"] = [*folder.details.get("converted", ()), *dataset.converted]
    if folder.spec.skip_corrupt:
        _leave_out_corrupt(dataset, folder)
    if len(dataset) == 0:
        left_out = folder.details.get("skipped_images", ())
        such = f", such as {left_out[-1]}" if left_out else ""
        remedy = f"It holds no usable image{such}; `mimbench data check {root}` says why."
        raise UserError("data", str(root), remedy=remedy)
    return dataset


def _leave_out_corrupt(dataset: Any, folder: RunFolder) -> None:
    """Remove the images that do not decode and record them in the run's details."""
    good, bad = [], []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        path = info["img_path"]
        try:
            decode(Path(path))
            if info.get("seg_map_path"):
                label_map(Path(info["seg_map_path"]))
            good.append(index)
        except (CorruptImage, FileNotFoundError):
            bad.append(str(path))
    if bad:
        dataset.get_subset_(good)
        folder.details.setdefault("skipped_images", []).extend(bad)


def evaluate(
    model: BaseModel, dataset: Any, metric: BaseMetric, *, batch_size: int, num_workers: int
) -> dict[str, float]:
    """Predict the whole dataset and compute an mm-series metric."""
    model.to(device()).eval()
    metric.dataset_meta = dataset.metainfo
    items = Loader(
        dataset, batch_size=None, sampler=DefaultSampler(dataset, shuffle=False), num_workers=num_workers
    )
    with torch.no_grad():
        for batch in _of_one_shape(items, batch_size):
            samples = model.test_step(pseudo_collate(batch))
            metric.process({}, [sample.to_dict() for sample in samples])
    return metric.evaluate(size=len(dataset))


def _of_one_shape(items: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    """Batches of consecutive items; a batch ends where the images' current or original shape changes."""

    def shape(item: Any) -> Any:
        return item["inputs"].shape, item["data_samples"].ori_shape

    batch: list[Any] = []
    for item in items:
        if batch and (len(batch) == batch_size or shape(item) != shape(batch[0])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
