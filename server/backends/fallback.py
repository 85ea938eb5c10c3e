"""Two backends as one: the local engine first, and a remote one for what only the local one could not do.

A case moves when another backend could cure its failure: the engine is down or too busy, or the text is too long for
its memory. A caller's mistake does not move, nor does an answer that is no verdict: whoever asks around until somebody
says "safe" has no gate.
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
"""Seconds that the local engine gets to answer a probe while the remote stands behind it."""


@dataclass(frozen=True, slots=True)
class _Move:
    """Why a case moves, and the error that stands if the remote fails too."""

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
        """A remote that cannot help now may do so later; without the local engine nothing starts."""
        try:
            await self.remote.start()
        except GuardError as error:
            log.error("THE FALLBACK CANNOT HELP NOW: %s", error.message)
        await self.local.start()

    async def close(self) -> None:
        try:
            await self.remote.close()
        finally:
            await self.local.close()

    @property
    def alive(self) -> bool:
        """While the remote carries, a restart would take away what works. It is what helps when neither answers."""
        return self.local.alive or self.remote.available

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
        """Tell the operator, once, that the remote works for the local engine, and when it does so no more."""
        if carried and not self._carried:
            state = "dead: only a restart brings it back" if not self.local.alive else "not answering"
            log.error("THE LOCAL ENGINE IS %s. The remote backend judges whatever may leave this machine.", state)
        elif self._carried and not carried:
            log.warning("the local engine answers again")
        self._carried = carried

    # --- One case ----------------------------------------------------------------------------------------

    async def complete(self, case: Case) -> Completion:
        may_move = not case.handling.background and self.remote.refusal(case) is None
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
        """What the local engine says, or why `case` goes on to the remote, with all work on it here ended."""
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
            del work  # The error that it may have ended with holds this frame (aio.py).

    async def _remotely(self, case: Case, move: _Move) -> Completion:
        publish(Moved(move.reason))
        try:
            return await self.remote.complete(case)
        except (UnparseableVerdict, EngineFailure):
            raise
        except GuardError as error:
            if move.reason == "slow" and isinstance(error, EngineUnavailable):
                # The breaker let another one try and sent nothing of this case: the engine has the time that is left.
                return await self.local.complete(case)
            # Whether to come again is for the local engine to say.
            raise fresh(move.error) from error


def _full() -> Overloaded:
    return Overloaded("The server is at its limit of concurrent verdicts.", retry_after=1)


def parts(backend: Backend) -> tuple[Backend, ...]:
    """The backends that judge behind `backend`: itself, or both of a fallback."""
    return (backend.local, backend.remote) if isinstance(backend, FallbackBackend) else (backend,)
