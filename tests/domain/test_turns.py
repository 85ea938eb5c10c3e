"""Small jobs have a thread of their own, and what waits long enough is done before what came later."""

import threading
import time

import pytest

from server.domain.turns import Turns


@pytest.fixture
def turns():
    turns = Turns(workers=1, name="test")
    yield turns
    turns.close(wait=True)


def test_a_quick_job_does_not_wait_for_long_ones(turns):
    release = threading.Event()
    long = [turns.submit(lambda: release.wait(5), quick=False) for _ in range(5)]
    assert turns.submit(lambda: "quick", quick=True).result(timeout=1) == "quick"
    assert not any(job.done() for job in long)
    release.set()
    assert [job.result(timeout=5) for job in long] == [True] * 5


def test_long_jobs_are_done_in_the_order_in_which_they_are_due(turns):
    release, order = threading.Event(), []
    turns.submit(lambda: release.wait(5), quick=False)
    time.sleep(0.05)
    jobs = [
        turns.submit(lambda patience=patience: order.append(patience), quick=False, patience=patience)
        for patience in (4.0, 0.5, 2.0, 1.0)
    ]
    release.set()
    for job in jobs:
        job.result(timeout=5)
    assert order == [0.5, 1.0, 2.0, 4.0]


def test_jobs_that_keep_coming_do_not_hold_up_a_long_one_for_ever(turns):
    """Its patience ends: the one worker takes it, although quick jobs are always waiting."""
    ended = threading.Event()

    def again() -> None:
        if not ended.is_set():
            time.sleep(0.005)
            turns.submit(again, quick=True)

    for _ in range(10):
        turns.submit(again, quick=True)
    assert turns.submit(lambda: "long", quick=False, patience=0.2).result(timeout=5) == "long"
    ended.set()


def test_a_job_that_nobody_waits_for_is_not_begun(turns):
    release, begun = threading.Event(), []
    turns.submit(lambda: release.wait(5), quick=False)
    forgotten = turns.submit(lambda: begun.append("forgotten"), quick=False)
    assert forgotten.cancel()
    last = turns.submit(lambda: begun.append("last"), quick=False)
    release.set()
    last.result(timeout=5)
    assert begun == ["last"]


def test_errors_reach_whoever_waits(turns):
    def fail() -> None:
        raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        turns.submit(fail, quick=True).result(timeout=5)


def test_jobs_that_wait_are_cancelled_when_all_ends():
    turns, release = Turns(workers=1, name="test"), threading.Event()
    turns.submit(lambda: release.wait(5), quick=False)
    time.sleep(0.05)
    waiting = turns.submit(lambda: None, quick=False)
    turns.close()
    release.set()
    assert waiting.cancelled()


def test_long_jobs_of_one_caller_do_not_hold_up_those_of_another(turns):
    release, order = threading.Event(), []
    turns.submit(lambda: release.wait(5), quick=False, patience=1.0, holder="many")
    time.sleep(0.05)
    jobs = [
        turns.submit(lambda name=name: order.append(name), quick=False, patience=1.0, holder=name)
        for name in (*["many"] * 6, "few", "few")
    ]
    release.set()
    for job in jobs:
        job.result(timeout=5)
    assert order[:3].count("few") == 2


def test_a_caller_who_was_away_has_no_credit(turns):
    """Otherwise whoever comes rarely could come with a thousand jobs and be served before everybody else."""
    order = []
    for _ in range(20):
        turns.submit(lambda: None, quick=False, patience=1.0, holder="steady").result(timeout=5)
    release = threading.Event()
    turns.submit(lambda: release.wait(5), quick=False, patience=1.0, holder="steady")
    time.sleep(0.05)
    jobs = [
        turns.submit(lambda name=name: order.append(name), quick=False, patience=1.0, holder=name)
        for name in (*["back"] * 6, *["steady"] * 6)
    ]
    release.set()
    for job in jobs:
        job.result(timeout=5)
    assert 2 <= order[:6].count("steady") <= 4
