import math

import pytest

from mimbench.render.text import claim_paper, row_note, row_notes
from mimbench.table.aggregate import aggregate
from mimbench.table.cell import SeedOutcome
from mimbench.table.reported import Reported
from mimbench.table.spec import parse


def reference(row: str, metric: str) -> dict[str, str]:
    return {"paper": "P", "table_id": "T", "row": row, "dataset": "d", "metric": metric}


def line(row: str, metric: str, value: str) -> Reported:
    return Reported("P", "T", "", row, "", "300", "", "d", metric, value, "paper-text", "paper-text(p)")


LINES = [
    line("base", "top1", "80.0"),
    line("good", "top1", "82.0"),
    line("only", "top1", "83.0"),
    line("good", "miou", "40.0"),
    line("gain", "top1_delta", "0.5"),
]
SPEC = parse(
    {
        "paper": "P",
        "name": "main",
        "title": "T",
        "section": "S",
        "baseline": "base",
        "columns": [
            {"task": "classification", "metric": "top1", "title": "Top-1"},
            {"task": "segmentation", "metric": "miou", "title": "mIoU"},
        ],
        "rows": [
            {
                "id": "base",
                "label": "Base",
                "method": "scratch",
                "reported": {"top1": reference("base", "top1")},
            },
            {
                "id": "good",
                "label": "Good",
                "method": "mae",
                "reported": {"top1": reference("good", "top1"), "miou": reference("good", "miou")},
            },
            {"id": "only", "label": "Only", "reported": {"top1": reference("only", "top1")}},
            {"id": "new", "label": "New", "method": "dtm", "baseline": "good"},
        ],
        "claims": [
            {
                "label": "new helps",
                "row": "new",
                "against": "good",
                "column": "top1",
                "reported_delta": reference("gain", "top1_delta"),
            },
            {"label": "good helps", "row": "good", "against": "base", "column": "top1"},
            {"label": "good helps, too", "row": "good", "against": "base", "column": "miou"},
        ],
    },
    where="t",
    name="main",
)


def ok(*values: float) -> dict[int, SeedOutcome]:
    return {seed: SeedOutcome("ok", value, run=f"run-{seed}") for seed, value in enumerate(values)}


def table(scale="toy", **changes):
    outcomes = {
        ("base", 0): ok(30.0, 31.0, 29.5),
        ("base", 1): ok(10.0, 11.0, 10.5),
        ("good", 0): ok(35.0, 36.1, 34.4),
        ("good", 1): ok(12.0, 13.0, 12.4),
        ("new", 0): ok(37.0, 38.0, 36.5),
        ("new", 1): ok(13.0, 14.0, 13.4),
    }
    for name, value in changes.items():
        row, index = name.rsplit("_", 1)
        outcomes[row, int(index)] = value
    return aggregate(SPEC, outcomes, LINES, scale, {"new": "reconstruction"})


def cell(result, row, index):
    return result.row(row).cells[index]


def word(item):
    return item.verdict and item.verdict.word


def test_a_cell():
    good = cell(table(), "good", 0)
    assert (good.status, good.n, good.values) == ("ok", 3, {0: 35.0, 1: 36.1, 2: 34.4})
    assert good.mean == pytest.approx(35.1666667)
    assert good.ours.std == pytest.approx(0.8621678)
    assert good.delta.values == pytest.approx((5.0, 5.1, 4.9))
    assert good.reported_delta == pytest.approx(2.0)
    assert good.runs == {0: "run-0", 1: "run-1", 2: "run-2"}
    assert word(good) == "same direction"


def test_what_has_nothing_to_compare_with_has_no_verdict():
    result = table()
    assert word(cell(result, "base", 0)) is None  # the baseline itself
    assert word(cell(result, "good", 1)) is None  # the paper reports no baseline here
    assert word(cell(result, "new", 0)) is None  # nothing reported
    assert word(cell(result, "only", 0)) is None  # reported only
    assert cell(result, "only", 0).status == cell(result, "only", 1).status == "reported_only"


def test_paper_scale_compares_the_value_also_of_the_baseline():
    result = table("paper", base_0=ok(80.05, 79.95, 80.0), good_0=ok(82.0, 82.0))
    assert word(cell(result, "base", 0)) == "reproduced"
    assert word(cell(result, "good", 0)) == "not run"  # the table's third seed is missing here


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((82.0, 82.1, 82.05), "reproduced"),
        ((82.5, 81.2, 81.5), "within noise"),
        ((81.0, 81.1, 81.0), "below"),
    ],
)
def test_paper_scale(values, expected):
    result = table("paper", good_0=ok(*values))
    assert word(cell(result, "good", 0)) == expected
    assert result.comparable and not table().comparable


