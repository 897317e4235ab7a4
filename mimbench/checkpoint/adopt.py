"""Loads an official checkpoint instead of pretraining. No trained run depends on this file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimbench.checkpoint import foreign
from mimbench.checkpoint.encoder import save_encoder
from mimbench.contract import MethodCard

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


def run(folder: RunFolder, card: MethodCard) -> dict[str, float]:
    """Write the encoder of the checkpoint that the user gave (`--weights METHOD=PATH`)."""
    recipe = card.recipe.from_values(folder.spec.recipe)
    path = folder.weights[card.name]
    vit, report = foreign.convert(foreign.read(path), recipe.vit_config(), path)
    folder.details["load_report"] = report.as_dict()
    save_encoder(vit, folder.encoder_path, method=card.name)
    return {}
