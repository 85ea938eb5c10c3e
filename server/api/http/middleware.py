"""What surrounds every request: its id, its time, its caller and limits, its metrics, and a last net for defects."""

import logging
import time
import traceback
from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http.access import Access, judges
from server.api.http.errors import error_response
from server.api.http.ids import new_id
from server.api.http.limits import Limits
from server.domain.caller import Caller
from server.domain.errors import GuardError, InternalError
from server.domain.events import Answered, publish
from server.domain.verdict import Verdict

log = logging.getLogger(__name__)

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Those that events name; a caller may make up others."""


class RequestContext:
    """Pure ASGI, so that a handler still hears of its client's disconnect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = new_id("req_")
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        served, path = scope["app"].state, scope["path"]
        access: Access = served.access
        limits: Limits = served.limits
        direct: ASGIApp | None = served.direct.get(path) if scope["method"] == "POST" else None
        status = 499  # what it stays when the client is gone before an answer

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                verdicts, caller = state.get("verdicts", ()), state.get("caller")
                if caller is not None:
                    limits.debit(caller, verdicts)
                milliseconds = (time.perf_counter() - started) * 1000
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", b"%d" % milliseconds),
                    *_judged_by(verdicts),
                    *(limits.headers(caller) if caller and (direct or judges(path)) else ()),
                ]
            await send(message)

        try:
            # Before a byte of the body is read.
            state["caller"] = await access.caller_of(path, scope["headers"])
            limits.take_request(state["caller"])
            await (direct or self._app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # nobody is left to answer; the work behind it has been cancelled
        except GuardError as refusal:  # of the two above and of direct routes: those of others are answered further in
            await error_response(refusal, path)(scope, receive, send_with_headers)
        except Exception as error:
            # The last net: whatever it is, the caller gets a 500.
            # The exception's message may hold what the caller wrote; its type and place do not.
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s: defect %s at\n%s", request_id, type(error).__name__, place)
            if status != 499:
                raise InternalError("The answer broke off.") from None
            response = error_response(InternalError("The server failed on this request."), path)
            await response(scope, receive, send_with_headers)
        finally:
            served.body_budget.give_back(state.get("body_bytes", 0))
            route = path if direct else getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in METHODS else "other"
            publish(Answered(request_id, _id_of(state.get("caller")), route, method, status, seconds))


def _id_of(caller: Caller | None) -> str | None:
    """None for a caller who has no key, and before it is known who calls."""
    return caller.id if caller is not None else None


def _judged_by(verdicts: Sequence[Verdict]) -> list[tuple[bytes, bytes]]:
    """The header that names the backend, more than one where a list was judged by several."""
    backends = dict.fromkeys(verdict.completion.backend for verdict in verdicts)
    return [(b"x-guard-backend", ", ".join(backends).encode())] if backends else []