@pytest.mark.parametrize(
    ("outcome", "status", "expected"),
    [
        (SeedOutcome("missing"), "missing", "not run (2 of 3 seeds)"),
        (SeedOutcome("running"), "running", "not run (seed 2 running)"),
        (SeedOutcome("failed", note="NaN"), "failed", "not run (seed 2 failed: NaN)"),
        (SeedOutcome("damaged", note="see"), "damaged", "not run (seed 2 damaged: see)"),
        (SeedOutcome("not_runnable", note="no GPU"), "not_runnable", "not runnable (no GPU)"),
    ],
)
@pytest.mark.parametrize("scale", ["toy", "paper"])
def test_an_incomplete_cell_keeps_its_values_but_gets_no_comparison(outcome, status, expected, scale):
    result = table(scale, good_0={**ok(35.0, 36.0), 2: outcome})
    good = cell(result, "good", 0)
    assert (good.status, good.n, str(good.verdict)) == (status, 2, expected)
    assert not good.complete


def test_nothing_ran():
    result = aggregate(SPEC, {}, LINES, "toy")
    assert result.seeds == ()
    assert [word(cell(result, row, 0)) for row in ("base", "good", "new")] == ["not run"] * 3
    assert word(result.claims[0]) == "not run"


def test_stale_is_marked_and_still_compared():
    stale = {seed: SeedOutcome("stale", item.value) for seed, item in ok(35.0, 36.1, 34.4).items()}
    good = cell(table(good_0=stale), "good", 0)
    assert (good.status, good.stale, word(good)) == ("stale", True, "same direction")


def test_an_incomplete_baseline_decides_nothing():
    result = table(base_0={**ok(30.0, 31.0), 2: SeedOutcome("failed")})
    assert word(cell(result, "good", 0)) == "inconclusive"
    assert cell(result, "good", 0).delta.n == 2


def test_row_baseline_and_provenance():
    new = cell(table(), "new", 0)
    assert new.against == "good"
    assert new.delta.values == pytest.approx((2.0, 1.9, 2.1))
    assert table().row("new").provenance == "reconstruction" and table().row("good").provenance == ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((37.0, 38.0, 36.5), "same direction"),
        ((33.0, 34.0, 32.5), "opposite direction"),
        ((37.0, 34.0, 36.5), "inconclusive"),
    ],
)
def test_claim(values, expected):
    claim = table(new_0=ok(*values)).claims[0]
    assert (word(claim), claim.reported_delta) == (expected, 0.5)


def test_a_claim_without_a_line_of_its_own_is_the_difference_of_its_rows():
    _, both, one = table().claims
    assert [item.text for item in both.reported] == ["82.0", "80.0"]
    assert both.reported_delta == pytest.approx(2.0) and word(both) == "same direction"
    assert claim_paper(both) == "+2.0"
    assert one.reported == () and claim_paper(one) == "–"  # the paper has no base there
    assert one.delta is not None and word(one) == "same direction"  # as the claim itself says
    worse = table(good_1=ok(3.0, 2.0, 2.5)).claims[2]
    assert word(worse) == "opposite direction"


def test_a_figure_of_another_protocol_is_shown_but_not_compared():
    other = SPEC.row("good").model_copy(update={"other_protocol": {"top1": "SETR"}})
    rows = tuple(other if row.id == "good" else row for row in SPEC.rows)
    spec = SPEC.model_copy(update={"rows": rows})
    outcomes = {(row, 0): ok(82.0, 82.1, 81.9) for row in ("base", "good", "new")}
    for scale in ("toy", "paper"):
        result = aggregate(spec, outcomes, LINES, scale)
        good = cell(result, "good", 0)
        assert good.reported.text == "82.0" and good.protocol == "SETR"
        assert good.reported_delta is None and good.verdict is None
        assert result.claims[1].reported == ()
        stated = result.claims[0]  # of the row "new" against this one, with a line of its own
        assert stated.reported_delta == 0.5 and (stated.verdict is None) == (scale == "paper")
        assert row_note(result, result.row("good")) == "paper's Top-1: SETR"
    assert word(cell(table("paper", good_0=ok(82.0, 82.1, 81.9)), "good", 0)) == "reproduced"


def test_claim_at_paper_scale_compares_the_difference():
    result = table("paper", good_0=ok(82.0, 82.0, 82.0), new_0=ok(82.45, 82.5, 82.55))
    assert word(result.claims[0]) == "reproduced"


def test_claim_of_an_incomplete_row():
    result = table(new_0={**ok(37.0, 38.0), 2: SeedOutcome("running")})
    assert str(result.claims[0].verdict) == "not run (seed 2 running)"


@pytest.mark.parametrize("bad", [("ok", None), ("stale", math.nan), ("failed", 1.0), ("ok", math.inf)])
def test_an_outcome_has_a_finite_value_exactly_when_done(bad):
    with pytest.raises(ValueError, match="an outcome"):
        SeedOutcome(*bad)


def test_a_reason_that_holds_for_the_whole_row_is_said_once():
    nowhere = {seed: SeedOutcome("not_runnable", note="needs 24 GB") for seed in range(3)}
    result = table(good_0=nowhere, good_1=nowhere, new_1=nowhere)
    good, new = result.row("good"), result.row("new")
    assert good.unavailable == "needs 24 GB" and {str(c.verdict) for c in good.cells} == {"not runnable"}
    assert row_notes(result, good) == ["not runnable: needs 24 GB"]
    assert new.unavailable == "" and str(new.cells[1].verdict) == "not runnable (needs 24 GB)"
