"""What the tasks share in a run: the encoder, new weights, unreadable pictures, evaluation."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mimbench.device import device
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from mimbench.contract import TransferRecipe
from mimbench.data.image_folder import CorruptPicture, ImageFolder, decode
from mimbench.errors import UserError
from mimbench.ops import ensure_mmcv_ops
from mimbench.schedule import warmup_cosine
from mimbench.train.loader import seed_everything
from mimbench.train.optimizer import param_groups
from mimbench.train.runner import fit
from mimbench.train.worker_errors import Loader

if TYPE_CHECKING:
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel

    from mimbench.store.folder import RunFolder

PIXEL_MEAN, PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ImageNet's, RGB in 0..255
WEIGHTS_STREAM = 7919  # keeps the new heads' draws apart from every step's


def import_quietly(*modules: str) -> None:
    """Import mm-series modules, with operators under them, without what they print about optional parts."""
    ensure_mmcv_ops()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            importlib.import_module(name)


def seed_weights(seed: int) -> None:
    """Make the weights drawn next depend on the seed alone; call it before building a model."""
    seed_everything(seed, 0, WEIGHTS_STREAM)


@contextlib.contextmanager
def scope(package: str) -> Iterator[None]:
    """Build mm-series models in here: quietly, with names from `package`'s registry, whatever ran before."""
    if not MMLogger.check_instance_created("mimbench"):
        # They log every parameter that they initialise.
        MMLogger.get_instance("mimbench", log_level="WARNING")
    with DefaultScope.overwrite_default_scope(package), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class LoadPicture:
    """The first transform of an mm-series pipeline; mmcv's own stops without naming the file."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        picture = np.ascontiguousarray(decode(Path(results["img_path"]))[..., ::-1])  # BGR, as mmcv keeps it
        return {**results, "img": picture, "img_shape": picture.shape[:2], "ori_shape": picture.shape[:2]}


def leave_out_unreadable(dataset: Any, folder: RunFolder) -> Any:
    """Under `--skip-corrupt`, remove the pictures that do not decode and record them in the details."""
    if not folder.spec.skip_corrupt:
        return dataset
    good, bad = [], []
    for index in range(len(dataset)):
        path = dataset.get_data_info(index)["img_path"]
        try:
            decode(Path(path))
            good.append(index)
        except CorruptPicture:
            bad.append(str(path))
    if bad:
        dataset.get_subset_(good)
        folder.details.setdefault("skipped_pictures", []).extend(bad)
    return dataset


def labelled_splits(folder: RunFolder) -> tuple[ImageFolder, ImageFolder]:
    """Labelled training pictures (those of train_labelled.txt, where there is one) and validation pictures.

    Under `--skip-corrupt`, those that do not decode are left out and recorded in the details.
    """
    root, skip = folder.data("imagenet"), folder.spec.skip_corrupt
    subset = "train_labelled.txt" if (root / "train_labelled.txt").is_file() else None
    train = ImageFolder(root, "train", subset_file=subset, skip_corrupt=skip)
    val = ImageFolder(root, "val", skip_corrupt=skip)
    if train.skipped or val.skipped:
        folder.details["skipped_pictures"] = train.skipped + val.skipped
    return train, val


def fit_head(
    model: BaseModel,
    pictures: Any,
    folder: RunFolder,
    recipe: TransferRecipe,
    *,
    steps: int,
    warmup: int = 0,
    min_lr: float = 0.0,
) -> None:
    """Train `model.head` alone: linear warm-up, then half a cosine to `min_lr`."""
    folder.details |= {"labelled_pictures": len(pictures), "steps": steps}
    fit(
        model,
        pictures,
        folder=folder,
        seed=folder.spec.seed,
        steps=steps,
        batch_size=recipe.global_batch_size,
        param_groups=param_groups(model.head, recipe.weight_decay),
        lr_at=lambda step: warmup_cosine(step, peak=recipe.peak_lr, total=steps, warmup=warmup, final=min_lr),
        betas=recipe.betas,
        clip_grad=recipe.clip_grad,
        precision=recipe.precision,
    )


def require_pictures(dataset: Any, where: Path) -> None:
    """Raises UserError where a split has nothing to train or evaluate on."""
    if len(dataset) == 0:
        raise UserError("data", str(where), remedy="It holds no usable picture; see `mimbench data check`.")


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
    """Consecutive items in batches; a batch ends where the pictures' shape, now or originally, changes."""

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
