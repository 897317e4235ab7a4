"""The data behind a plan: what the project makes itself is known before it is made."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from mimbench.data import dataset
from mimbench.data.dataset import Dataset
from mimbench.errors import Unavailable, UserError
from mimbench.plan.datasets import Data, toy_images
from mimbench.plan.request import ROLES, Request, check_weights


def test_what_is_known_of_the_projects_own_data_is_what_is_made(smoke_data: Path) -> None:
    request = Request(scale="smoke")
    planned = Data(request, lambda: Path("/nowhere"))
    for role in ROLES:
        made = smoke_data / ("imagenet" if role == "captions" else role)
        assert planned.path(role) == Path("/nowhere") / made.name
        stamp = json.loads((made / "toy.json").read_text())
        for labels in (False, True):
            assert planned.identity(role, labels=labels).digest == stamp["fingerprint"]
            assert planned.size(role, labelled=labels) == Dataset(made, None).count(role, labels=labels) > 0
    assert toy_images("toy", "imagenet", labelled=False) == 3000
    assert toy_images("toy", "imagenet", labelled=True) == 240


def test_given_data_is_counted_and_not_the_projects_own(smoke_data: Path, tmp_path: Path) -> None:
    imagenet = tmp_path / "imagenet"
    shutil.copytree(smoke_data / "imagenet", imagenet)
    (imagenet / "toy.json").unlink()
    next((imagenet / "train").rglob("*.jpg")).unlink()
    data = Data(Request(scale="smoke", data={"imagenet": imagenet}), lambda: tmp_path / "toy")
    assert data.size("imagenet", labelled=False) == toy_images("smoke", "imagenet", labelled=False) - 1
    assert data.path("captions") == data.path("imagenet") == imagenet
    assert data.path("coco") == tmp_path / "toy" / "coco"
    coco = data.identity("coco", labels=True).digest
    assert data.identity("imagenet", labels=True).digest not in ("", coco)


def test_a_folder_is_scanned_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimbench.data.check.require", lambda role, path: None)
    (data / "imagenet" / "train_labelled.txt").unlink()
    found, scanned = Data(Request(data={"imagenet": data / "imagenet"}), Path), []
    real = dataset.scan
    monkeypatch.setattr(
        "mimbench.data.dataset.scan", lambda *given, **how: scanned.append(given[1]) or real(*given, **how)
    )
    assert found.size("imagenet", labelled=True) == found.size("imagenet", labelled=False) == 6
    found.identity("imagenet", labels=False)
    found.identity("imagenet", labels=True)
    assert scanned and len(scanned) == len(set(scanned))


def test_large_scales_ask_for_data(tmp_path: Path) -> None:
    data = Data(Request(scale="small"), lambda: tmp_path)
    assert data.path("captions") == tmp_path / "imagenet"
    with pytest.raises(Unavailable, match="--data coco=PATH"):
        data.path("coco")
    assert data.size("coco", labelled=False) == 0


# -- checkpoints ---------------------------------------------------------------------------------------------


def test_a_checkpoints_name_is_looked_at_before_its_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", Path(__file__)):
        with pytest.raises(UserError, match="--weights: 'cilp' is not valid. Did you mean 'clip'"):
            check_weights({"cilp": path}, ["clip", "mae"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "There is no such file"),
        ("text.pt", b"0123456789", "neither a safetensors file nor one that torch"),
        ("", None, "It is a folder"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"--weights clip: .*{message}"):
        check_weights({"clip": tmp_path / name}, ["clip"])


def test_a_file_that_may_be_a_checkpoint(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x/data.pkl", b"x")
    for content in (archive.getvalue(), b"\x80\x02", save({"a": np.zeros(2)})):
        (tmp_path / "file").write_bytes(content)
        check_weights({"clip": tmp_path / "file"}, ["clip"])
        if len(content) > 2:
            (tmp_path / "file").write_bytes(content[:-1])
            with pytest.raises(UserError, match="--weights clip: .*damaged or cut short"):
                check_weights({"clip": tmp_path / "file"}, ["clip"])


def test_a_checkpoint_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(UserError, match="a pipe or a device"):
        check_weights({"clip": tmp_path / "pipe.pt"}, ["clip"])
