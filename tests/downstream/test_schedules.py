"""Each task's learning rates: where its warm-up ends, what follows, and that both go by the data's epochs."""

from __future__ import annotations

from typing import Any

import pytest

from mimbench import catalog


def recipe(task: str, **changes: Any) -> Any:
    return catalog.task(task).recipes()["paper"].vary("test", lr_rule="absolute", base_lr=2.0, **changes)


@pytest.mark.parametrize("task", ["classification", "linear"])
def test_cosine_after_a_warmup_of_epochs(task: str) -> None:
    """Of 2 epochs, in steps of the data's epochs; the run ends at `min_lr`."""
    card = recipe(task, epochs=10.0, warmup_epochs=2.0, min_lr=0.5)
    lr = [card.lr_at(step, 105, 10.5) for step in range(105)]
    assert lr[0] == 0.0 and lr[10] == pytest.approx(1.0) and lr[20] == lr[21] == 2.0 and lr[22] < 2.0
    assert lr[63] == pytest.approx(1.25), "half way down"
    assert lr[104] == 0.5


@pytest.mark.parametrize(("images", "warmup"), [(25, 2), (26, 3), (31, 3)])
def test_the_warmup_is_rounded_from_the_images_not_from_the_steps(images: int, warmup: int) -> None:
    """1 epoch of warm-up, batches of 10: 25 images are 2.5 steps, whatever the run's steps round to."""
    card = recipe("classification", epochs=1.0, warmup_epochs=1.0, global_batch_size=10, min_lr=0.0)
    lr = [card.lr_at(step, 8, images / 10) for step in range(8)]
    assert lr.index(2.0) == warmup - 1


def test_the_tokens_layer_has_no_warmup() -> None:
    card = recipe("token-aggregation")
    assert [card.lr_at(step, 11, 1.0) for step in (0, 10)] == [2.0, 0.0]
    assert 0.95 < card.lr_at(5, 11, 1.0) < 1.2


def test_segmentation_decays_polynomially() -> None:
    card = recipe("segmentation", warmup_steps=5, warmup_ratio=0.5, poly_power=2.0, min_lr=0.0)
    lr = [card.lr_at(step, 25, 3.0) for step in range(25)]
    assert lr[0] == 1.0 and lr[4] == lr[5] == 2.0
    assert lr[15] == pytest.approx(2.0 * 0.5**2) and lr[24] == pytest.approx(2.0 * 0.05**2)


def test_detection_falls_to_a_tenth_at_each_milestone() -> None:
    """Milestones after 2 and 3.5 epochs of 4.2 steps: steps 8 and 15."""
    card = recipe("detection", epochs=4.0, milestones=(2.0, 3.5), warmup_steps=3, warmup_ratio=0.25)
    lr = [card.lr_at(step, 17, 4.2) for step in range(17)]
    assert lr[0] == 0.5 and lr[2:8] == [2.0] * 6
    assert lr[8:15] == pytest.approx([0.2] * 7) and lr[15:] == pytest.approx([0.02] * 2)


@pytest.mark.parametrize(
    "task", ["classification", "linear", "token-aggregation", "segmentation", "detection"]
)
def test_the_weight_decay_is_constant(task: str) -> None:
    card = recipe(task, weight_decay=0.125)
    assert {card.weight_decay_at(step, 10) for step in range(10)} == {0.125}
