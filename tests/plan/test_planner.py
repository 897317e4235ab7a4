"""The graph behind a table: every run once, parents first, and what cannot run says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mimbench.catalog import Catalog
from mimbench.commands.plan import refuse
from mimbench.errors import UserError
from mimbench.plan.datasets import Data
from mimbench.plan.graph import Plan
from mimbench.plan.planner import Planner
from mimbench.plan.request import Request, parse_paths, parse_setting
from mimbench.plan.show import show
from mimbench.store.runs import RunStore
from mimbench.table.spec import Column, Row
from tests.world import TASK, method_source


def row_of(id: str, method: str | None, set: dict[str, Any] | None = None, **rest: Any) -> Row:
    return Row(id=id, label=id.upper(), method=method, set=set or {}, **rest)


def column_of(task: str, metric: str = "score") -> Column:
    return Column(task=task, metric=metric, title=metric)


COLUMNS = [column_of("echo"), column_of("scenes"), column_of("echo", "other")]


@pytest.fixture
def build(world: Path, data: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch):
    def plan(rows: list[Row], columns: list[Column] = COLUMNS, **request: Any) -> Plan:
        asked = Request(**{"scale": "smoke", **request})
        planner = Planner(Catalog(None), store, Data(asked, lambda: data), asked)
        found = planner.table(rows, columns, "tables/x.toml")
        refuse([planner])
        return found

    return plan


def by_stage(plan: Plan, stage: str) -> list:
    return [node for node in plan.nodes.values() if node.spec.stage == stage]


def test_every_run_is_planned_once_and_parents_first(build) -> None:
    rows = [row_of("a", "plain"), row_of("b", "taught"), row_of("same-as-a", "plain"), row_of("quoted", None)]
    plan = build(rows, seeds=2)
    assert len(by_stage(plan, "teacher")) == 1
    assert len(by_stage(plan, "pretrain")) == 4  # two methods, two seeds
    assert len(by_stage(plan, "downstream")) == 8  # and two tasks
    keys = list(plan.nodes)
    for key, node in plan.nodes.items():
        assert all(keys.index(parent) < keys.index(key) for parent in node.spec.parents.values())
    assert plan.cells["a", 0] == plan.cells["a", 2] == plan.cells["same-as-a", 0]
    assert sorted(plan.cells["a", 1]) == [0, 1] and ("quoted", 0) not in plan.cells
    assert plan.targets == {key for seeds in plan.cells.values() for key in seeds.values()}


def test_several_tables_are_one_graph_and_a_run_of_an_ablation_says_of_which(build) -> None:
    main = build([row_of("a", "plain")])
    ratio = build([row_of("b", "plain"), row_of("c", "plain", {"mask_ratio": 0.4})])
    whole = Plan.union({"x/main": main, "x/ratio": ratio})
    assert set(whole.nodes) == {*main.nodes, *ratio.nodes} and len(whole.nodes) == 2 * len(main.nodes)
    labels = [node.label for node in whole.nodes.values()]
    assert labels == ["A", "A · echo", "A · scenes", "x/ratio: C", "x/ratio: C · echo", "x/ratio: C · scenes"]
    assert [node.label for node in ratio.nodes.values()][0] == "B"


def test_seeds_pair_pretraining_with_fine_tuning_and_share_the_teacher(build) -> None:
    plan = build([row_of("b", "taught")], [column_of("echo")], seeds=3)
    for seed, key in plan.cells["b", 0].items():
        node = plan.nodes[key]
        encoder = plan.nodes[node.spec.parents["encoder"]]
        teacher = plan.nodes[encoder.spec.parents["teacher"]]
        assert (node.spec.seed, encoder.spec.seed, teacher.spec.seed) == (seed, seed, 0)


def test_training_from_scratch_reads_no_images(build) -> None:
    """So a change of ImageNet changes neither its key nor those of its dense tasks."""
    plan = build([row_of("n", "none-at-all"), row_of("a", "plain")])
    read = {node.spec.name: set(node.spec.data) for node in by_stage(plan, "pretrain")}
    assert read == {"none-at-all": set(), "plain": {"imagenet"}}
    tasks = {role for node in by_stage(plan, "downstream") for role in node.spec.data}
    assert tasks == {"imagenet", "ade20k"}


def test_more_seeds_keep_the_keys_of_the_first(build) -> None:
    one, three = build([row_of("a", "plain")], seeds=1), build([row_of("a", "plain")], seeds=3)
    assert one.nodes.keys() <= three.nodes.keys()


def test_a_recipe_with_the_same_changes_is_resolved_once(build, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[str] = []
    real = Catalog.resolve

    def counted(self: Catalog, *card: Any, **rest: Any) -> Any:
        resolved.append(repr((card, rest)))
        return real(self, *card, **rest)

    monkeypatch.setattr(Catalog, "resolve", counted)
    rows = [row_of("a", "plain"), row_of("b", "taught"), row_of("c", "taught", {"tau": 0.75})]
    build(rows, seeds=3, changes={"epochs": 5})
    assert len(resolved) == len(set(resolved)) > 6


def test_overrides_reach_the_run_that_they_name(build) -> None:
    row = row_of("a", "plain", {"mask_ratio": 0.25, "echo.steps": 7})
    changes = {"scenes.steps": 9, "epochs": 5, "wise.t": 0.125}
    plan = build([row, row_of("b", "taught")], changes=changes)
    recipes = {node.label: node.spec.recipe for node in plan.nodes.values()}
    assert recipes["A"]["mask_ratio"] == 0.25 and recipes["A"]["epochs"] == recipes["B"]["epochs"] == 5.0
    assert recipes["A · echo"]["steps"] == 7 and recipes["B · echo"]["steps"] == 3
    assert recipes["A · scenes"]["steps"] == recipes["B · scenes"]["steps"] == 9
    assert recipes["wise"]["t"] == 0.125 and recipes["wise"]["epochs"] == 2.0


def test_a_bare_setting_goes_to_the_methods_that_have_the_field(build) -> None:
    plan = build([row_of("a", "plain"), row_of("b", "taught")], changes={"tau": 0.75})
    assert [n.spec.recipe.get("tau") for n in by_stage(plan, "pretrain")] == [None, 0.75]


def test_the_methods_own_transfer_reaches_its_fine_tuning_only(build) -> None:
    plan = build([row_of("a", "plain"), row_of("b", "taught")], [column_of("echo")])
    decay = {node.label: node.spec.recipe["layer_decay"] for node in by_stage(plan, "downstream")}
    assert decay == {"A · echo": 1.0, "B · echo": 0.75}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratoi": 0.1}, "Did you mean 'mask_ratio'"),
        ({"echo.step": 1}, "steps"),
        ({"ecco.steps": 1}, "echo"),
    ],
)
def test_a_setting_that_no_run_has_is_refused(build, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build([row_of("a", "plain")], changes=changes)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (row_of("a", "plane"), column_of("echo")),
        (row_of("a", "plain"), column_of("eco")),
        (row_of("a", "plain"), column_of("echo", "s")),
    ],
)
def test_unknown_method_task_or_metric_is_refused(build, row: Row, column: Column) -> None:
    with pytest.raises(UserError):
        build([row], [column])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"echo.step": 1}, "rows.a.set: 'echo.step' is not valid. Did you mean 'echo.steps'"),
        ({"wise.t": 0.5}, "rows.a.set wise.t: 'wise' is not valid. Allowed: echo, plain"),
        ({"plane.mask_ratio": 0.5}, "rows.a.set plane.mask_ratio: .* Did you mean 'plain'"),
    ],
)
def test_a_rows_override_of_what_it_has_not_is_refused(build, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build([row_of("a", "plain", changes)], [column_of("echo")])


def test_a_setting_is_refused_only_where_no_table_has_it_and_all_of_them_say_what_they_have(
    build, store: RunStore, data: Path
) -> None:
    def planner(method: str, **changes: Any) -> Planner:
        asked = Request(scale="smoke", changes=changes)
        built = Planner(Catalog(None), store, Data(asked, lambda: data), asked)
        built.table([row_of("a", method)], [column_of("echo")], "tables/x.toml")
        return built

    refuse([planner("plain", tau=0.75), planner("taught", tau=0.75)])
    with pytest.raises(UserError, match="mask_ratio.*tau"):
        refuse([planner("plain", tao=0.75), planner("taught", tao=0.75)])
    with pytest.raises(UserError, match="--set tought.tau: 'tought' is not valid. Did you mean 'taught'"):
        refuse([planner(name, **{"tought.tau": 0.75}) for name in ("plain", "taught")])


def test_unknown_size_is_refused_when_planning(build) -> None:
    with pytest.raises(UserError, match="vit_base"):
        build([row_of("a", "plain", {"arch": "vit_bass"})])


def test_estimates_count_labelled_images_for_tasks_only(build) -> None:
    plan = build([row_of("a", "plain"), row_of("n", "none-at-all")], [column_of("echo")])
    nodes = {node.label: node for node in plan.nodes.values()}
    assert nodes["A"].images == 2 * 48 and nodes["A"].flops == 9600.0  # the smoke data's training images
    assert nodes["N"].images == 0 and nodes["A · echo"].images == 12


def test_a_row_costs_its_own_pretraining_alone(build) -> None:
    plan = build([row_of("a", "taught"), row_of("n", "none-at-all"), row_of("quoted", None)], seeds=2)
    (teacher,), student = by_stage(plan, "teacher"), by_stage(plan, "pretrain")[0]
    assert plan.pretraining_flops() == {"a": student.flops}
    assert 0 < student.flops and 0 < teacher.flops


# -- what a recipe needs, rows by scale, teachers as rows ----------------------------------------------------


class Code(str):
    """Python source that stands for itself where a card is written from values."""

    __repr__ = str.__str__


@pytest.fixture
def add(world: Path):
    """`add(path, text)`: one more module in the small world."""
    from tests.world import forget

    def write(path: str, text: str) -> None:
        (world / path).write_text(text)
        forget()

    return write


def parents(plan: Plan, key: str) -> dict[str, str]:
    """Role to label, of a run's parents."""
    return {role: plan.nodes[parent].label for role, parent in plan.nodes[key].spec.parents.items()}


