"""Image classification by fine-tuning the whole encoder, as MAE and BEiT do on ImageNet-1K.

The mean of the patch tokens after the last block, a new LayerNorm (`fc_norm`) instead of the encoder's final
norm, a linear head; mixup, cutmix, label smoothing, layer-wise learning-rate decay, stochastic depth. With
`num_blocks`, only the first blocks of the encoder are kept and fine-tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.model import BaseModel
from torch import Tensor, nn

from downstream.estimate import encoder_flops, epoch_images
from mimbench.arch import size_of
from mimbench.contract import Metric, TaskCard, TransferRecipe
from mimbench.device import device
from mimbench.errors import UserError
from mimbench.recipe import cite, require_above, require_range
from mimbench.schedule import warmup_cosine
from mimbench.train.worker_errors import Loader

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder
    from mimbench.vit import ViT


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(TransferRecipe):
    """Fine-tuning on labelled images."""

    epochs: float
    warmup_epochs: float
    min_lr: float
    mixup: float  # alpha; 0 = off
    cutmix: float  # alpha; 0 = off
    mixup_switch_prob: float  # probability of cutmix instead of mixup, if both are on
    label_smoothing: float
    rand_augment: str  # timm's policy; empty = off
    random_erase: float
    min_crop_scale: float
    crop_pct: float  # evaluation: the centre crop's side over the resized image's short side
    head_init_std: float
    ema_momentum: float | None  # evaluate a moving average of the weights; None = the last step's weights
    num_blocks: int  # keep only this many first blocks of the encoder; 0 = all

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above("epochs", self.epochs, 0)
        require_range("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        for name in ("min_lr", "mixup", "cutmix", "head_init_std"):
            require_range(name, getattr(self, name), 0)
        for name in ("mixup_switch_prob", "label_smoothing", "random_erase", "min_crop_scale"):
            require_range(name, getattr(self, name), 0, 1)
        require_above("crop_pct", self.crop_pct, 0)
        require_range("crop_pct", self.crop_pct, 0, 1)
        require_range("ema_momentum", self.ema_momentum or 0.0, 0, 1)
        require_range("num_blocks", self.num_blocks, 0)
        if self.global_batch_size % 2:
            remedy = "Mixup pairs images: give an even one."
            raise UserError("global_batch_size", self.global_batch_size, remedy=remedy)
        if self.rand_augment and not self.rand_augment.startswith("rand-"):
            remedy = "Give a policy of timm's such as 'rand-m9-mstd0.5-inc1', or '' for none."
            raise UserError("rand_augment", self.rand_augment, remedy=remedy)

    def lr_at(self, step: int, steps: int, epoch_steps: float) -> float:
        """Learning rate of a step, before layer decay: linear warm-up, then half a cosine to `min_lr`."""
        warmup = round(self.warmup_epochs * epoch_steps)
        return warmup_cosine(step, peak=self.peak_lr, total=steps, warmup=warmup, final=self.min_lr)


MAE = "MAE fine-tuning (code efb2a80)"
MAE_VIT_B = f"{MAE}, ViT-B"
OURS = "ours: two CPU cores"
FEW_STEPS = f"{OURS}; some hundred steps learn little under strong augmentation"


def recipes() -> Mapping[str, ClassificationRecipe]:
    """Scale to recipe."""
    paper = ClassificationRecipe.of(
        cite(MAE_VIT_B, drop_path=0.1, base_lr=5e-4, layer_decay=0.65, epochs=100.0, warmup_epochs=5.0),
        cite(MAE, img_size=224, num_blocks=0, head_init_std=2e-5, ema_momentum=None),
        cite(MAE, global_batch_size=1024, lr_rule="linear", min_lr=1e-6, weight_decay=0.05),
        cite(MAE, betas=(0.9, 0.999), clip_grad=None, precision="fp16"),
        cite(MAE, mixup=0.8, cutmix=1.0, mixup_switch_prob=0.5, label_smoothing=0.1, random_erase=0.25),
        cite(MAE, rand_augment="rand-m9-mstd0.5-inc1", min_crop_scale=0.08, crop_pct=0.875),
    )
    small = paper.vary(
        cite(OURS, img_size=64, global_batch_size=32, base_lr=1e-3, lr_rule="absolute", layer_decay=0.8),
        cite(OURS, epochs=3.0, warmup_epochs=0.5, precision="fp32"),
        cite(OURS, mixup=0.2, cutmix=0.5, random_erase=0.0, rand_augment="rand-m5-mstd0.5-inc1"),
        cite(OURS, min_crop_scale=0.35, crop_pct=1.0),
    )
    toy = small.vary(
        cite(FEW_STEPS, head_init_std=0.02, global_batch_size=16, epochs=40.0, warmup_epochs=2.0),
        cite(FEW_STEPS, mixup=0.0, cutmix=0.0, rand_augment="", min_crop_scale=0.6),
    )
    smoke = small.vary(cite(OURS, img_size=32, global_batch_size=8, epochs=1.0, warmup_epochs=0.0))
    return {"smoke": smoke, "toy": toy, "small": small, "paper": paper}


class Classifier(BaseModel):
    """The encoder with mean pooling and a linear head.

    Args:
        encoder: the pretrained ViT without its final norm (`remove_final_norm`).
    """

    def __init__(self, encoder: ViT, num_classes: int, recipe: ClassificationRecipe) -> None:
        from timm.data import Mixup

        from mimbench.vit import LayerNorm

        super().__init__()
        self.encoder = encoder
        self.fc_norm = LayerNorm(encoder.embed_dim)
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=recipe.head_init_std)
        nn.init.zeros_(self.head.bias)
        self.mixup = Mixup(  # if both alphas are 0, it only smooths the labels
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=1.0 if recipe.mixup or recipe.cutmix else 0.0,
            switch_prob=recipe.mixup_switch_prob,
            label_smoothing=recipe.label_smoothing,
            num_classes=num_classes,
        )

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = "tensor") -> Any:
        """Logits `[B, K]` of images `[B, 3, H, W]`; in mode `loss`, the loss on mixed images."""
        if mode != "loss":
            return self.logits(images)
        # timm mixes in place, and draws from NumPy's generator
        mixed, targets = self.mixup(images.clone(), labels)
        return {"loss": F.cross_entropy(self.logits(mixed).float(), targets)}

    def logits(self, images: Tensor) -> Tensor:
        last = len(self.encoder.blocks) - 1
        features = self.encoder.taps(images, [last])[0].mean(dim=(2, 3))  # [B, D]
        return self.head(self.fc_norm(features))


def kept_depth(num_blocks: int, depth: int) -> int:
    """Number of blocks to keep of an encoder with `depth` blocks. Raises UserError if it has fewer."""
    if num_blocks > depth:
        raise UserError("num_blocks", num_blocks, remedy=f"The encoder has {depth} blocks; 0 keeps them all.")
    return num_blocks or depth


def keep_blocks(encoder: ViT, num_blocks: int) -> list[str]:
    """Remove all blocks after the first `num_blocks` (0: keep all); returns the removed parameters' names."""
    depth = kept_depth(num_blocks, len(encoder.blocks))
    names = [name for name, _ in encoder.named_parameters()]
    encoder.blocks = encoder.blocks[:depth]
    return sorted(set(names) - {name for name, _ in encoder.named_parameters()})


