import logging
from dataclasses import dataclass, fields, is_dataclass

import pytest

from server.domain import events
from server.domain.conversation import Role
from server.domain.events import listen, on, publish
from server.domain.verdict import Verdict

CANARY = "zebra"


@dataclass(frozen=True, slots=True)
class Rang:
    times: int


@dataclass(frozen=True, slots=True)
class RangTwice(Rang):
    pass


@pytest.fixture(autouse=True)
def _nobody_listens_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_listeners", {})


def test_all_listeners_hear_an_event_in_the_order_of_their_registration() -> None:
    heard: list[tuple[str, Rang]] = []

    @on(Rang)
    def first(event: Rang) -> None:
        heard.append(("first", event))

    @on(Rang)
    def second(event: Rang) -> None:
        heard.append(("second", event))

    publish(Rang(1))
    assert heard == [("first", Rang(1)), ("second", Rang(1))]


def test_a_listener_hears_its_own_kind_of_event_only() -> None:
    heard: list[Rang] = []
    listen(RangTwice, heard.append)
    publish(Rang(1))
    publish(RangTwice(2))
    assert heard == [RangTwice(2)]


def test_an_event_that_nobody_listens_to_is_no_error() -> None:
    publish(Rang(1))


def test_a_listener_that_is_registered_twice_hears_once() -> None:
    heard: list[Rang] = []

    def listener(event: Rang) -> None:
        heard.append(event)

    listen(Rang, listener)
    on(Rang)(listener)
    publish(Rang(1))
    assert heard == [Rang(1)]


def test_a_failing_listener_fails_nobody_and_the_others_still_hear(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Rang] = []

    def failing(event: Rang) -> None:
        raise ValueError(CANARY)

    listen(Rang, failing)
    listen(Rang, heard.append)
    with caplog.at_level(logging.DEBUG):
        publish(Rang(1))
    assert heard == [Rang(1)]
    (record,) = caplog.records
    assert "Rang" in record.message
    assert "ValueError" in record.message
    assert "in failing" in record.message, "the place is told"
    assert CANARY not in record.message.replace("raise ValueError(CANARY)", "")


def test_cancellation_is_not_swallowed() -> None:
    """It is no failure of the listener."""

    def interrupted(event: Rang) -> None:
        raise KeyboardInterrupt

    listen(Rang, interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(Rang(1))


KINDS = [kind for kind in vars(events).values() if is_dataclass(kind) and kind.__module__ == events.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_events_are_frozen_values_without_a_dictionary(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert not hasattr(object.__new__(kind), "__dict__")


@pytest.mark.parametrize("kind", KINDS)
def test_no_event_carries_what_was_asked(kind: type) -> None:
    """A listener cannot leak what it is not told: no conversation, policy, prompt or error in words."""
    told = {field.type for field in fields(kind)}
    assert told <= {str, str | None, int, float, bool, Role, Verdict}