def encoder_of(plan: Plan, row: str, seed: int = 0) -> str:
    return plan.nodes[plan.cells[row, 0][seed]].spec.parents["encoder"]


def test_what_is_needed_may_depend_on_the_recipe(build, add) -> None:
    needs = Code("lambda recipe: {'teacher': 'wise'} if recipe.tau > 0.5 else {}")
    add("pretrain/methods/choosy.py", method_source("choosy", extra="tau", needs=needs))
    rows = [row_of("without", "choosy"), row_of("with", "choosy", {"tau": 0.75})]
    plan = build(rows, [column_of("echo")])
    assert parents(plan, encoder_of(plan, "without")) == {}
    assert parents(plan, encoder_of(plan, "with")) == {"teacher": "wise"}
    everywhere = build(rows, [column_of("echo")], changes={"choosy.tau": 1.0})
    assert parents(everywhere, encoder_of(everywhere, "without")) == {"teacher": "wise"}


@pytest.fixture
def guided(add) -> None:
    """A method that builds on the trained network of another method, `plain`."""
    add("pretrain/methods/guided.py", method_source("guided", extra="tau", needs={"host": "plain"}))


@pytest.mark.parametrize("own_row_first", [True, False])
def test_a_method_as_parent_is_its_own_row_of_the_first_seed(build, guided, own_row_first: bool) -> None:
    rows = [row_of("a", "plain"), row_of("g", "guided")][:: 1 if own_row_first else -1]
    plan = build(rows, [column_of("echo")], seeds=2)
    assert len(by_stage(plan, "pretrain")) == 4, "the parent is run once more"
    hosts = {plan.nodes[encoder_of(plan, "g", seed)].spec.parents["host"] for seed in (0, 1)}
    assert hosts == {encoder_of(plan, "a", 0)}
    keys = list(plan.nodes)
    assert keys.index(hosts.pop()) < keys.index(encoder_of(plan, "g"))


