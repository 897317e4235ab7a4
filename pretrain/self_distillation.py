"""Self-distillation with a moving-average teacher over many views of an image: the parts DINO and iBOT share.

DINO (Caron et al., ICCV 2021, section 3; facebookresearch/dino@7c446df) and iBOT (bytedance/ibot@da316d8).
The gain of the head's last layer stays 1 (their `norm_last_layer`, as for ViT-B). Deviation: positions are
resized to exactly the local crops' grid. Both codes ask for a grid 0.1 patch larger and cut it off, which
slightly shifts the points where the cubic interpolation is evaluated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor, nn

from mimbench.arch import patch_embed_flops, size_of, transformer_flops
from mimbench.data.augment import JITTERS, crop_box
from mimbench.errors import UserError
from mimbench.method import Method
from mimbench.recipe import PretrainRecipe, cite, require_range
from mimbench.vit import ViT
from pretrain.ema import cosine_between, follow, frozen_copy

NUM_GLOBAL = 2


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe(PretrainRecipe):
    """Views, head, teacher and schedules.

    `min_crop_scale` is the limit between crop areas: global crops are larger, local crops smaller.
    `color_jitter` applies to brightness and contrast; saturation varies by half of it, hue by a quarter.
    """

    num_local_crops: int
    local_img_size: int  # pixels
    local_min_scale: float  # area of a local crop, lower bound
    blur_probs: tuple[float, float, float]  # of the first and the second global crop, and of each local crop
    blur_radius: float  # pixels, upper bound
    solarize_prob: float  # of the second global crop; other crops are never solarised
    out_dim: int  # K, the prototypes
    head_hidden_dim: int
    bottleneck_dim: int
    momentum: float  # of the teacher in the first step; rises to 1 along half a cosine
    center_momentum: float
    student_temp: float
    warmup_teacher_temp: float
    teacher_temp: float
    warmup_teacher_temp_epochs: int
    weight_decay_end: float  # `weight_decay` moves to this value along half a cosine
    freeze_last_layer: float  # epochs in which the head's last layer does not learn

    clip_each = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_local_crops", self.num_local_crops, 0)
        require_range("local_min_scale", self.local_min_scale, 0, self.min_crop_scale)
        require_range("momentum", self.momentum, 0, 1)
        if self.local_img_size % self.patch_size:
            remedy = f"It must be a multiple of patch_size, {self.patch_size}."
            raise UserError("local_img_size", self.local_img_size, remedy=remedy)

    @property
    def head_tokens(self) -> int:
        """Number of tokens per global crop that go through the head: only the class token."""
        return 1

    def teacher_temp_at(self, epoch: float) -> float:
        """The teacher's temperature: linear during the warm-up, changed once per epoch."""
        done = min(int(epoch + 1e-9) / max(self.warmup_teacher_temp_epochs - 1, 1), 1.0)
        return self.warmup_teacher_temp + (self.teacher_temp - self.warmup_teacher_temp) * done

    def weight_decay_at(self, step: int, steps: int) -> float:
        return cosine_between(self.weight_decay, self.weight_decay_end, step / steps)

    def step_flops(self) -> float:
        dim, depth, _ = size_of(self.arch)

        def view(side: int) -> float:
            cells = (side // self.patch_size) ** 2
            return transformer_flops(dim, depth, cells + 1) + patch_embed_flops(dim, cells, self.patch_size)

        hidden, bottleneck = self.head_hidden_dim, self.bottleneck_dim
        head = 2.0 * (dim * hidden + hidden * hidden + hidden * bottleneck + bottleneck * self.out_dim)
        global_views = NUM_GLOBAL * (view(self.img_size) + self.head_tokens * head)
        return 4 * global_views + 3 * self.num_local_crops * (view(self.local_img_size) + head)


_ALIKE = "ours: with the paper's values all targets are alike after a hundred steps"
FEW_STEPS = (
    cite(_ALIKE, momentum=0.99, center_momentum=0.8),
    cite(_ALIKE, warmup_teacher_temp=0.02, teacher_temp=0.02, warmup_teacher_temp_epochs=0),
    cite(_ALIKE, min_crop_scale=0.6, local_min_scale=0.25, color_jitter=0.2, blur_probs=(0.2, 0.1, 0.1)),
)
"""What both methods need in a run of some hundred steps."""


# -- views ---------------------------------------------------------------------------------------------------


class MultiCrop:
    """Two global crops, then the local ones, each uint8 `[3, H, W]`; draws come from Python's `random`.

    Crop (bicubic), flip, colour jitter with probability 0.8, greyscale with 0.2, blur and solarisation with
    probabilities that depend on the crop (main_dino.py@7c446df, main_ibot.py@da316d8).
    """

    def __init__(self, recipe: DistillationRecipe) -> None:
        self.recipe = recipe

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        r = self.recipe
        large, small = (r.min_crop_scale, 1.0), (r.local_min_scale, r.min_crop_scale)
        first, second, local = r.blur_probs
        views = [
            self.view(image, r.img_size, large, first, 0.0),
            self.view(image, r.img_size, large, second, r.solarize_prob),
            *(self.view(image, r.local_img_size, small, local, 0.0) for _ in range(r.num_local_crops)),
        ]
        return tuple(torch.from_numpy(np.array(view)).permute(2, 0, 1) for view in views)

    def view(
        self, image: Image.Image, side: int, scale: tuple[float, float], blur: float, solarize: float
    ) -> Image.Image:
        """One crop of `side` pixels, blurred and solarised with the given probabilities."""
        top, left, height, width = crop_box(image.width, image.height, scale)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((side, side), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if random.random() < 0.8:
            image = jitter(image, self.recipe.color_jitter)
        if random.random() < 0.2:
            image = image.convert("L").convert("RGB")
        if random.random() < blur:
            radius = random.uniform(0.1, self.recipe.blur_radius)
            image = image.filter(ImageFilter.GaussianBlur(radius))
        if random.random() < solarize:
            image = ImageOps.solarize(image)
        return image


def jitter(image: Image.Image, strength: float) -> Image.Image:
    """Brightness and contrast by `strength`, saturation by half of it, hue by a quarter, in random order."""
    for change in random.sample((*JITTERS, turn_hue), k=4):
        if change is turn_hue:
            image = turn_hue(image, random.uniform(-strength / 4, strength / 4))
        else:
            share = strength / 2 if change is ImageEnhance.Color else strength
            image = change(image).enhance(random.uniform(max(0.0, 1 - share), 1 + share))
    return image


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """The image with its hues rotated by this share of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    shift = round(turn * 255)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


# -- networks ------------------------------------------------------------------------------------------------


class ProjectionHead(nn.Module):
    """Tokens `[..., D]` to K logits: an MLP of three layers, then the cosine with each of K prototypes."""

    def __init__(self, recipe: DistillationRecipe, dim: int) -> None:
        super().__init__()
        hidden = recipe.head_hidden_dim
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, recipe.bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = nn.Linear(recipe.bottleneck_dim, recipe.out_dim, bias=False)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """Logits in [-1, 1]. If `frozen`, the last layer has no gradient, so AdamW does not decay it."""
        weight = self.last_layer.weight.detach() if frozen else self.last_layer.weight
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(weight, dim=-1))


class Network(nn.Module):
    """A ViT with learned positions, and the head."""

    def __init__(self, recipe: DistillationRecipe) -> None:
        super().__init__()
        self.encoder = backbone(recipe)
        self.head = ProjectionHead(recipe, self.encoder.embed_dim)


def backbone(recipe: DistillationRecipe) -> ViT:
    """The ViT of DINO and iBOT; its patch embedding has PyTorch's default initialisation."""
    vit = ViT(recipe.vit_config(pos_embed="learned"), drop_path=recipe.drop_path)
    vit.patch_embed.proj.reset_parameters()
    return vit


class Center(nn.Module):
    """Running mean of the teacher's logits; subtracting it prevents one prototype from winning everywhere."""

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("batch_mean", torch.zeros(dim), persistent=False)

    def targets(self, logits: Tensor, temp: float) -> Tensor:
        """Centred and sharpened probabilities of logits `[..., K]`; keeps the logits' mean for `update`."""
        logits = logits.float()
        self.batch_mean = logits.flatten(0, -2).mean(dim=0)
        return ((logits - self.mean) / temp).softmax(dim=-1)

    def update(self) -> None:
        """Update the running mean with the last batch of all processes."""
        all_reduce(self.batch_mean, "mean")
        self.mean.lerp_(self.batch_mean, 1 - self.momentum)


class SelfDistillation(Method):
    """Student, moving-average teacher and the class token's centre; centres are updated after each step."""

    def __init__(self, recipe: DistillationRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = Network(recipe)
        self.teacher = frozen_copy(self.student)
        self.center = Center(recipe.out_dim, recipe.center_momentum)

    def after_step(self, step: int) -> None:
        """Update teacher and centres, with the momentum of the step just done (`step - 1`, from 0)."""
        momentum = cosine_between(self.recipe.momentum, 1.0, (step - 1) / self.steps)
        follow(self.teacher, self.student, momentum)
        for module in self.modules():
            if isinstance(module, Center):
                module.update()

    def no_weight_decay(self) -> set[str]:
        return set()  # both codes also decay the class token and the positions

    def last_layer_frozen(self, epoch: float) -> bool:
        return epoch < self.recipe.freeze_last_layer

    def local_class_tokens(self, crops: tuple[Tensor, ...]) -> Tensor:
        """The student's class tokens of the local crops, `[L * B, D]`, crop after crop."""
        if not crops:
            return self.student.encoder.cls_token.new_empty(0, self.student.encoder.embed_dim)
        return self.student.encoder(torch.cat(crops))[:, 0]


# -- losses --------------------------------------------------------------------------------------------------


def cross_view_loss(logits: Tensor, target: Tensor, temp: float) -> Tensor:
    """Mean cross-entropy of the teacher's view q and the student's view v over all pairs with v != q.

    Args:
        logits: of the student, `[V, B, K]`; the first G views are the ones that the teacher sees.
        target: the teacher's probabilities, `[G, B, K]`.
        temp: the student's temperature.
    """
    log_probs = (logits.float() / temp).log_softmax(dim=-1)
    pairs = -torch.einsum("qbk,vbk->qv", target, log_probs) / target.shape[1]  # [G, V]
    num_pairs = pairs.numel() - len(pairs)
    return (pairs.sum() - pairs.diagonal().sum()) / num_pairs


def health(target: Tensor) -> dict[str, Tensor]:
    """Signs of collapse in the teacher's class probabilities `[G, B, K]`, in nats.

    The entropy is log K if all prototypes are equally likely. The information (entropy of the mean minus mean
    entropy) is 0 in this case, and also if all images choose the same prototype.
    """
    probs = target.flatten(0, 1)
    entropy = torch.special.entr(probs).sum(dim=-1).mean()
    information = torch.special.entr(probs.mean(dim=0)).sum() - entropy
    return {"teacher_entropy": entropy, "teacher_information": information}
