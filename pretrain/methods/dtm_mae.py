"""DTM on MAE: a masked autoencoder that predicts CLIP's features; its targets are morphed tokens.

From the compatibility study of Morphing Tokens Draw Strong Masked Image Models (Kim et al., ICLR 2025, arXiv
2401.00254), which adds DTM to other frameworks: here MAE (He et al., CVPR 2022) with CLIP's features as its
target. The encoder sees the visible patches, the decoder predicts the CLIP token of every patch.

RECONSTRUCTION: DTM's release has no code for it and the text of the study could not be read. Ours:

    groups     from the target tokens of all patches, as in DTM; predictions of visible and masked patches are
               merged in these groups
    loss       DTM's distance, only at the masked positions, as in MAE (`loss_tokens`); a visible patch
               counts if it shares a group with a masked one
    recipe     MAE's own, with as many epochs as DTM's main comparison

`morphing = false` is the host alone: the same distance, token by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mimbench.arch import patch_embed_flops
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.recipe import PretrainRecipe, cite
from pretrain import weight_init
from pretrain.feature_student import teacher_tokens, token_distance
from pretrain.masking import gather_tokens
from pretrain.methods import mae
from pretrain.methods.dtm import MorphRecipe, draw_branches, morph_by, with_morphing
from pretrain.methods.feature_mim import base_recipes
from pretrain.methods.mae import MAE, MAERecipe
from pretrain.target import standardise


class DTMMAE(MAE):
    """A masked autoencoder that predicts CLIP's tokens, morphed or one by one."""

    def __init__(self, recipe: DTMMAERecipe, teacher: nn.Module) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        self.decoder.pred = nn.Linear(recipe.decoder_dim, recipe.target_dim)
        self.decoder.pred.apply(weight_init.xavier)
        self.teacher = teacher

    def forward_loss(self, target: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Distance between morphed pred and target, both `[B, N, C]`, at the positions of `loss_tokens`.

        Args:
            mask: `[B, N]`, 1 = masked.
        """
        r = self.recipe
        pred, target = pred.float(), target.float()
        if self.norm_pix_loss:
            target = standardise(target)
        pairs = [(pred, target)]
        if r.morphing:
            morphings = [morph_by(r, target, branch) for branch in draw_branches(r)]
            pairs = [(morphing(pred), morphing(target)) for morphing in morphings]
        if r.loss_tokens == "masked":
            masked = mask.topk(r.num_patches - r.num_visible, dim=1).indices  # [B, M]
            pairs = [(gather_tokens(u, masked), gather_tokens(v, masked)) for u, v in pairs]
        return torch.stack([token_distance(u, v, r.loss_type) for u, v in pairs]).mean()

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        r = self.recipe
        target = teacher_tokens(  # [B, N, C]
            self.teacher, images, project=r.project_target, clip_normalisation=r.clip_normalisation
        )
        latent, ids_restore, mask = self.forward_encoder(images)
        pred = self.decoder(latent, ids_restore)  # [B, N, C]
        return {"loss": self.forward_loss(target, pred, mask)}


@dataclass(frozen=True, kw_only=True)
class DTMMAERecipe(MorphRecipe, MAERecipe):
    """MAE's field `norm_pix_loss` here means: standardise each target token over its channels."""

    morphing: bool  # False: the host alone
    target_dim: int  # channels of a target token
    project_target: bool  # apply CLIP's projection to the target; off: the features before it
    clip_normalisation: bool  # give the teacher CLIP's own image statistics instead of the student's
    loss_type: Literal["smoothl1", "l1", "l2", "negcosine"]  # see `token_distance`
    loss_tokens: Literal["masked", "all"]  # positions in the loss

    def step_flops(self, teacher: PretrainRecipe) -> float:
        pixels = patch_embed_flops(self.decoder_dim, self.num_patches, self.patch_size)
        tokens = 2.0 * self.num_patches * self.decoder_dim * self.target_dim
        return super().step_flops() + 3 * (tokens - pixels) + teacher.encoder_flops()


TARGET = "DTM's own target and distance (feature_mim.py)"


def recipes() -> Mapping[str, DTMMAERecipe]:
    own = "ours: the paper's study could not be read"
    targets, result = base_recipes(), {}
    for scale, host in mae.recipes().items():
        theirs = targets[scale]
        result[scale] = with_morphing(
            DTMMAERecipe,
            host,
            cite(TARGET, target_dim=theirs.target_dim, project_target=theirs.project_target),
            cite(TARGET, clip_normalisation=theirs.clip_normalisation, loss_type=theirs.loss_type),
            cite("DTM code: targets as they are", norm_pix_loss=False),
            cite(own, morphing=True, loss_tokens="masked"),
            prefix="as MAE: ",
        )
    result["paper"] = result["paper"].vary("DTM paper, main comparison: 300 epochs", epochs=300.0)
    return result


def transfer() -> TransferOverrides:
    """The same fine-tuning as for other MAEs with CLIP's features as the target."""
    source = "ours: as DeepMIM's; the study could not be read"
    return {"classification": {"paper": [cite(source, base_lr=1e-4, layer_decay=0.6, drop_path=0.1)]}}


METHOD = MethodCard(
    name="dtm-mae",
    title="DTM on MAE",
    paper="Kim et al., Morphing Tokens Draw Strong Masked Image Models, ICLR 2025 (compatibility study)",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=DTMMAE,
    needs={"teacher": "clip"},
    transfer=transfer,
)