def run(folder: RunFolder) -> dict[str, float]:
    """Fine-tune on the labelled images, evaluate after the last epoch: top-1 and top-5 in percent."""
    from downstream.backbone import remove_final_norm
    from downstream.layer_decay import param_groups
    from downstream.transfer import labelled_splits, seed_weights
    from mimbench.checkpoint.encoder import load_encoder
    from mimbench.data.augment import eval_transform, finetune_transform
    from mimbench.data.image_folder import LabelledImages
    from mimbench.train.runner import fit

    spec = folder.spec
    recipe = ClassificationRecipe.from_values(spec.recipe)
    train, val = labelled_splits(folder)
    seed_weights(spec.seed)
    encoder, report = load_encoder(
        folder.parents["encoder"].encoder_path, drop_path=recipe.drop_path, img_size=recipe.img_size
    )
    report.dropped += remove_final_norm(encoder)
    report.dropped += keep_blocks(encoder, recipe.num_blocks)
    model = Classifier(encoder, len(train.classes), recipe)
    epoch_steps = len(train) / recipe.global_batch_size
    steps = max(round(recipe.epochs * epoch_steps), 1)
    folder.details |= {"load_report": report.as_dict(), "labelled_images": len(train), "steps": steps}
    augment = finetune_transform(
        recipe.img_size,
        recipe.rand_augment or None,
        recipe.random_erase,
        min_crop_scale=recipe.min_crop_scale,
    )
    fit(
        model,
        LabelledImages(train, augment),
        folder,
        recipe,
        steps=steps,
        param_groups=param_groups(
            model,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            depth=len(encoder.blocks),
            prefix="encoder.",
        ),
        ema_momentum=recipe.ema_momentum,
    )
    images = LabelledImages(val, eval_transform(recipe.img_size, recipe.crop_pct))
    return accuracy(model, images, num_workers=folder.options.num_workers)


@torch.no_grad()
def accuracy(
    model: nn.Module, dataset: Any, *, batch_size: int = 64, num_workers: int = 0
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent; every image counts once."""
    from downstream.transfer import share_of

    target = device()
    model.to(target).eval()
    hits = torch.zeros(2, device=target)
    for images, labels in Loader(share_of(dataset), batch_size=batch_size, num_workers=num_workers):
        logits = model(images.to(target))
        top5 = logits.topk(min(5, logits.shape[1])).indices == labels.to(target).unsqueeze(1)  # [B, 5]
        hits += torch.stack([top5[:, 0].sum(), top5.sum()])
    all_reduce(hits)
    top1, top5 = (100 * hits / len(dataset)).tolist()
    return {"top1": top1, "top5": top5}


def flops(recipe: Mapping[str, Any], arch: str, patch_size: int) -> float:
    """FLOPs per training image, forward and backward (three times forward): the encoder without the head."""
    num_blocks = kept_depth(recipe["num_blocks"], size_of(arch).depth)
    return 3.0 * encoder_flops(recipe, arch, patch_size, num_blocks)


TASK = TaskCard(
    name="classification",
    title="ImageNet classification",
    protocol="fine-tuning, last epoch",
    data="imagenet",
    metrics=(Metric(name="top1", title="top-1"), Metric(name="top5", title="top-5")),
    recipes=recipes,
    run=run,
    flops=flops,
    images=epoch_images,
)
