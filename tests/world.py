"""A small world of methods and tasks that need no torch, so that the engine's tests take milliseconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.store import fingerprint, records
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec

ROOT = Path(__file__).resolve().parents[1]

METHOD = '''
"""A method."""
from dataclasses import dataclass
from types import SimpleNamespace
from mimbench.contract import MethodCard
from mimbench.recipe import PretrainRecipe, cite
from pretrain.shared import HALF

@dataclass(frozen=True, kw_only=True)
class Recipe(PretrainRecipe):
    {extra}: float
    weights: str = ""

    def step_flops(self, **teachers):
        return 100.0

BASE = dict(
    arch="vit_smoke", img_size=32, patch_size=8, epochs={epochs}, warmup_epochs=0.0, global_batch_size=8,
    base_lr=1e-3, lr_rule="absolute", min_lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, clip_grad=None,
    drop_path=0.0, min_crop_scale=0.2, color_jitter=0.0, precision="fp32", {extra}=HALF,
)

def recipes():
    toy = Recipe.of(cite("ours", **BASE))
    longer, paper = toy.vary("ours, longer", epochs=4.0), toy.vary("paper", weights={weights!r})
    return {{"smoke": toy, "toy": longer, "paper": paper}}

def transfer():
    return {transfer!r}

METHOD = MethodCard(
    name={name!r}, title={name!r}, paper="P", code=None, provenance="reconstruction", recipes=recipes,
    transfer=transfer, needs={needs!r}, build=SimpleNamespace, data={data!r}, trains={trains!r},
    stage={stage!r},
)
'''

TASK = '''
"""A task that does what its recipe's `mode` says."""
import errno, os, signal, time
from dataclasses import dataclass
from mimbench.contract import Metric, TaskCard, TransferRecipe
from mimbench.errors import UserError

@dataclass(frozen=True, kw_only=True)
class Recipe(TransferRecipe):
    mode: str
    steps: int

def recipes():
    recipe = Recipe(
        img_size=32, global_batch_size=4, base_lr=0.1, lr_rule="absolute", layer_decay=0.75, drop_path=0.0,
        weight_decay=0.05, betas=(0.9, 0.999), clip_grad=None, precision="fp32", mode="ok", steps=3,
        sources={{"mode": "ours"}},
    )
    return {{"smoke": recipe, "toy": recipe, "paper": recipe}}

def run(folder):
    with open(folder.path / "calls", "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    calls = len((folder.path / "calls").read_text().splitlines())
    mode, steps = folder.spec.recipe["mode"], folder.spec.recipe["steps"]
    print("hello from", folder.spec.name)
    if mode == "raise":
        raise ValueError("broken on purpose")
    if mode == "user":
        raise UserError("image", "a.jpg", remedy="It is unreadable.")
    if mode == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if mode == "nan":
        return {{"score": float("nan")}}
    if mode == "die" or (mode == "die once" and calls == 1):
        folder.progress(1, steps, loss=1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    for step in range(steps):
        folder.progress(step + 1, steps, loss=1.0 / (step + 1))
        time.sleep(0.05 if mode == "slow" or (mode == "slow once" and calls == 1) else 0)
    return {{"score": 40.0 + folder.spec.seed, "other": 1.0}}

TASK = TaskCard(
    name={name!r}, title={name!r}, protocol="none", data={data!r}, metrics=(Metric(name="score", title="S"),
    Metric(name="other", title="O")), recipes=recipes, run=run, flops=lambda values, arch, patch_size: 10.0,
    images=lambda values, data_size: values["steps"] * values["global_batch_size"],
)
'''


def method_source(name: str, *, extra: str = "mask_ratio", **changes: object) -> str:
    facts = {
        "needs": {},
        "data": "imagenet",
        "trains": True,
        "stage": "pretrain",
        "weights": "",
        "transfer": {},
        "epochs": 2.0 if changes.get("trains", True) else 0.0,
    }
    return METHOD.format(name=name, extra=extra, **{**facts, **changes})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands first on the path, with packages `pretrain` and `downstream` of its own."""
    root = tmp_path / "world"
    transfer = {"echo": {"smoke": [("plain's code", {"layer_decay": 1.0, "betas": (0.9, 0.98)})]}}
    files = {
        "pretrain/__init__.py": "",
        "pretrain/shared.py": "HALF = 0.5\n",
        "pretrain/methods/__init__.py": "",
        "pretrain/methods/plain.py": method_source("plain", transfer=transfer),
        "pretrain/methods/taught.py": method_source("taught", extra="tau", needs={"teacher": "wise"}),
        "pretrain/methods/none_at_all.py": method_source("none-at-all", extra="nothing", trains=False),
        "pretrain/teachers/__init__.py": "",
        "pretrain/teachers/wise.py": method_source(
            "wise", extra="t", stage="teacher", data="captions", weights="wise"
        ),
        "downstream/__init__.py": "",
        "downstream/helper.py": "raise RuntimeError('discovery must not import')\n",
        "downstream/echo.py": TASK.format(name="echo", data="imagenet"),
        "downstream/scenes.py": TASK.format(name="scenes", data="ade20k"),
        # All that workers need of torch here; without mmengine the training code does not import.
        "torch/__init__.py": (
            "from torch import cuda, version\ndef manual_seed(seed): pass\n"
            "def get_num_threads(): return 1\ndef set_num_threads(count): pass\n"
        ),
        "torch/cuda.py": "def is_available(): return False\n",
        "torch/version.py": "cuda = None\n",
        "mmengine/__init__.py": "raise ImportError('not in this world')\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] in ("pretrain", "downstream")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(root)
    forget()
    yield root
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(root)):
            del sys.modules[name]
    forget()


def forget() -> None:
    fingerprint.forget()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Datasets of two roles, as small as the planner accepts."""
    for folder in (
        "imagenet/train/a",
        "imagenet/train/b",
        "imagenet/val/a",
        "ade20k/images/training",
        "ade20k/annotations/training",
    ):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for index, name in enumerate("aaaaab"):
        (tmp_path / "data" / "imagenet" / "train" / name / f"{index}.jpg").write_bytes(b"x" * (index + 1))
    (tmp_path / "data" / "imagenet" / "val" / "a" / "0.jpg").write_bytes(b"x")
    (tmp_path / "data" / "imagenet" / "train_labelled.txt").write_text("train/a/0.jpg\ntrain/b/5.jpg\n")
    (tmp_path / "data" / "ade20k" / "images" / "training" / "0.jpg").write_bytes(b"x")
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def echo_spec(
    mode: str = "ok", *, seed: int = 0, steps: int = 3, parents: dict[str, str] | None = None
) -> RunSpec:
    recipe = {"mode": mode, "steps": steps}
    return RunSpec("downstream", "echo", "vit_smoke", recipe, {"imagenet": "f" * 16}, seed, parents or {})


def alter(folder: RunFolder, **changes: object) -> None:
    """Write a run's result with other fields, as if the run had given them: with a seal that fits."""
    result = folder.result
    assert result is not None
    records.write_result(folder.path, replace(result, **changes))  # type: ignore[arg-type]


@pytest.fixture
def new_run(world: Path, store: RunStore) -> Callable[..., RunFolder]:
    def make(mode: str = "ok", **rest: object) -> RunFolder:
        return store.create(echo_spec(mode, **rest), Inputs())  # type: ignore[arg-type]

    return make


@pytest.fixture
def python(world: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a Python process in the small world."""

    def start(script: str) -> subprocess.Popen[str]:
        environment = {"PYTHONPATH": f"{world}:{ROOT}", "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-c", script]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start
