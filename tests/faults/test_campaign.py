"""A fixed sample of the campaign, and that the campaign would see a missing check."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partialmethod
from unittest import mock

import pytest

from mimbench.data import decode
from mimbench.data.dataset import Dataset
from mimbench.store import checkpoints, records
from mimbench.store.folder import RunFolder
from tests.faults.campaign.reference import build
from tests.faults.campaign.runner import all_cases, open_bench, run_case
from tests.faults.campaign.verdict import NAMED, OK, WRONG, Bench, Case

ROWS = ("scratch", "mae", "feature-mim")
MORE = 14  # data cases, besides one case of each group


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    place = tmp_path_factory.mktemp("campaign")
    yield open_bench(*build(place / "reference", ROWS), place / "job")


def sample() -> list[Case]:
    """One case of each group of the report, and some more datasets; always the same."""
    draw, groups = random.Random(0), dict[str, list[Case]]()
    for case in all_cases():
        if not case.name.startswith("process"):
            groups.setdefault(case.group, []).append(case)
    data = [case for case in all_cases() if case.name.startswith("data ")]
    return [*(draw.choice(cases) for cases in groups.values()), *draw.sample(data, MORE)]


def test_a_fixed_sample(bench: Bench) -> None:
    found = {case.name: run_case(bench, case) for case in sample()}
    assert len(found) > 60
    assert {name: each for name, each in found.items() if each.outcome not in (OK, NAMED)} == {}


def is_seen(bench: Bench, start: str) -> bool:
    """Whether a case of this name's beginning ends silently wrong."""
    chosen = (case for case in all_cases() if case.name.startswith(start))
    return any(run_case(bench, case).outcome == WRONG for case in chosen)


def test_a_missing_seal_is_seen(bench: Bench) -> None:
    with mock.patch.object(records, "_seal", lambda folder, values: mock.ANY):
        assert is_seen(bench, "finished result.json")


def test_an_unchecked_encoder_is_seen(bench: Bench) -> None:
    with mock.patch.object(RunFolder, "check_parents", lambda self: None):
        assert is_seen(bench, "read encoder.safetensors")


def test_unchecked_toy_data_is_seen(bench: Bench) -> None:
    with mock.patch("mimbench.data.toy.manifest.check", lambda *args, **more: None):
        assert is_seen(bench, "toy ")


def test_images_on_their_side_are_seen(bench: Bench) -> None:
    with mock.patch.dict(decode.TURNS, clear=True):
        assert is_seen(bench, "data ade20k orientation 3")


def test_a_checkpoint_without_a_checksum_is_seen(bench: Bench) -> None:
    with mock.patch.object(checkpoints, "check", checkpoints.read_origin):
        assert is_seen(bench, "interrupted trainer.pt ")


def test_an_identity_without_content_is_seen(bench: Bench) -> None:
    with mock.patch.object(Dataset, "identity", partialmethod(Dataset.identity, trust_stat=True)):
        assert is_seen(bench, "data imagenet same size")
