"""Work that several callers wait for at the same time, done once."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from server.domain.aio import ended, fresh
from server.domain.errors import DeadlineExceeded, GuardError, InternalError

Result = TypeVar("Result")


class _Work(Generic[Result]):
    """Work that has begun, and those who wait for it, in the order in which they came."""

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
        """Without those who were told, or are gone and have not been heard of yet."""
        return [waiter for waiter in self.waiting if not waiter.done()]


class InFlight(Generic[Result]):
    """Work by its key, for as long as it lasts."""

    def __init__(self) -> None:
        self._works: dict[Hashable, _Work[Result]] = {}

    async def share(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Result]]) -> tuple[Result, bool]:
        """The result of `work`, or of what another caller began under the same key.

        With it comes whether it was computed for this caller: of all who get a result, that is the one who waited for
        it longest. Work goes on while anybody waits. Once nobody does it is cancelled, and whoever left last waits
        until it has ended. Its error reaches every caller as an object of its own; but that it came too late concerns
        nobody except who began it, since the others have other deadlines. Raises CancelledError when the work was
        dropped below.
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
        # Everybody waits on a future of their own: whoever awaits a task and is cancelled takes the task along.
        waiter: asyncio.Future[tuple[Result, bool]] = asyncio.get_running_loop().create_future()
        begun.waiting.append(waiter)
        try:
            return await waiter
        finally:
            begun.waiting.remove(waiter)
            if not begun.waiting and not begun.task.done():
                self._forget(key, begun)
                await ended(begun.task)
            del waiter  # It may hold an error that holds this frame (aio.py).

    async def _run(self, key: Hashable, begun: _Work[Result], work: Callable[[], Coroutine[Any, Any, Result]]) -> None:
        try:
            result = await work()
        except Exception as error:
            begun.fail(error)
        else:
            begun.succeed(result)
        finally:
            self._forget(key, begun)
            begun.drop()
            del begun  # It holds this task, which may end with an error (aio.py).

    def _forget(self, key: Hashable, begun: _Work[Result]) -> None:
        # Work that is being cancelled has made room already, and other work may be there by now.
        if self._works.get(key) is begun:
            del self._works[key]


def _another(error: Exception) -> Exception:
    # A defect is told, with its place, by the first of them.
    return fresh(error) if isinstance(error, GuardError) else InternalError("The server failed on this request.")
