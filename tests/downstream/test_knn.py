"""k-NN on frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from downstream.knn import TASK, features, vote
from mimbench.checkpoint.encoder import load_encoder
from mimbench.data.augment import eval_transform
from mimbench.data.image_folder import ImageFolder, LabelledImages
from mimbench.errors import UserError
from mimbench.store.folder import RunFolder

MakeFolder = Callable[..., RunFolder]
SMOKE = TASK.recipes()["smoke"]


def test_votes_by_hand() -> None:
    """Two near neighbours of class 1 outvote the nearest one, of class 0; the fourth image is not asked."""
    angles = torch.tensor([0.1, 0.2, -0.2, 0.3])
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 1, 1, 2])
    scores = vote(torch.tensor([[1.0, 0.0]]), bank, labels, 4, k=3, temperature=0.07)
    near, far = math.exp(math.cos(0.1) / 0.07), math.exp(math.cos(0.2) / 0.07)
    torch.testing.assert_close(scores, torch.tensor([[near, 2 * far, 0, 0]]), rtol=1e-5, atol=0)
    assert scores.argmax() == 1
    sharp = vote(torch.tensor([[1.0, 0.0]]), bank, labels, 4, k=3, temperature=0.01)
    assert sharp.argmax() == 0, "at a low temperature the nearest decides"


@pytest.mark.parametrize("token", ["cls", "mean"])
def test_features_are_the_normed_tokens_at_unit_length(
    encoder_file: Path, smoke_data: Path, token: str
) -> None:
    encoder, _ = load_encoder(encoder_file)
    torch.nn.init.normal_(encoder.eval().norm.bias)  # the final norm must show
    images = LabelledImages(ImageFolder(smoke_data / "imagenet", "val"), eval_transform(32, 1.0))
    recipe = SMOKE.vary("test", token=token, global_batch_size=5)
    rows, labels = features(encoder, images, recipe, 0)
    assert rows.shape == (len(images), encoder.embed_dim)
    assert labels.tolist() == [label for _, label in images.folder.samples]
    tokens = encoder(images[7][0].unsqueeze(0))[0]
    expected = tokens[0] if token == "cls" else tokens[1:].mean(dim=0)
    torch.testing.assert_close(rows[7], F.normalize(expected, dim=0))


def test_smoke_run_uses_the_labelled_images_only(task_folder: MakeFolder) -> None:
    folder = task_folder("knn", "imagenet", SMOKE)
    metrics = TASK.run(folder)
    assert list(metrics) == ["top1_knn"] and 0 <= metrics["top1_knn"] <= 100
    listed = (folder.data("imagenet") / "train_labelled.txt").read_text().split()
    assert folder.details["labelled_images"] == len(listed) < 48
    assert folder.details["load_report"]["dropped"] == [] == folder.details["load_report"]["new"]
    assert TASK.run(folder) == metrics


def test_a_bank_that_holds_the_queries_scores_100(
    task_folder: MakeFolder, smoke_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "imagenet").mkdir()
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split).symlink_to(smoke_data / "imagenet" / "val")
    folder = task_folder("knn", "imagenet", SMOKE.vary("test", k=1), root=tmp_path / "imagenet")
    assert TASK.run(folder) == {"top1_knn": 100.0}


def test_more_neighbours_than_images(task_folder: MakeFolder) -> None:
    with pytest.raises(UserError, match="labelled images"):
        TASK.run(task_folder("knn", "imagenet", SMOKE.vary("test", k=1000)))
    with pytest.raises(UserError, match="There are 36 labelled images"):
        TASK.images({"k": 1000}, 36)  # when it is planned
    assert TASK.images({"k": 1000}, 0) == 0
