"""Errors as values."""

import pytest

from server.domain.errors import ContextLengthExceeded, Overloaded


def test_an_error_about_another_field_leaves_the_first_one_as_it_is() -> None:
    error = Overloaded("The server is busy.", param="messages", retry_after=7)
    moved = error.at("input")
    assert (type(moved), moved.message, str(moved), moved.param, moved.retry_after) == (
        *(Overloaded, "The server is busy.", "The server is busy."),
        *("input", 7),
    )
    assert error.param == "messages"


def test_an_error_about_another_field_holds_no_frames_of_the_first_one() -> None:
    with pytest.raises(ContextLengthExceeded) as raised:
        raise ContextLengthExceeded("Too long.", param="messages")
    moved = raised.value.at("input")
    assert raised.value.__traceback__ is not None
    assert (moved.__traceback__, moved.__context__) == (None, None)


def test_the_field_of_an_error_cannot_be_written() -> None:
    with pytest.raises(AttributeError):
        Overloaded("The server is busy.").param = "input"  # type: ignore[misc]
