"""Measures what a user waits for: setup, the toy table (cold and cached), `--help`, a pretraining step.

    python benchmarks/run.py                 help, step and table
    python benchmarks/run.py setup           install into an empty environment (downloads some GB)
    python benchmarks/run.py cost            every method's step relative to MAE's, in time and in FLOPs
    python benchmarks/run.py data            planning on a million files (5 GB of disk)
    python benchmarks/run.py store           commands on stores of 10,000 and 100,000 runs (3 GB of disk)
    python benchmarks/run.py step --repeat 5

Absolute times hold for this machine at this moment; shares and ratios can be compared between machines.
Repeated measurements are shown as median (minimum to maximum).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from mimbench.contract import MethodCard

ROOT = Path(__file__).resolve().parents[1]
MIMBENCH = [sys.executable, "-m", "mimbench"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["help", "step", "table"], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--repeat", type=int, default=3, help="how often to repeat short measurements")
    arguments = parser.parse_args()
    unknown = set(arguments.what) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    for name in arguments.what:
        PARTS[name](arguments.repeat)


def spread(values: list[float], unit: str) -> str:
    median = statistics.median(values)
    return f"{median:.3g} {unit} ({min(values):.3g} to {max(values):.3g}, n={len(values)})"


def timed(command: list[str], **environment: str) -> float:
    """Run a command; returns its seconds. Its output is shown only if it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def bench_setup(repeat: int) -> None:
    """`make setup` in a fresh environment."""
    del repeat  # it downloads gigabytes
    with tempfile.TemporaryDirectory() as folder:
        print(f"setup                 {timed(['make', 'setup', f'VENV={folder}/venv']):.0f} s")


def bench_help(repeat: int) -> None:
    """`mimbench --help`."""
    print(f"mimbench --help       {spread([timed([*MIMBENCH, '--help']) for _ in range(repeat)], 's')}")


def bench_table(repeat: int) -> None:
    """The DTM toy table with an empty store, and again with everything cached."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*MIMBENCH, "reproduce-table", "dtm"]
        places = {"MIMBENCH_HOME": folder, "MIMBENCH_CACHE": f"{folder}/cache"}
        cold = timed(command, **places)
        peak = largest() / 2**10
        cached = [timed(command, **places) for _ in range(repeat)]
    print(f"DTM toy table, cold   {cold / 60:.1f} min, {os.cpu_count()} cores")
    print(f"largest process       {peak:.2f} GiB")
    print(f"DTM toy table, cached {spread(cached, 's')}")


def bench_data(repeat: int) -> None:
    """Planning a pretraining on as many files as ImageNet-1K has, of 1 KB each: the first time, and again."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*MIMBENCH, "run", "mae", "--scale", "small", "--dry-run", "--data"]
        places = {"MIMBENCH_HOME": folder, "MIMBENCH_CACHE": f"{folder}/cache"}
        write_images(Path(folder, "few"), 1000)
        start_up = cpu([*command, f"imagenet={folder}/few"], **places), largest()
        print(f"plan of 1,000 files   {start_up[0]:.1f} s of CPU; {start_up[1]:.0f} MiB, mostly imports")
        write_images(Path(folder, "imagenet"), 1_281_167)
        for name in ("first", *["again"] * repeat):
            seconds = cpu([*command, f"imagenet={folder}/imagenet"], **places)
            more = largest() - start_up[1]
            print(f"plan, {name:<15} {seconds:.1f} s of CPU; {more:.0f} MiB more at most")


def write_images(root: Path, count: int) -> None:
    """Write files of 1 KB each, none an image, as a training split of 1,000 classes."""
    for index in range(count):
        place = root / "train" / f"n{index % 1000:04}" / f"{index}.JPEG"
        if index < 1000:
            place.parent.mkdir(parents=True)
        place.write_bytes(b"%1000d" % index)