def test_a_parent_is_changed_only_where_it_is_named(build, guided) -> None:
    row = row_of("g", "guided", {"epochs": 3.0, "plain.mask_ratio": 0.25})
    plan = build([row_of("a", "plain"), row], [column_of("echo")])
    host = plan.nodes[plan.nodes[encoder_of(plan, "g")].spec.parents["host"]]
    assert (host.spec.recipe["mask_ratio"], host.spec.recipe["epochs"]) == (0.25, 2.0)
    assert plan.nodes[encoder_of(plan, "g")].spec.recipe["epochs"] == 3.0
    assert host.key != encoder_of(plan, "a")


def test_overrides_of_one_scale_hold_there_alone_and_over_the_others(build) -> None:
    at = {"toy": {"epochs": 5.0, "echo.steps": 8}}
    row = row_of("a", "plain", {"epochs": 3.0, "mask_ratio": 0.25}, at=at)
    found = {}
    for scale in ("smoke", "toy"):
        plan = build([row], [column_of("echo")], scale=scale)
        encoder, task = plan.nodes[encoder_of(plan, "a")], plan.nodes[plan.cells["a", 0][0]]
        found[scale] = [encoder.spec.recipe[name] for name in ("epochs", "mask_ratio")]
        found[scale].append(task.spec.recipe["steps"])
    assert found == {"smoke": [3.0, 0.25, 3], "toy": [5.0, 0.25, 8]}


