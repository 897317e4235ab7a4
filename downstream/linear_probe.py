"""Linear probing: a frozen encoder, one block's pooled tokens, a batch norm without weights, a linear layer.

BEiT's protocol (Bao et al., ICLR 2022, appendix; unilm@768a3c8, run_linear_eval.py): AdamW, the mean of the
patch tokens, any block's output. MAE's parameter-free batch norm precedes the linear layer, so that the
features of different methods and blocks have the same scale. Figures of other protocols (MAE's LARS, DINO's
SGD with a sweep of learning rates) are not comparable with these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from downstream.classification import accuracy
from downstream.estimate import encoder_flops, epoch_images
from mimbench.contract import Metric, TaskCard, TransferRecipe
from mimbench.errors import UserError
from mimbench.recipe import cite, require_above, require_range
from mimbench.schedule import warmup_cosine

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder
    from mimbench.vit import ViT


@dataclass(frozen=True, kw_only=True)
class LinearRecipe(TransferRecipe):
    """Training a linear layer on labelled images."""

    epochs: float
    warmup_epochs: float
    min_lr: float
    min_crop_scale: float
    crop_pct: float  # evaluation: the centre crop's side over the resized image's short side
    head_init_std: float
    layer: int  # 0: the last block after the final norm; k: block k's raw output, from 1
    token: Literal["mean", "cls"]  # mean of the patch tokens, or the class token

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("layer", self.layer, 0)
        require_above("epochs", self.epochs, 0)
        require_range("min_crop_scale", self.min_crop_scale, 0, 1)
        require_above("crop_pct", self.crop_pct, 0)
        require_range("head_init_std", self.head_init_std, 0)
        require_range("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        require_range("min_lr", self.min_lr, 0)

    def lr_at(self, step: int, steps: int, epoch_steps: float) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine to `min_lr`."""
        warmup = round(self.warmup_epochs * epoch_steps)
        return warmup_cosine(step, peak=self.peak_lr, total=steps, warmup=warmup, final=self.min_lr)


BEIT_PAPER = "BEiT's linear probe (paper, appendix)"
BEIT_CODE = "BEiT's linear probe (code 768a3c8)"


def recipes() -> Mapping[str, LinearRecipe]:
    """Scale to recipe."""
    paper = LinearRecipe.of(
        cite("MAE's linear probe (code efb2a80): the last block, after the norm", layer=0),
        cite(BEIT_PAPER, token="mean", base_lr=4e-3, lr_rule="absolute", weight_decay=1e-4, epochs=50.0),
        cite(BEIT_CODE, global_batch_size=1024, betas=(0.9, 0.999), clip_grad=None, precision="fp16"),
        cite(BEIT_CODE, warmup_epochs=0.0, min_lr=0.0, head_init_std=0.01),
        cite(BEIT_CODE, img_size=224, min_crop_scale=0.08, crop_pct=0.875),
        cite("a frozen encoder has neither", layer_decay=1.0, drop_path=0.0),
    )
    small = paper.vary(
        cite("ours: two CPU cores", global_batch_size=32, epochs=10.0, precision="fp32"),
        cite("ours: two CPU cores", img_size=64, min_crop_scale=0.35, crop_pct=1.0),
    )
    toy = small.vary(cite("ours: two CPU cores, few labels", epochs=40.0, min_crop_scale=0.6))
    smoke = small.vary(cite("ours: seconds", img_size=32, global_batch_size=8, epochs=1.0))
    return {"smoke": smoke, "toy": toy, "small": small, "paper": paper}


class LinearProbe(BaseModel):
    """A frozen encoder, a batch norm and a linear layer."""

    def __init__(self, encoder: ViT, num_classes: int, recipe: LinearRecipe) -> None:
        super().__init__()
        if recipe.layer > len(encoder.blocks):
            remedy = f"The encoder has {len(encoder.blocks)} blocks; 0 is the last after its norm."
            raise UserError("layer", recipe.layer, remedy=remedy)
        self.encoder = encoder.requires_grad_(False)
        self.layer, self.token = recipe.layer, recipe.token
        self.norm = nn.BatchNorm1d(encoder.embed_dim, affine=False, eps=1e-6)
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.normal_(self.head.weight, std=recipe.head_init_std)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> LinearProbe:
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """One vector for each image, `[B, D]`."""
        taps = [self.layer - 1] if self.layer else []
        x = self.encoder.encode(self.encoder.embed(images), self.encoder.grid_of(images), taps)[0]
        if self.layer == 0:
            x = self.encoder.norm(x)
        return x[:, 0] if self.token == "cls" else x[:, 1:].mean(dim=1)

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = "tensor") -> Any:
        """Logits `[B, K]` of images `[B, 3, H, W]`; in mode `loss`, the loss."""
        logits = self.head(self.norm(self.features(images).float()))
        return {"loss": F.cross_entropy(logits.float(), labels)} if mode == "loss" else logits


def run(folder: RunFolder) -> dict[str, float]:
    """Train the linear layer on the labelled images; top-1 accuracy after the last epoch, in percent."""
    from downstream.transfer import fit_head, labelled_splits, seed_weights
    from mimbench.checkpoint.encoder import load_encoder
    from mimbench.data.augment import eval_transform, finetune_transform
    from mimbench.data.image_folder import LabelledImages

    spec = folder.spec
    recipe = LinearRecipe.from_values(spec.recipe)
    train, val = labelled_splits(folder)
    seed_weights(spec.seed)
    encoder, report = load_encoder(folder.parents["encoder"].encoder_path, img_size=recipe.img_size)
    model = LinearProbe(encoder, len(train.classes), recipe)
    epoch_steps = len(train) / recipe.global_batch_size
    steps = max(round(recipe.epochs * epoch_steps), 1)
    folder.details["load_report"] = report.as_dict()
    augment = finetune_transform(recipe.img_size, None, 0.0, min_crop_scale=recipe.min_crop_scale)
    fit_head(model, LabelledImages(train, augment), folder, recipe, steps=steps)
    images = LabelledImages(val, eval_transform(recipe.img_size, recipe.crop_pct))
    return {"top1_linear": accuracy(model, images, num_workers=folder.options.num_workers)["top1"]}


TASK = TaskCard(
    name="linear",
    title="ImageNet linear probing",
    protocol="frozen encoder, batch norm and a linear layer; BEiT's AdamW recipe, last epoch",
    data="imagenet",
    metrics=(Metric(name="top1_linear", title="linear top-1"),),
    recipes=recipes,
    run=run,
    flops=encoder_flops,  # forward only; the linear layer is next to nothing
    images=epoch_images,
)
