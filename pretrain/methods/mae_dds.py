"""MAE with deep dynamic supervision (Chen et al., DDAE, AAAI 2024): the host of DDAE, without features.

The abstract says that the supervision also helps MAE and other methods. The figures of that experiment could
not be read, and there is no official code. MAE is this project's (facebookresearch/mae@efb2a80): with one tap
and beta = 0 the loss is MAE's. How the supervised blocks are connected to the decoder is a reconstruction:

    taps      6, 8, 10, 12 of ViT-B, as DeepMIM (OliverRensu/DeepMIM@7bf1e80); a new LayerNorm on each except
              the last, which has the encoder's
    decoders  shared | per_tap | per_target: one trunk for all taps, with a linear layer from each tap to it;
              a trunk for each tap (as DeepMIM); a trunk for each target (as BootMAE)
    masking   random | block: MAE's masks, or BEiT's block-wise masks with as many patches (as BootMAE)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mimbench.arch import size_of
from mimbench.contract import MethodCard
from mimbench.recipe import cite, require_range
from mimbench.vit import LayerNorm
from pretrain import weight_init
from pretrain.decoder import MAEDecoder
from pretrain.deep_dynamic import DeepDynamicRecipe, DeepDynamicSupervision, PerTap
from pretrain.masking import block_masks, gather_tokens, random_masking
from pretrain.methods import mae
from pretrain.methods.mae import MAE, MAERecipe
from pretrain.target import squared_error


class Heads(nn.ModuleList):
    """A linear layer for each target; their outputs are concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self], dim=-1)


