"""The circuit breaker: a remote that fails repeatedly gets no requests for a while, and then one at a time.

The breakers on the package index either count by the wall clock or let every waiting request probe at once.
"""

import logging
import math
import time
from enum import StrEnum

from server.domain.errors import EngineUnavailable
from server.domain.events import BreakerChanged, publish

log = logging.getLogger(__name__)

FAILURES = 5
"""Failures in a row that open it."""

REST_S = 30.0
"""Seconds that it stays open before one request may try again."""


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Counts the failures of calls. Call `enter` before a call, and `succeeded`, `failed` or `dropped` after it.

    A ticket binds the end of a call to the state in which it began: if the state changed meanwhile, the end does not
    count.
    """

    def __init__(self, failures: int = FAILURES, rest_s: float = REST_S) -> None:
        self._limit = failures
        self._rest_s = rest_s
        self._failures = 0
        self._ticket = 0
        self._rested_at = -math.inf
        self._probing = False
        self.state = State.CLOSED
        publish(BreakerChanged(self.state))

    @property
    def available(self) -> bool:
        """Whether `enter` would let a call through now."""
        if self.state is State.OPEN:
            return time.monotonic() >= self._rested_at
        return not self._probing

    def enter(self) -> int:
        """The ticket of a new call. Raises EngineUnavailable while the breaker is open."""
        if not self.available:
            wait = max(1, math.ceil(self._rested_at - time.monotonic()))
            raise EngineUnavailable(
                "The remote backend failed repeatedly, and no requests go to it for now.", retry_after=wait
            )
        if self.state is State.OPEN:
            self._become(State.HALF_OPEN)
        self._probing = self.state is State.HALF_OPEN
        return self._ticket

    def succeeded(self, ticket: int) -> None:
        if ticket != self._ticket:
            return
        self._failures = 0
        if self.state is State.HALF_OPEN:
            self._become(State.CLOSED)

    def failed(self, ticket: int) -> None:
        if ticket != self._ticket:
            return
        self._failures += 1
        if self.state is State.HALF_OPEN or self._failures >= self._limit:
            self._rested_at = time.monotonic() + self._rest_s
            self._become(State.OPEN)

    def dropped(self, ticket: int) -> None:
        """The call ended without any information about the remote: its caller left."""
        if ticket == self._ticket:
            self._probing = False

    def _become(self, state: State) -> None:
        self.state = state
        self._ticket += 1
        self._failures = 0
        self._probing = False
        publish(BreakerChanged(state))
        if state is not State.HALF_OPEN:
            log.warning("the remote backend %s", "gets no requests for now" if state is State.OPEN else "answers again")
