"""The base class of the methods in `pretrain/methods`."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from typing_extensions import Self

from mimbench.vit import ViT


class Method(nn.Module):
    """A pretraining method. A plain `nn.Module` with `forward` and `encoder` works too: see `as_method`.

    A step must not synchronise with the device (no `.item()`).

    Attributes:
        encoder: the plain ViT that transfer receives.
        steps: optimizer steps of this training, known before the first.
    """

    encoder: ViT
    steps: int = 1

    def forward(self, images: Any, step_fraction: float) -> dict[str, Tensor]:
        """One step on a batch.

        Args:
            images: `[B, 3, H, W]`, normalised with ImageNet's mean and standard deviation. A method whose
                card says `inputs="image+caption"` receives `(images, tokens [B, T] of int64)`. If its card
                has `augment`, it receives the views of that function, batched, all images normalised.
            step_fraction: steps done over all steps, in [0, 1).

        Returns:
            `loss` (a scalar with gradient) and any further scalars to log.
        """
        raise NotImplementedError

    def before_train(self, steps: int) -> None:
        """Called once before the first step of `steps`."""
        self.steps = steps

    def after_step(self, step: int) -> None:
        """Called after every optimizer step, with the number of steps done; an EMA teacher moves here."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed although they have more than one dimension."""
        return self.encoder.no_weight_decay()

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for frozen children (teachers, tokenizers): they stay in eval mode."""
        super().train(mode)
        for child in self.children():
            parameters = list(child.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                child.eval()
        return self


def as_method(module: nn.Module) -> Method:
    """Add the members of `Method` that a module lacks. They do nothing, and exempt nothing from decay."""
    for name, missing in {"before_train": _ignore, "after_step": _ignore, "no_weight_decay": set}.items():
        if not hasattr(module, name):
            setattr(module, name, missing)
    return cast("Method", module)


def _ignore(step: int) -> None:
    del step
