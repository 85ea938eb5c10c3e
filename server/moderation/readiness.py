"""Whether this server can answer now, and whether a restart would help. Only a recent verdict proves that it can.

A stopped engine still passes vLLM's own health check, so an idle server asks its engine for a verdict.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence

from server.domain.errors import GuardError
from server.moderation.moderator import Moderator

log = logging.getLogger(__name__)

TICK_S = 1.0

Condition = Callable[[], str | None]
"""Something else that the server needs: why it is missing, or None."""


class Readiness:
    """Depends on the age of the moderator's last verdict. `watch` asks for verdicts while the server is idle."""

    def __init__(
        self,
        moderator: Moderator,
        *,
        probe_interval_s: float,
        max_age_s: float,
        hung_after_s: float = math.inf,
        conditions: Sequence[Condition] = (),
    ) -> None:
        """A silence of `hung_after_s` seconds is a hang, infinite where a restart could not end the silence."""
        self._moderator = moderator
        self._probe_interval_s = probe_interval_s
        self._max_age_s = max_age_s
        self._silence = _Silence(hung_after_s)
        self._conditions = conditions

    @property
    def alive(self) -> bool:
        """False if only a restart can help."""
        return self._moderator.backend.alive and not self._silence.too_long

    def reason_not_ready(self) -> str | None:
        """None if the server is ready."""
        if self._moderator.admission.draining:
            return "shutting down"
        if not self._moderator.backend.alive:
            return "the engine is dead"
        if self._silence.too_long:
            return "the engine hangs"
        if self._age() > self._max_age_s:
            return "no recent verdict from the engine"
        return next((reason for condition in self._conditions if (reason := condition()) is not None), None)

    async def watch(self) -> None:
        """Probe whenever there was no verdict for an interval, and time the silence, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._probe_when_idle())
            group.create_task(self._listen())

    async def _probe_when_idle(self) -> None:
        while True:
            await asyncio.sleep(max(0.05, self._probe_interval_s - self._age()))
            if self._age() >= self._probe_interval_s:
                # After a failed probe the last verdict grows old, and /ready reports that.
                try:
                    async with asyncio.timeout(self._max_age_s):
                        await self._moderator.probe()
                except (GuardError, TimeoutError):
                    pass
                except Exception as error:
                    # A defect must not end the watch: an idle server would never be ready again.
                    log.error("the readiness probe failed: defect %s", type(error).__name__)
                if self._age() >= self._probe_interval_s:
                    await asyncio.sleep(self._probe_interval_s)

    async def _listen(self) -> None:
        tick = min(TICK_S, self._silence.limit_s / 10)
        last = time.monotonic()
        while True:
            await asyncio.sleep(tick)
            now = time.monotonic()
            # A server that was stopped itself, with its container, has not listened all that time.
            self._silence.grow(self._sign_of_life(), min(now - last, 2 * tick))
            last = now

    def _sign_of_life(self) -> float:
        """time.monotonic() of the last verdict, or of the engine's last step on a caller's prompt.

        Long prompts may each pass their deadline. Whoever sends them must not get the server restarted.
        """
        moderator = self._moderator
        at_work = moderator.backend.heard_at if moderator.admission.admitted else -math.inf
        return max(moderator.last_verdict_at, at_work)

    def _age(self) -> float:
        return time.monotonic() - self._moderator.last_verdict_at


class _Silence:
    """The seconds without a sign of life, as far as somebody listened."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._seconds = 0.0
        self._last_sign = -math.inf

    @property
    def too_long(self) -> bool:
        return self._seconds >= self.limit_s

    def grow(self, last_sign: float, seconds: float) -> None:
        was_too_long = self.too_long
        self._seconds = 0.0 if last_sign > self._last_sign else self._seconds + seconds
        self._last_sign = last_sign
        if self.too_long and not was_too_long:
            log.error("THE ENGINE HANGS: no verdict for %.0f s. /health answers 503 from now on.", self.limit_s)
        elif was_too_long and not self.too_long:
            log.warning("the engine answers again, and so does /health")
