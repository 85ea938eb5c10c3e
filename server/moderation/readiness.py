"""Whether this server can answer now. Only a recent verdict proves it.

A stopped engine still passes vLLM's own health check, so an idle server asks its engine for a verdict.
"""

import asyncio
import logging
import time

from server.domain.errors import GuardError
from server.moderation.moderator import Moderator

log = logging.getLogger(__name__)


class Readiness:
    """Depends on the age of the moderator's last verdict. `watch` asks for verdicts while the server is idle."""

    def __init__(self, moderator: Moderator, *, probe_interval_s: float, max_age_s: float) -> None:
        self._moderator = moderator
        self._probe_interval_s = probe_interval_s
        self._max_age_s = max_age_s

    @property
    def alive(self) -> bool:
        """False if only a restart can help."""
        return self._moderator.backend.alive

    def reason_not_ready(self) -> str | None:
        """None if the server is ready."""
        if self._moderator.admission.draining:
            return "shutting down"
        if not self.alive:
            return "the engine is dead"
        if self._age() > self._max_age_s:
            return "no recent verdict from the engine"
        return None

    async def watch(self) -> None:
        """Probe whenever there was no verdict for an interval, until cancelled."""
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

    def _age(self) -> float:
        return time.monotonic() - self._moderator.last_verdict_at
