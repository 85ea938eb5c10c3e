"""Two backends as one: the local engine first, and a remote one for cases that only the local one cannot judge.

A case moves if another backend could cure its failure: the engine is down or too busy, or the text is too long for its
memory. A caller's mistake does not move, and neither does an answer that is not a verdict: whoever asks around until
somebody says "safe" has no gate.
"""

import asyncio
import logging
from dataclasses import dataclass

from server.backends.base import Backend, Case
from server.backends.openrouter.backend import OpenRouterBackend
from server.domain.aio import ended, fresh
from server.domain.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    GuardError,
    Overloaded,
    UnparseableVerdict,
)
from server.domain.events import Moved, publish
from server.domain.verdict import Completion

log = logging.getLogger(__name__)

PROBE_S = 2.0
"""Seconds for the local engine to answer a probe before the remote is asked."""


@dataclass(frozen=True, slots=True)
class _Move:
    """The reason why a case moves, and the error to raise if the remote fails too."""

    reason: str
    error: GuardError


class FallbackBackend:
    """A `Backend` around `local` and `remote`."""

    def __init__(
        self, local: Backend, remote: OpenRouterBackend, *, after_s: float, places: int, context_tokens: int
    ) -> None:
        """`local` gets `after_s` seconds for a case and holds at most `places` cases; its context is `context_tokens`
        long."""
        self.local = local
        self.remote = remote
        self.name = f"{local.name}+{remote.name}"
        self._after_s = after_s
        self._places = places
        self._context_tokens = context_tokens
        self._held = 0
        self._carried = False

    async def start(self) -> None:
        """Start both. A remote that cannot help now may do so later, but without the local engine the start fails."""
        try:
            await self.remote.start()
        except GuardError as error:
            log.error("THE REMOTE BACKEND CANNOT BE USED AS A FALLBACK NOW: %s", error.message)
        await self.local.start()

    async def close(self) -> None:
        try:
            await self.remote.close()
        finally:
            await self.local.close()

    @property
    def alive(self) -> bool:
        """While the remote works, a restart would stop it too. A restart only helps if neither backend works."""
        return self.local.alive or self.remote.available

    @property
    def heard_at(self) -> float:
        return self.local.heard_at

    async def probe(self, case: Case) -> Completion | None:
        try:
            async with asyncio.timeout(PROBE_S):
                completion = await self.local.probe(case)
        except UnparseableVerdict:
            raise  # such a case does not move either
        except (GuardError, TimeoutError):
            await self.remote.probe(case)
            self._say(carried=True)
            return None
        self._say(carried=False)
        return completion

    def _say(self, *, carried: bool) -> None:
        """Log, once for each change, that the remote judges in place of the local engine, or no longer does."""
        if carried and not self._carried:
            state = "dead: only a restart brings it back" if not self.local.alive else "not answering"
            log.error("THE LOCAL ENGINE IS %s. The remote backend judges all that may leave this machine.", state)
        elif self._carried and not carried:
            log.warning("the local engine answers again")
        self._carried = carried

    # --- One case ----------------------------------------------------------------------------------------

    async def complete(self, case: Case) -> Completion:
        handling = case.handling
        may_move = not handling.background and await handling.reading.done(lambda: self.remote.refusal(case)) is None
        if self._held >= self._places:
            if not may_move or not self.remote.available:
                raise _full()
            return await self._remotely(case, _Move("queue_full", _full()))
        self._held += 1
        try:
            outcome = await (self._or_move(case) if may_move else self.local.complete(case))
        finally:
            self._held -= 1
        return await self._remotely(case, outcome) if isinstance(outcome, _Move) else outcome

    async def _or_move(self, case: Case) -> Completion | _Move:
        """The local engine's completion, or the reason why `case` moves. All local work on it has ended then."""
        work = asyncio.ensure_future(self.local.complete(case))
        try:
            await asyncio.wait({work}, timeout=self._after_s)
            if not work.done() and self.remote.available:
                work.cancel()
                await asyncio.wait({work})
                if work.cancelled():
                    return _Move("slow", DeadlineExceeded("The engine was too slow, and the remote backend failed."))
            return await work
        except (EngineUnavailable, ContextLengthExceeded) as error:
            if not self.remote.available:
                raise
            if isinstance(error, EngineUnavailable):
                return _Move("engine_down", error)
            if self.remote.context_tokens <= self._context_tokens:
                raise
            return _Move("context", error)
        finally:
            await ended(work)
            del work  # the error that it may have ended with holds this frame (aio.py)

    async def _remotely(self, case: Case, move: _Move) -> Completion:
        publish(Moved(move.reason))
        try:
            return await self.remote.complete(case)
        except (UnparseableVerdict, EngineFailure):
            raise
        except GuardError as error:
            if move.reason == "slow" and isinstance(error, EngineUnavailable):
                # The breaker lets another case try and sent nothing of this one: the engine gets the remaining time.
                return await self.local.complete(case)
            # The local engine decides when to try again.
            raise fresh(move.error) from error


def _full() -> Overloaded:
    return Overloaded("The server is at its limit of concurrent verdicts.", retry_after=1)


def parts(backend: Backend) -> tuple[Backend, ...]:
    """The backends that judge in `backend`: itself, or both of a fallback."""
    return (backend.local, backend.remote) if isinstance(backend, FallbackBackend) else (backend,)
