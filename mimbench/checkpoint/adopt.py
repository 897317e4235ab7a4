"""Loads an official checkpoint instead of pretraining. No trained run depends on this file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimbench.checkpoint import foreign
from mimbench.checkpoint.encoder import save_encoder
from mimbench.contract import MethodCard

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


def run(folder: RunFolder, card: MethodCard) -> dict[str, float]:
    """Write the encoder of the checkpoint that the user gave (`--weights METHOD=PATH`).

    Of a checkpoint with student and teacher, the one that the recipe's `export` names is taken. Other recipes
    do not say which one they mean, so such a file is refused.
    """
    recipe = card.recipe.from_values(folder.spec.recipe)
    path, field = folder.weights[card.name], f"--weights {card.name}"
    state = foreign.read(path, field)
    export = getattr(recipe, "export", None)
    vit, report = foreign.convert(state, recipe.vit_config(), path, export=export, field=field)
    folder.details["load_report"] = report.as_dict()
    save_encoder(vit, folder.encoder_path, method=card.name)
    return {}
