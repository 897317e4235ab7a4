"""What makes a run stale, and what data is the same data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mimbench import discovery
from mimbench.atomic import file_digest
from mimbench.errors import UserError
from mimbench.store import fingerprint, source
from mimbench.store.fingerprint import closure, run_fingerprint, source_fingerprint
from tests.world import forget


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    forget()


def test_closure_follows_imports_and_leaves_infrastructure_out(world: Path) -> None:
    (world / "pretrain" / "methods" / "deep.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "import mimbench.store.folder, mimbench.table.cell\n"
        "from . import relative\n"
        "if TYPE_CHECKING:\n    import pretrain.only_types\n"
        "def build():\n    from pretrain import inside\n"
    )
    for name in ("methods/relative", "inside", "only_types"):
        (world / "pretrain" / f"{name}.py").write_text("import os\n")
    forget()
    found = set(closure(["pretrain.methods.deep"]))
    assert found == {
        "pretrain", "pretrain.inside",
        "pretrain.methods", "pretrain.methods.deep", "pretrain.methods.relative",
    }  # fmt: skip


def test_what_a_run_imports_is_on_the_numbers_side_or_known() -> None:
    """Beside what computes numbers, a run's code may import errors, files, the catalog and the store."""
    forget()
    for kind, stage in (("method", "pretrain"), ("teacher", "teacher"), ("task", "downstream")):
        for name in discovery.names(kind):
            modules = closure(
                [discovery.module_of(kind, name), fingerprint.PRETRAINING, fingerprint.ADOPTION]
            )
            for module in modules:
                file = discovery.module_file(module)
                assert file is not None
                found = {
                    node.module.split(".")[1] if "." in node.module else alias.name
                    for node in ast.walk(ast.parse(file.read_text()))
                    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mimbench"
                    for alias in node.names
                }
                outside = found - set(fingerprint.NUMERICS) - {"errors", "atomic", "catalog", "store"}
                assert not outside, f"{stage}/{name}: {module} imports {outside}"


def test_real_closures_hold_what_computes_and_nothing_that_plans_or_shows() -> None:
    forget()
    methods = closure(["pretrain.methods.dtm", fingerprint.PRETRAINING])
    assert {"mimbench.vit", "mimbench.train.runner", "mimbench.recipe", "mimbench.data.augment"} <= set(
        methods
    )
    for found in (methods, closure(["downstream.segmentation"])):
        ours = {name.split(".")[1] for name in found if name.startswith("mimbench.")}
        assert ours <= set(fingerprint.NUMERICS)
    assert "pretrain.methods.mae" not in methods


def test_a_fingerprint_does_not_depend_on_the_version_of_python() -> None:
    """3.12 gave functions a field, 3.13 leaves out empty ones: the text is that of 3.10 and 3.11."""
    assert source.dump(ast.parse("def f(): pass")) == (
        "Module(body=[FunctionDef(name='f', args=arguments(posonlyargs=[], args=[], kwonlyargs=[], "
        "kw_defaults=[], defaults=[]), body=[Pass()], decorator_list=[])], type_ignores=[])"
    )


def test_an_edit_touches_the_runs_that_it_concerns_and_no_others(world: Path) -> None:
    runs = [("pretrain", "plain"), ("pretrain", "taught"), ("teacher", "wise"), ("downstream", "echo")]

    def prints() -> list[str]:
        forget()
        return [run_fingerprint(*run) for run in runs]

    def changed(before: list[str]) -> list[str]:
        return [name for (_, name), a, b in zip(runs, before, prints(), strict=True) if a != b]

    before = prints()
    edit(world / "pretrain/methods/plain.py", "return 100.0", "return 101.0")
    assert changed(before) == ["plain"]
    before = prints()
    edit(world / "pretrain/shared.py", "0.5", "0.25")
    assert changed(before) == ["plain", "taught", "wise"]
    before = prints()
    edit(
        world / "pretrain/methods/plain.py", '"ours, longer"', '"ours, much longer"'
    )  # a recipe is in the key
    edit(world / "pretrain/methods/plain.py", '"""A method."""', '"""A better docstring."""  # and a comment')
    assert changed(before) == []


# -- a rename is no change -----------------------------------------------------------------------------------


@pytest.fixture
def tree(world: Path):
    """`tree({"pretrain/a.py": text, ...})` writes files; the answer is pretrain.root's fingerprint."""

    def write(files: dict[str, str | None]) -> str:
        for name, text in files.items():
            path = world / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text) if text is not None else path.unlink()
        forget()
        return source_fingerprint(("pretrain.root",))

    return write


ROOT_FILE = (
    "import math\nfrom pretrain import aside\nfrom pretrain.shared import HALF\n"
    "def build():\n    from pretrain import late\n    return late.f(aside.f(HALF), math.pi)\n"
)
FILES = {
    "pretrain/root.py": ROOT_FILE,
    "pretrain/aside.py": '"""Text."""\nfrom mimbench.errors import UserError\ndef f(x): return x + 1\n',
    "pretrain/late.py": "def f(x, y): return x * y\n",
}


def test_a_renamed_module_is_no_change(tree) -> None:
    before = tree(FILES)
    renamed = ROOT_FILE.replace("aside", "zz_beside").replace(
        "from pretrain import late", "from pretrain.deep import late"
    )
    line = "from pretrain import zz_beside\n"
    other_order = renamed.replace(line, "").replace("import HALF\n", f"import HALF\n{line}")
    assert before == tree(
        {
            "pretrain/root.py": other_order,
            "pretrain/zz_beside.py": FILES["pretrain/aside.py"],
            "pretrain/aside.py": None,
            "pretrain/deep/__init__.py": '"""A new package."""\n',
            "pretrain/deep/late.py": FILES["pretrain/late.py"],
            "pretrain/late.py": None,
        }
    )


