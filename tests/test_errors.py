"""What an error says, and that it says the same after a journey between processes."""

from __future__ import annotations

import pickle
import traceback

import pytest

from mimbench.errors import RunFailed, UserError


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
        (RunFailed("The disk is full."), "The disk is full."),
    ],
)
def test_messages(error: Exception, message: str) -> None:
    assert str(error) == message
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), message, vars(error))


@pytest.mark.parametrize("value", ["/a/it's.jpg", 'a "b" \\ c', 151, -1.5, None, ["a", 1], {"k": (1, 2)}])
def test_an_error_made_from_a_traceback_is_the_last_one_in_it(value: object) -> None:
    try:
        try:
            raise UserError("first", "cause")
        except UserError as cause:
            raise UserError("picture", value, remedy="It is unreadable: replace it.") from cause
    except UserError as error:
        text = f"Caught UserError in DataLoader worker process 0.\nOriginal {traceback.format_exc()}"
        again = UserError(text)
        assert str(again) == str(error)
        assert (again.field, again.value, again.remedy) == (error.field, value, error.remedy)


def test_a_field_with_a_colon_keeps_the_message() -> None:
    error = UserError("reported.csv: header", "x", remedy="Write another.")
    again = UserError(str(error))
    assert str(again) == again.field == str(error) and again.value is None


def test_a_text_without_a_traceback_is_the_message() -> None:
    assert str(RunFailed("RunFailed: as it is")) == "RunFailed: as it is"
