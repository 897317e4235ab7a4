"""Parts of a run that tasks share: seeding new weights, labelled images, training a head, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmengine.dist import get_dist_info
from torch.utils.data import Subset

from mimbench.contract import TransferRecipe
from mimbench.data import imagenet
from mimbench.data.image_folder import ImageFolder
from mimbench.train.loader import seed_everything
from mimbench.train.optimizer import param_groups
from mimbench.train.runner import fit

if TYPE_CHECKING:
    from mmengine.model import BaseModel

    from mimbench.store.folder import RunFolder

WEIGHTS_STREAM = 7919  # seeds new heads differently from every step


def seed_weights(seed: int) -> None:
    """Make the weights drawn next depend only on the seed; call it before building a model."""
    seed_everything(seed, 0, WEIGHTS_STREAM)


def share_of(dataset: Any) -> Subset[Any]:
    """The items of a dataset that this process evaluates; each is evaluated by exactly one process."""
    rank, world_size = get_dist_info()
    return Subset(dataset, range(rank, len(dataset), world_size))


def labelled_splits(folder: RunFolder) -> tuple[ImageFolder, ImageFolder]:
    """Labelled training images (those in train_labelled.txt, if that file exists) and validation images.

    With `--skip-corrupt`, images that do not decode are left out and recorded in the run's details.
    """
    root, skip = folder.data("imagenet"), folder.spec.skip_corrupt
    imagenet.classes_for_labels(root)
    train = ImageFolder(root, "train", labelled=True, skip_corrupt=skip)
    val = ImageFolder(root, "val", skip_corrupt=skip)
    if train.skipped or val.skipped:
        folder.details["skipped_images"] = train.skipped + val.skipped
    return train, val


def fit_head(model: BaseModel, images: Any, folder: RunFolder, recipe: TransferRecipe, *, steps: int) -> None:
    """Train only `model.head`."""
    folder.details |= {"labelled_images": len(images), "steps": steps}
    groups = param_groups(model.head, recipe.weight_decay)
    fit(model, images, folder, recipe, steps=steps, param_groups=groups)
