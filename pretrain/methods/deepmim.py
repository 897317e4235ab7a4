"""DeepMIM: Deep Supervision for Masked Image Modeling (Ren et al., WACV 2025, arXiv 2303.08817).

An MAE with deep supervision. Besides the decoder after the last block, auxiliary decoders read the raw
outputs of blocks 6, 8 and 10 of 12 and predict the same masked patches; the losses are summed. The decoders
share only the fixed positions, and all are dropped after pretraining.

Follows OliverRensu/DeepMIM@7bf1e80 (golden: tests/golden/deepmim_tiny.npz), which has only the CLIP target:
the features of every masked patch, compared by 2 - 2 cos. The paper's other targets are reconstructions. Its
text could not be read, so it may make other choices:

    pixels  MAE's: normalised per patch, mean squared error; each decoder has 4 blocks, not MAE's 8
    hog     MaskFeat's histograms, mean squared error
    dino    the patch tokens of a DINO teacher after its final norm, 2 - 2 cos
    hybrid  at the taps, pixels x become alpha x + (1 - alpha) x_hat, where a frozen, trained MAE reconstructs
            x_hat from the same visible patches. Both are mixed in the form that the MAE predicts, normalised
            per patch; the last branch keeps x. (alpha = 0, 1/3, 2/3 for blocks 6, 8, 10.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mimbench.arch import size_of
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.errors import UserError
from mimbench.method import Method
from mimbench.recipe import SMALL, PretrainRecipe, cite
from mimbench.vit import ViT
from pretrain import weight_init
from pretrain.decoder import MAEDecoder
from pretrain.feature_student import teacher_tokens
from pretrain.hog import hog, hog_dim
from pretrain.masking import gather_tokens, random_masking
from pretrain.methods.mae import MAE, MAERecipe
from pretrain.target import cosine_error, masked_mean, pixel_target, squared_error


class DeepMIM(Method):
    """A masked autoencoder with a decoder after each tap and after the last block.

    Args:
        teacher: for the targets `clip` and `dino`: gives all tokens `[B, 1+N, C]` of whole images; frozen, in
            eval mode.
        mae: for hybrid targets: a trained MAE; frozen, in eval mode.
    """

    def __init__(
        self, recipe: DeepMIMRecipe, teacher: nn.Module | None = None, mae: MAE | None = None
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.encoder = ViT(recipe.vit_config(), drop_path=recipe.drop_path)
        self.encoder.pos_embed.requires_grad_(False)
        out_dim = target_dim(recipe, teacher)
        self.decoders = nn.ModuleList(MAEDecoder.of(recipe, out_dim) for _ in recipe.branches)
        for decoder in self.decoders:
            decoder.pos_embed = self.decoders[0].pos_embed
        self.apply(weight_init.xavier)
        weight_init.xavier_patch_embed(self.encoder)
        for token in (self.encoder.cls_token, *(decoder.mask_token for decoder in self.decoders)):
            nn.init.normal_(token, std=0.02)
        self.teacher, self.mae = teacher, mae
        if mae is not None:
            if mae.norm_pix_loss != recipe.norm_pix_loss:
                remedy = "x_hat and x must be of one kind: give it to both, with `mae.norm_pix_loss`."
                raise UserError("norm_pix_loss", recipe.norm_pix_loss, remedy=remedy)
            mae.mask_ratio = recipe.mask_ratio

    def no_weight_decay(self) -> set[str]:
        return set()  # like MAE, whose code decays the class token, too

    def forward_encoder(
        self, images: Tensor, noise: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Features `[B, 1+K, D]` of the visible patches, ids_restore `[B, N]`, mask `[B, N]` (1 = masked).

        Features: the raw outputs at the taps, then the last block's output after the norm.
        """
        x = self.encoder.embed(images)  # [B, N, D]
        ids_keep, ids_restore, mask = random_masking(*x.shape[:2], self.recipe.mask_ratio, x.device, noise)
        x = gather_tokens(x, ids_keep)  # [B, K, D]
        *taps, last = self.encoder.encode(x, taps=[block - 1 for block in self.recipe.taps])
        return [*taps, self.encoder.norm(last)], ids_restore, mask

    @torch.no_grad()
    def forward_target(self, images: Tensor) -> Tensor:
        """The target of every patch, computed from whole images, `[B, N, C]`."""
        r = self.recipe
        if r.target == "clip":
            return teacher_tokens(
                self.teacher, images, project=r.project_target, clip_normalisation=r.clip_normalisation
            )
        if r.target == "dino":
            return self.teacher(images)[:, 1:]
        if r.target == "hog":
            return hog(images, r.patch_size)
        return pixel_target(images, r.patch_size, norm_pix_loss=r.norm_pix_loss)

    @torch.no_grad()
    def branch_targets(self, images: Tensor, ids_restore: Tensor) -> list[Tensor]:
        """Each branch's target `[B, N, C]`: hybrid at the taps if the recipe has alphas, x at the last."""
        x = self.forward_target(images)
        if not self.recipe.hybrid_alphas:
            return [x] * len(self.decoders)
        # With ids_restore as noise, the MAE keeps the same patches in the same order.
        latent, _, _ = self.mae.forward_encoder(images, noise=ids_restore)
        x_hat = self.mae.decoder(latent, ids_restore)  # [B, N, p*p*3]
        return [*(alpha * x + (1 - alpha) * x_hat for alpha in self.recipe.hybrid_alphas), x]

    def forward_loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """One branch's loss: the distance of pred and target `[B, N, C]` over the masked patches."""
        error = cosine_error if self.recipe.target in ("clip", "dino") else squared_error
        return masked_mean(error(pred, target), mask)

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        features, ids_restore, mask = self.forward_encoder(images)
        targets = self.branch_targets(images, ids_restore)
        losses = {
            f"loss_block{block}": self.forward_loss(decoder(x, ids_restore), target, mask)
            for block, decoder, x, target in zip(
                self.recipe.branches, self.decoders, features, targets, strict=True
            )
        }
        weights = self.recipe.loss_weights or [1.0] * len(losses)
        return {"loss": sum(w * loss for w, loss in zip(weights, losses.values(), strict=True)), **losses}


