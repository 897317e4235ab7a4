"""From a card to batches: a method's own views, and what of a batch is an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mimbench import catalog
from mimbench.data.augment import PretrainAugment, normalise
from mimbench.store.folder import RunFolder
from mimbench.train import pretraining
from mimbench.train.optimizer import optim_wrapper

CPU = torch.device("cpu")


def test_every_image_of_a_nested_batch_is_normalised_and_nothing_else_is() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    small, tokens, noise = pixels[..., :4, :4], torch.arange(6).view(2, 3), torch.randn(2, 5)
    batch = {"views": [pixels, (small, tokens)], "noise": noise}
    found = pretraining.prepare(batch, CPU)
    assert set(found) == {"views", "noise"} and torch.equal(found["noise"], noise)
    first, (second, third) = found["views"]
    torch.testing.assert_close(first, normalise(pixels))
    torch.testing.assert_close(second, normalise(small))
    assert torch.equal(third, tokens) and third.dtype == torch.int64


def test_one_image_and_an_image_with_tokens_stay_what_they_are() -> None:
    pixels, tokens = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.int64)
    assert torch.equal(pretraining.prepare(pixels, CPU), normalise(pixels))
    images, same = pretraining.prepare([pixels, tokens], CPU)
    assert images.dtype == torch.float32 and torch.equal(same, tokens)


def test_a_batch_goes_to_the_methods_device() -> None:
    found = pretraining.prepare((torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {"x": torch.ones(1)}), CPU)
    assert found[0].device == found[1]["x"].device == CPU
    meta = pretraining.prepare({"x": torch.ones(1)}, torch.device("meta"))
    assert meta["x"].device.type == "meta"


def test_only_the_loss_is_minimised_and_everything_is_logged() -> None:
    """mmengine's own `parse_losses` would add `loss_of_another` to what is minimised."""

    class Method(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
            fractions.append(step_fraction)
            loss = images.mean() * self.weight
            return {"loss": loss, "loss_of_another": 10 * loss, "size": images.max()}

    fractions: list[float] = []
    method = Method()
    model = pretraining.MethodModel(method, steps=4)
    groups = [{"params": [method.weight], "weight_decay": 0.0, "lr_scale": 1.0}]
    wrapper = optim_wrapper(
        groups, lr=0.1, betas=(0.0, 0.0), eps=1e-8, clip_grad=None, precision="fp32", device=CPU
    )
    pixels = torch.full((2, 3, 4, 4), 200, dtype=torch.uint8)
    model.before_step(3)
    scalars = model.train_step(pixels, wrapper)
    assert fractions == [0.75] and set(scalars) == {"loss", "loss_of_another", "size"}
    moment = wrapper.optimizer.state[method.weight]["exp_avg"]
    torch.testing.assert_close(moment, normalise(pixels).mean())


def test_the_default_view_flips_unless_a_caption_may_say_left() -> None:
    card = catalog.method("mae")
    recipe = card.recipes()["smoke"].vary("test", color_jitter=0.25)
    view = pretraining.augmentation(card, recipe)
    assert isinstance(view, PretrainAugment)
    assert (view.img_size, view.min_crop_scale) == (recipe.img_size, recipe.min_crop_scale)
    assert (view.color_jitter, view.hflip) == (0.25, 0.5)
    captioned = dataclasses.replace(card, inputs="image+caption")
    assert pretraining.augmentation(captioned, recipe).hflip == 0.0


def two_views(recipe: Any) -> Callable[[Image.Image], dict[str, Any]]:
    view = PretrainAugment(recipe.img_size, recipe.min_crop_scale, 0.0)

    def augment(image: Image.Image) -> dict[str, Any]:
        small = torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1)
        return {"global": [view(image), view(image)], "local": small, "offset": torch.tensor(0.5)}

    return augment


def test_a_methods_own_views_reach_it_batched_and_normalised(
    pretraining_folder: Callable[..., RunFolder],
) -> None:
    mae = catalog.method("mae")
    seen: list[Any] = []

    class Watching(nn.Module):
        def __init__(self, recipe: Any) -> None:
            super().__init__()
            self.mae = mae.build(recipe)

        @property
        def encoder(self) -> nn.Module:
            return self.mae.encoder

        def forward(self, views: Any, step_fraction: float) -> dict[str, Tensor]:
            seen.append(views)
            return self.mae(views["global"][0], step_fraction)

    card = dataclasses.replace(mae, augment=two_views, build=Watching, load=None)
    pretraining.run(pretraining_folder(card, steps=2), card)
    assert len(seen) == 2
    for views in seen:
        one, two = views["global"]
        assert one.shape == two.shape == (16, 3, 32, 32) and views["local"].shape == (16, 3, 16, 16)
        assert one.dtype == two.dtype == views["local"].dtype == torch.float32
        assert one.min() < 0 < one.max() and not torch.equal(one, two)
        assert torch.equal(views["offset"], torch.full((16,), 0.5))
