"""Routes that judge, as the application and batches call them.

A dialect gives a model of its bodies, and an `Answer` that makes a `Reply` from such a body. Routes and batches both
use it, so a line of a batch gets the same reply as a request.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel

from server.api.http.body import LARGE, read_body
from server.api.http.direct import JSONReply
from server.api.http.disconnect import until_disconnect
from server.api.http.state import caller_of, served, state_of
from server.api.service import Document, Reply, Service
from server.domain.caller import Handling, Meter

NEVER_REMOTE_HEADER = b"x-guard-never-remote"

Body = TypeVar("Body", bound=BaseModel)
Answer = Callable[[Service, Body, Handling], Coroutine[Any, Any, Reply[Document]]]


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Body, Document]):
    """A route that judges: its path, the model of its bodies, and the function that answers them."""

    path: str
    body: type[Body]
    answer: Answer[Body, Document]

    async def reply(self, request: Request) -> JSONReply:
        body = await read_body(request, self.body)
        return JSONReply((await answered(request, body, self.answer)).document)


async def answered(request: Request, body: Body, answer: Answer[Body, Document]) -> Reply[Document]:
    """Answer `body`, unless its client hangs up.

    The verdicts go into the request's state: the middleware needs them for its headers and limits.
    """
    reply = await until_disconnect(request, answer(served(request).service, body, handling_of(request)))
    state_of(request).verdicts = reply.verdicts
    return reply


def handling_of(request: Request) -> Handling:
    caller, state, limits = caller_of(request), state_of(request), served(request).limits
    meter = state.meter = Meter(lambda tokens: limits.debit(caller, tokens))
    # Any value except a clear no keeps the request on this machine.
    said = [value for name, value in request.scope["headers"] if name == NEVER_REMOTE_HEADER]
    stays = any(value.strip().lower() not in (b"", b"0", b"false", b"no") for value in said)
    return Handling(
        tenant=caller.id,
        never_remote=caller.never_remote or stays,
        finished_prompts=caller.finished_prompts,
        request_id=state.request_id,
        endpoint=state.route or getattr(request.scope.get("route"), "path", None),
        trace_id=state.trace_id,
        large=state.body_bytes > LARGE,
        meter=meter,
    )
