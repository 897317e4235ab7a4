"""Our own 20-step curves of every method, teacher and task, to notice a change of numbers.

    python tests/golden/make_curves.py              # write curves.json anew
    python tests/golden/make_curves.py mae linear   # these curves only; the others stay as they are

A curve comes from a run as the engine makes it: a folder in a run store, the loader, the augmentation, `fit`
with its loop, the checkpoint at the end, and the files of the parents. test_curves.py compares.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import curve_data  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mimbench import catalog, discovery  # noqa: E402
from mimbench.arch import ViTConfig  # noqa: E402
from mimbench.checkpoint.encoder import save_encoder  # noqa: E402
from mimbench.contract import MethodCard, TaskCard  # noqa: E402
from mimbench.store.folder import Inputs, RunFolder  # noqa: E402
from mimbench.store.runs import RunStore  # noqa: E402
from mimbench.store.spec import RunSpec  # noqa: E402
from mimbench.train import pretraining  # noqa: E402
from mimbench.vit import ViT  # noqa: E402

FILE = HERE / "curves.json"
STEPS, SEED = 20, 0
NUDGE = 1e-7  # of a weight: the last bit of single precision
ARCH = "vit_smoke"
FIXED = ViTConfig.named(ARCH, img_size=32, patch_size=8)
ENCODERS = {  # that tasks start from: fixed positions as MAE's, relative ones and layer scale as DTM's
    "fixed": FIXED,
    "relative": replace(
        FIXED, pos_embed="none", rel_pos="block+shared", layer_scale_init=0.5, key_bias=False
    ),
}
TEACHERS = ("clip",)  # that tasks start from which take a teacher
Curve = dict[str, Any]
"""`loss` and `lr` of each step, where there are steps; a task's `metrics` by name."""


def names() -> list[str]:
    """Every curve there must be: method/NAME, teacher/NAME, task/NAME/(what the task starts from)."""
    found = [
        f"{kind}/{name}"
        for kind in ("method", "teacher")
        for name in discovery.names(kind)
        if catalog.card(kind, name).trains
    ]
    for name in discovery.names("task"):
        starts = ENCODERS if catalog.task(name).takes == "encoder" else TEACHERS
        found += [f"task/{name}/{start}" for start in starts]
    return found


class CurveMaker:
    """Runs twenty steps of anything. Data, teachers and encoders are made once, when they are first needed.

    Teachers are untrained, so that a change in how one trains moves the teacher's own curve only; they still
    come from the file that a run of theirs leaves.

    Args:
        root: an empty folder for the data and the runs.
    """

    def __init__(self, root: Path) -> None:
        torch.set_num_threads(1)
        self.store = RunStore(root / "runs")
        self.data = curve_data.make(root / "data")
        self.teacher = functools.cache(self._teacher)
        self.encoder = functools.cache(self._encoder)

    def curve(self, name: str, nudge: int | None = None) -> Curve:
        """The curve of that name.

        Args:
            nudge: a seed; every weight is moved by about what rounding moves it, `NUDGE` of itself.
        """
        kind, card_name, *start = name.split("/")
        card = catalog.card(kind, card_name)
        with contextlib.redirect_stdout(io.StringIO()):  # COCO's tools print
            return self._task(card, start[0], nudge) if kind == "task" else self._method(card, nudge)

    def _method(self, card: MethodCard, nudge: int | None) -> Curve:
        folder = self._pretraining(card, STEPS)
        pretraining.run(folder, card if nudge is None else nudged_card(card, nudge))
        return self._read(folder)

    def _task(self, card: TaskCard, start: str, nudge: int | None) -> Curve:
        parent = self.encoder(start) if card.takes == "encoder" else self.teacher(start)
        if nudge is not None:
            parent = self._nudged_run(parent, nudge)
        recipe = of_steps(card.recipes()["smoke"], STEPS, curve_data.TRAINED_ON[card.data])
        folder = self._folder("downstream", card, ARCH, recipe, {"encoder": parent})
        metrics = {name: rounded(value) for name, value in card.run(folder).items()}
        return {**self._read(folder), "metrics": metrics}

    def _pretraining(self, card: MethodCard, steps: int) -> RunFolder:
        """A run of a method or teacher, ready to start."""
        recipe = of_steps(card.recipes()["smoke"], steps, curve_data.TRAINED_ON["captions"])
        parents = {role: self.teacher(name) for role, name in card.needed(recipe).items()}
        return self._folder(card.stage, card, recipe.arch, recipe, parents)

    def _teacher(self, name: str) -> RunFolder:
        card = catalog.card(discovery.kind_of(name), name)
        folder = self._pretraining(card, 0)
        pretraining.run(folder, card)
        return folder

    def _encoder(self, name: str) -> RunFolder:
        """A pretraining's file with random weights, also where a new encoder has zeros."""
        folder = self.store.create(RunSpec("pretrain", name, ARCH, {}, {}, SEED), Inputs())
        torch.manual_seed(SEED)
        vit = ViT(ENCODERS[name])
        for key, parameter in vit.named_parameters():
            if parameter.requires_grad:
                spread = 0.5 if key.endswith("rel_pos_bias.table") else 0.05
                parameter.data += spread * torch.randn(parameter.shape)
        save_encoder(vit, folder.encoder_path, method=name)
        return folder

    def _nudged_run(self, run: RunFolder, seed: int) -> RunFolder:
        """The same run with nudged weights, as that of another seed."""
        twin = self.store.create(replace(run.spec, seed=SEED + 1 + seed), run.inputs)
        for path in run.path.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                header, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
            nudge_all(state.values(), seed)
            save_file(state, twin.path / path.name, header)
        return twin

    def _folder(
        self, stage: Any, card: Any, arch: str, recipe: Any, parents: dict[str, RunFolder]
    ) -> RunFolder:
        keys = {role: parent.spec.key for role, parent in parents.items()}
        spec = RunSpec(stage, card.name, arch, recipe.values(), {card.data: "curves"}, SEED, keys)
        root = self.data / ("imagenet" if card.data == "captions" else card.data)
        return self.store.create(spec, Inputs(data={card.data: str(root)}))

    def _read(self, folder: RunFolder) -> Curve:
        """What the run logged at each step; then it is removed, so that it can be done again."""
        lines = folder.metrics()
        assert [line["step"] for line in lines] in ([], list(range(1, STEPS + 1))), folder
        self.store.remove(folder)
        return {part: [rounded(line[part]) for line in lines] for part in ("loss", "lr") if lines}


