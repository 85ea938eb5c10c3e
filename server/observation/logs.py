"""Log lines for operators that tell of the same events as the metrics."""

import logging
import math
import time

from server.domain.events import Answered, ConnectionRefused, on

log = logging.getLogger(__name__)

REMINDER_S = 60.0
"""Seconds between two lines about too many connections: a flood of those must not become a flood of these."""


@on(Answered)
def warn_of_failed_request(event: Answered) -> None:
    if event.status >= 500 and event.method == "POST":  # /ready and /health answer 503 by design, at every poll
        log.warning(
            "%s: %s %s answered %d after %.3f s",
            event.request_id,
            event.method,
            event.route,
            event.status,
            event.seconds,
        )


class ConnectionsWarning:
    """Says that there are too many connections, once in REMINDER_S."""

    def __init__(self) -> None:
        self._said = -math.inf

    def __call__(self, event: ConnectionRefused) -> None:
        if event.reason not in ("idle", "slow", "too_many_connections"):
            return
        now = time.monotonic()
        if now - self._said >= REMINDER_S:
            self._said = now
            log.warning(
                "there are too many connections: those that wait are closed to make room. The limit on open files"
                " (ulimit -n) decides how many there may be"
            )


on(ConnectionRefused)(ConnectionsWarning())
