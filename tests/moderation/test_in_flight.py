"""Work that is shared: who begins it, who gets what, and when it ends."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from server.domain.errors import DeadlineExceeded, EngineFailure, InternalError, Overloaded
from server.moderation.in_flight import InFlight
from tests.fakes import until


class Works:
    """Counts the work that began and that was cancelled; each waits until it is told its end."""

    def __init__(self) -> None:
        self.ends: list[asyncio.Future[str]] = []
        self.cancelled = 0

    async def __call__(self) -> str:
        self.ends.append(asyncio.get_running_loop().create_future())
        try:
            return await self.ends[-1]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def begun(self, count: int) -> None:
        await until(lambda: len(self.ends) == count)


Share = Callable[..., Awaitable[tuple[str, bool]]]


@pytest.fixture
def works() -> Works:
    return Works()


@pytest.fixture
def in_flight() -> InFlight[str]:
    return InFlight()


async def callers(in_flight: InFlight[str], works: Works, count: int) -> list[asyncio.Task[tuple[str, bool]]]:
    """So many tasks that wait for the same work, in this order."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(in_flight.share("x", works)))
        await asyncio.sleep(0)
    await works.begun(1)
    return tasks


async def gone(task: asyncio.Task[tuple[str, bool]]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_same_work_is_done_once_and_counts_for_one_caller(in_flight: InFlight[str], works: Works) -> None:
    tasks = await callers(in_flight, works, 3)
    works.ends[0].set_result("done")
    assert await asyncio.gather(*tasks) == [("done", True), ("done", False), ("done", False)]
    assert len(works.ends) == 1


async def test_other_work_is_work_of_its_own(in_flight: InFlight[str], works: Works) -> None:
    tasks = [asyncio.create_task(in_flight.share(key, works)) for key in ("x", "y")]
    await works.begun(2)
    for end in works.ends:
        end.set_result("done")
    assert await asyncio.gather(*tasks) == [("done", True), ("done", True)]


async def test_what_has_ended_is_not_joined(in_flight: InFlight[str], works: Works) -> None:
    for count in (1, 2):
        task = asyncio.create_task(in_flight.share("x", works))
        await works.begun(count)
        works.ends[-1].set_result(str(count))
        assert await task == (str(count), True)


@pytest.mark.parametrize("leaving", [[0], [1], [2], [0, 1], [0, 2], [1, 2]])
async def test_whoever_stays_gets_the_result_whoever_leaves(
    in_flight: InFlight[str], works: Works, leaving: list[int]
) -> None:
    tasks = await callers(in_flight, works, 3)
    for index in leaving:
        await gone(tasks[index])
    works.ends[-1].set_result("done")
    staying = [task for index, task in enumerate(tasks) if index not in leaving]
    assert await asyncio.gather(*staying) == [("done", True), ("done", False)][: len(staying)]
    assert (len(works.ends), works.cancelled) == (1, 0)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
async def test_work_is_cancelled_once_all_are_gone(in_flight: InFlight[str], works: Works, order: list[int]) -> None:
    tasks = await callers(in_flight, works, 3)
    for index in order:
        assert works.cancelled == 0
        await gone(tasks[index])
    assert works.cancelled == 1


async def test_a_caller_who_leaves_at_once_leaves_nothing_behind(in_flight: InFlight[str], works: Works) -> None:
    task = asyncio.create_task(in_flight.share("x", works))
    await asyncio.sleep(0)
    await gone(task)
    assert works.cancelled == len(works.ends)
    later = asyncio.create_task(in_flight.share("x", works))
    await works.begun(works.cancelled + 1)
    works.ends[-1].set_result("done")
    assert await later == ("done", True)


async def test_work_that_is_on_its_way_out_is_not_joined(in_flight: InFlight[str], works: Works) -> None:
    ended = asyncio.Event()

    async def slow_to_end() -> str:
        try:
            ends: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            return await ends
        finally:
            await ended.wait()

    leaving = asyncio.create_task(in_flight.share("x", slow_to_end))
    await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.sleep(0)
    assert not leaving.done()  # it waits for the end of its work
    task = asyncio.create_task(in_flight.share("x", works))
    await works.begun(1)
    ended.set()
    await asyncio.gather(leaving, return_exceptions=True)
    joining = asyncio.create_task(in_flight.share("x", works))
    await asyncio.sleep(0)
    works.ends[0].set_result("done")  # the end of the former work did not make the latter forgotten
    assert [await task, await joining] == [("done", True), ("done", False)]


async def test_an_error_reaches_each_as_its_own(in_flight: InFlight[str], works: Works) -> None:
    tasks = await callers(in_flight, works, 3)
    works.ends[0].set_exception(Overloaded("The server is busy.", param="messages", retry_after=7))

    async def told(task: asyncio.Task[tuple[str, bool]]) -> Overloaded:
        with pytest.raises(Overloaded) as caught:
            await task
        error = caught.value
        assert (error.message, error.param, error.retry_after) == ("The server is busy.", "messages", 7)
        assert str(error) == "The server is busy."
        return error

    errors = [await told(task) for task in tasks]
    assert len({id(error) for error in errors}) == 3


async def test_an_error_is_forgotten_with_its_work(in_flight: InFlight[str], works: Works) -> None:
    (task,) = await callers(in_flight, works, 1)
    works.ends[0].set_exception(EngineFailure("The engine failed."))
    with pytest.raises(EngineFailure):
        await task
    again = asyncio.create_task(in_flight.share("x", works))
    await works.begun(2)
    works.ends[1].set_result("done")
    assert await again == ("done", True)


async def test_a_defect_is_told_once_and_fails_them_all(in_flight: InFlight[str], works: Works) -> None:
    first, *others = await callers(in_flight, works, 3)
    works.ends[0].set_exception(ValueError("bread"))
    with pytest.raises(ValueError, match="bread"):
        await first
    for task in others:
        with pytest.raises(InternalError) as caught:
            await task
        assert "bread" not in str(caught.value)


async def test_a_deadline_is_missed_by_whoever_began_and_by_nobody_else(in_flight: InFlight[str], works: Works) -> None:
    first, *others = await callers(in_flight, works, 3)
    works.ends[0].set_exception(DeadlineExceeded("No verdict in time."))
    with pytest.raises(DeadlineExceeded):
        await first
    await works.begun(2)
    works.ends[1].set_result("done")
    assert await asyncio.gather(*others) == [("done", True), ("done", False)]


async def test_work_that_is_dropped_below_cancels_nobody_who_waits(in_flight: InFlight[str], works: Works) -> None:
    async def told() -> str:
        try:
            await in_flight.share("x", works)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            return f"dropped, {task.cancelling() if task else '?'} cancelled"
        return "?"

    tasks = [asyncio.create_task(told()) for _ in range(2)]
    await works.begun(1)
    works.ends[0].cancel()
    assert await asyncio.gather(*tasks) == ["dropped, 0 cancelled"] * 2
