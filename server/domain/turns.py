"""Threads that callers share. Small jobs never wait for large ones, and large jobs of one caller wait for each other
before those of another caller wait for them."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")

Job = tuple[float, int, float, Future[Any], Callable[[], Any]]
"""The time at which it is due (monotonic), a number to tell jobs of one time apart, its patience in seconds, its
future, and the work."""


class Shares:
    """Jobs of several holders. The holder who had the least work done goes first, with the job that is due first.

    The work of a job is measured by its patience. A holder who comes back has no credit from the time without jobs.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, list[Job]] = {}
        self._done: dict[str, float] = {}
        self._level = 0.0
        """What the holder who was served last had had before."""

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, holder: str, job: Job) -> None:
        if holder not in self._jobs:
            self._done[holder] = max(self._level, self._done.get(holder, 0.0))
        heapq.heappush(self._jobs.setdefault(holder, []), job)

    def first(self) -> Job:
        return self._jobs[self._next()][0]

    def take(self) -> Job:
        holder = self._next()
        job = heapq.heappop(self._jobs[holder])
        self._level = self._done[holder]
        self._done[holder] += job[2]
        if not self._jobs[holder]:
            del self._jobs[holder]
            self._done = {each: done for each, done in self._done.items() if each in self._jobs or done > self._level}
        return job

    def clear(self) -> list[Job]:
        """Remove and return all jobs."""
        jobs = [job for jobs in self._jobs.values() for job in jobs]
        self._jobs.clear()
        return jobs

    def _next(self) -> str:
        return min(self._jobs, key=lambda holder: (self._done[holder], self._jobs[holder][0][:2]))


class Turns:
    """Threads for two lanes of jobs. `workers` threads take the job that is due first in either lane, and one more
    thread takes only quick jobs.

    A job is due at its arrival plus a patience that grows with its work. So small jobs go before large ones, and a
    large job goes before small ones that arrive after its patience has run out. Callers share each lane (`Shares`).
    """

    def __init__(self, workers: int, name: str) -> None:
        """`name` begins the names of the threads."""
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._quick_pool = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-quick")
        self._quick = Shares()
        self._long = Shares()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def submit(
        self, job: Callable[[], Result], *, quick: bool, patience: float = 0.0, holder: str = ""
    ) -> Future[Result]:
        """Queue `job` of the caller `holder`; `patience` is in seconds. A future that is cancelled in time is never
        started."""
        future: Future[Result] = Future()
        with self._lock:
            lane = self._quick if quick else self._long
            lane.add(holder, (time.monotonic() + patience, next(self._numbers), patience, future, job))
        # A free thread takes the job that is due first, which need not be the one that woke it.
        self._pool.submit(self._take, self._quick, self._long)
        if quick:
            self._quick_pool.submit(self._take, self._quick)
        return future

    def close(self, *, wait: bool = False) -> None:
        """Drop waiting jobs and let the threads end."""
        with self._lock:
            waiting = [*self._quick.clear(), *self._long.clear()]
        for *_, future, _ in waiting:
            future.cancel()
        for pool in (self._pool, self._quick_pool):
            pool.shutdown(wait=wait, cancel_futures=True)

    def _take(self, *lanes: Shares) -> None:
        with self._lock:
            waiting = [lane for lane in lanes if lane]
            if not waiting:
                return
            *_, future, job = min(waiting, key=lambda lane: lane.first()[:2]).take()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)
        finally:
            del future, job  # the error holds this frame, which would hold the error