def test_the_root_may_move_too(tree, world: Path) -> None:
    before = tree(FILES)
    tree({"pretrain/elsewhere.py": ROOT_FILE})
    assert source_fingerprint(("pretrain.elsewhere",)) == before


def test_infrastructure_may_be_renamed(tree) -> None:
    before = tree(FILES)
    aside = FILES["pretrain/aside.py"].replace("mimbench.errors", "mimbench.paths")
    assert tree({"pretrain/aside.py": aside}) == before


def test_a_re_export_counts_as_what_it_names(tree) -> None:
    before = tree(FILES)
    assert before == tree(
        {
            "pretrain/root.py": ROOT_FILE.replace("pretrain.shared", "pretrain.facade"),
            "pretrain/facade.py": "from pretrain.shared import HALF\n",
        }
    )


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("aside", "x + 1", "x + 2"),
        ("late", "x * y", "y"),
        ("root", "late.f(aside", "aside.f(aside"),
        ("root", "import aside", "import late as aside"),
        ("root", "import HALF", "import HALF as HALF_"),
        ("root", "import math", "import cmath as math"),
    ],
)
def test_what_the_code_says_counts(tree, name: str, old: str, new: str) -> None:
    before = tree(FILES)
    text = FILES[f"pretrain/{name}.py"]
    assert old in text
    assert tree({f"pretrain/{name}.py": text.replace(old, new)}) != before


def test_equal_bodies_with_other_imports_are_told_apart(tree) -> None:
    """Two modules say the same and stand on different ones: which of them is imported where counts."""
    body = "def f(x, y=1): return g(x)\n"
    files = {
        **FILES,
        "pretrain/aside.py": f"from pretrain.one import g\n{body}",
        "pretrain/one.py": "def g(x): return 1\n",
        "pretrain/late.py": f"from pretrain.two import g\n{body}",
        "pretrain/two.py": "def g(x): return 2\n",
    }
    swapped = ROOT_FILE.replace("import aside", "import late as aside").replace(
        "    from pretrain import late", "    from pretrain import aside as late"
    )
    assert tree(files) != tree({"pretrain/root.py": swapped})


def test_modules_that_import_each_other_are_one(tree) -> None:
    files = {
        **FILES,
        "pretrain/aside.py": "from pretrain import late\ndef f(x): return x + late.K\n",
        "pretrain/late.py": "K = 1\ndef f(x, y):\n    from pretrain import aside\n    return aside.f(x)\n",
    }
    before = tree(files)
    renamed = {
        "pretrain/root.py": ROOT_FILE.replace("aside", "beside"),
        "pretrain/beside.py": files["pretrain/aside.py"],
        "pretrain/late.py": files["pretrain/late.py"].replace("aside", "beside"),
    }
    assert tree(renamed) == before
    assert tree({"pretrain/beside.py": files["pretrain/aside.py"].replace("x +", "x -")}) != before


def test_a_file_is_parsed_once_for_all_processes(
    tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    before = tree(FILES)

    def parse(*_: object, **__: object) -> None:
        raise AssertionError("parsed again")

    with monkeypatch.context() as patch:
        patch.setattr(source.ast, "parse", parse)
        forget()
        assert source_fingerprint(("pretrain.root",)) == before
    for file in (tmp_path / "cache" / "sources").iterdir():
        file.write_text(file.read_text().replace("late", "ever"))  # damaged: read anew
    forget()
    assert source_fingerprint(("pretrain.root",)) == before


def test_a_module_that_appears_is_noticed_by_a_file_that_stays_the_same(tree) -> None:
    files = {**FILES, "pretrain/root.py": "from pretrain.shared import HALF\ndef build(): return HALF\n"}
    before = tree(files)
    there = {"pretrain/shared.py": None, "pretrain/shared/__init__.py": "HALF = 0.5\n"}
    assert tree(there) == before
    assert tree({"pretrain/shared/HALF.py": "X = 1\n"}) != before  # now the import names a module


def test_a_string_that_looks_like_a_place_is_a_string(tree) -> None:
    assert tree(FILES) != tree({"pretrain/late.py": "def f(x, y): return '⟦0⟧'\n"})


def test_an_adopted_checkpoint_depends_on_the_conversion_and_on_no_training() -> None:
    forget()
    adopted = set(closure(["pretrain.methods.mae", fingerprint.ADOPTION]))
    assert {"mimbench.checkpoint.foreign", "mimbench.checkpoint.adopt"} <= adopted
    assert run_fingerprint("pretrain", "mae", adopted=True) != run_fingerprint("pretrain", "mae")


def test_a_recipe_counts_for_the_catalog(world: Path) -> None:
    before = source_fingerprint(("pretrain.methods.plain",))
    edit(world / "pretrain/methods/plain.py", "epochs=4.0", "epochs=5.0")
    assert source_fingerprint(("pretrain.methods.plain",)) != before


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"1")
    before = file_digest(tmp_path / "w", field="--weights clip")
    (tmp_path / "w").write_bytes(b"2")
    assert file_digest(tmp_path / "w", field="--weights clip") != before
    with pytest.raises(UserError, match="--weights clip"):
        file_digest(tmp_path / "none", field="--weights clip")