def of_steps(recipe: Any, steps: int, num_images: int) -> Any:
    """The recipe with that many steps, a quarter of them warm-up.

    Two more changes make so short a run tell something: batches of at least four images, and a classifier
    whose first outputs are not close to zero whatever the encoder gives.
    """
    batch = max(recipe.global_batch_size, 4)
    epochs = steps * batch / num_images
    changes = {
        "global_batch_size": batch,
        "steps": steps,
        "warmup_steps": steps // 4,
        "epochs": epochs,
        "warmup_epochs": epochs / 4,
        "milestones": (epochs / 2, epochs * 3 / 4),
        "head_init_std": 0.2,
    }
    return recipe.vary("curves", **{name: changes[name] for name in changes.keys() & recipe.values().keys()})


def nudged_card(card: MethodCard, seed: int) -> MethodCard:
    """The card of the same method with nudged weights, its teachers' too."""

    def build(recipe: Any, **parts: Any) -> nn.Module:
        method = card.build(recipe, **parts)
        nudge_all(method.parameters(), seed)
        return method

    return replace(card, build=build)


def nudge_all(tensors: Iterable[Tensor], seed: int) -> None:
    """Multiply every weight by 1 + `NUDGE` times a normal number."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.data *= 1 + NUDGE * torch.randn(tensor.shape, generator=generator)


def rounded(value: float) -> float:
    """Seven digits, as many as single precision has."""
    return float(f"{value:.7g}")


def read() -> dict[str, Curve]:
    """The curves in the file, by name."""
    return json.loads(FILE.read_text())


def write(curves: dict[str, Curve]) -> None:
    """Write the file, each list on one line."""
    text = json.dumps(curves, indent=1)
    FILE.write_text(re.sub(r"\[\s+([^]]*?)\s+]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", metavar="NAME", nargs="*", help="a method, a teacher or a task; default: all")
    chosen = set(parser.parse_args().name)
    by_name = {name: name.split("/")[1] for name in names()}
    if unknown := sorted(chosen - set(by_name.values())):
        known = ", ".join(sorted(set(by_name.values())))
        parser.error(f"nothing with a curve is called {', '.join(unknown)}; there are: {known}")
    curves = read() if chosen else {}
    with tempfile.TemporaryDirectory() as root:
        maker = CurveMaker(Path(root))
        made = {name: maker.curve(name) for name in by_name if not chosen or by_name[name] in chosen}
    curves |= made
    write({name: curves[name] for name in by_name if name in curves})
    print(f"{len(made)} curves written to {FILE}")


if __name__ == "__main__":
    main()
