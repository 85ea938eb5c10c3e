"""HEAD wherever GET is, replies that HTTP/1.0 can read, and headers that keep other pages from framing ours."""

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
        b" img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class HeadAsGet:
    """Answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not message.get("more_body", False):
                await send({"type": "http.response.body"})

        await self._app({**scope, "method": "GET"}, receive, send_head)


class Replies:
    """Gives HTTP/1.0 a stream in one piece, since it knows no chunks, and pages their headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["http_version"] == "1.0":
            await self._app(scope, receive, _InOnePiece(_with_page_headers(send)))
        else:
            await self._app(scope, receive, _with_page_headers(send))


def _with_page_headers(send: Send) -> Send:
    async def send_page(message: Message) -> None:
        if message["type"] == "http.response.start" and _is_page(message["headers"]):
            message["headers"] = [*message["headers"], *PAGE_HEADERS]
        await send(message)

    return send_page


def _is_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)


class _InOnePiece:
    """Holds the start of a reply of unknown length until all of it is there."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._pieces: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not any(name == b"content-length" for name, _ in message["headers"]):
                self._start = message
                return
        elif self._start is not None:
            self._pieces.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = b"".join(self._pieces)
            length = (b"content-length", b"%d" % len(body))
            await self._send({**self._start, "headers": [*self._start["headers"], length]})
            message = {"type": "http.response.body", "body": body}
        await self._send(message)


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """All methods of the path, for the header Allow."""
    methods: set[str] = set()
    for route in routes:
        match, _ = route.matches(scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))