def test_a_row_that_a_scale_has_not_says_why(build) -> None:
    rows = [row_of("a", "plain"), row_of("b", "taught", not_at={"smoke": "too few patches"})]
    plan = build(rows)
    assert {str(plan.blocked["b", index]) for index in range(3)} == {"too few patches"}
    assert not by_stage(plan, "teacher") and not any(n.label.startswith("B") for n in plan.nodes.values())
    assert set(plan.cells) == {("a", index) for index in range(3)}
    assert build(rows, scale="toy").blocked == {}


@pytest.fixture
def probe(add) -> None:
    """A task that evaluates a teacher."""
    task = TASK.format(name="probe", data="imagenet").replace("TaskCard(", 'TaskCard(takes="teacher", ')
    add("downstream/probe.py", task)


def test_a_teacher_can_be_a_row_and_is_the_run_that_methods_learn_from(build, probe) -> None:
    row = row_of("w", "wise", {"probe.steps": 7})
    plan = build([row], [column_of("probe")], seeds=2)
    teachers = by_stage(plan, "teacher")
    assert not by_stage(plan, "pretrain") and [teacher.spec.seed for teacher in teachers] == [0, 1]
    tasks = [plan.nodes[plan.cells["w", 0][seed]].spec for seed in (0, 1)]
    assert [task.seed for task in tasks] == [0, 1] and {task.recipe["steps"] for task in tasks} == {7}
    pairs = zip(teachers, tasks, strict=True)
    assert all(list(task.parents.values()) == [teacher.key] for teacher, task in pairs)
    assert teachers[0].key in build([row_of("b", "taught")], [column_of("echo")]).nodes
    varied = build([row_of("w", "wise", {"t": 0.125})], [column_of("probe")])
    assert by_stage(varied, "teacher")[0].spec.recipe["t"] == 0.125


@pytest.mark.parametrize(
    ("method", "task", "taken"), [("wise", "echo", "encoder"), ("plain", "probe", "teacher")]
)
def test_a_task_refuses_what_it_does_not_take(build, probe, method: str, task: str, taken: str) -> None:
    with pytest.raises(UserError, match=f"{task} takes an? {taken}"):
        build([row_of("x", method)], [column_of(task)])


# -- data and weights ----------------------------------------------------------------------------------------


def test_paper_scale_without_data_or_weights_is_not_runnable_and_says_what_to_give(build) -> None:
    plan = build([row_of("b", "taught")], [column_of("echo")], scale="paper")
    assert not plan.nodes and "--data imagenet=PATH" in str(plan.blocked["b", 0])


