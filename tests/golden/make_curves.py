"""Our own 20-step curves of every method, teacher and task, to notice a change that was to alter no number.

    python tests/golden/make_curves.py              # write curves.json anew
    python tests/golden/make_curves.py mae linear   # these curves alone; all others stay as they are

Every curve comes from a run as the engine makes it: a folder in a run store, the loader, the augmentation,
`fit` with its hooks, the checkpoint at the end, and the files of the parents. test_curves.py compares.
"""

from __future__ import annotations

import argparse
import functools
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

from mimbench import catalog  # noqa: E402
from mimbench.arch import ViTConfig  # noqa: E402
from mimbench.contract import MethodCard, TaskCard  # noqa: E402
from mimbench.encoder import save_encoder  # noqa: E402
from mimbench.recipe import Recipe  # noqa: E402
from mimbench.spec import RunSpec  # noqa: E402
from mimbench.store import Inputs, RunFolder, RunStore  # noqa: E402
from mimbench.train import pretraining  # noqa: E402
from mimbench.vit import ViT  # noqa: E402

FILE = HERE / "curves.json"
STEPS, SEED = 20, 0
NUDGE = 1e-7  # of a weight: the last bit of single precision
SMOKE = ViTConfig.named("vit_smoke", img_size=32, patch_size=8)
ENCODERS = {  # that a task starts from: fixed positions, as MAE's; DTM's relative ones, with layer scale
    "fixed": SMOKE,
    "relative": replace(
        SMOKE, pos_embed="none", rel_pos="block+shared", layer_scale_init=0.1, key_bias=False
    ),
}
TEACHERS = ("clip",)  # that a task which takes a teacher starts from
Curve = dict[str, Any]
"""`loss` and `lr` of each step, where there are steps; a task's `metrics` by name."""


def names() -> list[str]:
    """Every curve there must be: method/NAME, teacher/NAME, task/NAME/(what the task starts from)."""
    found = [
        f"{kind}/{name}"
        for kind in ("method", "teacher")
        for name in catalog.names(kind)
        if catalog.card(kind, name).trains
    ]
    for name in catalog.names("task"):
        starts = ENCODERS if catalog.task(name).takes == "encoder" else TEACHERS
        found += [f"task/{name}/{start}" for start in starts]
    return found


