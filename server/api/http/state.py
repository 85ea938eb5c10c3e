"""What the application holds for as long as it lives, and what a request holds until it is answered."""

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
from server.api.http.ids import new_id
from server.api.http.limits import Limits
from server.api.service import Service
from server.checkpoints.profile import Profile
from server.domain.caller import Caller
from server.domain.verdict import Verdict
from server.moderation.judges import Judge
from server.moderation.readiness import Readiness
from server.settings import Settings
from server.store.database import Database

Kind = TypeVar("Kind")


class Kept:
    """What dialects remember between requests: one object of each class, made when it is first asked for."""

    def __init__(self) -> None:
        self._objects: dict[type, Any] = {}

    def __call__(self, kind: type[Kind]) -> Kind:
        if kind not in self._objects:
            self._objects[kind] = kind()
        found: Kind = self._objects[kind]
        return found


@dataclass(frozen=True, slots=True)
class Served:
    """All that routes and the layers around them work with.

    `batches_changed` wakes the runner of batches. `charge` counts what the local backend cost since it was last called.
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
"""The status that is counted where the client is gone before there is one."""

CONNECTION_LOST = "connection_lost"
"""Under which ASGI's own state of a request holds a future that is done once its connection is lost (connection.py).

ASGI itself has only a message to wait for, which takes a task beside each request.
"""

_KEY = "guard.request"
"""Under which the scope holds the state: names with a dot are no words of ASGI's own."""


@dataclass(slots=True)
class RequestState:
    """One request, as it is known so far. `connection_lost` is done once the client is gone, None where nobody tells.

    `verdicts` are those that the reply tells of. `route` is the path of a direct route, None on every other one.
    """

    connection_lost: asyncio.Future[None] | None = None
    request_id: str = field(default_factory=lambda: new_id("req_"))
    started: float = field(default_factory=time.perf_counter)
    route: str | None = None
    caller: Caller | None = None
    verdicts: Sequence[Verdict] = ()
    body_bytes: int = 0
    status: int = UNANSWERED

    @property
    def seconds(self) -> float:
        """Since the request came in."""
        return time.perf_counter() - self.started

    @classmethod
    def begin(cls, scope: Scope) -> "RequestState":
        """The state of the request that `scope` is of, where its routes find it."""
        state = scope[_KEY] = cls(scope.get("state", {}).get(CONNECTION_LOST))
        return state


def state_of(request: Request) -> RequestState:
    found: RequestState = request.scope[_KEY]
    return found


def caller_of(request: Request) -> Caller:
    """Who asks. Nothing is routed before that is known."""
    caller = state_of(request).caller
    assert caller is not None
    return caller
