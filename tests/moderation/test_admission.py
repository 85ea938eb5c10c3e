"""The bounded queue: places are counted, given back in any case, and refusals say when to come again."""

import asyncio

import pytest

from server.domain.errors import Overloaded, ShuttingDown
from server.moderation.admission import Admission


def test_places_are_held_and_given_back():
    admission = Admission(5)
    with admission.admit(2):
        assert admission.admitted == 2
        with admission.admit(3):
            assert admission.admitted == 5
        assert admission.admitted == 2
    assert admission.admitted == 0


def test_last_place_is_given_and_no_more():
    admission = Admission(3)
    with admission.admit(3):
        for verdicts in (1, 3, 100):
            with pytest.raises(Overloaded), admission.admit(verdicts):
                pytest.fail("admitted past the limit")
        assert admission.admitted == 3
    with admission.admit(3):
        assert admission.admitted == 3


def test_a_list_is_admitted_whole_or_not_at_all():
    admission = Admission(4)
    with admission.admit(2):
        with pytest.raises(Overloaded), admission.admit(3):
            pytest.fail("admitted past the limit")
        with admission.admit(2):
            assert admission.admitted == 4


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit], ids=lambda error: error.__name__)
def test_places_are_given_back_on_errors(error):
    admission = Admission(1)
    with pytest.raises(error), admission.admit(1):
        raise error
    assert admission.admitted == 0
    with admission.admit(1):
        pass


def test_refusal_is_a_429_that_may_be_retried():
    with pytest.raises(Overloaded) as caught, Admission(1).admit(2):
        pytest.fail("admitted past the limit")
    assert (caught.value.status, caught.value.retryable) == (429, True)
    assert caught.value.retry_after == 1


# --- When to come again -----------------------------------------------------------------------------------


def retry_after(admission: Admission) -> int | None:
    with pytest.raises(Overloaded) as caught, admission.admit(10**9):
        pytest.fail("admitted past the limit")
    return caught.value.retry_after


@pytest.mark.parametrize(("latency", "seconds"), [(0.0, 1), (0.001, 1), (0.9, 1), (2.5, 3), (12.01, 13), (600.0, 30)])
def test_steady_latency_is_the_time_to_wait(latency, seconds):
    admission = Admission(1)
    for _ in range(200):
        admission.observe(latency)
    assert retry_after(admission) == seconds


def test_one_slow_verdict_does_not_send_everybody_away():
    admission = Admission(1)
    admission.observe(8.0)
    assert retry_after(admission) == 1


# --- Shutting down ----------------------------------------------------------------------------------------


def test_draining_takes_nothing_new_and_keeps_what_it_has():
    admission = Admission(5)
    with admission.admit(2):
        admission.draining = True
        with pytest.raises(ShuttingDown) as caught, admission.admit(1):
            pytest.fail("admitted while draining")
        assert admission.admitted == 2
    assert admission.admitted == 0
    assert (caught.value.status, caught.value.retryable) == (503, True)
    assert caught.value.retry_after == 1


def test_draining_is_said_before_overload():
    """The queue of a server that goes away will not be free later."""
    admission = Admission(1)
    admission.draining = True
    with pytest.raises(ShuttingDown), admission.admit(2):
        pytest.fail("admitted while draining")


# --- Background work --------------------------------------------------------------------------------------


async def test_background_work_takes_at_most_half_of_the_places():
    admission = Admission(8)
    entered = []

    async def work(number):
        async with admission.admit_behind(1):
            entered.append(number)
            await gate.wait()

    gate = asyncio.Event()
    tasks = [asyncio.create_task(work(number)) for number in range(6)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert entered == [0, 1, 2, 3]
    with admission.admit(4):  # what live requests find free at once
        gate.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert sorted(entered) == [0, 1, 2, 3, 4, 5]
    assert admission.admitted == 0


async def test_background_work_waits_while_live_requests_hold_half_of_the_places():
    admission = Admission(4)
    entered = asyncio.Event()

    async def work():
        async with admission.admit_behind(1):
            entered.set()

    with admission.admit(2):
        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        assert not entered.is_set()
    await asyncio.wait_for(task, 5)
    assert entered.is_set()


async def test_background_work_of_more_than_half_runs_when_nothing_else_does():
    """A list as long as the queue must not wait for ever."""
    admission = Admission(4)
    async with admission.admit_behind(4):
        assert admission.admitted == 4


async def test_waiting_background_work_ends_with_the_server():
    admission = Admission(2)

    async def work():
        async with admission.admit_behind(1):
            pytest.fail("admitted while draining")

    with admission.admit(2):
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        admission.draining = True
        with pytest.raises(ShuttingDown):
            await asyncio.wait_for(task, 5)
