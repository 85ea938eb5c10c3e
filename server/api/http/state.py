"""The typed state of the application and of one request."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.types import Scope

from server.api.http.access import Access
from server.api.http.budget import BodyBudget
from server.api.http.errors import ErrorShapes
from server.api.http.ids import new_id, traceparent_of
from server.api.http.limits import Limits
from server.api.service import Service
from server.checkpoints.profile import Profile
from server.domain.caller import Caller, Meter
from server.domain.verdict import Verdict
from server.moderation.judges import Judge
from server.moderation.readiness import Readiness
from server.settings import Settings
from server.store.database import Database

Kind = TypeVar("Kind")


class Kept:
    """State that dialects keep between requests: one object per class, made when it is first asked for.

    So a dialect needs no field in `Served`.
    """

    def __init__(self) -> None:
        self._objects: dict[type, Any] = {}

    def __call__(self, kind: type[Kind]) -> Kind:
        if kind not in self._objects:
            self._objects[kind] = kind()
        found: Kind = self._objects[kind]
        return found


@dataclass(frozen=True, slots=True)
class Served:
    """Everything that routes and middleware need from the application.

    `batches_changed` wakes the batch runner. `charge` adds what the local backend cost since the last call.
    """

    settings: Settings
    profile: Profile
    service: Service
    readiness: Readiness
    judges: Sequence[Judge]
    access: Access
    limits: Limits
    body_budget: BodyBudget
    errors: ErrorShapes
    database: Database
    charge: Callable[[], None]
    batches_changed: asyncio.Event = field(default_factory=asyncio.Event)
    kept: Kept = field(default_factory=Kept)


def served_by(app: FastAPI) -> Served:
    found: Served = app.state.served
    return found


def served(request: Request) -> Served:
    return served_by(request.app)


UNANSWERED = 499
"""The status that is counted if the client leaves before the response."""

CONNECTION_LOST = "connection_lost"
"""The key in ASGI's `state` of a future that is done once the connection is lost (connection.py).

ASGI itself only has a message to wait for, which would take one more task per request.
"""

_KEY = "guard.request"
"""The key of the RequestState in the scope. A key with a dot cannot clash with one of ASGI's."""


@dataclass(slots=True)
class RequestState:
    """The state of one request so far.

    `connection_lost` is done once the client is gone. It is None behind a server that does not report this. `route` is
    the path of a direct route, None for all others. The reply is made from `verdicts`, and `meter` counts the tokens of
    those that it did not get to as well. `body_counted` are the bytes of the body that count in the budget. `client`
    and `port` are the address of the client, `traceparent` names the caller's span.
    """

    connection_lost: asyncio.Future[None] | None = None
    request_id: str = field(default_factory=lambda: new_id("req_"))
    started: float = field(default_factory=time.perf_counter)
    route: str | None = None
    caller: Caller | None = None
    verdicts: Sequence[Verdict] = ()
    meter: Meter | None = None
    body_bytes: int = 0
    body_counted: int = 0
    status: int = UNANSWERED
    client: str = ""
    port: int = 0
    traceparent: str | None = None

    @property
    def trace_id(self) -> str | None:
        return None if self.traceparent is None else self.traceparent.split("-")[1]

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started

    @property
    def holder(self) -> str:
        """Who holds what this request takes of shared room: the key, or the client's address without keys."""
        return self.caller.id if self.caller is not None and self.caller.id is not None else self.client

    @property
    def connection(self) -> str | None:
        """Tells the connections of one address apart, which without keys may be those of many callers."""
        return None if self.caller is not None and self.caller.id is not None else str(self.port)

    @classmethod
    def begin(cls, scope: Scope) -> "RequestState":
        """Make the state of a request and put it into its scope."""
        lost = scope.get("state", {}).get(CONNECTION_LOST)
        client, port = scope.get("client") or ("", 0)
        state = scope[_KEY] = cls(lost, client=client, port=port, traceparent=traceparent_of(scope["headers"]))
        return state


def state_of(request: Request) -> RequestState:
    found: RequestState = request.scope[_KEY]
    return found


def caller_of(request: Request) -> Caller:
    """The caller who sent the request. The middleware sets it before it calls any route."""
    caller = state_of(request).caller
    assert caller is not None
    return caller
