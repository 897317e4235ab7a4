"""Semantic segmentation on ADE20K-format data: mmsegmentation's UperNet on the plain ViT.

The protocol of BEiT, MAE and iBOT (UperNet: Xiao et al., 2018): four taps, deconvolution pyramid, UPerHead
with an FCN auxiliary head on the third tap, label 0 ignored (`reduce_zero_label`), slide inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downstream.dense import DenseRecipe, dense_flops, fit_dense
from mimbench.arch import size_of
from mimbench.contract import Metric, TaskCard
from mimbench.data import ade20k
from mimbench.errors import UserError
from mimbench.recipe import cite, require_range
from mimbench.schedule import warmup_poly

if TYPE_CHECKING:
    from mmengine.config import ConfigDict
    from mmengine.model import BaseModel

    from mimbench.store.folder import RunFolder

IGNORED = 255  # no class, or no label: see mimbench.data.ade20k


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(DenseRecipe):
    """UperNet fine-tuning; `img_size` is the side of the crop in training and in slide inference."""

    steps: int
    warmup_steps: int
    warmup_ratio: float  # learning rate at step 0, as a share of the peak
    poly_power: float
    min_lr: float
    slide_stride: int  # pixels
    head_channels: int | None  # of UPerHead; None: the encoder's width
    aux_channels: int
    aux_weight: float
    dropout: float
    # Pixels: the image is fitted into (long, short), then scaled by resize_ratio.
    resize_scale: tuple[int, int]
    resize_ratio: tuple[float, float]
    cat_max_ratio: float  # a crop is drawn again if one class covers more than this share
    photometric: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "slide_stride", "aux_channels"):
            require_range(name, getattr(self, name), 1)
        require_range("head_channels", self.head_channels or 1, 1)
        require_range("warmup_steps", self.warmup_steps, 0, self.steps)
        for name in ("warmup_ratio", "dropout", "cat_max_ratio"):
            require_range(name, getattr(self, name), 0, 1)
        for name in ("poly_power", "min_lr", "aux_weight"):
            require_range(name, getattr(self, name), 0)
        if min(*self.resize_scale, *self.resize_ratio) <= 0:
            value = [*self.resize_scale, *self.resize_ratio]
            raise UserError("resize_scale and resize_ratio", value, remedy="All must be above 0.")
        if self.resize_ratio[0] > self.resize_ratio[1]:
            raise UserError("resize_ratio", list(self.resize_ratio), remedy="The least ratio must be first.")

    def lr_at(self, step: int, steps: int, epoch_steps: float) -> float:
        """Learning rate of a step, before layer decay: linear warm-up, then polynomial decay to `min_lr`."""
        del epoch_steps
        return warmup_poly(
            step,
            peak=self.peak_lr,
            total=steps,
            warmup=self.warmup_steps,
            power=self.poly_power,
            final=self.min_lr,
            start_ratio=self.warmup_ratio,
        )


PAPER = "BEiT/MAE/iBOT UperNet protocol"
CODE = f"{PAPER} (mae_segmentation 772c0c1)"
OURS = "ours: two CPU cores"


def recipes() -> Mapping[str, SegmentationRecipe]:
    """Scale to recipe."""
    paper = SegmentationRecipe.of(
        cite(CODE, img_size=512, drop_path=0.1, add_rel_pos=True, add_layer_scale=1.0),
        cite(CODE, positions="interpolate", final_norm=False, window=0, checkpoint_blocks=False),
        cite(CODE, global_batch_size=16, base_lr=1e-4, layer_decay=0.65),
        cite(PAPER, lr_rule="absolute", weight_decay=0.05, betas=(0.9, 0.999), clip_grad=None),
        cite(PAPER, steps=160_000, warmup_steps=1500, warmup_ratio=1e-6, poly_power=1.0, min_lr=0.0),
        cite(PAPER, precision="fp16"),
        cite(PAPER, head_channels=None, aux_channels=256, aux_weight=0.4, dropout=0.1, slide_stride=341),
        cite(PAPER, resize_scale=(2048, 512), resize_ratio=(0.5, 2.0), cat_max_ratio=0.75, photometric=True),
    )
    small = paper.vary(
        cite(OURS, img_size=64, resize_scale=(384, 96), slide_stride=42),
        cite(OURS, add_rel_pos=False, add_layer_scale=None, head_channels=64, aux_channels=32),
        cite(OURS, base_lr=1e-3, layer_decay=0.8, precision="fp32", steps=100, warmup_steps=10),
        cite(OURS, global_batch_size=16),
    )
    toy = small.vary(
        cite(OURS, resize_ratio=(0.9, 1.1), photometric=False, drop_path=0.0, head_channels=48),
        cite(OURS, global_batch_size=8, base_lr=3e-3, steps=350, warmup_steps=35),
    )
    smoke = toy.vary(
        cite(OURS, img_size=32, resize_scale=(256, 64), slide_stride=21, head_channels=16, aux_channels=8),
        cite(OURS, global_batch_size=2, steps=3, warmup_steps=1),
    )
    return {"smoke": smoke, "toy": toy, "small": small, "paper": paper}


def class_names(root: Path) -> tuple[str, ...]:
    """The classes of labels 1, 2, ...: from `classes.txt`, one name per line, else ADE20K's 150."""
    names = ade20k.classes(root)
    if names is None:
        from mmseg.utils import ade_classes

        names = ade_classes()
    return tuple(names)


