"""`mimbench runs migrate`: a store of an older version, written here by that version's own rule."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimbench.atomic import read_json, write_json
from mimbench.commands import migrate
from mimbench.commands.remove import parents_first
from mimbench.plan.datasets import Data
from mimbench.store import records
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from tests.cli.bench import TABLE, Bench
from tests.world import alter, forget

TAUGHT = """
[[rows]]
id = "taught"
label = "Taught"
method = "taught"
"""


@pytest.fixture
def own(smoke_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the user's own: no toy.json, and a file that no stage reads."""
    root = tmp_path_factory.mktemp("own") / "imagenet"
    shutil.copytree(smoke_data / "imagenet", root, ignore=shutil.ignore_patterns("toy.json"))
    (root / "README").write_text("mine")
    return root


@pytest.fixture
def old(bench: Bench, own: Path) -> Bench:
    """A workspace of an older version: a teacher, three pretrainings and their tasks are done on own data."""
    file = bench.root / "share" / "tables" / "plain" / "main.toml"
    file.write_text(TABLE.replace("MODE", "ok") + TAUGHT)
    shutil.rmtree(bench.root / "runs")
    bench.finish(data={"imagenet": own})
    age(bench.store, {"imagenet": own, "captions": own})
    return bench


def names_and_sizes(root: Path) -> str:
    files = sorted(
        (str(path.relative_to(root)), path.stat().st_size) for path in root.rglob("*") if path.is_file()
    )
    return hashlib.sha256("".join(f"{name}\0{size}\n" for name, size in files).encode()).hexdigest()[:16]


def age(store: RunStore, roots: dict[str, Path], **changes: Any) -> None:
    """Rewrite a store's runs as an older version left them: identities by names and sizes, no seals."""
    keys: dict[str, str] = {}
    for run in list(parents_first(store)):
        spec, values = run.spec, read_json(run.path / "result.json")
        data = {
            role: names_and_sizes(roots[role]) if role in roots else told for role, told in spec.data.items()
        }
        if spec.stage == "pretrain" and not data and "imagenet" in roots:
            data = {"imagenet": names_and_sizes(roots["imagenet"])}  # it counted data that it does not read
        parents = {role: keys[key] for role, key in spec.parents.items()}
        aged = replace(spec, data=data, parents=parents, **changes)
        keys[spec.key] = aged.key
        if spec.stage != "downstream":
            run.encoder_path.write_bytes(spec.key.encode())
        for name in ("seal", "artefacts", "percent"):
            values.pop(name)
        write_json(run.path / "result.json", {**values, "schema": 2})
        write_json(run.path / "spec.json", {**aged.as_dict(), "key": aged.key})
        run.path.rename(store.root / aged.folder)


def states(bench: Bench, **asked: Any) -> dict[str, str]:
    plan = bench.plan(**asked)
    return {
        f"{node.spec.stage} {node.spec.name} {node.key[:8]}": node.outcome for node in plan.nodes.values()
    }


def content(root: Path) -> dict[str, bytes]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def assert_migrated(bench: Bench, own: Path) -> None:
    """Every run of the plan is done, says so, and has its numbers and files; the old runs are gone."""
    plan = bench.plan(data={"imagenet": own})
    assert {node.outcome for node in plan.nodes.values()} == {"done"}
    assert {run.spec.key for run in bench.store} == set(plan.nodes)
    for run in bench.store:
        assert run.result is not None
        lineage = {plan.nodes[key].spec.name for key in plan.lineage(run.spec.key)}
        roles = [role for role, name in (("captions", "wise"), ("imagenet", "echo")) if name in lineage]
        roles = sorted({*roles, *run.spec.data})
        assert run.result.details.get("content_not_recorded", []) == roles
        assert len(run.result.details["key_before"]) == 16
        if run.spec.stage == "downstream":
            assert run.result.metrics == {"score": 40.0, "other": 1.0}
        else:
            assert run.encoder_path.is_file() and set(run.result.artefacts) == {"encoder.safetensors"}
    assert bench.call("runs", "verify").exit_code == 0
    assert not list(bench.root.glob("runs/.migrate*"))


