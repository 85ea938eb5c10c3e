"""Around every request: its id, its time, its caller and limits, its events, and a last net for defects."""

import asyncio
import logging
import traceback
from collections.abc import Mapping, Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http.state import UNANSWERED, RequestState, Served
from server.domain.errors import GuardError, InternalError, ShuttingDown
from server.domain.events import Answered, publish
from server.domain.verdict import Verdict

log = logging.getLogger(__name__)

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""The methods that events name. A caller may make up others."""

POLICY_VIOLATION = 1008
"""WebSocket's close code for a connection that the server refuses on principle."""


class RequestContext:
    """Pure ASGI, so that a handler still learns when its client disconnects. Only HTTP requests get past it.

    `direct` maps a path to the application that handles POST requests to it without the router.
    """

    def __init__(self, app: ASGIApp, served: Served, direct: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._served = served
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                await self._app(scope, receive, send)
            case "websocket":  # before it is accepted, so the client gets a 403
                await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "Not served here."})
            case other:
                raise NotImplementedError(f"nothing here serves {other}")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = RequestState.begin(scope)
        direct = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
        if direct is not None:
            state.route = scope["path"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(message, scope, state)
            await send(message)

        try:
            await self._admit(scope, state)
            await (direct or self._app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # nobody is left to answer, and the work has been cancelled
        except GuardError as refusal:  # by `_admit` or a direct route; the router answers those of its own routes
            await self._served.errors.response(refusal, scope["path"])(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if not self._served.service.draining:
                raise
            await self._cut(scope, state, receive, send_with_headers)
        except Exception as error:
            self._report(error, state)
            response = self._served.errors.response(InternalError("The server failed on this request."), scope["path"])
            await response(scope, receive, send_with_headers)
        finally:
            self._account(scope, state)

    async def _cut(self, scope: Scope, state: RequestState, receive: Receive, send: Send) -> None:
        """End a request that did not end while the server drained (commands/serve.py)."""
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        if state.status == UNANSWERED:
            refusal = ShuttingDown("The server was stopped before this request ended. Send it again.", retry_after=1)
            await self._served.errors.response(refusal, scope["path"])(scope, receive, send)

    async def _admit(self, scope: Scope, state: RequestState) -> None:
        """Check the key and its limits before any of the body is read. Raises GuardError."""
        state.caller = await self._served.access.caller_of(scope["path"], scope["headers"])
        self._served.limits.take_request(state.caller)

    def _add_headers(self, message: Message, scope: Scope, state: RequestState) -> None:
        """Add this server's headers to the start of a response, and debit what is not yet debited of its tokens."""
        state.status = message["status"]
        limits, caller = self._served.limits, state.caller
        if caller is not None:
            limits.debit_answer(caller, state.verdicts, state.meter.tokens if state.meter is not None else 0)
        message["headers"] = [
            *message.get("headers", []),
            (b"x-request-id", state.request_id.encode()),
            (b"openai-processing-ms", b"%d" % (state.seconds * 1000)),
            *_judged_by(state.verdicts),
            *(limits.headers(caller) if caller and self._asks_for_verdicts(scope, state) else ()),
        ]

    def _asks_for_verdicts(self, scope: Scope, state: RequestState) -> bool:
        return state.route is not None or self._served.access.judges(scope["path"])

    @staticmethod
    def _report(error: Exception, state: RequestState) -> None:
        """Log a defect. Raises InternalError if the response has already begun."""
        # The exception's message may hold content of the request; its type and place do not.
        place = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s: defect %s at\n%s", state.request_id, type(error).__name__, place)
        if state.status != UNANSWERED:
            raise InternalError("The server failed while it sent the response.") from None

    def _account(self, scope: Scope, state: RequestState) -> None:
        """Give back the bytes of the body, and publish the end of the request."""
        self._served.body_budget.give_back(state.holder, state.body_counted, state.connection)
        route: str = state.route or getattr(scope.get("route"), "path", None) or "unknown"
        method = scope["method"] if scope["method"] in METHODS else "other"
        # None without API keys, and for a request that was refused before its caller was known.
        caller = state.caller.id if state.caller is not None else None
        publish(Answered(state.request_id, caller, route, method, state.status, state.seconds, state.traceparent))


def _judged_by(verdicts: Sequence[Verdict]) -> list[tuple[bytes, bytes]]:
    """The header that names the backend, or all of them if several backends judged a list."""
    backends = dict.fromkeys(verdict.completion.backend for verdict in verdicts)
    return [(b"x-guard-backend", ", ".join(backends).encode())] if backends else []
