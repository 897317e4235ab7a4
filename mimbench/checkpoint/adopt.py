"""Loads an official checkpoint instead of pretraining. No trained run depends on this file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimbench.checkpoint import foreign
from mimbench.checkpoint.encoder import save_encoder
from mimbench.contract import MethodCard
from mimbench.errors import UserError

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder
    from mimbench.vit import ViT


def run(folder: RunFolder, card: MethodCard) -> dict[str, float]:
    """Write the encoder of the checkpoint that the user gave (`--weights METHOD=PATH`)."""
    save_encoder(load(folder, card), folder.encoder_path, method=card.name)
    return {}


def load(folder: RunFolder, card: MethodCard) -> ViT:
    """The encoder of the checkpoint; what became of its tensors goes into the run's result.

    Of a checkpoint with student and teacher, the one that the recipe's `export` names is taken. Other recipes
    do not say which one they mean, so such a file is refused.

    Raises:
        UserError: it does not fit, or it is the encoder of another method's run.
    """
    recipe = card.recipe.from_values(folder.spec.recipe)
    path, field = folder.weights[card.name], f"--weights {card.name}"
    state = foreign.read(path, field)
    if state.method not in ("", card.name):
        remedy = f"A run of {state.method} wrote it: give --weights {state.method}=PATH, or another file."
        raise UserError(field, str(path), remedy=remedy)
    export = getattr(recipe, "export", None)
    vit, report = foreign.convert(state, recipe.vit_config(), path, export=export, field=field)
    folder.details["load_report"] = report.as_dict()
    return vit
