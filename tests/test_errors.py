"""What an error says, and that it says the same after a journey between processes."""

from __future__ import annotations

import pickle

import pytest

from mimbench.data.decode import CorruptImage
from mimbench.errors import RunFailed, UserError, visible


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("seeds", 0), "seeds: 0 is not valid."),
        (UserError("seeds", None, remedy="Give a number."), "seeds: None is not valid. Give a number."),
        (
            UserError("METHOD", "mea", allowed=["mae"]),
            "METHOD: 'mea' is not valid. Did you mean 'mae'? Allowed: mae.",
        ),
        (UserError("data", remedy="There is none."), "data: There is none."),
        (UserError("METHOD", allowed=["mae", "dtm"]), "METHOD: Allowed: mae, dtm."),
        (UserError("a whole sentence"), "a whole sentence"),
        (UserError("UserError: a", ("b", 1), remedy="c: 'd' is not valid."), "UserError: a: ('b', 1) is not"),
        (CorruptImage("image", "/a/it's.jpg", remedy="Replace it."), 'image: "/a/it\'s.jpg" is not'),
        (RunFailed("The disk is full."), "The disk is full."),
    ],
)
def test_messages(error: Exception, message: str) -> None:
    assert str(error).startswith(message)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
    assert vars(again) == vars(error)


def test_a_terminal_obeys_nothing_in_a_message() -> None:
    assert visible("a\x1b[31m\x07b\rc\u202ed\udcff", lines=True) == r"a\x1b[31m\x07b\rc\u202ed\udcff"
    assert visible("Größe 日本\n\tok [/red]", lines=True) == "Größe 日本\n\tok [/red]"
