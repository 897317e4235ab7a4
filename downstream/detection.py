"""Detection and instance segmentation on COCO-format data: mmdetection's Mask R-CNN on the plain ViT.

CAE's protocol (Chen et al., 2022, code a7fd162, after iBOT's): four taps, deconvolution pyramid, FPN, RPN,
one box head of four convolutions and a linear layer with GIoU loss, one mask head, 12 epochs.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from downstream.dense import DenseRecipe, dense_flops, fit_dense
from downstream.estimate import epoch_images
from mimbench.arch import size_of
from mimbench.contract import Metric, TaskCard
from mimbench.data import coco
from mimbench.recipe import cite, require_above, require_range
from mimbench.schedule import warmup_multistep

if TYPE_CHECKING:
    from mmengine.config import ConfigDict
    from mmengine.model import BaseModel

    from mimbench.store.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(DenseRecipe):
    """Mask R-CNN fine-tuning; `img_size`: side of the padded square, or the short side with `detr`."""

    epochs: float
    milestones: tuple[float, ...]  # epochs after which the learning rate drops to a tenth
    warmup_steps: int
    warmup_ratio: float  # learning rate at step 0, as a share of the peak
    # Fit into a square and pad it; or DETR's multi-scale resizing and cropping.
    resize: Literal["square", "detr"]
    fpn_channels: int
    anchor_scale: float  # anchor side on every level, in strides
    num_proposals: int  # RPN proposals per image
    rpn_samples: int  # anchors per image in the RPN's loss
    roi_samples: int  # proposals per image in the heads' losses
    roi_points: int  # RoIAlign's sampling points per side of a cell; 0: chosen by the proposal's size
    box_convs: int
    box_channels: int  # width of the box head's linear layer
    box_loss: Literal["giou", "l1"]
    mask_convs: int
    mask_roi_size: int  # cells per side; the mask has twice as many

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above("epochs", self.epochs, 0)
        require_above("anchor_scale", self.anchor_scale, 0)
        require_range("warmup_ratio", self.warmup_ratio, 0, 1)
        for name in ("warmup_steps", "roi_points", "box_convs", "mask_convs"):
            require_range(name, getattr(self, name), 0)
        for name in ("fpn_channels", "box_channels", "num_proposals", "rpn_samples", "roi_samples"):
            require_range(name, getattr(self, name), 1)
        require_range("mask_roi_size", self.mask_roi_size, 1)

    def lr_at(self, step: int, steps: int, epoch_steps: float) -> float:
        """Learning rate of a step, before layer decay: linear warm-up, a tenth after each milestone."""
        return warmup_multistep(
            step,
            peak=self.peak_lr,
            total=steps,
            warmup=self.warmup_steps,
            milestones=[round(epoch * epoch_steps) for epoch in self.milestones],
            start_ratio=self.warmup_ratio,
        )

    @property
    def pads_images(self) -> bool:
        """Whether images may have any size. Then each batch is padded to a multiple of two patches."""
        return self.resize == "detr"


CAE = "CAE's Mask R-CNN protocol (a7fd162)"
IBOT = "iBOT's detection protocol (da316d8)"
MMDET = "mmdetection's mask-rcnn_r50_fpn"
OURS = "ours: two CPU cores"


def recipes() -> Mapping[str, DetectionRecipe]:
    """Scale to recipe."""
    paper = DetectionRecipe.of(
        cite(CAE, img_size=800, drop_path=0.2, box_convs=4, box_channels=1024, box_loss="giou"),
        cite(CAE, global_batch_size=32, base_lr=3e-4, lr_rule="absolute", layer_decay=0.75),
        cite(CAE, epochs=12.0, milestones=(9.0, 11.0)),
        cite(IBOT, add_rel_pos=False, positions="interpolate", final_norm=False, window=0),
        cite(IBOT, weight_decay=0.05, betas=(0.9, 0.999), clip_grad=None, precision="fp16"),
        cite(IBOT, warmup_steps=500, warmup_ratio=1e-3, checkpoint_blocks=False),
        cite(IBOT, resize="detr"),
        cite("ours: none where the encoder has none (CAE's own has 0.1)", add_layer_scale=None),
        cite(MMDET, fpn_channels=256, anchor_scale=8.0, num_proposals=1000, rpn_samples=256),
        cite(MMDET, roi_samples=512, roi_points=0, mask_convs=4, mask_roi_size=14),
    )
    small = paper.vary(
        cite(OURS, img_size=96, resize="square", drop_path=0.1, fpn_channels=64),
        cite(OURS, anchor_scale=4.0, num_proposals=64, rpn_samples=128, roi_samples=64, roi_points=2),
        cite(OURS, box_convs=0, box_channels=128, box_loss="l1", mask_convs=1, mask_roi_size=7),
        cite(OURS, global_batch_size=8, base_lr=1e-3, layer_decay=0.8, clip_grad=10.0, precision="fp32"),
        cite(OURS, epochs=6.0, milestones=(4.5, 5.5), warmup_steps=10),
    )
    toy = small.vary(
        cite(OURS, fpn_channels=32),
        cite(OURS, base_lr=2e-3, epochs=3.0, milestones=(2.25, 2.75), warmup_steps=20),
    )
    smoke = toy.vary(
        cite(OURS, img_size=64, fpn_channels=16, num_proposals=8, rpn_samples=16),
        cite(OURS, roi_samples=8, box_channels=16),
        cite(OURS, global_batch_size=2, epochs=0.75, milestones=(0.5,), warmup_steps=1),
    )
    return {"smoke": smoke, "toy": toy, "small": small, "paper": paper}


def build_dataset(root: Path, split: Literal["train", "val"], recipe: DetectionRecipe) -> Any:
    """mmdetection's CocoDataset of one split, with the pipeline of that split.

    Raises:
        UserError: the annotations break a rule of `mimbench.data.coco`.
    """
    from downstream.openmmlab import LoadImage, import_quietly

    import_quietly("mmdet.datasets")
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize

    square = (recipe.img_size, recipe.img_size)
    if recipe.resize == "square":
        training, testing = [Resize(scale=square, keep_ratio=True)], [Resize(scale=square, keep_ratio=True)]
    else:
        training, testing = [_detr_resize()], [Resize(scale=(1333, recipe.img_size), keep_ratio=True)]
    labels = LoadAnnotations(with_bbox=True, with_mask=True)
    meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    if split == "train":
        pipeline = [LoadImage(), labels, *training, RandomFlip(prob=0.5), PackDetInputs()]
    else:
        pipeline = [LoadImage(), *testing, PackDetInputs(meta_keys=meta_keys)]
    instances = coco.both(root)[split]
    classes = tuple(category["name"] for category in instances.document["categories"])

    class Dataset(CocoDataset):  # type: ignore[misc]
        COCOAPI = staticmethod(lambda file: in_memory(instances.document))
        document, converted = instances.document, instances.notes

    return Dataset(
        ann_file=str(instances.source),
        data_prefix={"img": str(root / f"{split}2017")},
        metainfo={"classes": classes},
        filter_cfg={"filter_empty_gt": True},
        pipeline=pipeline,
        test_mode=split == "val",
    )


def in_memory(document: dict[str, Any]) -> Any:
    """mmdetection's COCO interface to a parsed annotation file."""
    from mmdet.datasets.api_wrappers import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = document
        api.createIndex()
    api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs  # its second names for them
    return api


