"""Weighted k-nearest-neighbour classification of frozen features, as DINO and iBOT report it.

Nothing is trained. An image's feature is the class token after the encoder's final norm, scaled to unit
length; methods without a loss on the class token need the mean of the patch tokens instead. The k nearest
labelled images vote: the score of a class is the sum of exp(cosine / temperature) over those that belong to
it (facebookresearch/dino@7c446df, eval_knn.py). Compare methods only with the same token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor

from downstream.estimate import encoder_flops
from mimbench.contract import Metric, TaskCard, TransferRecipe
from mimbench.device import device
from mimbench.errors import UserError
from mimbench.recipe import cite, require_above, require_range
from mimbench.train.worker_errors import Loader

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder
    from mimbench.vit import ViT


@dataclass(frozen=True, kw_only=True)
class KNNRecipe(TransferRecipe):
    """Fields of k-NN classification; the training fields are not used."""

    k: int  # neighbours
    temperature: float
    token: Literal["cls", "mean"]  # an image's feature: the class token, or the mean of the patch tokens
    crop_pct: float  # the centre crop's side over the resized image's short side

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("k", self.k, 1)
        require_above("temperature", self.temperature, 0)
        require_above("crop_pct", self.crop_pct, 0)


DINO = "DINO code, eval_knn.py@7c446df"
FROZEN = "frozen features: nothing is trained"


def recipes() -> Mapping[str, KNNRecipe]:
    """Scale to recipe."""
    paper = KNNRecipe.of(
        cite(DINO, img_size=224, crop_pct=0.875, temperature=0.07, token="cls"),
        cite(f"{DINO}: of 10, 20, 100 and 200 the one it recommends", k=20),
        cite(FROZEN, drop_path=0.0, global_batch_size=128, base_lr=0.0, lr_rule="absolute", layer_decay=1.0),
        cite(FROZEN, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=None, precision="fp32"),
    )
    small = paper.vary(cite("ours: small images, taken whole", img_size=64, crop_pct=1.0))
    toy = small.vary(cite("ours: 20 labelled images a class", k=10))
    smoke = toy.vary(cite("ours: seconds", img_size=32, k=3))
    return {"smoke": smoke, "toy": toy, "small": small, "paper": paper}


def run(folder: RunFolder) -> dict[str, float]:
    """Top-1 accuracy of the validation images, in percent; the labelled training images vote."""
    from downstream.transfer import labelled_splits, share_of
    from mimbench.checkpoint.encoder import load_encoder
    from mimbench.data.augment import eval_transform
    from mimbench.data.image_folder import LabelledImages

    recipe = KNNRecipe.from_values(folder.spec.recipe)
    train, val = labelled_splits(folder)
    _require_neighbours(recipe.k, len(train))
    encoder, report = load_encoder(folder.parents["encoder"].encoder_path, img_size=recipe.img_size)
    folder.details |= {"load_report": report.as_dict(), "labelled_images": len(train)}
    encoder.to(device()).eval()
    transform = eval_transform(recipe.img_size, recipe.crop_pct)
    workers = folder.options.num_workers
    # Every process has the whole bank and its share of the queries.
    bank, bank_labels = features(encoder, LabelledImages(train, transform), recipe, workers)
    query, labels = features(encoder, share_of(LabelledImages(val, transform)), recipe, workers)
    hits = torch.zeros((), device=bank.device)
    for x, y in zip(query.split(256), labels.split(256), strict=True):
        scores = vote(x, bank, bank_labels, len(train.classes), recipe.k, recipe.temperature)
        hits += (scores.argmax(dim=1) == y).sum()
    all_reduce(hits)
    return {"top1_knn": 100 * hits.item() / len(val)}


@torch.no_grad()
def features(encoder: ViT, dataset: Any, recipe: KNNRecipe, num_workers: int) -> tuple[Tensor, Tensor]:
    """The images' features `[P, D]`, of unit length, and labels `[P]`, on the device."""
    target = device()
    rows, labels = [], []
    for images, classes in Loader(dataset, batch_size=recipe.global_batch_size, num_workers=num_workers):
        tokens = encoder(images.to(target))  # [B, 1+N, D]
        row = tokens[:, 0] if recipe.token == "cls" else tokens[:, 1:].mean(dim=1)
        rows.append(F.normalize(row, dim=1))
        labels.append(classes.to(target))
    return torch.cat(rows), torch.cat(labels)


def vote(
    query: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int, k: int, temperature: float
) -> Tensor:
    """Class scores `[Q, num_classes]` of queries `[Q, D]`, from a bank `[P, D]` with labels `[P]`."""
    cosine, index = (query @ bank.T).topk(k, dim=1)  # [Q, k]
    scores = query.new_zeros(len(query), num_classes)
    return scores.scatter_add(1, bank_labels[index], (cosine / temperature).exp())


def images(recipe: Mapping[str, Any], data_size: int) -> int:
    """Images in the bank: every labelled image once. Raises UserError if there are fewer than neighbours."""
    if data_size:  # unknown without data
        _require_neighbours(recipe["k"], data_size)
    return data_size


def _require_neighbours(k: int, count: int) -> None:
    if k > count:
        raise UserError("k", k, remedy=f"There are {count} labelled images.")


TASK = TaskCard(
    name="knn",
    title="ImageNet k-NN",
    protocol="frozen features, weighted k-NN",
    data="imagenet",
    metrics=(Metric(name="top1_knn", title="k-NN top-1"),),
    recipes=recipes,
    run=run,
    flops=encoder_flops,  # forward only
    images=images,
)