def test_todays_commands_find_the_runs_of_an_old_store(old: Bench, own: Path) -> None:
    before = content(old.root / "runs")
    assert set(states(old, data={"imagenet": own}).values()) == {"missing"}
    dry = old.call("runs", "migrate", "--dry-run")
    assert dry.exit_code == 0 and dry.stdout.count("would migrate: ") == 7 and "7 runs in all" in dry.stdout
    assert content(old.root / "runs") == before
    refused = old.call("runs", "migrate")
    assert refused.exit_code == 2 and "give --yes" in refused.stderr
    assert content(old.root / "runs") == before
    done = old.call("runs", "migrate", "--yes")
    assert done.exit_code == 0 and done.stdout.endswith("7 runs migrated, 0 left as they are\n")
    assert_migrated(old, own)

    made = {path: path.stat().st_mtime_ns for path in old.root.glob("runs/*/result.json")}
    table = old.call("reproduce-table", "plain", "--scale", "smoke", "--data", f"imagenet={own}")
    assert table.exit_code == 0, table.output
    assert {path: path.stat().st_mtime_ns for path in old.root.glob("runs/*/result.json")} == made
    page = (old.root / "reports" / "out" / "plain" / "main-smoke.html").read_text()
    assert "<dt>imagenet, captions</dt>" in page or "<dt>captions, imagenet</dt>" in page
    assert "content was not recorded when this was computed" in page
    run = next(run for run in old.store if run.spec.name == "echo")
    shown = " ".join(old.call("runs", "show", run.path.name).stdout.split())
    assert "imagenet: content was not recorded" in shown and run.result is not None
    assert f"its key was {run.result.details['key_before']} before" in shown
    found = json.loads(old.call("runs", "show", run.path.name, "--json").stdout)
    assert "imagenet" in found["result"]["details"]["content_not_recorded"]

    after = content(old.root / "runs")
    again = old.call("runs", "migrate", "--yes")
    assert again.exit_code == 0 and again.output == "Nothing to migrate.\n"
    assert content(old.root / "runs") == after


def test_a_child_that_reads_only_the_projects_own_data_follows_its_encoder(old: Bench, own: Path) -> None:
    file = old.root / "share" / "tables" / "plain" / "main.toml"
    file.write_text(TABLE.replace("MODE", "ok").replace("echo", "scenes"))
    shutil.rmtree(old.root / "runs")
    old.finish(data={"imagenet": own})
    age(old.store, {"imagenet": own})
    toy = next(run for run in old.store if run.spec.name == "scenes").spec.data
    assert "4 runs migrated" in old.call("runs", "migrate", "--yes").stdout
    assert set(states(old, data={"imagenet": own}).values()) == {"done"}
    child = next(run for run in old.store if run.spec.name == "scenes")
    assert child.spec.data == toy and child.result is not None
    assert child.result.details["content_not_recorded"] == ["imagenet"]


def test_training_from_scratch_counted_data_that_it_does_not_read(old: Bench, own: Path) -> None:
    """Older keys of it and of its tasks depend on images that it never opens."""
    spec = RunSpec("pretrain", "none-at-all", "vit_smoke", {"epochs": 0.0}, {"imagenet": "0" * 64}, 0)
    run = old.store.create(spec, Inputs())
    run.finish({})
    gone = replace(spec, data={"imagenet": "0" * 16}, seed=1)  # the user's own, which is gone
    old.store.create(gone, Inputs(data={"imagenet": "/nowhere"})).finish({})
    old.call("runs", "migrate", "--yes")
    for seed in (0, 1):
        assert old.store.outcome(replace(spec, data={}, seed=seed).key) in ("done", "stale")
    assert old.store.get(spec.key) is None and old.store.get(gone.key) is None