def _detr_resize() -> Any:
    """DETR's augmentation: one of many short sides, or a random crop in between (Carion et al., 2020).

    No side exceeds 1333 pixels, also before the crop (iBOT@da316d8, its detection config).
    """
    from mmcv.transforms import RandomChoice, RandomChoiceResize
    from mmdet.datasets.transforms import RandomCrop, Resize

    def resize(short_sides: range) -> Any:
        scales = [(1333, side) for side in short_sides]
        return RandomChoiceResize(scales=scales, resize_type=Resize, keep_ratio=True)

    final = range(480, 801, 32)
    crop = RandomCrop(crop_size=(384, 600), crop_type="absolute_range", allow_negative_crop=True)
    return RandomChoice([[resize(final)], [resize(range(400, 601, 100)), crop, resize(final)]])


def build_model(encoder: Path, recipe: DetectionRecipe, num_classes: int) -> BaseModel:
    """mmdetection's Mask R-CNN on the encoder; new weights are drawn from torch's generator."""
    from downstream.openmmlab import build, import_quietly

    import_quietly("mmdet.models")
    return build(model_config(encoder, recipe, num_classes), "mmdet")


def model_config(encoder: Path, recipe: DetectionRecipe, num_classes: int) -> ConfigDict:
    """mmdetection's mask-rcnn_r50_fpn, changed for the encoder, the recipe and the number of classes."""
    from downstream.neck import MultiTapPyramid, batch_norm
    from downstream.openmmlab import shipped_config
    from mimbench.checkpoint.encoder import read_encoder
    from mimbench.ops import roi_align

    vit, _ = read_encoder(encoder)
    dim, patch, width = vit.embed_dim, vit.patch_size, recipe.fpn_channels
    strides = [_whole(patch * scale) for scale in (0.25, 0.5, 1, 2, 4)]
    model = shipped_config("mmdet", "mask-rcnn_r50_fpn")
    # Padded here, not in the pipeline: boxes must be clipped at the image's edge, not the padding's.
    model.data_preprocessor.pad_size_divisor = recipe.img_size if recipe.resize == "square" else 2 * patch
    model.backbone = recipe.backbone(encoder)
    model.neck.update(in_channels=[dim] * 4, out_channels=width)
    model.neck = [dict(type=MultiTapPyramid, embed_dim=dim), model.neck]

    model.rpn_head.update(in_channels=width, feat_channels=width)
    model.rpn_head.anchor_generator.update(scales=[recipe.anchor_scale], strides=strides)
    model.train_cfg.rpn.sampler.num = recipe.rpn_samples
    model.train_cfg.rpn_proposal.update(nms_pre=2 * recipe.num_proposals, max_per_img=recipe.num_proposals)
    model.test_cfg.rpn.update(nms_pre=recipe.num_proposals, max_per_img=recipe.num_proposals)

    roi_head = model.roi_head
    for extractor, size in (
        (roi_head.bbox_roi_extractor, roi_head.bbox_head.roi_feat_size),
        (roi_head.mask_roi_extractor, recipe.mask_roi_size),
    ):
        extractor.update(roi_layer=roi_align(size, recipe.roi_points), out_channels=width)
        # 56 pixels at stride 4 (FPN, Lin et al., 2017)
        extractor.update(featmap_strides=strides[:4], finest_scale=14 * strides[0])
    model.train_cfg.rcnn.sampler.num = recipe.roi_samples

    box = roi_head.bbox_head
    box.update(type="ConvFCBBoxHead", num_shared_convs=recipe.box_convs, num_shared_fcs=1)
    box.update(in_channels=width, conv_out_channels=width, fc_out_channels=recipe.box_channels)
    box.update(num_classes=num_classes, norm_cfg=batch_norm() if recipe.box_convs else None)
    box.reg_decoded_bbox = recipe.box_loss == "giou"  # GIoU compares boxes, L1 the coder's deltas
    if box.reg_decoded_bbox:
        box.loss_bbox = dict(type="GIoULoss", loss_weight=10.0)

    mask = roi_head.mask_head
    mask.update(in_channels=width, conv_out_channels=width, num_convs=recipe.mask_convs)
    mask.update(roi_feat_size=recipe.mask_roi_size, num_classes=num_classes)
    model.train_cfg.rcnn.mask_size = 2 * recipe.mask_roi_size
    return model


