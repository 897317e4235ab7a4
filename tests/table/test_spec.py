import copy

import pytest

from mimbench.errors import UserError
from mimbench.table import reported
from mimbench.table.spec import list_tables, load, parse

GOOD = {
    "paper": "P",
    "name": "main",
    "title": "T",
    "section": "S",
    "baseline": "a",
    "columns": [{"task": "classification", "metric": "top1", "title": "Top-1"}],
    "rows": [{"id": "a", "label": "A", "method": "scratch"}, {"id": "b", "label": "B", "method": "mae"}],
    "claims": [{"label": "c", "row": "b", "against": "a", "column": "top1"}],
}


def change(path: str, value: object) -> dict:
    """A copy of GOOD with the value at `rows.0.id` replaced or added."""
    values = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    node = values
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
    return values


@pytest.mark.parametrize(("method", "table"), list_tables())
def test_every_table_of_the_project_is_valid(method, table):
    spec, lines = load(method, table), reported.read()
    for row in spec.rows:
        for metric, reference in row.reported.items():
            line = reported.find(lines, reference, where=row.id)
            assert line.metric == metric, "a cell must show the metric of its column"
    for claim in spec.claims:
        if claim.reported_delta:
            assert (
                reported.find(lines, claim.reported_delta, where=claim.label).metric
                == f"{claim.column}_delta"
            )


def test_dtm_main():
    spec = load("dtm", "main")
    assert {"scratch", "mae", "feature-mim", "dtm"} <= {row.id for row in spec.rows if row.method}
    assert [column.metric for column in spec.columns] == ["top1", "miou", "box_ap", "mask_ap"]
    assert spec.baseline == "scratch"


def test_good_is_good():
    assert parse(GOOD, where="t.toml", name="main").column_index("top1") == 0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("titel", "x", r"t\.toml: key: 'titel'.*Did you mean 'title'"),
        ("rows.1.lable", "x", r"rows\[1\]\.key: 'lable'.*Did you mean 'label'"),
        ("columns.0.metrik", "x", r"columns\[0\]\.key: 'metrik'.*Did you mean 'metric'"),
        ("rows.1.reported", {"top1": {"papr": "x"}}, r"rows\[1\]\.reported\.top1\.paper: None.*required"),
        ("baseline", "aa", r"t\.toml: baseline: 'aa'.*Did you mean 'a'"),
        ("rows.1.baseline", "z", r"rows\[b\]\.baseline: 'z'.*Allowed: a, b"),
        ("rows.1.id", "a", r"rows\.id: 'a'.*given twice"),
        ("rows.1.method", None, r"rows\[b\]\.method.*Give a method"),
        ("claims.0.row", "bb", r"claims\[c\]\.row: 'bb'.*Did you mean 'b'"),
        ("claims.0.column", "top5", r"claims\[c\]\.column: 'top5'.*Did you mean 'top1'"),
        ("name", "mian", r"name: 'mian'.*Did you mean 'main'"),
        ("cost", {"metric": "gpu_days", "unit": "d", "uni": 1}, r"cost\.key: 'uni'.*Did you mean 'unit'"),
        ("cost", {"metric": "top1", "unit": "%"}, r"cost\.metric: 'top1'.*given twice"),
        ("columns", [], r"t\.toml: columns: \[\]"),
        ("title", 3, r"t\.toml: title: 3.*string"),
    ],
)
def test_mistakes_name_the_key(path, value, message):
    with pytest.raises(UserError, match=message):
        parse(change(path, value), where="t.toml", name="main")


def test_an_unknown_key_of_a_reference_gets_the_nearest():
    reference = {
        "paper": "P",
        "table_id": "T",
        "row": "r",
        "dataset": "d",
        "metric": "m",
        "pretrain_epoch": 3,
    }
    with pytest.raises(UserError, match="Did you mean 'pretrain_epochs'"):
        parse(change("rows.1.reported", {"top1": reference}), where="t.toml", name="main")


def test_overrides_may_be_nested_or_dotted():
    nested = parse(change("rows.1.set", {"a": 1, "segmentation": {"steps": 2}}), where="t", name="main")
    dotted = parse(change("rows.1.set", {"a": 1, "segmentation.steps": 2}), where="t", name="main")
    assert nested.rows[1].set == dotted.rows[1].set == {"a": 1, "segmentation.steps": 2}


def test_unknown_method_and_table():
    with pytest.raises(UserError, match="METHOD: 'dtmm'.*Did you mean 'dtm'"):
        load("dtmm")
    with pytest.raises(UserError, match="TABLE: 'mian'.*Did you mean 'main'"):
        load("dtm", "mian")


def test_broken_toml(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "main.toml").write_text("a = ")
    assert list_tables(tmp_path) == [("x", "main")]
    with pytest.raises(UserError, match="tables/x/main.toml.*Write valid TOML"):
        load("x", "main", tmp_path)
