"""The circuit breaker and the retry budget, on a clock that the tests move."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from server.backends.openrouter import breaker as module
from server.backends.openrouter.breaker import Breaker, State
from server.backends.openrouter.retries import LONGEST_PAUSE_S, RetryBudget, pause, retry_after
from server.domain.errors import EngineUnavailable
from tests.backends.test_openrouter import sample


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(failures=3, rest_s=30)
    for _ in range(3):
        breaker.failed(breaker.enter())
    return breaker


def test_opens_after_failures_in_a_row(clock):
    breaker = Breaker(failures=3, rest_s=30)
    for _ in range(2):
        breaker.failed(breaker.enter())
    breaker.succeeded(breaker.enter())
    for _ in range(2):
        breaker.failed(breaker.enter())
    assert (breaker.state, breaker.available) == (State.CLOSED, True)
    breaker.failed(breaker.enter())
    assert (breaker.state, breaker.available) == (State.OPEN, False)
    assert sample("guard_remote_breaker", guard_remote_breaker="open") == 1


def test_lets_nothing_through_while_open_and_says_when_to_come_again(clock):
    breaker = opened(clock)
    clock.now += 12.5
    with pytest.raises(EngineUnavailable) as refused:
        breaker.enter()
    assert refused.value.retry_after == 18
    assert refused.value.retryable


def test_one_at_a_time_tries_after_the_rest(clock):
    breaker = opened(clock)
    clock.now += 30
    assert breaker.available
    breaker.enter()
    assert (breaker.state, breaker.available) == (State.HALF_OPEN, False)
    with pytest.raises(EngineUnavailable):
        breaker.enter()


def test_a_try_that_succeeds_closes_it(clock):
    breaker = opened(clock)
    clock.now += 30
    breaker.succeeded(breaker.enter())
    assert breaker.state is State.CLOSED
    breaker.enter()
    breaker.enter()


def test_a_try_that_fails_opens_it_for_another_rest(clock):
    breaker = opened(clock)
    clock.now += 30
    breaker.failed(breaker.enter())
    assert breaker.state is State.OPEN
    clock.now += 29
    assert not breaker.available
    clock.now += 1
    assert breaker.available


def test_a_try_that_is_dropped_makes_room_for_the_next(clock):
    breaker = opened(clock)
    clock.now += 30
    breaker.dropped(breaker.enter())
    breaker.succeeded(breaker.enter())
    assert breaker.state is State.CLOSED


def test_calls_from_before_a_change_count_no_more(clock):
    breaker = Breaker(failures=3, rest_s=30)
    late = [breaker.enter() for _ in range(4)]
    for _ in range(3):
        breaker.failed(breaker.enter())
    breaker.succeeded(late[0])
    assert breaker.state is State.OPEN
    clock.now += 30
    breaker.enter()
    for end, ticket in zip((breaker.succeeded, breaker.failed, breaker.dropped), late[1:], strict=True):
        end(ticket)
    assert (breaker.state, breaker.available) == (State.HALF_OPEN, False)


# --- Retries ----------------------------------------------------------------------------------------------


def test_the_first_request_may_be_tried_again():
    budget = RetryBudget()
    budget.deposit()
    assert budget.withdraw()


@pytest.mark.parametrize("requests", [20, 100, 1000])
def test_retries_are_a_fifth_of_the_requests_at_most(requests):
    budget, retries = RetryBudget(), 0
    for _ in range(requests):
        budget.deposit()
        while budget.withdraw():
            retries += 1
    assert 0.1 * requests <= retries <= 0.2 * requests


def test_quiet_times_save_up_no_storm():
    budget = RetryBudget()
    for _ in range(10_000):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]


def test_pauses_are_random_and_grow_to_a_bound():
    early, late = [pause(1) for _ in range(500)], [pause(9) for _ in range(500)]
    assert 0 <= min(early) < 0.05 < 0.45 < max(early) <= 0.5
    assert 0 <= min(late) < 1 < 3 < max(late) <= LONGEST_PAUSE_S
    pause(10_000)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("", None),
        ("-7", None),
        ("soon", None),
        ("1.5", None),
        ("٣", None),
        ("1e9", None),
    ],
)
def test_retry_after_in_seconds(value, seconds):
    assert retry_after({"retry-after": value}) == seconds
    assert retry_after({}) is None


def test_retry_after_beyond_all_numbers():
    assert retry_after({"retry-after": "9" * 5000}) == 9_999_999_999


def test_retry_after_as_a_date():
    moment = datetime.now(UTC) + timedelta(seconds=60)
    told = retry_after({"retry-after": format_datetime(moment, usegmt=True)})
    assert told is not None
    assert 58 < told <= 60
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}) is None
