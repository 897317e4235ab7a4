"""How long runs are expected to take, and a graph of them side by side."""

from __future__ import annotations

import socket

import pytest

from mimbench.atomic import write_json
from mimbench.plan.graph import Node, Plan
from mimbench.plan.pace import MORE_THAN_FLOPS, Job, Pace, Timed, estimate, history, makespan
from mimbench.plan.show import duration, time_line
from mimbench.store.folder import Inputs
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec, Stage

MAE, DTM, TASK = ("pretrain", "mae", "vit"), ("pretrain", "dtm", "vit"), ("downstream", "knn", "vit")


def test_nothing_is_expected_where_no_run_is_known() -> None:
    assert Pace().seconds(MAE, 1.0) is None
    assert Pace([Timed(("pretrain", "scratch", "vit"), 0.0, 0.5)]).seconds(MAE, 1.0) is None


def test_a_run_takes_what_the_same_run_took() -> None:
    assert Pace([Timed(MAE, 1e9, 20.0), Timed(MAE, 1e9, 22.0)]).seconds(MAE, 1e9) == pytest.approx(21.0)
    assert Pace([Timed(MAE, 0.0, 3.0)]).seconds(MAE, 0.0) == pytest.approx(3.0, abs=2.0)


def test_seconds_are_a_fixed_part_and_a_part_by_flops() -> None:
    pace = Pace([Timed(MAE, 1e9, 15.0), Timed(MAE, 4e9, 45.0)])
    assert pace.seconds(MAE, 10e9) == pytest.approx(105.0)
    assert pace.seconds(MAE, 0.0) == pytest.approx(5.0)
    decreasing = Pace([Timed(MAE, 1e9, 30.0), Timed(MAE, 4e9, 10.0)])
    assert 10.0 < (decreasing.seconds(MAE, 2e9) or 0.0) < 30.0, "no run takes longer for having less to do"


def test_the_nearest_kind_goes_first() -> None:
    other_arch = Timed(("pretrain", "dtm", "vit_large"), 1e9, 1000.0)
    pace = Pace([other_arch])
    assert pace.seconds(DTM, 1e9) == pytest.approx(MORE_THAN_FLOPS * 1000.0)
    pace.learn(Timed(TASK, 1e9, 100.0))
    assert pace.seconds(DTM, 1e9) == pytest.approx(MORE_THAN_FLOPS * 100.0)
    pace.learn(Timed(MAE, 1e9, 10.0))
    assert pace.seconds(DTM, 1e9) == pytest.approx(MORE_THAN_FLOPS * 10.0)
    pace.learn(Timed(DTM, 1e9, 8.0))
    assert pace.seconds(DTM, 1e9) == pytest.approx(8.0)


def test_side_by_side_the_longest_chain_decides() -> None:
    jobs = {name: Job(10.0, [], 1.0) for name in "abcd"}
    assert makespan(jobs, 1) == 40.0 and makespan(jobs, 2) == 20.0 and makespan(jobs, 9) == 10.0
    chain = {"a": Job(10.0, [], 3.0), "b": Job(10.0, ["a"], 2.0), "c": Job(10.0, ["b"], 1.0)}
    assert makespan(chain, 9) == 30.0
    assert makespan({**chain, "x": Job(25.0, [], 0.0)}, 2) == 30.0
    assert makespan({}, 2) == 0.0


def test_what_runs_now_keeps_its_worker_and_what_runs_elsewhere_takes_none() -> None:
    job = {"b": Job(10.0, ["a"], 1.0)}
    assert makespan(job, 1, running={"a": 5.0}) == 15.0
    assert makespan(job, 1, running={"x": 30.0}, elsewhere={"a": 5.0}) == 40.0
    assert makespan({"b": Job(10.0, ["gone"], 1.0)}, 1) == 10.0, "a parent that is done holds nothing up"


def plan_of(*runs: tuple[str, float]) -> Plan:
    """Independent pretrainings of (name, images)."""
    plan = Plan()
    for number, (name, images) in enumerate(runs):
        stage: Stage = "pretrain"
        spec = RunSpec(stage, name, "vit", {"global_batch_size": 10, "number": number}, {"imagenet": "f"}, 0)
        plan.nodes[spec.key] = Node(spec, Inputs(), name, int(images), 1e6 * images, "missing")
    plan.targets = set(plan.nodes)
    return plan


def finish(store: RunStore, spec: RunSpec, *, steps: int, seconds: float, host: str = "") -> None:
    """A finished run, as its last status says; by default of this machine."""
    status = {"state": "done", "step": steps, "total": steps, "time": 0.0, "message": "", "pid": 1}
    status |= {"seconds": seconds, "host": host or socket.gethostname()}
    write_json(store.create(spec, Inputs()).path / "status.json", status)


def test_the_stores_runs_of_a_plans_kinds_are_known_by_the_images_that_they_saw(
    store: RunStore,
) -> None:
    plan = plan_of(("plain", 100), ("plain", 200), ("taught", 50))
    first, _, _ = (node.spec for node in plan.nodes.values())
    finish(store, first, steps=10, seconds=8.0)  # the plan's own
    other = RunSpec("pretrain", "plain", "vit", {"global_batch_size": 20, "x": 1}, {"imagenet": "f"}, 0)
    finish(store, other, steps=15, seconds=24.0)  # 300 images
    finish(store, RunSpec("pretrain", "wise", "vit", {"global_batch_size": 1}, {}, 0), steps=1, seconds=9.0)
    loaded = RunSpec("pretrain", "plain", "vit", {"global_batch_size": 20}, {"weights plain": "f"}, 0)
    finish(store, loaded, steps=0, seconds=0.5)
    found = {(run.kind[1], run.flops, run.seconds) for run in history(plan, store)}
    assert found == {("plain", 1e8, 8.0), ("plain", 3e8, 24.0), ("plain", 0.0, 0.5)}


def test_this_machines_own_runs_go_before_those_of_others(store: RunStore) -> None:
    plan = plan_of(("plain", 100), ("plain", 200))
    here, there = (node.spec for node in plan.nodes.values())
    finish(store, there, steps=20, seconds=999.0, host="elsewhere")
    assert [run.seconds for run in history(plan, store)] == [999.0]
    finish(store, here, steps=10, seconds=8.0)
    assert [run.seconds for run in history(plan, store)] == [8.0]


def test_an_estimate_says_what_it_goes_by(store: RunStore) -> None:
    plan = plan_of(("plain", 100), ("plain", 100), ("taught", 100))
    assert "a run like these has finished" in time_line(estimate(plan.todo(), Pace(), 2))
    kind = ("pretrain", "plain", "vit")
    told = estimate(plan.todo(), Pace([Timed(kind, 1e8, 60.0)]), 2)
    assert told.unknown == ("taught",) and told.seconds is not None and 120 < told.seconds < 140
    assert "with 2 workers" in time_line(told) and "no run like it yet: taught" in time_line(told)
    one = estimate(plan.todo()[:1], Pace([Timed(kind, 1e8, 60.0)]), 1)
    assert time_line(one) == f"time: about {duration(one.seconds)} with 1 worker, by finished runs like these"
