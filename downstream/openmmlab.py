"""mmsegmentation and mmdetection: their shipped configurations, their models, datasets and metrics."""

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

from mimbench.data.image_folder import CorruptImage, decode
from mimbench.device import device
from mimbench.errors import RunFailed, UserError
from mimbench.ops import ensure_mmcv_ops
from mimbench.train.worker_errors import Loader

if TYPE_CHECKING:
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel

    from mimbench.store.folder import RunFolder


def import_quietly(*modules: str) -> None:
    """Import mm-series modules, with operators under them, without what they print about optional parts."""
    ensure_mmcv_ops()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            importlib.import_module(name)


def shipped_config(package: str, name: str) -> ConfigDict:
    """The model of `_base_/models/{name}.py`, one of the configurations that `mmseg` or `mmdet` ships.

    It is found by its path: mmengine.hub.get_config would run pip for a package whose name it does not know.

    Raises:
        RunFailed: the package was installed without its configurations.
    """
    folder = Path(str(importlib.import_module(package).__file__)).parent
    # A wheel has them in the package; a repository that is installed in place has them beside it.
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
    """The model of a configuration of `mmseg` or `mmdet`, its new weights drawn from torch's generator.

    It is built quietly, with the names of the package's registry, whatever was built before.
    """
    if not MMLogger.check_instance_created("mimbench"):
        # They log every parameter that they initialise.
        MMLogger.get_instance("mimbench", log_level="WARNING")
    models = importlib.import_module(f"{package}.registry").MODELS
    with DefaultScope.overwrite_default_scope(package), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.build(config)
        model.init_weights()
    return model


class LoadImage:
    """The first transform of an mm-series pipeline; mmcv's own stops without naming the file."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        image = np.ascontiguousarray(decode(Path(results["img_path"]))[..., ::-1])  # BGR, as mmcv keeps it
        return {**results, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


def usable(dataset: Any, folder: RunFolder, root: Path) -> Any:
    """The dataset; under `--skip-corrupt` without the images that do not decode.

    Raises:
        UserError: there is nothing to train or evaluate on.
    """
    if folder.spec.skip_corrupt:
        _leave_out_corrupt(dataset, folder)
    if len(dataset) == 0:
        raise UserError("data", str(root), remedy="It holds no usable image; see `mimbench data check`.")
    return dataset


def _leave_out_corrupt(dataset: Any, folder: RunFolder) -> None:
    """Remove the images that do not decode and record them in the details."""
    good, bad = [], []
    for index in range(len(dataset)):
        path = dataset.get_data_info(index)["img_path"]
        try:
            decode(Path(path))
            good.append(index)
        except CorruptImage:
            bad.append(str(path))
    if bad:
        dataset.get_subset_(good)
        folder.details.setdefault("skipped_images", []).extend(bad)


def evaluate(
    model: BaseModel, dataset: Any, metric: BaseMetric, *, batch_size: int, num_workers: int
) -> dict[str, float]:
    """Predictions of the whole dataset, measured by an mm-series metric."""
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
    """Consecutive items in batches; a batch ends where the images' shape, now or originally, changes."""

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