@pytest.fixture
def given(data: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr("mimbench.data.check.require", lambda role, path: None)  # has tests of its own
    return {"imagenet": data / "imagenet"}


def test_weights_replace_the_teachers_training(build, given: dict[str, Path], tmp_path: Path) -> None:
    rows = [row_of("a", "plain"), row_of("b", "taught")]
    without = build(rows, [column_of("echo"), column_of("scenes")], scale="paper", data=given)
    assert set(without.cells) == {("a", 0)}
    assert "--weights wise=PATH" in str(without.blocked["b", 0]) and "ade20k" in str(without.blocked["a", 1])
    file = tmp_path / "wise.pt"
    file.write_bytes(b"1")
    plan = build(rows, [column_of("echo")], scale="paper", data=given, weights={"wise": file})
    (teacher,) = by_stage(plan, "teacher")
    assert teacher.inputs.weights == {"wise": str(file)} and not teacher.inputs.data
    file.write_bytes(b"2")
    again = build(rows, [column_of("echo")], scale="paper", data=given, weights={"wise": file})
    assert by_stage(again, "teacher")[0].key != teacher.key


def test_the_parents_of_a_row_that_cannot_run_are_not_planned(build, add, given: dict[str, Path]) -> None:
    add("pretrain/methods/deep.py", method_source("deep", extra="tau", needs={"a": "plain", "b": "wise"}))
    plan = build([row_of("d", "deep")], [column_of("echo")], scale="paper", data=given)
    assert "--weights wise=PATH" in str(plan.blocked["d", 0]) and not plan.nodes and not plan.todo()


def test_a_row_is_a_reconstruction_as_its_recipe_is(build, add) -> None:
    text, word = method_source("partly", extra="tau"), 'provenance="reconstruction"'
    assert word in text
    source = text.replace(
        word, 'provenance=lambda recipe: "reconstruction" if recipe.tau > 0.5 else "official"'
    )
    add("pretrain/methods/partly.py", source)
    rows = [row_of("released", "partly"), row_of("ours", "partly", {"tau": 0.75}), row_of("quoted", None)]
    assert build(rows).provenance == {"released": "official", "ours": "reconstruction"}
    left_out = build([row_of("o", "partly", {"tau": 0.75}, not_at={"smoke": "no"})])
    assert left_out.provenance == {"o": "reconstruction"}


def test_weights_that_no_run_takes_are_refused_whatever_is_blocked(build, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    file.write_bytes(b"1")
    rows = [row_of("a", "plain"), row_of("b", "taught", not_at={"paper": "no"})]
    for name, message in (("wisee", "Did you mean 'wise'"), ("none-at-all", "Allowed: plain, taught, wise")):
        with pytest.raises(UserError, match=message):
            build(rows, scale="paper", weights={name: file})
    for name in ("plain", "taught", "wise"):  # what the blocked rows would have loaded
        build(rows, scale="paper", weights={name: file})
    with pytest.raises(UserError, match="'wise' is not valid. Allowed: plain. No"):
        build([row_of("a", "plain"), row_of("b", "plain", not_at={"smoke": "no"})], weights={"wise": file})


def test_a_setting_of_what_trains_nothing_is_refused_unless_it_sets_the_encoders_shape(build) -> None:
    rows = [row_of("n", "none-at-all")]
    for change in ({"none-at-all.epochs": 3.0}, {"epochs": 3.0}):
        with pytest.raises(UserError, match="none-at-all trains nothing"):
            build(rows, changes=change)
    plan = build(rows, changes={"none-at-all.patch_size": 16})
    assert by_stage(plan, "pretrain")[0].spec.recipe["patch_size"] == 16


def test_a_bare_setting_leaves_alone_what_does_not_train(build) -> None:
    rows = [row_of("n", "none-at-all"), row_of("a", "plain")]
    before, after = build(rows), build(rows, changes={"epochs": 3.0, "warmup_epochs": 1.0})
    untrained = {key for key, node in before.nodes.items() if node.label.startswith("N")}
    assert untrained <= after.nodes.keys() and len(before.nodes.keys() & after.nodes.keys()) == len(untrained)


def test_a_batch_larger_than_all_images_is_refused(build) -> None:
    with pytest.raises(UserError, match="plain sees 96 images in all its epochs .2.0.: less than a batch"):
        build([row_of("a", "plain")], changes={"global_batch_size": 1000})


def test_weights_that_nothing_loads_are_refused(build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--weights"):
        build([row_of("a", "plain")], weights={"wise": tmp_path})


def test_captions_come_with_imagenet_or_from_the_toy_data(data: Path, given: dict[str, Path]) -> None:
    elsewhere = data.parent / "toy"
    request = Request(scale="small", data=given)
    assert Data(request, lambda: elsewhere).path("captions") == elsewhere / "imagenet"
    (data / "imagenet" / "captions.json").write_text("{}")
    assert Data(request, lambda: elsewhere).path("captions") == data / "imagenet"


def test_other_data_is_another_run_and_a_moved_folder_is_not(
    build, given: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    first = build([row_of("a", "plain")], [column_of("echo")], data=given)
    (data / "imagenet").rename(tmp_path / "moved")
    moved = build([row_of("a", "plain")], [column_of("echo")], data={"imagenet": tmp_path / "moved"})
    assert moved.nodes.keys() == first.nodes.keys()
    (tmp_path / "moved" / "train" / "a" / "new.jpg").write_bytes(b"x")
    other = build([row_of("a", "plain")], [column_of("echo")], data={"imagenet": tmp_path / "moved"})
    assert not other.nodes.keys() & first.nodes.keys()


@pytest.mark.parametrize("role", ["imagenett", ""])
def test_an_unknown_role_is_refused(role: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="imagenet"):
        Data(Request(data={role: tmp_path}), lambda: tmp_path)


# -- what is to do -------------------------------------------------------------------------------------------


def finish(plan: Plan, store: RunStore, *labels: str) -> None:
    for node in plan.nodes.values():
        if node.label in labels:
            store.create(node.spec, node.inputs).finish({"score": 1.0})


def labels(plan: Plan, **rest: bool) -> list[str]:
    return [node.label for node in plan.todo(**rest)]


def test_done_runs_are_not_to_do_and_unneeded_parents_neither(build, store: RunStore) -> None:
    rows = [row_of("b", "taught")]
    assert labels(build(rows)) == ["wise", "B", "B · echo", "B · scenes"]
    finish(build(rows), store, "wise", "B", "B · echo", "B · scenes")
    assert labels(build(rows)) == []
    keys = {node.label: key for key, node in build(rows).nodes.items()}
    store.remove(store.folder(keys["wise"]))
    store.remove(store.folder(keys["B"]))
    assert labels(build(rows)) == []  # nothing needs the encoder any more
    store.remove(store.folder(keys["B · scenes"]))
    assert labels(build(rows)) == ["wise", "B", "B · scenes"]


def test_stale_runs_are_to_do_only_when_asked(build, store: RunStore, world: Path) -> None:
    from tests.world import forget

    rows = [row_of("a", "plain"), row_of("b", "taught")]
    finish(build(rows), store, "wise", "A", "B", "A · echo", "B · echo", "A · scenes", "B · scenes")
    file = world / "pretrain/methods/taught.py"
    file.write_text(file.read_text().replace("100.0", "200.0"))
    forget()
    assert labels(build(rows)) == []
    assert labels(build(rows), rerun_stale=True) == ["B", "B · echo", "B · scenes"]


def test_show_says_what_is_cached_and_what_sharing_saves(build, store: RunStore) -> None:
    rows = [row_of("a", "plain"), row_of("b", "plain", {"echo.steps": 9})]
    finish(build(rows), store, "A")
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))
    show(build(rows), console)
    text = console.export_text()
    assert "cached" in text and "encoder #1" in text and "to do: 3 of 4 runs" in text and "saves" in text


# -- the command line's words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=0.5", 0.5),
        ("a=1e-3", 1e-3),
        ("a=true", True),
        ("a=null", None),
        ("a=[1, 2]", [1, 2]),
        ("a=x=y", "x=y"),
    ],
)
def test_settings_are_json_or_text(text: str, value: object) -> None:
    assert parse_setting(text) == ("a", value)


@pytest.mark.parametrize("text", ["a", "=1"])
def test_a_setting_without_field_or_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="field=value"):
        parse_setting(text)


def test_paths_must_be_there(tmp_path: Path) -> None:
    assert parse_paths("--data", [f"coco={tmp_path}"]) == {"coco": tmp_path}
    for text in ("coco", "coco=", f"coco={tmp_path}/none"):
        with pytest.raises(UserError, match="--data"):
            parse_paths("--data", [text])


def test_a_methods_own_checkpoint_takes_the_place_of_its_pretraining(build, tmp_path: Path) -> None:
    checkpoint = tmp_path / "official.pth"
    checkpoint.write_bytes(b"weights")
    plan = build([row_of("a", "taught")], seeds=2, weights={"taught": checkpoint})
    (pretraining,) = by_stage(plan, "pretrain")  # one for both seeds: nothing is drawn
    assert by_stage(plan, "teacher") == []
    assert pretraining.inputs.weights == {"taught": str(checkpoint)} and pretraining.images == 0
    assert len(by_stage(plan, "downstream")) == 4