def target_dim(recipe: DeepMIMRecipe, teacher: nn.Module | None) -> int:
    """Channels of a patch's target."""
    if recipe.target == "clip":
        return teacher.output_dim if recipe.project_target else teacher.proj.shape[0]
    if recipe.target == "dino":
        return teacher.embed_dim
    return hog_dim(recipe.patch_size) if recipe.target == "hog" else 3 * recipe.patch_size**2


@dataclass(frozen=True, kw_only=True)
class DeepMIMRecipe(MAERecipe):
    target: Literal["pixels", "clip", "hog", "dino"]
    project_target: bool  # apply CLIP's projection; off: the features before it
    clip_normalisation: bool  # give the teacher CLIP's own image statistics instead of the student's
    taps: tuple[int, ...]  # blocks, from 1, with an auxiliary decoder; the last block always has one
    loss_weights: tuple[float, ...]  # one per branch, the last block's at the end; () = 1 each
    hybrid_alphas: tuple[float, ...]  # share of the raw pixels in the target of each tap; () = not hybrid

    def __post_init__(self) -> None:
        super().__post_init__()
        depth = size_of(self.arch).depth
        if list(self.taps) != sorted(set(self.taps) & set(range(1, depth))):
            raise UserError("taps", self.taps, remedy=f"Give blocks from 1 to {depth - 1}, ascending.")
        if self.loss_weights and len(self.loss_weights) != len(self.taps) + 1:
            remedy = f"Give one for each tap and one for the last block: {len(self.taps) + 1}."
            raise UserError("loss_weights", self.loss_weights, remedy=remedy)
        if self.hybrid_alphas and (self.target != "pixels" or len(self.hybrid_alphas) != len(self.taps)):
            remedy = f"With the target pixels, give one for each of the {len(self.taps)} taps."
            raise UserError("hybrid_alphas", self.hybrid_alphas, remedy=remedy)

    @property
    def branches(self) -> tuple[int, ...]:
        """The blocks, from 1, that have a decoder."""
        return (*self.taps, size_of(self.arch).depth)

    def step_flops(self, teacher: PretrainRecipe | None = None, mae: MAERecipe | None = None) -> float:
        trained = self.encoder_flops(self.num_visible) + len(self.branches) * self.decoder_flops()
        teachers = teacher.encoder_flops() if teacher else 0.0
        teachers += mae.forward_flops() if mae else 0.0
        return 3 * trained + teachers


