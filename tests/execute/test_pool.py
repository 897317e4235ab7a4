"""The executor: order, sharing, crashes, and errors that stop no other run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from mimbench.commands.reproduce import tell_failures
from mimbench.execute import machine
from mimbench.execute import pool as execute
from mimbench.execute import worker as working
from mimbench.execute.pool import Pool, Report
from mimbench.execute.progress import Progress
from mimbench.plan.graph import Node, Plan
from mimbench.plan.show import duration
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from tests.world import ROOT, alter, echo_spec


def graph(*modes: str, parents: dict[int, list[int]] | None = None, steps: int = 3) -> Plan:
    """Runs 0, 1, ... of these modes; `parents[i]` must be done before i."""
    plan = Plan()
    keys: list[str] = []
    for index, mode in enumerate(modes):
        above = {f"p{number}": keys[number] for number in (parents or {}).get(index, [])}
        spec = echo_spec(mode, seed=index, steps=steps, parents=above)
        keys.append(spec.key)
        plan.nodes[spec.key] = Node(spec, Inputs(), f"run {index}", 1, float(index + 1), "missing")
    plan.targets = set(keys)
    return plan


@pytest.fixture
def pool(world: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(execute, "POLL_SECONDS", 0.1)
    with Pool(store, jobs=2) as pool:
        yield pool


def compute(pool: Pool, plan: Plan, *, rerun_stale: bool = False) -> tuple[Report, str]:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))
    with Progress(console, plan.todo(rerun_stale=rerun_stale)) as progress:
        report = pool.run(plan, progress, rerun_stale=rerun_stale)
    return report, console.export_text()


def folders(pool: Pool, plan: Plan) -> list[RunFolder]:
    return [pool.store.folder(key) for key in plan.nodes]


def calls(folder: RunFolder) -> int:
    return len((folder.path / "calls").read_text().splitlines())


def test_all_runs_are_done_once_and_their_output_goes_to_their_logs(pool: Pool) -> None:
    plan = graph("ok", "ok", "ok", parents={2: [0, 1]})
    report, text = compute(pool, plan)
    assert report == Report() and report.exit_code == 0
    for index, folder in enumerate(folders(pool, plan)):
        assert folder.outcome() == "done" and calls(folder) == 1
        assert folder.result is not None and folder.result.metrics["score"] == 40.0 + index
        assert folder.log_path.read_text() == "hello from echo\n"
        assert json.loads((folder.path / "env.json").read_text())["device"] == "cpu"
    assert text.index("[3/3] run 2 done") > text.index("run 2 started") > text.index("run 0 done")


def test_workers_are_reused_with_one_thread_each(pool: Pool) -> None:
    plan = graph(*["ok"] * 6)
    compute(pool, plan)
    pids = {folder.path.joinpath("calls").read_text() for folder in folders(pool, plan)}
    assert len(pids) <= 2 and pool.environment()["OMP_NUM_THREADS"] == "1"


def test_longest_chain_first(pool: Pool) -> None:
    plan = graph("ok", "ok", "ok", parents={2: [0]})  # FLOPs 1, 2, 3: the chain 0-2 has 4
    pool.jobs = 1
    _, text = compute(pool, plan)
    assert text.index("run 0 started") < text.index("run 2 started") < text.index("run 1 started")


@pytest.mark.parametrize(
    ("mode", "message", "status"),
    [
        ("raise", "ValueError: broken on purpose", 1),
        ("user", "image: 'a.jpg' is not valid. It is unreadable.", 2),
        ("full", "disk is full", 1),
        ("nan", "score is nan", 1),
    ],
)
def test_an_error_stops_its_own_branch_only(pool: Pool, mode: str, message: str, status: int) -> None:
    plan = graph(mode, "ok", "ok", "ok", parents={1: [0], 2: [1]})
    report, text = compute(pool, plan)
    keys = list(plan.nodes)
    assert report.failed.keys() == {keys[0]} and message in report.failed[keys[0]]
    assert report.unreached.keys() == {keys[1], keys[2]} and report.exit_code == status
    failed = pool.store.folder(keys[0])
    assert failed.outcome() == "failed" and message in failed.status.message
    assert failed.result is None and "Traceback" in failed.log_path.read_text()
    assert pool.store.outcome(keys[3]) == "done" and pool.store.outcome(keys[1]) == "missing"
    assert message in text


def test_a_killed_worker_is_replaced_and_its_run_goes_on(pool: Pool) -> None:
    plan = graph("die once", "ok")
    report, text = compute(pool, plan)
    assert report == Report()
    assert "its worker process died (killed by signal 9); it goes on from its last checkpoint" in text
    assert [calls(folder) for folder in folders(pool, plan)] == [2, 1]


def test_a_run_that_kills_its_workers_is_given_up(pool: Pool) -> None:
    plan = graph("die", "ok", "ok", parents={1: [0]})
    report, _ = compute(pool, plan)
    dead, child, other = plan.nodes
    folder = pool.store.folder(dead)
    assert "signal 9" in report.failed[dead] and child in report.unreached
    assert calls(folder) == 2 and folder.outcome() == "failed" and pool.store.outcome(other) == "done"


def test_a_failed_run_is_tried_again_by_the_next_command(pool: Pool) -> None:
    plan = graph("raise")
    compute(pool, plan)
    compute(pool, plan)
    assert calls(folders(pool, plan)[0]) == 2


def test_done_and_stale_runs_are_left_alone_unless_asked(pool: Pool) -> None:
    plan = graph("ok")
    compute(pool, plan)
    (folder,) = folders(pool, plan)
    compute(pool, plan, rerun_stale=True)
    assert calls(folder) == 1  # the plan was old, the worker saw that it is done
    alter(folder, source="older")
    compute(pool, plan)
    assert calls(folder) == 1
    compute(pool, plan, rerun_stale=True)
    assert calls(folder) == 2 and folder.outcome() == "done"


def test_two_pools_share_the_work(pool: Pool) -> None:
    plan = graph(*["slow"] * 4, parents={3: [0]}, steps=6)
    reports: list[Report] = []
    with Pool(pool.store, jobs=1) as second:
        threads = [
            threading.Thread(target=lambda p=p: reports.append(compute(p, plan)[0])) for p in (pool, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert reports == [Report(), Report()]
    assert [calls(folder) for folder in folders(pool, plan)] == [1, 1, 1, 1]


def test_a_run_of_a_killed_process_is_taken_over(
    pool: Pool, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = graph("slow once", steps=400)
    node = next(iter(plan.nodes.values()))
    folder = store.create(node.spec, node.inputs)
    other = start_worker(pool)
    other.stdin.write(json.dumps({"run": str(folder.path), "rerun": False}) + "\n")  # type: ignore[union-attr]
    other.stdin.flush()  # type: ignore[union-attr]
    wait_until(lambda: folder.status.step > 0)
    start = Progress.start

    def and_kill(self: Progress, node: Node, folder: RunFolder, *, elsewhere: bool = False) -> None:
        start(self, node, folder, elsewhere=elsewhere)
        if elsewhere:
            other.kill()

    monkeypatch.setattr(Progress, "start", and_kill)
    report, text = compute(pool, plan)
    assert report == Report() and calls(folder) == 2 and "is being computed by process" in text


def test_a_stopped_worker_is_noticed_and_its_run_goes_on(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimbench.execute.pool.SILENT_SECONDS", 8.0)
    plan = graph("slow once", steps=2000)
    node = next(iter(plan.nodes.values()))
    folder, stopped = pool.store.create(node.spec, node.inputs), []

    def stop() -> None:
        wait_until(lambda: folder.status.step > 0, seconds=60)
        stopped.append(pool.workers[0].process.pid)
        os.kill(stopped[0], signal.SIGSTOP)

    thread = threading.Thread(target=stop)
    thread.start()
    report, text = compute(pool, plan)
    thread.join()
    assert report == Report() and len(stopped) == 1 and calls(folder) == 2
    assert "gave no sign of life for 8 s and was ended; it goes on from its last checkpoint" in text
    assert not alive(stopped[0])


def test_a_stopped_worker_without_its_command_frees_its_run(pool: Pool, store: RunStore) -> None:
    plan = graph("slow once", steps=2000)
    node = next(iter(plan.nodes.values()))
    folder = store.create(node.spec, node.inputs)
    gone = subprocess.Popen(["true"])
    gone.wait()
    other = start_worker(pool, **{machine.PARENT: str(gone.pid)})
    other.stdin.write(json.dumps({"run": str(folder.path), "rerun": False}) + "\n")  # type: ignore[union-attr]
    other.stdin.flush()  # type: ignore[union-attr]
    wait_until(lambda: folder.status.step > 0)
    assert not machine.is_stopped_orphan(other.pid), "it is not stopped"
    other.send_signal(signal.SIGSTOP)
    wait_until(lambda: machine.is_stopped_orphan(other.pid))
    report, text = compute(pool, plan)
    assert report == Report() and calls(folder) == 2
    assert f"is being computed by process {other.pid} on {socket.gethostname()}, last heard of" in text
    assert other.wait(timeout=5) == -signal.SIGKILL


def test_a_stopped_worker_of_a_living_command_is_left_alone(pool: Pool) -> None:
    worker = start_worker(pool)
    worker.send_signal(signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert not machine.is_stopped_orphan(worker.pid) and not machine.is_stopped_orphan(2**22)
    worker.kill()
    worker.wait()


# -- the worker by itself ------------------------------------------------------------------------------------


def world_free(pool: Pool) -> Path:
    """A folder with nothing to import: Python looks into the current one first."""
    pool.store.root.mkdir(exist_ok=True)
    return pool.store.root


def start_worker(pool: Pool, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mimbench.execute.worker"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        env={**pool.environment(), **variables},
        text=True,
        cwd=world_free(pool),
    )


def wait_until(true, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_worker_says_who_it_is_before_it_reads_the_data(
    pool: Pool, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = next(iter(graph("ok").nodes.values()))
    folder, seen = store.create(node.spec, node.inputs), []
    check = working.inputs.check

    def look(run: RunFolder) -> None:
        seen.append((run.status.pid, run.status.host, run.status.state, run.is_locked()))
        check(run)

    monkeypatch.setattr(working.inputs, "check", look)
    assert working.handle(folder.path, rerun=False)["event"] == "done"
    assert seen[0] == (os.getpid(), socket.gethostname(), "running", True)


def test_a_worker_whose_parent_is_gone_ends_at_once_and_frees_its_run(pool: Pool, store: RunStore) -> None:
    folder = store.create(echo_spec("slow", steps=1000), Inputs())
    worker = start_worker(pool)
    assert worker.stdin is not None
    worker.stdin.write(json.dumps({"run": str(folder.path), "rerun": False}) + "\n")
    worker.stdin.flush()
    wait_until(lambda: folder.outcome() == "running" and folder.status.step > 0)
    worker.stdin.close()
    assert worker.wait(timeout=5) == 0
    assert folder.outcome() == "missing"


def test_killing_the_command_leaves_no_worker_behind(world: Path, store: RunStore) -> None:
    script = (
        "import sys, time\nfrom mimbench.execute.pool import Pool\nfrom mimbench.store.runs import RunStore\n"
        f"from pathlib import Path\npool = Pool(RunStore(Path({str(store.root)!r})), jobs=2)\npool.start()\n"
        "print(*[w.process.pid for w in pool.workers], flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{world}:{ROOT}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_why_a_run_failed_is_printed_once(pool: Pool) -> None:
    plan = graph("raise")
    console = Console(width=200, record=True, file=open(os.devnull, "w"))
    with Progress(console, plan.todo()) as progress:
        report = pool.run(plan, progress)
    tell_failures(plan, report, pool.store, console)
    said = console.export_text()
    assert report.failed and said.count("broken on purpose") == 1 and "its log: " in said


# -- progress ------------------------------------------------------------------------------------------------


def test_a_resumed_run_counts_only_its_new_steps(
    world: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimbench.store.folder.HEARTBEAT_SECONDS", 0.0)
    node = next(iter(graph("ok").nodes.values()))
    folder = store.create(node.spec, node.inputs)
    folder.begin({})
    now = 100.0
    progress = Progress(Console(file=open(os.devnull, "w")), [node], clock=lambda: now)
    progress.start(node, folder)
    folder.progress(80, 100)
    progress.tick()
    assert progress.fraction == pytest.approx(0.8) and progress.seconds_left is None
    now += 10.0
    folder.progress(90, 100)
    progress.tick()
    assert progress.seconds_left == pytest.approx(10.0, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sound", "goes on from step 80 ("),
        ("newest damaged", "goes on from step 40 ("),
        ("other code", "started ("),
        ("none", "started ("),
    ],
)
def test_a_run_that_goes_on_is_shown_with_its_step(
    world: Path, store: RunStore, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = next(iter(graph("ok").nodes.values()))
    folder = store.create(node.spec, node.inputs)
    folder.begin({})
    for step in (40, 80) if kind != "none" else ():
        folder.save_checkpoint(step, lambda file: file.write(b"state"))
    if kind == "newest damaged":
        folder.trainer_path.write_bytes(b"state")
    again = store.folder(node.key)
    if kind == "other code":
        monkeypatch.setattr(again, "source", "0" * 64)
    console = Console(record=True, width=100, file=open(os.devnull, "w"))
    Progress(console, [node]).start(node, again)
    assert f"{node.label} {words}" in console.export_text()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_labels_are_shown_as_they_are_written(world: Path, store: RunStore, is_terminal: bool) -> None:
    node = next(iter(graph("ok").nodes.values()))
    node.label = "a [/x] \x1b[31m b"
    console = Console(force_terminal=is_terminal, width=100, record=True, file=open(os.devnull, "w"))
    with Progress(console, [node]) as progress:
        progress.start(node, store.create(node.spec, node.inputs))
        progress.tick()
        if progress.display:
            shown = progress.display.bars.tasks[-1].description
            assert console.render_str(shown).plain == r"a [/x] \x1b[31m b"
        progress.end(node, error="[/y]")
    text = console.export_text()
    assert r"a [/x] \x1b[31m b" in text and "[/y]" in text


def test_a_terminal_gets_a_live_display(world: Path, store: RunStore) -> None:
    node = next(iter(graph("ok").nodes.values()))
    console = Console(force_terminal=True, width=100, file=open(os.devnull, "w"))
    with Progress(console, [node]) as progress:
        progress.start(node, store.create(node.spec, node.inputs))
        progress.tick()
        assert progress.display is not None and len(progress.display.rows) == 2
        progress.end(node)
        progress.tick()
        assert len(progress.display.rows) == 1 and progress.fraction == 1.0


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.num_cores() >= 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert machine.gpu_ids() == ["0", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpu_ids() == []


def test_a_new_worker_gets_the_gpu_that_has_fewest(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with Pool(store) as pool:
        pool.start()
        assert [worker.gpu for worker in pool.workers] == ["0", "1"]
        pool.workers.pop().close()  # as when it dies
        pool.start()
        assert [worker.gpu for worker in pool.workers] == ["0", "1"]
