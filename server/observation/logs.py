"""Log lines for operators that tell of the same events as the metrics."""

import logging
import time

from server.domain.events import Answered, ConnectionRefused, on
from server.observation.lines import said

log = logging.getLogger(__name__)

REFUSED = {401: "no valid key", 403: "no right", 429: "a limit"}
"""Statuses of refused requests, and why they were refused."""


class Sparse:
    """Says whether a line of a kind may be written, at most one in `every_s`, and how many before it were left out.

    A flood of requests must not become a flood of lines.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last: dict[int, float] = {}
        self._left_out: dict[int, int] = {}

    def left_out(self, kind: int = 0) -> int | None:
        """The number of lines left out since the last one, or None if this one must be left out too."""
        now = time.monotonic()
        if now - self._last.get(kind, -self._every_s) < self._every_s:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return None
        self._last[kind] = now
        return self._left_out.pop(kind, 0)


_refusals = Sparse(every_s=1.0)
_crowds = Sparse(every_s=60.0)


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
            extra=said(event="request_failed", request_id=event.request_id, key_id=event.caller, status=event.status),
        )


@on(ConnectionRefused)
def warn_of_too_many_connections(event: ConnectionRefused) -> None:
    if event.reason in ("idle", "slow", "too_many_connections") and _crowds.left_out() is not None:
        log.warning(
            "there are too many connections: those that wait are closed to make room. The limit on open files"
            " (ulimit -n) decides how many there may be"
        )


@on(Answered)
def tell_of_refused_request(event: Answered) -> None:
    why = REFUSED.get(event.status)
    if why is None or (left_out := _refusals.left_out(event.status)) is None:
        return
    log.info(
        "%s: %s %s refused with %d (%s)%s",
        event.request_id,
        event.method,
        event.route,
        event.status,
        why,
        f"; {left_out} more since the last such line" if left_out else "",
        extra=said(
            event="request_refused",
            request_id=event.request_id,
            key_id=event.caller,
            status=event.status,
            left_out=left_out,
        ),
    )
