"""DTM on BYOL: a network that predicts the morphed tokens of its own moving average.

From the compatibility study of Morphing Tokens Draw Strong Masked Image Models (Kim et al., ICLR 2025, arXiv
2401.00254). The host is Bootstrap Your Own Latent (Grill et al., NeurIPS 2020, arXiv 2006.07733): two views,
an online network with a predictor, a target network that is its moving average, no negatives. The loss is
2 - 2 cos, for both views in turn (BYOL, equation 2).

RECONSTRUCTION: DTM's release has no code for it and the text of the study could not be read. BYOL compares
one vector per image, morphing needs tokens. Ours:

    networks   the encoder is DTM's student (BEiT v2's base); one projector and one predictor for all tokens;
               their batch norms normalise class tokens and patch tokens separately, over both views
    image      the class token of one view predicts the class token of the other, as in BYOL
    tokens     the patch tokens of a view, some masked, predict the target network's patch tokens for the
               same view, unmasked (two crops share no positions). Morphing applies here: at all positions, as
               in DTM, with groups from the target's tokens
    views      DTM's crop, flip and colour jitter, without BYOL's blur, greyscale and solarisation

`morphing = false` is the host alone: each token is compared with its own target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from mimbench.arch import size_of
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.data.augment import PretrainAugment
from mimbench.method import Method
from mimbench.recipe import SMOKE, PretrainRecipe, cite, require_range
from pretrain import weight_init
from pretrain.ema import cosine_between, follow, frozen_copy
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks
from pretrain.methods.dtm import MorphRecipe, draw_branches, morph_by, with_morphing
from pretrain.methods.feature_mim import base_recipes
from pretrain.target import cosine_error


class Head(nn.Sequential):
    """Projector or predictor (BYOL, section 3.3).

    The batch norm uses the batch's statistics also in the target network, as in BYOL. Without this the class
    tokens stay alike.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__(
            nn.Linear(in_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(hidden_dim, out_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Vectors `[..., in_dim]` to `[..., out_dim]`."""
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class DTMBYOL(Method):
    """Online and target network, and the two losses."""

    def __init__(self, recipe: DTMBYOLRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = MaskedViT(recipe, positions="block+shared", layer_scale_init=recipe.layer_scale_init)
        self.projector = Head(self.encoder.embed_dim, recipe.hidden_dim, recipe.projection_dim)
        self.predictor = Head(recipe.projection_dim, recipe.hidden_dim, recipe.projection_dim)
        for head in (self.projector, self.predictor):
            head.apply(weight_init.xavier)
        self.target_encoder = frozen_copy(self.encoder)
        self.target_projector = frozen_copy(self.projector)

    @property
    def encoder(self) -> nn.Module:
        return self.student.encoder

    def after_step(self, step: int) -> None:
        momentum = self.recipe.momentum_at(step / self.steps)
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_projector, self.projector, momentum)

    def token_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Distance between morphed pred and target `[B, N, C]`; mean over branches and positions."""
        r = self.recipe
        if not r.morphing:
            return cosine_error(pred, target).mean()
        pred, target = pred.float(), target.float()
        morphings = [morph_by(r, target, branch) for branch in draw_branches(r)]
        return torch.stack([cosine_error(m(pred), m(target)).mean() for m in morphings]).mean()

    def image_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Distance between class tokens `[2B, C]`: first views to second views, and the reverse."""
        return cosine_error(pred, target.roll(len(target) // 2, dims=0)).mean()

    def forward(self, views: tuple[Tensor, Tensor], step_fraction: float) -> dict[str, Tensor]:
        r, images = self.recipe, torch.cat(views)  # [2B, 3, H, W]
        grid = self.student.grid_size
        mask = block_masks(len(images), grid, r.num_masked, r.min_mask_block, images.device)
        with torch.no_grad():
            seen = self.target_encoder(images)  # [2B, 1+N, D]
            class_target, target = self.target_projector(seen[:, 0]), self.target_projector(seen[:, 1:])
        x = self.student(images, mask)  # [2B, 1+N, D]
        class_pred, pred = (self.predictor(self.projector(part)) for part in (x[:, 0], x[:, 1:]))
        image_loss = self.image_loss(class_pred, class_target)
        token_loss = self.token_loss(pred, target)
        loss = image_loss + r.token_weight * token_loss
        return {"loss": loss, "image_loss": image_loss.detach(), "token_loss": token_loss.detach()}


@dataclass(frozen=True, kw_only=True)
class BYOLRecipe(PretrainRecipe):
    num_masked: int  # patches hidden from the online network
    min_mask_block: int  # smallest area of a mask block, in patches
    layer_scale_init: float
    hidden_dim: int  # of projector and predictor
    projection_dim: int
    momentum: float  # of the target network, at the start; 1 at the end
    token_weight: float  # of the token loss; the image loss has weight 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 0, self.num_patches)
        require_range("momentum", self.momentum, 0, 1)

    def momentum_at(self, fraction: float) -> float:
        """The momentum after this fraction of the training: half a cosine up to 1 (BYOL, section 3.3)."""
        return cosine_between(self.momentum, 1.0, fraction)


@dataclass(frozen=True, kw_only=True)
class DTMBYOLRecipe(MorphRecipe, BYOLRecipe):
    morphing: bool  # False: the host alone

    def step_flops(self) -> float:
        tokens = self.num_patches + 1
        encoder = self.encoder_flops()
        projector = 2.0 * tokens * self.hidden_dim * (size_of(self.arch).embed_dim + self.projection_dim)
        predictor = 4.0 * tokens * self.hidden_dim * self.projection_dim
        return 2 * (4 * (encoder + projector) + 3 * predictor)  # two views; the target is forward only


def host_recipes() -> Mapping[str, BYOLRecipe]:
    """DTM's own recipe with BYOL's heads and momentum."""
    heads = cite("BYOL, section 3.3", hidden_dim=4096, projection_dim=256, momentum=0.996)
    alike = cite("ours: both losses alike", token_weight=1.0)
    result = {
        scale: BYOLRecipe.based_on(base, heads, alike, prefix="DTM's own recipe: ")
        for scale, base in base_recipes().items()
    }
    views = "ours: two views cost as much as two images"
    small = cite(views, hidden_dim=192, projection_dim=64, color_jitter=0.4)
    result["small"] = result["small"].vary(small, cite(views, epochs=3.0))
    result["toy"] = result["toy"].vary(small, cite(views, epochs=5.0))
    result["smoke"] = result["smoke"].vary(cite(SMOKE, hidden_dim=64, projection_dim=32))
    return result


def recipes() -> Mapping[str, DTMBYOLRecipe]:
    own = cite("ours: DTM on this host", morphing=True)
    return {scale: with_morphing(DTMBYOLRecipe, host, own) for scale, host in host_recipes().items()}


def augment(recipe: DTMBYOLRecipe) -> Callable[[Image.Image], tuple[Tensor, Tensor]]:
    """An image to its two views."""
    view = PretrainAugment(recipe.img_size, recipe.min_crop_scale, recipe.color_jitter)
    return lambda image: (view(image), view(image))


def transfer() -> TransferOverrides:
    """The same fine-tuning as for DTM."""
    source = "ours: as DTM's; the study could not be read"
    return {
        "classification": {
            "paper": [
                cite(source, base_lr=5e-4, lr_rule="absolute", layer_decay=0.65, drop_path=0.1),
                cite(source, epochs=100.0, warmup_epochs=20.0),
            ]
        }
    }


METHOD = MethodCard(
    name="dtm-byol",
    title="DTM on BYOL",
    paper="Kim et al., Morphing Tokens Draw Strong Masked Image Models, ICLR 2025 (compatibility study)",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=DTMBYOL,
    augment=augment,
    transfer=transfer,
)
