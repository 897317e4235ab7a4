import pytest

from mimbench.errors import UserError
from mimbench.table import reported
from mimbench.table.reported import Reference

MAE = {
    "paper": "MAE",
    "table_id": "T3",
    "row": "MAE",
    "arch": "ViT-B/16",
    "dataset": "ImageNet-1K",
    "metric": "top1",
}


@pytest.fixture(scope="module")
def lines():
    return reported.read()


def test_finds_the_one_line(lines):
    line = reported.find(lines, Reference(**MAE), where="here")
    assert (line.text, line.value, line.kind, line.first_hand) == ("83.6", 83.6, "paper-text", True)
    assert line.source.startswith("MAE, T3, “MAE”, ViT-B/16, 1600 epochs; paper-text: ar5iv")


def test_no_match_names_what_differs(lines):
    with pytest.raises(UserError, match=r"rows\[mae\].*No line.*nearest line has row='MAE'"):
        reported.find(lines, Reference(**MAE | {"row": "MEA"}), where="x.toml: rows[mae]")


def test_two_matches_ask_for_the_epochs(lines):
    twice = {"paper": "DTM", "table_id": "ext-baselines", "row": "BEiT v2", "arch": "ViT-B/16"}
    twice |= {"dataset": "ImageNet-1K", "metric": "top1"}
    with pytest.raises(UserError, match=r"2 lines.*pretrain_epochs.*'1600', '300'"):
        reported.find(lines, Reference(**twice), where="here")
    assert reported.find(lines, Reference(**twice, pretrain_epochs=1600), where="here").text == "85.5"


def test_second_hand_is_told_apart(lines):
    assert {line.kind for line in lines if not line.first_hand} == {
        "secondary",
        "memory",
        "third-party-table",
        "third-party-text",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paper,value\nMAE,1\n", "header"),
        (f"{','.join(reported.COLUMNS)}\na,b,c,d,e,f,g,h,i,oops,k,l\n", "line 2: value: 'oops'"),
        (f"{','.join(reported.COLUMNS)}\na,b,c\n", "line 2"),
        (f"{','.join(reported.COLUMNS)}\na,b,c,d,e,f,g,h,i,nan,k,l\n", "line 2: value: 'nan'.*a number"),
        (f"{','.join(reported.COLUMNS)}\na,b,c,d,e,f,g,h,top1,823,k,l\n", "line 2.*between 0 and 100"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    (tmp_path / "reported.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        reported.read(tmp_path / "reported.csv")


def test_a_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "reported.csv"
    file.write_bytes(",".join(reported.COLUMNS).encode() + b"\n\xff\n")
    with pytest.raises(UserError, match=r"reported.csv.*not UTF-8"):
        reported.read(file)
    file.unlink()
    with pytest.raises(UserError, match=r"reported.csv.*No such file"):
        reported.read(file)
