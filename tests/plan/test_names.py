"""A name of the wrong kind: the message says what it is, and what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimbench.errors import UserError
from mimbench.plan import names
from mimbench.store.folder import Inputs
from mimbench.store.runs import RunStore
from tests.world import echo_spec


@pytest.mark.parametrize(
    ("paper", "table", "message"),
    [
        (
            "mae",
            "main",
            "METHOD: 'mae' is a method, not a paper with tables. `mimbench run mae classification`",
        ),
        ("mae", "main", "Tables: ddae, deepmim, dtm, mixedae, sdae."),
        ("clip", "main", "'clip' is a teacher, .*`mimbench run clip` computes it"),
        ("segmentation", "main", "'segmentation' is a task, .*`mimbench run METHOD segmentation`"),
        ("loss", "main", "'loss' is a table of dtm, .*`mimbench reproduce-table dtm --table loss`"),
        ("hosts", "main", "is a table of ddae and dtm, .*`mimbench reproduce-table METHOD --table hosts`"),
        ("my-mae", "main", "Did you mean 'dtm-mae', .*--include PATH adds your own"),
        ("mea", "main", "Did you mean 'mae', a method"),
        ("dmt", "main", "Did you mean 'dtm'"),
        ("dtm", "mian", "Did you mean 'main'"),
        ("dtm", "mae", "--table: 'mae' is a method, not a table of dtm. `mimbench run mae classification`"),
        ("dtm", "sdae", "'sdae' is a paper with tables, .*`mimbench reproduce-table sdae`"),
        ("sdae", "morphing", "'morphing' is a table of dtm, not a table of sdae"),
        ("dtm", "dtm/loss", "Give the table's name alone: --table loss"),
    ],
)
def test_a_table_that_there_is_not(paper: str, table: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names.load_table(paper, table)


def test_a_table_that_there_is() -> None:
    assert names.load_table("dtm", "main").name == "main"


@pytest.fixture
def three(store: RunStore) -> list[str]:
    """The folders' names of three runs."""
    return [store.create(echo_spec(seed=seed), Inputs()).path.name for seed in range(3)]


def test_a_run_is_found_by_the_beginning_of_its_name_or_key(store: RunStore, three: list[str]) -> None:
    for text in (three[1], three[1][:-1], three[1].rpartition("-")[2], store.named(three[1])[0].spec.key):
        assert names.find_run(store, text).path.name == three[1]


def test_several_runs_that_begin_alike_are_listed(store: RunStore, three: list[str]) -> None:
    with pytest.raises(UserError, match="3 runs begin like that") as caught:
        names.find_run(store, "downstream-echo")
    assert all(name in str(caught.value) for name in three)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mae", "'mae' is a method, not a run. .*Runs: downstream-echo"),
        ("dtm/main", "'dtm/main' is a table of dtm, not a run. `mimbench reproduce-table dtm --table main`"),
        ("nothing-like-it", "'nothing-like-it' is not valid.*`mimbench runs list` lists them all"),
    ],
)
def test_a_run_that_there_is_not(store: RunStore, three: list[str], text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names.find_run(store, text)


def test_the_nearest_few_of_many_methods_and_runs_are_listed(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for seed in range(30):
        store.create(echo_spec(seed=seed), Inputs())
    with pytest.raises(UserError) as caught:
        names.find_run(store, "mea", "method")
    assert "Did you mean 'mae'" in str(caught.value)
    assert 1 <= len(caught.value.allowed) <= names.NEAREST and "downstream-echo" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        names.find_run(store, "downstream")
    assert "and 25 more" in str(caught.value)