def largest() -> float:
    """MiB of the largest process that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10


def cpu(command: list[str], **environment: str) -> float:
    """Run a command; returns its seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    timed(command, **environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bench_store(repeat: int) -> None:
    """Commands on stores of many finished runs: the first time, and again, when their index is there."""
    commands = {
        "list": ["runs", "list"],
        "export": ["runs", "export", "-"],
        "gc --dry-run": ["runs", "gc", "--dry-run"],
        "plan dtm": ["plan", "dtm"],
        "reproduce-table dtm --scale smoke": ["reproduce-table", "dtm", "--scale", "smoke"],
    }
    with tempfile.TemporaryDirectory() as folder:
        places = {"MIMBENCH_HOME": folder, "MIMBENCH_CACHE": f"{folder}/cache"}
        for command in commands.values():
            timed([*MIMBENCH, *command], **places)
        for count in (0, 10_000, 100_000):
            if count:
                fill_store(Path(folder, "runs"), count)
                time.sleep(3)  # so that the files count as settled
            first = cpu([*MIMBENCH, *commands["list"]], **places)
            print(f"{count:,} runs: list, first  {first:.2f} s of CPU")
            for name, command in commands.items():
                again = [cpu([*MIMBENCH, *command], **places) for _ in range(repeat)]
                print(f"{count:,} runs: {name}, again  {spread(again, 's of CPU')}")


def fill_store(root: Path, count: int) -> None:
    """Write `count` finished runs of every table's toy recipes, with seeds from 1000 on."""
    import itertools
    from dataclasses import replace
    from unittest import mock

    from mimbench.atomic import digest
    from mimbench.catalog import Catalog
    from mimbench.plan.datasets import Everything
    from mimbench.plan.planner import Planner
    from mimbench.plan.request import Request
    from mimbench.store import records
    from mimbench.store.fingerprint import run_fingerprint
    from mimbench.store.runs import RunStore
    from mimbench.store.spec import canonical_json
    from mimbench.table import spec as tables

    nodes = {}
    for method, table in tables.list_tables():
        found, request = tables.load(method, table), Request(scale="toy", seeds=1)
        planner = Planner(Catalog(None), RunStore(root / ".none"), Everything(), request)
        nodes |= planner.table(found.rows, found.columns, table).nodes
    written, lineages = 0, {}
    for seed in itertools.count(1000):
        keys: dict[str, str] = {}
        for key, node in nodes.items():
            parents = {role: keys[parent] for role, parent in node.spec.parents.items()}
            spec = replace(node.spec, seed=seed, parents=parents)
            keys[key], written = spec.key, written + 1
            place = root / spec.folder
            place.mkdir(parents=True, exist_ok=True)
            values = {"top1": seed % 100, "top5": 99.0} if spec.stage == "downstream" else {"loss": 0.5}
            status = records.Status("done", 100, 100, seconds=60.0, time=time.time(), host="benchmark")
            texts = {
                "spec": {**spec.as_dict(), "key": spec.key},
                "inputs": {"data": {"imagenet": "/data"}, "weights": {}, "options": {}},
                "status": records.STATUS.dump_python(status, mode="json"),
                "env": {"python": "3.11"},
            }
            for name, text in texts.items():
                Path(place, f"{name}.json").write_text(json.dumps(text, indent=2, sort_keys=True))
            source = run_fingerprint(spec.stage, spec.name, adopted=spec.adopted)
            above = {role: lineages[parent] for role, parent in parents.items()}
            lineages[spec.key] = digest(canonical_json([source, above])) if above else source
            with mock.patch("os.fsync"):
                records.write_result(place, records.Result(values, source, above))
            if written == count:
                return


def bench_step(repeat: int) -> None:
    """The share of a toy pretraining step that is not the model's own forward, backward and optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        for method in ("mae", "feature-mim", "dtm"):
            shares, rates = zip(*(step_overhead(method, Path(folder)) for _ in range(repeat)), strict=True)
            print(f"{method:<21} overhead {spread([100 * share for share in shares], '%')}", end="; ")
            print(f"{spread(list(rates), 'images/s')} on one thread")


def bench_cost(repeat: int) -> None:
    """Every method's toy step relative to MAE's: its time, its FLOPs, and time over FLOPs."""
    import torch

    from mimbench import catalog, discovery

    torch.set_num_threads(1)
    print(f"{'method':<14} {'time':>6} {'FLOPs':>6} {'quotient':>9}   (MAE = 1, one thread, processor time)")
    with tempfile.TemporaryDirectory() as folder:
        mae = catalog.method("mae")
        of_mae, flops = Step(mae, Path(folder)), catalog.step_flops(mae, mae.recipes()["toy"], "toy")
        for name in discovery.names("method"):
            card = catalog.method(name)
            if not card.trains or name == "mae":
                continue
            step, seconds = Step(card, Path(folder)), []
            for _ in range(4 * repeat):  # alternate, so that both see the same load
                seconds.append((step.seconds_an_image(), of_mae.seconds_an_image()))
            own, reference = (statistics.median(times) for times in zip(*seconds, strict=True))
            said = catalog.step_flops(card, card.recipes()["toy"], "toy")
            time_ratio, flop_ratio = own / reference, said / flops
            print(f"{name:<14} {time_ratio:6.2f} {flop_ratio:6.2f} {time_ratio / flop_ratio:9.2f}")


class Step:
    """One toy pretraining step of a method, with untrained teachers, on random images."""

    def __init__(self, card: MethodCard, home: Path) -> None:
        import torch
        from PIL import Image
        from torch.utils.data import default_collate

        from mimbench.train import pretraining
        from mimbench.train.loader import seed_everything
        from mimbench.train.optimizer import param_groups

        self.recipe = recipe = card.recipes()["toy"]
        self.method = built(card, home).train()
        self.method.before_train(1000)
        groups = param_groups(self.method, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW([{"params": group["params"]} for group in groups], lr=1e-4)
        seed_everything(0, 0, 0)
        view = pretraining.augmentation(card, recipe)
        pixels = torch.randint(0, 256, (recipe.global_batch_size, 96, 96, 3), dtype=torch.uint8).numpy()
        views = default_collate([view(Image.fromarray(image)) for image in pixels])
        self.batch = pretraining.prepare(views, torch.device("cpu"))
        self.seconds_an_image()  # the first step is slower

    def seconds_an_image(self) -> float:
        start = time.process_time()
        self.method(self.batch, 0.5)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_step(500)
        return (time.process_time() - start) / self.recipe.global_batch_size


def step_overhead(method: str, home: Path, steps: int = 40) -> tuple[float, float]:
    """Share of overhead, and images a second, over `steps` steps with a real loader and checkpoints."""
    import torch

    from mimbench import catalog
    from mimbench.data.augment import PretrainAugment
    from mimbench.data.image_folder import ImageFolder, PretrainImages
    from mimbench.data.toy.make import ensure
    from mimbench.store.folder import Inputs, Options
    from mimbench.store.runs import RunStore
    from mimbench.store.spec import RunSpec
    from mimbench.train import pretraining
    from mimbench.train.optimizer import param_groups
    from mimbench.train.runner import fit

    torch.set_num_threads(1)
    card = catalog.method(method)
    recipe = card.recipes()["toy"]
    data = ensure(home / "data", size="toy")
    model = pretraining.MethodModel(built(card, home), steps)
    images = ImageFolder(data / "imagenet", "train")
    for index in range(len(images)):  # a run reads each file once; its epochs come from memory
        images.load(index)
    spec = RunSpec("pretrain", method, recipe.arch, recipe.values(), {}, 0)
    store = RunStore(Path(tempfile.mkdtemp(dir=home)))  # a new store: a finished run would not run again
    folder = store.create(spec, Inputs(options=Options(checkpoint_seconds=2.0)))
    inside = begin = end = 0.0
    own_step = model.train_step

    def measured(data: object, optim_wrapper: object) -> object:
        nonlocal inside, begin, end
        start = time.perf_counter()
        begin = begin or start
        result = own_step(data, optim_wrapper)
        end = time.perf_counter()
        inside += end - start
        return result

    model.train_step = measured
    fit(
        model,
        PretrainImages(images, PretrainAugment(recipe.img_size, recipe.min_crop_scale, recipe.color_jitter)),
        folder,
        recipe,
        steps=steps,
        param_groups=param_groups(model, recipe.weight_decay),
        log_every=pretraining.num_steps(recipe, len(images)) // 100,  # as in a whole run
    )
    total = end - begin
    return 1 - inside / total, steps * recipe.global_batch_size / total


def built(card: MethodCard, home: Path) -> nn.Module:
    """The module at toy scale. Its teachers are untrained, which does not change the time."""
    from mimbench.data.captions import Tokenizer
    from mimbench.train import pretraining

    recipe = card.recipes()["toy"]
    parts: dict[str, Any] = {role: untrained(name, home) for role, name in card.needed(recipe).items()}
    if card.inputs == "image+caption":
        parts["tokenizer"] = Tokenizer.build(["a red disc"])
    return pretraining.initialise(card, recipe, 0, **parts)


def untrained(name: str, home: Path) -> nn.Module:
    """An untrained teacher, loaded from the file that a trained one would write."""
    from safetensors.torch import save_file

    from mimbench import catalog, discovery
    from mimbench.store.folder import Inputs
    from mimbench.store.runs import RunStore
    from mimbench.store.spec import RunSpec

    card = catalog.card(discovery.kind_of(name), name)
    recipe = card.recipes()["toy"]
    spec = RunSpec(card.stage, name, recipe.arch, recipe.values(), {}, 0)
    folder = RunStore(home / "teachers").create(spec, Inputs())
    state = {key: tensor.contiguous() for key, tensor in built(card, home).state_dict().items()}
    save_file(state, folder.path / "teacher.safetensors")
    return card.load(folder).eval().requires_grad_(False)


PARTS: dict[str, Callable[[int], None]] = {
    "setup": bench_setup,
    "help": bench_help,
    "table": bench_table,
    "data": bench_data,
    "store": bench_store,
    "step": bench_step,
    "cost": bench_cost,
}

if __name__ == "__main__":
    main()