def test_where_there_are_no_hard_links(old: Bench, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", source)

    monkeypatch.setattr(os, "link", refuse)
    assert "7 runs migrated" in old.call("runs", "migrate", "--yes").stdout
    assert_migrated(old, own)


def test_a_disk_that_fails_for_one_run(old: Bench, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path, result: Any) -> None:
        if folder.name.startswith("pretrain-plain"):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        records.write_result(folder, result)

    with monkeypatch.context() as patch:
        patch.setattr(migrate, "write_result", fails)
        done = old.call("runs", "migrate", "--yes")
    assert done.exit_code == 1 and "5 runs migrated, 2 left" in done.stdout
    assert "No space left on device" in done.stderr and "was left as it is" in done.stderr
    assert "2 runs migrated" in old.call("runs", "migrate", "--yes").stdout
    assert_migrated(old, own)


def test_trust_stat_and_data_that_moved(old: Bench, own: Path) -> None:
    new = own.rename(own.parent / "elsewhere")
    gone = old.call("runs", "migrate", "--yes")
    assert (
        gone.exit_code == 0
        and f"there is no folder {own}" in gone.stderr
        and "was left as it is" in gone.stderr
    )
    words = ["--data", f"imagenet={new}", "--data", f"captions={new}"]
    assert old.call("runs", "migrate", "--yes", "--trust-stat", *words).exit_code == 0
    assert set(states(old, data={"imagenet": new}, trust_stat=True).values()) == {"done"}
    run = next(run for run in old.store if run.spec.name == "plain")
    assert run.inputs.data == {"imagenet": str(new)} and run.result is not None
    assert run.result.details["identified_by_size_and_time"] == ["imagenet"]
    assert old.call("runs", "migrate", "--data", "x=y").exit_code == 2


def test_only_the_runs_whose_data_is_the_same_are_migrated(old: Bench, own: Path) -> None:
    shutil.rmtree(old.root / "runs")
    other = Path(shutil.copytree(own, own.parent / "other"))
    old.finish(data={"imagenet": own})
    age(old.store, {"imagenet": own, "captions": own})
    (other / "NEWS").write_text("x")
    shutil.copytree(old.root / "runs", old.root / "kept")
    shutil.rmtree(old.root / "runs")
    old.finish(data={"imagenet": other})
    age(old.store, {"imagenet": other, "captions": other})
    (other / "NEWS").write_text("x, and more")
    changed = [run.path.name for run in old.store]
    for path in (old.root / "kept").iterdir():
        path.rename(old.root / "runs" / path.name)
    done = old.call("runs", "migrate", "--yes")
    assert done.exit_code == 0 and "7 runs migrated, 7 left" in done.stdout
    assert all(f"left as it is: {name}: " in done.stderr for name in changed)
    assert "their names or sizes differ" in done.stderr
    assert set(states(old, data={"imagenet": own}).values()) == {"done"}


def test_captions_moved_with_the_images(old: Bench, own: Path) -> None:
    new = own.rename(own.with_name("new"))
    done = old.call("runs", "migrate", "--yes", "--data", f"imagenet={new}")
    assert done.exit_code == 0 and done.stdout.endswith("7 runs migrated, 0 left as they are\n"), done.stderr
    assert set(states(old, data={"imagenet": new}).values()) == {"done"}


def test_one_of_two_datasets_has_moved(old: Bench, own: Path) -> None:
    """Each run is migrated with the dataset that it read, at its old or its new place."""
    shutil.rmtree(old.root / "runs")
    other = Path(shutil.copytree(own, own.parent / "other"))
    for split in ("train", "val"):
        image = sorted((other / split).rglob("*.jpg"))[0]
        image.write_bytes(image.read_bytes() + b"x")
    stores = []
    for place in (own, other):
        old.finish(data={"imagenet": place})
        age(old.store, {"imagenet": place, "captions": place})
        stores.append((old.root / "runs").rename(old.root / place.name))
    (old.root / "runs").mkdir()
    for each in stores:
        for path in each.iterdir():
            path.rename(old.root / "runs" / path.name)
    new = other.rename(other.with_name("new"))
    done = old.call("runs", "migrate", "--yes", "--data", f"imagenet={new}")
    assert done.exit_code == 0 and "13 runs migrated, 1 left" in done.stdout, done.stderr
    assert (
        "pretrain-none-at-all" in done.stderr and "it becomes the same run as" in done.stderr
    )  # it reads none
    for place in (own, new):
        assert set(states(old, data={"imagenet": place}).values()) == {"done"}


def test_migrated_runs_that_are_stale_are_counted(old: Bench, own: Path, world: Path) -> None:
    file = world / "downstream" / "echo.py"
    file.write_text(file.read_text() + "\nOTHER = 1\n")
    forget()
    done = old.call("runs", "migrate", "--yes")
    assert "3 of them are stale" in done.stdout and "runs restamp --because" in done.stdout
    assert list(states(old, data={"imagenet": own}).values()).count("stale") == 3


KINDS: dict[str, Callable[[RunFolder], object]] = {
    "its seal does not fit": lambda run: write_json(
        run.path / "result.json", {**read_json(run.path / "result.json"), "seal": "0" * 64}
    ),
    "not JSON": lambda run: (run.path / "result.json").write_text("{"),
    "it was edited": lambda run: (run.path / "spec.json").write_text(
        (run.path / "spec.json").read_text().replace('"seed": 0', '"seed": 1')
    ),
    "encoder.safetensors is damaged": lambda run: (
        alter(run, schema=3, artefacts=run.artefacts()),  # as `runs restamp` leaves it
        run.encoder_path.write_bytes(b"x"),
    ),
    "it is not finished": lambda run: (run.path / "result.json").unlink(),
    "was removed": lambda run: shutil.rmtree(run.path),
}


@pytest.mark.parametrize("why", KINDS)
def test_a_run_that_is_not_sound_is_named_and_costs_only_its_children(
    old: Bench, own: Path, why: str
) -> None:
    run = next(run for run in old.store if run.spec.name == "plain")
    child = next(each for each in old.store if run.spec.key in each.spec.parents.values())
    KINDS[why](run)
    before = {name: text for name, text in content(old.root / "runs").items() if run.path.name in name}
    done = old.call("runs", "migrate", "--yes")
    assert done.exit_code == 0 and "5 runs migrated" in done.stdout
    assert why in done.stderr and f"left as it is: {child.path.name}: its encoder" in done.stderr
    now = content(old.root / "runs")
    assert {name: text for name, text in now.items() if run.path.name in name} == before
    plan = states(old, data={"imagenet": own})
    assert sorted(plan.values()) == ["done"] * 5 + ["missing"] * 2


def test_a_run_that_is_in_use_is_left(old: Bench) -> None:
    child = next(run for run in old.store if run.spec.name == "echo" and "plain" in str(run.parents))
    with child.lock():
        done = old.call("runs", "migrate", "--yes")
    assert f"{child.path.name}: it is being computed" in done.stderr
    assert f"{child.path.name} starts from it and is being computed" in done.stderr
    assert done.exit_code == 0 and "5 runs migrated" in done.stdout
    assert "2 runs migrated" in old.call("runs", "migrate", "--yes").stdout


def test_the_new_key_is_taken(old: Bench, own: Path) -> None:
    plan = old.plan(data={"imagenet": own})
    node = next(node for node in plan.nodes.values() if node.spec.name == "plain")
    made = old.store.create(node.spec, node.inputs)
    made.finish({})
    done = old.call("runs", "migrate", "--yes")
    assert done.exit_code == 0 and "5 runs migrated, 2 left" in done.stdout
    assert f"today's run, {made.path.name}, is in the store already" in done.stderr


def test_two_old_runs_that_become_one(old: Bench, own: Path) -> None:
    """They differ only in --skip-corrupt, and nothing was left out."""
    first = old.root / "first"
    (old.root / "runs").rename(first)
    old.finish(data={"imagenet": own})
    age(old.store, {"imagenet": own, "captions": own}, skip_corrupt=True)
    for path in first.iterdir():
        path.rename(old.root / "runs" / path.name)
    done = old.call("runs", "migrate", "--yes")
    assert done.exit_code == 0 and "7 runs migrated, 7 left" in done.stdout
    assert "it becomes the same run as" in done.stderr
    assert set(states(old, data={"imagenet": own}).values()) == {"done"}


def test_data_that_changes_while_it_is_read(old: Bench, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Data.identity

    def meanwhile(self: Data, role: str, *, labels: bool) -> Any:
        (own / "train" / "extra.txt").write_text("x")
        return real(self, role, labels=labels)

    monkeypatch.setattr(Data, "identity", meanwhile)
    before = content(old.root / "runs")
    done = old.call("runs", "migrate", "--yes")
    assert done.exit_code == 0 and done.stderr.count("left as it is: ") == 6
    assert "1 run migrated, 6 left" in done.stdout, "one run reads no data"
    after = content(old.root / "runs")
    assert {
        name: text for name, text in before.items() if "pretrain-none-at-all" not in name
    }.items() <= after.items()


def test_skip_corrupt_counts_only_where_something_is_left_out(old: Bench, own: Path) -> None:
    shutil.rmtree(old.root / "runs")
    old.finish(data={"imagenet": own}, skip_corrupt=True)
    age(old.store, {"imagenet": own, "captions": own}, skip_corrupt=True)
    assert "7 runs migrated" in old.call("runs", "migrate", "--yes").stdout
    assert set(states(old, data={"imagenet": own}).values()) == {"done"}


def test_images_left_out_must_be_those_of_today(old: Bench, own: Path) -> None:
    image = sorted((own / "train").rglob("*.jpg"))[0]
    image.write_bytes(image.read_bytes()[:200].ljust(image.stat().st_size, b"\0"))
    age_again = {"imagenet": own, "captions": own}
    shutil.rmtree(old.root / "runs")
    old.finish(data={"imagenet": own}, skip_corrupt=True)
    for run in old.store:
        values = read_json(run.path / "result.json")
        name = str(image.relative_to(own))
        values["details"] = {"skipped_images": [] if run.spec.stage == "teacher" else [name]}
        write_json(run.path / "result.json", values)
    age(old.store, age_again, skip_corrupt=True)
    done = old.call("runs", "migrate", "--yes")
    assert "it left out 0 images that did not decode; today's rules leave out 1" in done.stderr
    assert "4 runs migrated, 3 left" in done.stdout
    found = states(old, data={"imagenet": own}, skip_corrupt=True)
    assert sorted(found.values()) == ["done"] * 4 + ["missing"] * 3


@pytest.mark.parametrize("count", [*range(1, 20), 40])
def test_a_kill_at_any_step_loses_nothing(
    old: Bench, own: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The n-th change of the disk does not happen, nor any after it. A second command goes on."""

    class Killed(BaseException):
        pass

    steps = iter(range(1, 1000))

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **how: Any) -> Any:
            if next(steps) >= count:
                raise Killed
            return real(*given, **how)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", counting(os.link))
        patch.setattr(os, "rename", counting(os.rename))
        patch.setattr(shutil, "rmtree", counting(shutil.rmtree))
        for name in ("write_json", "write_result"):
            patch.setattr(migrate, name, counting(getattr(migrate, name)))
        with pytest.raises(Killed):
            old.call("runs", "migrate", "--yes")
    results = [run.result for run in old.store if not run.damage() and not run.damaged_artefacts()]
    assert len(results) == len(list(old.store)) >= 7 and None not in results
    before = {result.details.get("key_before", run.spec.key) for run in old.store if (result := run.result)}
    assert len(before) == 7
    done = old.call("runs", "migrate", "--yes")
    assert done.exit_code == 0, done.output
    assert_migrated(old, own)