class Bench:
    """Computes curves. Data, teachers and encoders are made once, when they are first needed.

    Teachers are untrained, so that a change in how one trains moves the teacher's own curve alone; they
    still come from the file that a run of theirs leaves.

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
        """The curve called so.

        Args:
            nudge: a seed; every weight is moved by about what rounding moves it, `NUDGE` of itself.
        """
        kind, card_name, *start = name.split("/")
        card = catalog.card(kind, card_name)
        if kind == "task":
            return self._task_curve(card, start[0], nudge)
        folder = self._pretraining(card, STEPS)
        pretraining.run(folder, card if nudge is None else nudged_card(card, nudge))
        return self._read(folder)

    def _task_curve(self, card: TaskCard, start: str, nudge: int | None) -> Curve:
        parent = self.encoder(start) if card.takes == "encoder" else self.teacher(start)
        if nudge is not None:
            parent = self._nudged_copy(parent, nudge)
        recipe = of_steps(card.recipes()["smoke"], STEPS, curve_data.TRAINED_ON[card.data])
        folder = self._folder("downstream", card, SMOKE_ARCH, recipe, {"encoder": parent})
        metrics = card.run(folder)
        return {**self._read(folder), "metrics": {key: rounded(value) for key, value in metrics.items()}}

    def _pretraining(self, card: MethodCard, steps: int) -> RunFolder:
        """A run of the method or teacher, ready to start."""
        recipe = of_steps(card.recipes()["smoke"], steps, curve_data.TRAINED_ON["captions"])
        parents = {role: self.teacher(name) for role, name in card.needed(recipe).items()}
        return self._folder(card.stage, card, recipe.arch, recipe, parents)

    def _teacher(self, name: str) -> RunFolder:
        card = catalog.card(catalog.kind_of(name), name)
        folder = self._pretraining(card, 0)
        pretraining.run(folder, card)
        return folder

    def _encoder(self, name: str) -> RunFolder:
        """The file of a pretraining, of random weights. All are drawn: some start at zero otherwise."""
        spec = RunSpec("pretrain", name, SMOKE_ARCH, {}, {}, SEED)
        folder = self.store.create(spec, Inputs())
        torch.manual_seed(SEED)
        vit = ViT(ENCODERS[name])
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape)
        save_encoder(vit, folder.encoder_path, method=name)
        return folder

    def _nudged_copy(self, run: RunFolder, seed: int) -> RunFolder:
        twin = self.store.create(replace(run.spec, seed=SEED + 1 + seed), run.inputs)
        for path in run.path.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                header, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
            nudge_all(state.values(), seed)
            save_file(state, twin.path / path.name, header)
        return twin

    def _folder(
        self,
        stage: str,
        card: MethodCard | TaskCard,
        arch: str,
        recipe: Recipe,
        parents: dict[str, RunFolder],
    ) -> RunFolder:
        keys = {role: parent.spec.key for role, parent in parents.items()}
        spec = RunSpec(stage, card.name, arch, recipe.values(), {card.data: "curves"}, SEED, keys)
        root = self.data / ("imagenet" if card.data == "captions" else card.data)
        return self.store.create(spec, Inputs(data={card.data: str(root)}))

    def _read(self, folder: RunFolder) -> Curve:
        """What the run logged at each step; the run is removed, so that it can be done once more."""
        lines = folder.metrics()
        assert [line["step"] for line in lines] in ([], list(range(1, STEPS + 1))), folder
        self.store.remove(folder)
        return {key: [rounded(line[key]) for line in lines] for key in ("loss", "lr") if lines}


SMOKE_ARCH = "vit_smoke"


def of_steps(recipe: Any, steps: int, num_pictures: int) -> Any:
    """The recipe with so many steps, a quarter of them warm-up; as it is where nothing is trained."""
    fields, batch = recipe.values().keys(), max(recipe.global_batch_size, 4)
    epochs = steps * batch / num_pictures
    changes = {
        "global_batch_size": batch,
        "steps": steps,
        "warmup_steps": steps // 4,
        "epochs": epochs,
        "warmup_epochs": epochs / 4,
        "milestones": (0.5 * epochs, 0.75 * epochs),
    }
    return recipe.vary("curves", **{key: value for key, value in changes.items() if key in fields})


def nudged_card(card: MethodCard, seed: int) -> MethodCard:
    """The card of a method all of whose weights are nudged, its teachers' too."""

    def build(recipe: Any, **parts: Any) -> nn.Module:
        method = card.build(recipe, **parts)
        nudge_all(method.parameters(), seed)
        return method

    return replace(card, build=build)


def nudge_all(tensors: Iterable[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.data *= 1 + NUDGE * torch.randn(tensor.shape, generator=generator)


def rounded(value: float) -> float:
    return float(f"{value:.7g}")


def read() -> dict[str, Curve]:
    """The curves that are in the file."""
    return json.loads(FILE.read_text())


def write(curves: dict[str, Curve]) -> None:
    """Each list on a line of its own."""
    text = json.dumps(curves, indent=1)
    FILE.write_text(re.sub(r"\[[^]]*]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help="a method, a teacher or a task; default: all")
    wanted, there = parser.parse_args().names, names()
    known = {name.split("/")[1] for name in there}
    if unknown := sorted(set(wanted) - known):
        parser.error(f"no such method, teacher or task that has a curve: {', '.join(unknown)}; "
                     f"there are {', '.join(sorted(known))}")
    old = read() if wanted else {}
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        new = {
            name: bench.curve(name) for name in there if not wanted or name.split("/")[1] in wanted
        }
    write({name: new.get(name, old.get(name)) for name in there if name in new or name in old})
    print(f"{len(new)} curves: {FILE}")


if __name__ == "__main__":
    main()
