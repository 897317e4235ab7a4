"""Looking makes nothing; the project's own data is made, and looked over, before a run reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from mimbench import paths
from mimbench.catalog import Catalog
from mimbench.commands.leaderboard import leaderboard
from mimbench.commands.reproduce import reproduce_table
from mimbench.commands.run import run_one
from mimbench.commands.workspace import dataset, prepare_data, read_catalog
from mimbench.data.toy.make import ensure
from mimbench.errors import UserError
from mimbench.plan.graph import Node
from mimbench.plan.pace import expect
from mimbench.plan.planner import Planner
from mimbench.plan.request import Request
from mimbench.plan.show import show
from mimbench.store.runs import RunStore
from mimbench.table.spec import Row

SMOKE = Request(scale="smoke")


def console() -> Console:
    return Console(width=200, record=True, file=open(os.devnull, "w"))


def test_the_notice_of_reading_recipes_is_true_of_commands_without_settings(place: Path) -> None:
    shown = console()
    read_catalog(shown).all("method")
    said = shown.export_text()
    assert said.startswith("Reading recipes") and "settings" not in said


@pytest.fixture
def place(world: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace whose one table has the small world's methods; the cache lies elsewhere."""
    home, share, real = tmp_path / "home", tmp_path / "share", paths.share
    home.mkdir()
    monkeypatch.setenv("MIMBENCH_HOME", str(home))
    monkeypatch.setattr(paths, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(paths, "share", lambda name: share / name if name == "tables" else real(name))
    table = share / "tables" / "plain" / "main.toml"
    table.parent.mkdir(parents=True)
    table.write_text(
        'paper = "P"\nname = "main"\ntitle = "T"\nsection = "S"\nbaseline = "plain"\n'
        '[[columns]]\ntask = "echo"\nmetric = "score"\ntitle = "Score"\n'
        '[[rows]]\nid = "plain"\nlabel = "[/x] plain"\nmethod = "plain"\n'
    )
    header = (paths.PACKAGE.parent / "tables" / "reported.csv").read_text().splitlines()[0]
    (share / "tables" / "reported.csv").write_text(header + "\n")
    return home


@pytest.mark.parametrize("scale", ["smoke", "toy"])
def test_looking_makes_nothing(place: Path, scale: str) -> None:
    request, seen = Request(scale=scale), console()  # type: ignore[arg-type]
    assert reproduce_table("plain", "main", request, seen, dry_run=True) == 0
    assert run_one("plain", "echo", request, seen, dry_run=True) == 0
    assert leaderboard(request, seen) == 0
    text = seen.export_text()
    assert list(place.iterdir()) == []
    assert "to do: 2 of 2 runs" in text and "time: unknown until a run like these has finished" in text
    assert "[/x] plain" in text, "a label is shown as it is written"
    assert f"Nothing is computed at scale {scale} yet" in text and "reproduce-table METHOD" in text


def test_that_recipes_are_read_is_said_when_it_is_true(place: Path) -> None:
    for times in (1, 0, 0):
        seen = console()
        reproduce_table("plain", "main", SMOKE, seen, dry_run=True)
        assert seen.export_text().count("Reading recipes") == times
    seen = console()  # the cards are imported: another recipe takes no time
    reproduce_table("plain", "main", Request(scale="smoke", changes={"epochs": 3}), seen, dry_run=True)
    assert "Reading recipes" not in seen.export_text()


def todo() -> list[Node]:
    planner = Planner(Catalog(None), RunStore(paths.runs()), dataset(SMOKE, Catalog(None)), SMOKE)
    planner.cell(Row(id="a", label="A", method="plain"), "echo", 0, "x")
    return planner.plan.todo()


def test_the_projects_data_is_made_before_a_run_reads_it(place: Path) -> None:
    prepare_data(todo(), console())
    assert (place / "data" / "smoke" / "imagenet" / "train").is_dir()
    stamp = (place / "data" / "smoke" / "toy.json").stat().st_mtime_ns
    prepare_data(todo(), console())
    assert (place / "data" / "smoke" / "toy.json").stat().st_mtime_ns == stamp


def test_nothing_is_made_where_no_run_reads_it(place: Path, smoke_data: Path) -> None:
    prepare_data([], console())
    for node in (nodes := todo()):
        node.inputs.data["imagenet"] = str(smoke_data / "imagenet")  # type: ignore[index]
    prepare_data(nodes, console())
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("damage", ["image", "stamp", "role", "list"])
def test_damaged_data_of_the_projects_own_is_noticed_before_a_run_reads_it(place: Path, damage: str) -> None:
    root = ensure(place / "data" / "smoke", size="smoke")
    imagenet = root / "imagenet"
    if damage == "image":
        next((imagenet / "train").rglob("*.jpg")).unlink()
    elif damage == "stamp":
        (imagenet / "toy.json").write_text("{")
    elif damage == "list":
        (imagenet / "train_labelled.txt").write_text("")
    else:
        imagenet.rename(root / "elsewhere")
    with pytest.raises(UserError, match="It is not as it was made. Delete .*smoke; mimbench makes it again"):
        prepare_data(todo(), console())


def test_data_of_another_seed_is_noticed_before_a_run_reads_it(place: Path) -> None:
    ensure(place / "data" / "smoke", seed=1, size="smoke")
    with pytest.raises(UserError, match="It holds the smoke data of seed 1"):
        prepare_data(todo(), console())


def test_a_checkpoints_unknown_name_is_refused_before_its_file_is_looked_at(place: Path) -> None:
    request = Request(scale="smoke", weights={"wisee": Path(__file__)})
    with pytest.raises(UserError, match="--weights: 'wisee' is not valid. Did you mean 'wise'"):
        dataset(request, Catalog(None))


def test_a_cache_that_cannot_be_written_is_done_without(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(paths, "cache", lambda: tmp_path / "file" / "below")
    assert read_catalog(console()).describe("method", "plain").title == "plain"


def test_a_damaged_entry_of_the_cache_is_made_anew(world: Path, tmp_path: Path) -> None:
    def epochs() -> float:
        return Catalog(tmp_path / "c").resolve("method", "plain", "smoke", data_size=4).values["epochs"]

    assert epochs() == 2.0
    for file in (tmp_path / "c").iterdir():
        value = json.loads(file.read_text())
        file.write_text(json.dumps(value).replace('"epochs": 2.0', '"epochs": 3.0'))
    assert epochs() == 2.0
    for text in ("[]", "{}", '{"value": {}, "digest": "0"}', "not JSON"):
        for file in (tmp_path / "c").iterdir():
            file.write_text(text)
        assert epochs() == 2.0


def test_a_plan_says_how_long_it_takes_by_finished_runs(place: Path) -> None:
    store = RunStore(paths.runs())
    planner = Planner(Catalog(None), store, dataset(SMOKE, Catalog(None)), SMOKE)
    row = Row(id="a", label="A", method="plain")
    for seed in (0, 1):
        planner.cell(row, None, seed, "x")
    first = next(iter(planner.plan.nodes.values()))
    folder = store.create(first.spec, first.inputs)
    folder.finish({})
    status = json.loads((folder.path / "status.json").read_text())
    (folder.path / "status.json").write_text(json.dumps({**status, "seconds": 600.0, "total": 12}))
    first.outcome = "done"
    seen = console()
    show(planner.plan, seen, expected=expect(planner.plan, store, 2))
    assert "time: about 10 min 05 s with 2 workers, by finished runs like these" in seen.export_text()
