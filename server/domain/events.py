"""Events: what happens in the server, published once. Metrics, logs and spans listen.

The code that publishes an event does not know the listeners. Events hold no content of requests, only identifiers,
counts, seconds and checked verdicts.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from server.domain.conversation import Role
from server.domain.verdict import Verdict

log = logging.getLogger(__name__)


# --- Requests --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answered:
    """An HTTP request ended. `status` is 499 if the client left before the response.

    `route` is one of this server's paths, or "unknown". `method` is "other" unless it is one of HTTP's usual ones.
    `caller` is the id of the API key, None without one. `traceparent` names the caller's span, None if there is none.
    """

    request_id: str
    caller: str | None
    route: str
    method: str
    status: int
    seconds: float
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorAnswered:
    """A caller got an error. `kind` is its `code`, or its `type` if it has no code."""

    kind: str
    status: int


@dataclass(frozen=True, slots=True)
class ConnectionRefused:
    """A connection ended before its request was read. `reason` is an error's code, or `idle` or `slow` if it made room
    for others."""

    reason: str


# --- Verdicts --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """A caller's question has a verdict, computed or not (`verdict.cache`).

    `judged` is the speaker whose message was judged. `seconds` is the time from admission to the verdict, 0 if it was
    not computed. `request_id` is the batch's id for a line of a batch, `caller` is None without an API key.
    """

    verdict: Verdict
    judged: Role
    seconds: float
    request_id: str | None = None
    caller: str | None = None


@dataclass(frozen=True, slots=True)
class FinishedPromptJudged:
    """A caller sent a finished Guard prompt. `trusted`: it was judged by its own policy, not by the server's."""

    trusted: bool


# --- Batches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchChanged:
    """A batch has a new status."""

    batch_id: str
    status: str


@dataclass(frozen=True, slots=True)
class LinesDone:
    """Lines of a batch have results, recorded in one transaction: so many of each kind."""

    batch_id: str
    completed: int = 0
    failed: int = 0
    expired: int = 0


# --- The remote backend ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moved:
    """A case moved from the local engine to the remote one. `reason` is queue_full, slow, engine_down or context."""

    reason: str


@dataclass(frozen=True, slots=True)
class RemoteCalled:
    """A call of the remote backend ended. `outcome` is answered, unreachable, garbage, a status or a kind of error."""

    outcome: str


@dataclass(frozen=True, slots=True)
class RemoteCharged:
    """The remote backend charged for a call, in US dollars."""

    backend: str
    dollars: float


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """The circuit breaker of the remote backend is now `closed`, `open` or `half_open`."""

    state: str


# --- The audit trail -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditWritten:
    """Records are in the audit trail, written together."""

    records: int


@dataclass(frozen=True, slots=True)
class AuditFailed:
    """Records could not be written. `reason` is full, disk or late; with `refused`, their verdicts did not leave."""

    records: int
    reason: str
    refused: bool


# --- Publishing ------------------------------------------------------------------------------------------

Event = TypeVar("Event")
Listener = Callable[[Event], None]

_listeners: dict[type, tuple[Listener[Any], ...]] = {}


def listen(kind: type[Event], listener: Listener[Event]) -> None:
    """Call `listener` with every event of exactly this class. A second registration changes nothing."""
    listeners = _listeners.get(kind, ())
    if listener not in listeners:
        _listeners[kind] = (*listeners, listener)


def forget(kind: type[Event], listener: Listener[Event]) -> None:
    """Call `listener` no more."""
    _listeners[kind] = tuple(other for other in _listeners.get(kind, ()) if other != listener)


def on(kind: type[Event]) -> Callable[[Listener[Event]], Listener[Event]]:
    """The same as a decorator."""

    def register(listener: Listener[Event]) -> Listener[Event]:
        listen(kind, listener)
        return listener

    return register


def publish(event: object) -> None:
    """Call all listeners in order of registration. Raises nothing: a listener must not make a request fail.

    Listeners are called at once and in the same thread, so they must not block.
    """
    for listener in _listeners.get(type(event), ()):
        try:
            listener(event)
        except Exception as error:
            # The error's message may hold content; its type and place do not.
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("a listener to %s failed: %s at\n%s", type(event).__name__, type(error).__name__, place)