class DeepDecoder(nn.Module):
    """MAE's decoder for several taps at once; see `decoders` above.

    Args:
        out_dims: channels predicted per patch, for each target.
    """

    def __init__(self, recipe: MAEDDSRecipe, out_dims: Sequence[int]) -> None:
        super().__init__()
        self.decoders, self.out_dims, self.num_taps = recipe.decoders, list(out_dims), len(recipe.taps)
        encoder_dim = size_of(recipe.arch).embed_dim
        taps = 1 if self.decoders == "per_tap" else self.num_taps
        targets = [[dim] for dim in out_dims] if self.decoders == "per_target" else [self.out_dims]

        def trunk(dims: Sequence[int]) -> MAEDecoder:
            decoder = MAEDecoder.of(recipe, sum(dims))
            decoder.embed = PerTap(nn.Linear(encoder_dim, recipe.decoder_dim) for _ in range(taps))
            decoder.pred = Heads(nn.Linear(recipe.decoder_dim, dim) for dim in dims)
            return decoder

        self.trunks = nn.ModuleList(trunk(dims) for _ in range(self.num_taps // taps) for dims in targets)
        self.apply(weight_init.xavier)
        for decoder in self.trunks:
            nn.init.normal_(decoder.mask_token, std=0.02)

    def forward(self, latent: Tensor, ids_restore: Tensor) -> Sequence[Tensor]:
        """From latent `[S*B, 1+K, D]` and ids_restore `[B, N]` to `[S, B, N, out_dim]` for each target."""
        if self.decoders == "per_tap":
            taps = latent.chunk(self.num_taps)
            pred = torch.cat([trunk(x, ids_restore) for trunk, x in zip(self.trunks, taps, strict=True)])
        else:
            ids_restore = ids_restore.repeat(self.num_taps, 1)
            pred = torch.cat([trunk(latent, ids_restore) for trunk in self.trunks], dim=-1)
        return pred.unflatten(0, (self.num_taps, -1)).split(self.out_dims, dim=-1)


class MAEDDS(MAE):
    """The masked autoencoder with a loss on several blocks, weighted by the distance to visible patches."""

    def __init__(self, recipe: MAEDDSRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        self.norms = nn.ModuleList(LayerNorm(self.encoder.embed_dim) for _ in recipe.taps[:-1])
        self.decoder = DeepDecoder(recipe, self.out_dims())
        self.supervision = DeepDynamicSupervision(recipe, self.encoder.config.grid_size)

    def out_dims(self) -> list[int]:
        """Channels predicted per patch, for each target."""
        return [3 * self.patch_size**2]

    def draw_noise(self, images: Tensor) -> Tensor | None:
        """Noise `[B, N]` for `random_masking` that puts block-masked patches last; None for random masks."""
        r = self.recipe
        if r.masking == "random":
            return None
        side, num_masked = self.encoder.config.grid_size, r.num_patches - r.num_visible
        masks = block_masks(len(images), side, num_masked, r.min_mask_block, images.device)
        return masks + 0.5 * torch.rand_like(masks)

    def forward_encoder(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As in MAE, but latent is `[S*B, 1+K, D]`: the taps after their norms, stacked along the batch."""
        x = self.encoder.embed(images)  # [B, N, D]
        ids_keep, ids_restore, mask = random_masking(*x.shape[:2], self.mask_ratio, x.device, noise)
        x = gather_tokens(x, ids_keep)  # [B, K, D]
        taps = self.encoder.encode(x, taps=self.recipe.tap_indices[:-1])  # S x [B, 1+K, D]
        norms = [*self.norms, self.encoder.norm]
        latent = torch.cat([norm(tap) for norm, tap in zip(norms, taps, strict=True)])
        return latent, ids_restore, mask

    def pixel_error(self, images: Tensor, pred: Tensor) -> Tensor:
        """Squared error of pred `[S, B, N, p*p*3]`, averaged over each patch: `[S, B, N]`."""
        return squared_error(pred, self.pixel_target(images))

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        latent, ids_restore, mask = self.forward_encoder(images, self.draw_noise(images))
        (pred,) = self.decoder(latent, ids_restore)  # [S, B, N, p*p*3]
        loss = self.supervision(self.pixel_error(images, pred), mask, step_fraction)
        return {"loss": loss, **self.supervision.log(step_fraction)}


@dataclass(frozen=True, kw_only=True)
class MAEDDSRecipe(MAERecipe, DeepDynamicRecipe):
    decoders: Literal["shared", "per_tap", "per_target"]
    masking: Literal["random", "block"]
    min_mask_block: int  # smallest area of a mask block, in patches; for block masks only

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("min_mask_block", self.min_mask_block, 1, self.num_patches)

    def step_flops(self) -> float:
        project = 2.0 * (self.num_visible + 1) * size_of(self.arch).embed_dim * self.decoder_dim
        tap = project + self.decoder_flops()  # from the projection to the predicted pixels
        return 3 * (self.encoder_flops(self.num_visible) + len(self.taps) * tap)


_UNREAD = "reconstruction: the paper's formulas could not be read"
RULES = (
    cite("reconstruction: DeepMIM's taps, OliverRensu/DeepMIM@7bf1e80", taps=(6, 8, 10, 12)),
    cite(_UNREAD, beta_mode="schedule", beta=1.0, depth_sign=1, normalize_weights=True),
)
"""The fields of the supervision, for every host."""

HOST = (
    cite("reconstruction: the cheaper, a trunk for all taps", decoders="shared"),
    cite("reconstruction: MAE's, as the encoder's asymmetry is (Figure 2); not stated", masking="random"),
    cite("BEiT, Algorithm 1; used by block masks only", min_mask_block=16),
)


def recipes() -> Mapping[str, MAEDDSRecipe]:
    taps, share = cite("ours: every second block of four", taps=(2, 4)), "ours: 8 % of the grid, as 16 of 196"
    small, smoke = (taps, cite(share, min_mask_block=5)), (taps, cite(share, min_mask_block=2))
    own = {"paper": (), "small": small, "toy": small, "smoke": smoke}
    return {
        scale: MAEDDSRecipe.based_on(base, *RULES, *HOST, *own[scale], prefix="as MAE: ")
        for scale, base in mae.recipes().items()
    }


METHOD = MethodCard(
    name="mae-dds",
    title="MAE + deep dynamic supervision",
    paper="Chen et al., DDAE: Towards Deep Dynamic Vision BERT Pretraining, AAAI 2024 (on MAE)",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=MAEDDS,
)