def _whole(value: float) -> float:
    """A whole number as an int, as mmdetection's own configurations have strides; 3.5 stays 3.5."""
    return int(value) if value == int(value) else value


def coco_ap(model: BaseModel, dataset: Any, *, batch_size: int, num_workers: int) -> dict[str, float]:
    """COCO's AP and AP50 of boxes and masks in percent, over the dataset's images.

    mmdetection's CocoMetric writes the predictions; the numbers are read from COCOeval itself, because
    CocoMetric rounds them to a tenth of a percent.
    """
    from mmdet.evaluation import CocoMetric
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from downstream.openmmlab import evaluate

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        files, kinds = f"{scratch}/val", {"box": "bbox", "mask": "segm"}
        source = Path(scratch, "truth.json")  # as it was read: the user's file may lack what COCOeval needs
        source.write_text(json.dumps(dataset.document))
        metric = CocoMetric(str(source), list(kinds.values()), format_only=True, outfile_prefix=files)
        evaluate(model, dataset, metric, batch_size=batch_size, num_workers=num_workers)
        truth = COCO(str(source))
        values: dict[str, float] = {}
        for name, kind in kinds.items():
            predictions = json.loads(Path(f"{files}.{kind}.json").read_text())
            ap = ap50 = 0.0
            if predictions:  # pycocotools cannot load an empty list
                scores = COCOeval(truth, truth.loadRes(predictions), kind)
                scores.params.imgIds = [dataset.get_data_info(i)["img_id"] for i in range(len(dataset))]
                scores.evaluate()
                scores.accumulate()
                scores.summarize()
                ap, ap50 = scores.stats[:2]
            values |= {f"{name}_ap": 100 * float(ap), f"{name}_ap50": 100 * float(ap50)}
    return values


