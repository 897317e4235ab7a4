"""PeCo: Perceptual Codebook for BERT Pre-training (Dong et al., AAAI 2023, arXiv 2111.12710): rebuilt.

BEiT with a tokenizer that has a perceptual codebook (pretrain/teachers/peco_codebook.py says what is known of
it). There is no public code. The paper's text was not read: only the abstract, and results that others quote.
Student, masks, loss, recipe and fine-tuning are BEiT's.
"""

from __future__ import annotations

from collections.abc import Mapping

from mimbench.contract import MethodCard
from pretrain.methods import beit


def recipes() -> Mapping[str, beit.BEiTRecipe]:
    result = {
        scale: beit.BEiTRecipe.based_on(base, prefix="as BEiT: ") for scale, base in beit.recipes().items()
    }
    result["paper"] = result["paper"].vary("the codebook's own image: the student's size", token_size=224)
    return result


METHOD = MethodCard(
    name="peco",
    title="PeCo",
    paper="Dong et al., PeCo: Perceptual Codebook for BERT Pre-training of Vision Transformers, AAAI 2023",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=beit.BEiT,
    needs={"tokenizer": "peco-codebook"},
    augment=beit.augment,
    transfer=beit.transfer,
)
