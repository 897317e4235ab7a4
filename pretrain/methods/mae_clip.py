"""MAE-CLIP: an MAE that predicts CLIP's features instead of pixels.

DeepMIM's baseline without deep supervision (Ren et al., WACV 2025; the idea is MVP's, Wei et al., ECCV 2022).
MAE's encoder sees a quarter of the patches. One decoder of four blocks after the last block predicts, for the
other patches, the projected patch tokens that a frozen CLIP computes from the whole image. The loss is
2 - 2 cos(pred, target), averaged over the masked patches. This is DeepMIM without its taps. The rest is the
recipe of OliverRensu/DeepMIM@7bf1e80; tests/golden/deepmim_tiny.npz has its numbers for each branch.
"""

from __future__ import annotations

from collections.abc import Mapping

from mimbench.contract import MethodCard
from pretrain.methods.deepmim import DeepMIM, DeepMIMRecipe, needs, transfer
from pretrain.methods.deepmim import recipes as deepmim_recipes


def recipes() -> Mapping[str, DeepMIMRecipe]:
    source = "paper, abstract: the same without deep supervision"
    return {scale: recipe.vary(source, taps=()) for scale, recipe in deepmim_recipes().items()}


METHOD = MethodCard(
    name="mae-clip",
    title="MAE-CLIP",
    paper="Ren et al., DeepMIM: Deep Supervision for Masked Image Modeling, WACV 2025 (its baseline)",
    code="OliverRensu/DeepMIM@7bf1e80",
    provenance="official",
    recipes=recipes,
    build=DeepMIM,
    needs=needs,
    transfer=transfer,
    golden=("deepmim_tiny.npz",),
    points=10,
)
