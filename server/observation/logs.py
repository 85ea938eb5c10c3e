"""Log lines for operators that tell of the same events as the metrics."""

import logging

from server.domain.events import Answered, on

log = logging.getLogger(__name__)


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