def run(folder: RunFolder) -> dict[str, float]:
    """Fine-tune and evaluate after the last epoch: box and mask AP and AP50 in percent."""
    from downstream.openmmlab import usable
    from downstream.transfer import seed_weights

    recipe = DetectionRecipe.from_values(folder.spec.recipe)
    root = folder.data("coco")
    train = usable(build_dataset(root, "train", recipe), folder, root)
    val = usable(build_dataset(root, "val", recipe), folder, root)
    epoch_steps = len(train) / recipe.global_batch_size
    steps = max(round(recipe.epochs * epoch_steps), 1)
    seed_weights(folder.spec.seed)
    model = build_model(folder.parents["encoder"].encoder_path, recipe, len(train.metainfo["classes"]))
    fit_dense(model, train, folder, recipe, steps=steps)
    return coco_ap(model, val, batch_size=recipe.global_batch_size, num_workers=folder.options.num_workers)


def flops(recipe: Mapping[str, Any], arch: str, patch_size: int) -> float:
    """FLOPs per training image, forward and backward (three times forward): encoder, pyramids, RPN, heads.

    An image counts as a square of side `img_size`; with DETR's resizing it is about a third larger.
    """
    dim, width, rois = size_of(arch).embed_dim, recipe["fpn_channels"], recipe["roi_samples"]
    # Lateral, output and RPN convolutions on every level.
    cells = (recipe["img_size"] // patch_size) ** 2
    levels = 2 * cells * (16 + 4 + 1 + 0.25) * (dim * width + 2 * 9 * width**2)
    box = 2 * rois * 49 * (recipe["box_convs"] * 9 * width**2 + width * recipe["box_channels"])
    mask_cells = recipe["mask_roi_size"] ** 2
    mask = 2 * (rois / 4) * mask_cells * (recipe["mask_convs"] * 9 + 4) * width**2
    return 3.0 * (dense_flops(recipe, arch, patch_size) + levels + box + mask)


TASK = TaskCard(
    name="detection",
    title="COCO detection",
    protocol="Mask R-CNN with FPN, last epoch",
    data="coco",
    metrics=(
        Metric(name="box_ap", title="box AP"),
        Metric(name="box_ap50", title="box AP50"),
        Metric(name="mask_ap", title="mask AP"),
        Metric(name="mask_ap50", title="mask AP50"),
    ),
    recipes=recipes,
    run=run,
    flops=flops,
    images=epoch_images,
)
