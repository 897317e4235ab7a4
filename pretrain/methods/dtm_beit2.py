"""DTM on BEiT v2: a masked student that predicts the codes of morphed tokens.

From the compatibility study of Morphing Tokens Draw Strong Masked Image Models (Kim et al., ICLR 2025, arXiv
2401.00254). The host is BEiT v2 (Peng et al., 2022, arXiv 2208.06366): the targets are VQ-KD's codes, and two
extra blocks see the last class token with the patch tokens of an earlier block, so that the class token must
carry the image. The host follows microsoft/unilm@b50baec (beit2/modeling_pretrain.py).

RECONSTRUCTION: DTM's release has no code for this host and the text of the study could not be read. Ours:

    groups     from the tokenizer's vectors before quantisation: tokens with equal codes would all tie
    prediction a group's logits are the mean of its members' logits (equal to the head on their mean token)
    target     a group's distribution is the mean of its members' one-hot codes
    loss       cross-entropy of the two, only at the masked positions, as in BEiT v2

`morphing = false` is the host alone: cross-entropy with each masked patch's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import size_of, transformer_flops
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.method import Method
from mimbench.recipe import SMALL, PretrainRecipe, cite, require_range
from mimbench.vit import Block
from pretrain import weight_init
from pretrain.grouping import Morphing
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks, gather_tokens
from pretrain.methods.dtm import MorphRecipe, draw_branches, morph_by, with_morphing
from pretrain.target import masked_mean


class BEiT2Student(MaskedViT):
    """BEiT v2's student: one prediction from the last block, one through the class token's bottleneck."""

    def __init__(self, recipe: DTMBEiT2Recipe) -> None:
        super().__init__(recipe, positions="shared", layer_scale_init=recipe.layer_scale_init)
        self.early_layers = recipe.early_layers
        config = self.encoder.config
        self.class_blocks = nn.ModuleList(
            Block(
                config.embed_dim,
                config.num_heads,
                drop_path=recipe.drop_path,
                layer_scale_init=recipe.layer_scale_init,
                key_bias=False,
            )
            for _ in range(recipe.head_layers)
        )
        self.class_blocks.apply(weight_init.beit)
        for layer, block in enumerate(self.class_blocks, start=recipe.early_layers + 1):
            for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
                weight.data /= (2 * layer) ** 0.5

    def both(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens `[B, N, D]` after the last block, and after the extra blocks (the bottleneck)."""
        vit = self.encoder
        x = vit.embed(images, mask, self.mask_token)
        early, last = vit.encode(x, taps=[self.early_layers - 1])  # each [B, 1+N, D]
        bottleneck = torch.cat([last[:, :1], early[:, 1:]], dim=1)
        bias = vit.rel_pos_bias(vit.grid_of(images))
        for block in self.class_blocks:
            bottleneck = block(bottleneck, attn_mask=bias)
        return vit.norm(last)[:, 1:], vit.norm(bottleneck)[:, 1:]