def build_dataset(root: Path, split: str, recipe: SegmentationRecipe) -> Any:
    """mmsegmentation's dataset of one split (`training`, `validation`) with the pipeline of that split."""
    from downstream.openmmlab import LoadImage, import_quietly

    import_quietly("mmseg.datasets")
    from mmcv.transforms import RandomFlip, RandomResize, Resize
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import PackSegInputs, PhotoMetricDistortion, RandomCrop

    names = class_names(root)

    class LoadLabels:
        """mmseg's LoadAnnotations reads labels modulo 256, and maps of another size."""

        def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
            path = Path(results["seg_map_path"])
            labels = ade20k.read_labels(path, len(names))
            if labels.shape != results["ori_shape"]:
                found, wanted = (f"{w}x{h}" for h, w in (labels.shape, results["ori_shape"]))
                remedy = f"It is {found} pixels; its image is {wanted}."
                raise UserError("label map", str(path), remedy=remedy)
            fields = [*results["seg_fields"], "gt_seg_map"]
            return {**results, "gt_seg_map": labels.astype(np.uint8), "seg_fields": fields}

    if split == "training":
        pipeline = [
            LoadImage(),
            LoadLabels(),
            RandomResize(scale=recipe.resize_scale, ratio_range=recipe.resize_ratio, keep_ratio=True),
            RandomCrop(crop_size=(recipe.img_size, recipe.img_size), cat_max_ratio=recipe.cat_max_ratio),
            RandomFlip(prob=0.5),
            *([PhotoMetricDistortion()] if recipe.photometric else []),
            PackSegInputs(),
        ]
    else:  # the annotation is loaded after the resize: predictions are scored at the image's own size
        pipeline = [
            LoadImage(),
            Resize(scale=recipe.resize_scale, keep_ratio=True),
            LoadLabels(),
            PackSegInputs(),
        ]

    class Dataset(BaseSegDataset):  # type: ignore[misc]
        converted: tuple[str, ...] = ()

        def load_data_list(self) -> list[dict[str, Any]]:
            """The files of our rules; mmseg's own list has those of hidden folders, too."""
            same = {"label_map": self.label_map, "reduce_zero_label": self.reduce_zero_label}
            return [
                {"img_path": image, "seg_map_path": labels, **same, "seg_fields": []}
                for image, labels in ade20k.pairs(root, split)
            ]

    return Dataset(
        data_root=str(root),
        data_prefix={"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
        metainfo={"classes": names},
        reduce_zero_label=True,
        pipeline=pipeline,
        test_mode=split != "training",
    )


def build_model(encoder: Path, recipe: SegmentationRecipe, num_classes: int) -> BaseModel:
    """mmsegmentation's EncoderDecoder on the encoder; new weights are drawn from torch's generator."""
    from downstream.openmmlab import build, import_quietly

    import_quietly("mmseg.models")
    return build(model_config(encoder, recipe, num_classes), "mmseg")


def model_config(encoder: Path, recipe: SegmentationRecipe, num_classes: int) -> ConfigDict:
    """mmsegmentation's upernet_mae, changed for the encoder, the recipe and the number of classes."""
    from downstream.neck import MultiTapPyramid, batch_norm
    from downstream.openmmlab import shipped_config
    from mimbench.checkpoint.encoder import read_encoder

    vit, _ = read_encoder(encoder)
    dim, crop = vit.embed_dim, (recipe.img_size, recipe.img_size)
    model = shipped_config("mmseg", "upernet_mae")
    model.data_preprocessor.update(size=crop, test_cfg=dict(size=crop))
    model.backbone = recipe.backbone(encoder)
    model.neck = dict(type=MultiTapPyramid, embed_dim=dim)
    for head in (model.decode_head, model.auxiliary_head):
        head.update(num_classes=num_classes, dropout_ratio=recipe.dropout)
        head.norm_cfg = batch_norm()
    model.decode_head.update(in_channels=[dim] * 4, channels=recipe.head_channels or dim)
    model.auxiliary_head.update(in_channels=dim, channels=recipe.aux_channels)
    model.auxiliary_head.loss_decode.loss_weight = recipe.aux_weight
    model.test_cfg = dict(mode="slide", crop_size=crop, stride=(recipe.slide_stride, recipe.slide_stride))
    return model


def run(folder: RunFolder) -> dict[str, float]:
    """Fine-tune and evaluate after the last step: mIoU, mAcc and aAcc in percent."""
    from downstream.openmmlab import evaluate, usable
    from downstream.transfer import seed_weights

    recipe = SegmentationRecipe.from_values(folder.spec.recipe)
    root = folder.data("ade20k")
    train = usable(build_dataset(root, "training", recipe), folder, root)
    val = usable(build_dataset(root, "validation", recipe), folder, root)
    seed_weights(folder.spec.seed)
    model = build_model(folder.parents["encoder"].encoder_path, recipe, len(train.metainfo["classes"]))
    folder.details["inference"] = f"slide, crop {recipe.img_size}, stride {recipe.slide_stride}"
    fit_dense(model, train, folder, recipe, steps=recipe.steps)
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(ignore_index=IGNORED, iou_metrics=["mIoU"], prefix="ade20k")
    size, workers = recipe.global_batch_size, folder.options.num_workers
    values = evaluate(model, val, metric, batch_size=size, num_workers=workers)
    return {
        name: float(values[f"ade20k/{key}"])
        for name, key in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc"))
    }


def flops(recipe: Mapping[str, Any], arch: str, patch_size: int) -> float:
    """FLOPs per training image, forward and backward (three times forward): encoder, pyramid, UPerHead."""
    dim, cells = size_of(arch).embed_dim, (recipe["img_size"] // patch_size) ** 2
    channels = recipe["head_channels"] or dim
    lateral = 2 * cells * (16 + 4 + 1) * dim * channels
    fpn = 2 * cells * (16 + 4 + 1) * 9 * channels**2
    fusion = 2 * cells * 16 * 9 * 4 * channels**2
    pooling = 2 * (cells / 4) * 9 * (dim + 4 * channels) * channels
    return 3.0 * (dense_flops(recipe, arch, patch_size) + lateral + fpn + fusion + pooling)


def images(recipe: Mapping[str, Any], data_size: int) -> int:
    """Images seen in training; the number of steps does not depend on the data."""
    del data_size
    return int(recipe["steps"] * recipe["global_batch_size"])


TASK = TaskCard(
    name="segmentation",
    title="ADE20K segmentation",
    protocol="UperNet, slide inference, last step",
    data="ade20k",
    metrics=(
        Metric(name="miou", title="mIoU"),
        Metric(name="macc", title="mAcc"),
        Metric(name="aacc", title="aAcc"),
    ),
    recipes=recipes,
    run=run,
    flops=flops,
    images=images,
)
