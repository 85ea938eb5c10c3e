"""Work that is done once for several callers who wait for it at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from server.domain.aio import ended, fresh
from server.domain.errors import DeadlineExceeded, GuardError, InternalError

Result = TypeVar("Result")


class _Work(Generic[Result]):
    """Work that has begun, and its waiters in order of arrival."""

    __slots__ = ("task", "waiting")

    def __init__(self) -> None:
        self.task: asyncio.Task[None]
        self.waiting: list[asyncio.Future[tuple[Result, bool]]] = []

    def succeed(self, result: Result) -> None:
        for place, waiter in enumerate(self._still_waiting()):
            waiter.set_result((result, place == 0))

    def fail(self, error: Exception) -> None:
        for place, waiter in enumerate(self._still_waiting()):
            waiter.set_exception(error if place == 0 else _another(error))

    def drop(self) -> None:
        for waiter in self._still_waiting():
            waiter.cancel()

    def _still_waiting(self) -> list[asyncio.Future[tuple[Result, bool]]]:
        """The waiters that have no result yet and have not left."""
        return [waiter for waiter in self.waiting if not waiter.done()]


class InFlight(Generic[Result]):
    """Work by its key, for as long as it lasts."""

    def __init__(self) -> None:
        self._works: dict[Hashable, _Work[Result]] = {}

    async def share(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Result]]) -> tuple[Result, bool]:
        """The result of `work`, or of the same key's work that another caller began.

        The second value says whether the result was computed for this caller: that is true of the one who waited
        longest. Work goes on while anybody waits. Once nobody does, it is cancelled, and the last caller to leave waits
        until it has ended. An error goes to every caller as a separate object, except the DeadlineExceeded of the
        caller who began: the others have other deadlines and try again. Raises CancelledError if the work itself was
        cancelled.
        """
        while (begun := self._works.get(key)) is not None:
            try:
                return await self._result(key, begun)
            except DeadlineExceeded:
                continue
        begun = self._works[key] = _Work()
        begun.task = asyncio.get_running_loop().create_task(self._run(key, begun, work))
        return await self._result(key, begun)

    async def _result(self, key: Hashable, begun: _Work[Result]) -> tuple[Result, bool]:
        # Each caller waits on a separate future: a caller who awaits a task and is cancelled cancels the task too.
        waiter: asyncio.Future[tuple[Result, bool]] = asyncio.get_running_loop().create_future()
        begun.waiting.append(waiter)
        try:
            return await waiter
        finally:
            begun.waiting.remove(waiter)
            if not begun.waiting and not begun.task.done():
                self._forget(key, begun)
                await ended(begun.task)
            del waiter  # it may hold an error that holds this frame (aio.py)

    async def _run(self, key: Hashable, begun: _Work[Result], work: Callable[[], Coroutine[Any, Any, Result]]) -> None:
        try:
            result = await work()
        except Exception as error:
            begun.fail(error)
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as panic:  # of a library in Rust; nobody may wait for what has ended
            begun.fail(RuntimeError(f"panic {type(panic).__name__}"))
        else:
            begun.succeed(result)
        finally:
            self._forget(key, begun)
            begun.drop()
            del begun  # it holds this task, which may end with an error (aio.py)

    def _forget(self, key: Hashable, begun: _Work[Result]) -> None:
        # Work that is being cancelled is already removed, and other work may have taken its place.
        if self._works.get(key) is begun:
            del self._works[key]


def _another(error: Exception) -> Exception:
    # The first caller gets a defect itself, so that it is logged with its place.
    return fresh(error) if isinstance(error, GuardError) else InternalError("The server failed on this request.")
