"""Training from scratch: no pretraining; the tasks get the encoder's initial weights.

The baseline of the tables. Its fine-tuning has its own recipe: a network without pretraining needs another
learning rate and no layer decay, and a baseline with the pretrained rows' recipe would flatter these rows. At
paper scale: He et al., 2022 (MAE), Table 11 (ViT-B from scratch, 82.3 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mimbench.contract import MethodCard, TransferOverrides
from mimbench.method import Method
from mimbench.recipe import PretrainRecipe, cite
from mimbench.vit import ViT

OURS = "ours"


class Scratch(Method):
    """Holds an initialised ViT; there is nothing to train."""

    def __init__(self, recipe: ScratchRecipe) -> None:
        super().__init__()
        self.encoder = ViT(recipe.vit_config())

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        """Never called: the recipe has 0 steps."""
        raise RuntimeError("training from scratch has no pretraining step")


@dataclass(frozen=True, kw_only=True)
class ScratchRecipe(PretrainRecipe):
    """No further fields; the optimizer's fields are not used."""

    def step_flops(self) -> float:
        return 0.0


def recipes() -> Mapping[str, ScratchRecipe]:
    unused = "no pretraining"
    paper = ScratchRecipe.of(
        cite("MAE, appendix A.2", arch="vit_base", img_size=224, patch_size=16),
        cite(unused, epochs=0.0, warmup_epochs=0.0, global_batch_size=1, precision="fp32"),
        cite(unused, base_lr=0.0, lr_rule="absolute", min_lr=0.0, betas=(0.9, 0.999), weight_decay=0.0),
        cite(unused, clip_grad=None, drop_path=0.0, min_crop_scale=1.0, color_jitter=0.0),
    )
    return {
        "paper": paper,
        "small": paper.vary(f"{OURS}: as the other rows", arch="vit_toy", img_size=64, patch_size=8),
        "toy": paper.vary(f"{OURS}: two CPU cores", arch="vit_toy", img_size=64, patch_size=8),
        "smoke": paper.vary(f"{OURS}: seconds", arch="vit_smoke", img_size=32, patch_size=8),
    }


def transfer() -> TransferOverrides:
    alone, undecayed = f"{OURS}: chosen for this row alone", f"{OURS}: nothing pretrained to preserve"
    own = [cite(alone, base_lr=1e-3, layer_decay=1.0, drop_path=0.0)]
    whole = [cite(f"{alone}, of 1e-3 and 3e-3", base_lr=1e-3, layer_decay=1.0)]
    faster = [cite(f"{alone}, of 1e-3 and 2e-3", base_lr=2e-3, layer_decay=1.0)]
    paper = [cite(undecayed, layer_decay=1.0)]
    return {
        "classification": {
            "paper": [
                cite("MAE, Table 11", base_lr=1e-4, layer_decay=1.0, weight_decay=0.3, betas=(0.9, 0.95)),
                cite("MAE, Table 11", epochs=300.0, warmup_epochs=20.0, global_batch_size=4096),
                cite("MAE, Table 11", ema_momentum=0.9999),
            ],
            "small": own,
            "toy": own,
        },
        "segmentation": {"paper": paper, "small": whole, "toy": whole},
        "detection": {"paper": paper, "small": faster, "toy": faster},
    }


METHOD = MethodCard(
    name="scratch",
    title="Scratch",
    paper="He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022 (from-scratch baseline)",
    code="facebookresearch/mae@efb2a80",
    provenance="official",
    recipes=recipes,
    build=Scratch,
    transfer=transfer,
    trains=False,
)