class DTMBEiT2(Method):
    """BEiT v2, with or without morphed tokens.

    Args:
        tokenizer: `tokenizer(images)` gives vectors `[B, N, C]` and code ids `[B, N]`; frozen, in eval mode.
    """

    def __init__(self, recipe: DTMBEiT2Recipe, tokenizer: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = BEiT2Student(recipe)
        self.head = nn.Linear(self.encoder.embed_dim, tokenizer.num_codes)
        self.head.apply(weight_init.beit)
        self.tokenizer = tokenizer

    @property
    def encoder(self) -> nn.Module:
        return self.student.encoder

    def morphings(self, vectors: Tensor) -> list[Morphing]:
        """The step's morphings, from the tokenizer's vectors `[B, N, C]`; empty if morphing is off."""
        if not self.recipe.morphing:
            return []
        return [morph_by(self.recipe, vectors, branch) for branch in draw_branches(self.recipe)]

    def forward_loss(self, tokens: Tensor, ids: Tensor, mask: Tensor, morphings: list[Morphing]) -> Tensor:
        """Cross-entropy at the masked positions; patch tokens `[B, N, D]`, ids and mask `[B, N]`."""
        if not morphings:
            masked = mask.topk(self.recipe.num_masked, dim=1).indices  # [B, M]
            logits = self.head(gather_tokens(tokens, masked))  # [B, M, K]
            return F.cross_entropy(logits.flatten(0, 1), ids.gather(1, masked).flatten())
        losses = [masked_mean(self.morphed_error(tokens, ids, m), mask) for m in morphings]
        return torch.stack(losses).mean()

    def morphed_error(self, tokens: Tensor, ids: Tensor, morphing: Morphing) -> Tensor:
        """Cross-entropy `[B, N]` for the group of each position: mean code distribution against mean logits.

        The distribution itself, num_codes wide, is never built: cross-entropy is linear in it, so the group's
        cross-entropy is the mean over the members' codes.
        """
        log_p = self.head(morphing.merge(tokens.float())).log_softmax(dim=-1)  # [B, G, K]
        index = morphing.group * log_p.shape[2] + ids  # the patch's code, in the row of its group
        error = -log_p.flatten(1).gather(1, index)  # [B, N]
        return morphing(error.unsqueeze(-1)).squeeze(-1)

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        r, vit = self.recipe, self.encoder
        with torch.no_grad():
            vectors, ids = self.tokenizer(images)
        mask = block_masks(len(images), vit.config.grid_size, r.num_masked, r.min_mask_block, images.device)
        morphings = self.morphings(vectors)  # the same for both predictions
        last, bottleneck = (
            self.forward_loss(tokens, ids, mask, morphings) for tokens in self.student.both(images, mask)
        )
        return {"loss": last + bottleneck, "last_loss": last.detach(), "class_loss": bottleneck.detach()}


@dataclass(frozen=True, kw_only=True)
class BEiT2Recipe(PretrainRecipe):
    num_masked: int  # patches hidden from the student
    min_mask_block: int  # smallest area of a mask block, in patches
    layer_scale_init: float
    early_layers: int  # the block (from 1) whose patch tokens join the last class token
    head_layers: int  # number of extra blocks, which see both

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 1, self.num_patches)
        require_range("early_layers", self.early_layers, 1, size_of(self.arch).depth - 1)


@dataclass(frozen=True, kw_only=True)
class DTMBEiT2Recipe(MorphRecipe, BEiT2Recipe):
    morphing: bool  # False: BEiT v2 alone

    def step_flops(self, tokenizer: PretrainRecipe) -> float:
        size = size_of(self.arch)
        bottleneck = transformer_flops(size.embed_dim, self.head_layers, self.num_patches + 1)
        return 3 * (self.encoder_flops() + bottleneck) + tokenizer.encoder_flops()


def host_recipes() -> Mapping[str, BEiT2Recipe]:
    """BEiT v2's own recipe, for 300 epochs."""
    readme = "BEiT v2 code, PRETRAINING.md@edf2b0a"
    parser = "BEiT v2 code, run_beitv2_pretraining.py@b50baec"
    paper = BEiT2Recipe.of(
        cite(readme, arch="vit_base", patch_size=16, layer_scale_init=0.1, early_layers=9, head_layers=2),
        cite(readme, global_batch_size=2048, base_lr=1.5e-3, lr_rule="absolute", warmup_epochs=10.0),
        cite(readme, clip_grad=3.0, min_crop_scale=0.2, num_masked=75),
        cite(f"{readme}, the short schedule", epochs=300.0, betas=(0.9, 0.98), drop_path=0.0),
        cite(parser, img_size=224, min_mask_block=16, color_jitter=0.4),
        cite(parser, weight_decay=0.05, min_lr=1e-5, precision="fp16"),
    )
    small = paper.at_small(
        cite(SMALL, num_masked=24, min_mask_block=5),  # of 64 patches as much as 75 and 16 are of 196
        cite(SMALL, early_layers=3, head_layers=1, epochs=5.0, base_lr=2e-3),
    )
    toy = small.at_toy(color_jitter=0.0, epochs=9.0)
    smoke = toy.at_smoke(num_masked=6, min_mask_block=2)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def recipes() -> Mapping[str, DTMBEiT2Recipe]:
    own = cite("ours: DTM on this host", morphing=True)
    return {scale: with_morphing(DTMBEiT2Recipe, host, own) for scale, host in host_recipes().items()}


def transfer() -> TransferOverrides:
    """BEiT v2's fine-tuning after 300 epochs."""
    source = "BEiT v2 code, get_started_for_image_classification.md@768a3c8"
    return {
        "classification": {
            "paper": [
                cite(source, base_lr=5e-4, lr_rule="absolute", layer_decay=0.65, drop_path=0.1),
                cite(source, epochs=100.0, warmup_epochs=20.0),
            ]
        }
    }


METHOD = MethodCard(
    name="dtm-beit2",
    title="DTM on BEiT v2",
    paper="Kim et al., Morphing Tokens Draw Strong Masked Image Models, ICLR 2025 (compatibility study)",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=DTMBEiT2,
    needs={"tokenizer": "vqkd"},
    transfer=transfer,
)