def needs(recipe: DeepMIMRecipe) -> Mapping[str, str]:
    """The teacher that the target comes from."""
    if recipe.hybrid_alphas:
        return {"mae": "mae"}
    return {"teacher": recipe.target} if recipe.target in ("clip", "dino") else {}


def recipes() -> Mapping[str, DeepMIMRecipe]:
    readme = "DeepMIM code, README@7bf1e80 (pretraining command)"
    main, models = "DeepMIM code, main_pretrain.py@7bf1e80", "DeepMIM code, models_mae.py@7bf1e80"
    paper = DeepMIMRecipe.of(
        cite(readme, arch="vit_base", img_size=224, patch_size=16, mask_ratio=0.75, target="clip"),
        cite(readme, epochs=1600.0, warmup_epochs=40.0, global_batch_size=4096),
        cite(readme, base_lr=1.5e-4, weight_decay=0.05),
        cite(readme, norm_pix_loss=True),  # without effect on CLIP's features
        cite(main, lr_rule="linear", min_lr=0.0, betas=(0.9, 0.95), clip_grad=None, precision="fp16"),
        cite(main, min_crop_scale=0.2, color_jitter=0.0),
        cite(models, taps=(6, 8, 10), loss_weights=(), drop_path=0.0),
        cite(models, decoder_dim=512, decoder_heads=16),
        cite(models, decoder_depth=4),  # although the model's name says 8
        cite("DeepMIM code, clip.py@7bf1e80", project_target=True, clip_normalisation=True),
        cite("not in the released code", hybrid_alphas=()),
    )
    small = paper.at_small(
        cite(SMALL, taps=(1, 2, 3), decoder_dim=64, decoder_heads=2),
        cite(SMALL, decoder_depth=1),  # half of MAE's, as in the paper
        cite(SMALL, epochs=8.0, base_lr=1.5e-3, lr_rule="absolute"),
        cite(SMALL, clip_normalisation=False),  # our CLIP learns from images as the student sees them
    )
    toy = small.at_toy(mask_ratio=0.6, epochs=12.0)
    smoke = toy.at_smoke(decoder_dim=32)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """Fine-tuning after the CLIP target. For other targets it is unknown: the tables set MAE's values."""
    readme = "DeepMIM code, README@7bf1e80"
    upernet = "DeepMIM code, Segmentation/configs@7bf1e80"
    return {
        "classification": {"paper": [cite(readme, base_lr=1e-4, layer_decay=0.6, drop_path=0.1)]},
        "segmentation": {"paper": [cite(upernet, base_lr=5e-5, layer_decay=0.9, drop_path=0.1)]},
    }


METHOD = MethodCard(
    name="deepmim",
    title="DeepMIM",
    paper="Ren et al., DeepMIM: Deep Supervision for Masked Image Modeling, WACV 2025",
    code="OliverRensu/DeepMIM@7bf1e80",
    provenance=lambda recipe: "official" if recipe.target == "clip" else "reconstruction",
    recipes=recipes,
    build=DeepMIM,
    needs=needs,
    transfer=transfer,
    golden=("deepmim_tiny.npz",),
    points=15,
)
