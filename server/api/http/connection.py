"""Uvicorn's connections, made cheaper in two ways.

A reply is sent in one piece. Uvicorn and uvloop would send the headers and then the body: two system calls, two
segments, and a client that wakes up twice. A request also learns from a future that its client is gone: ASGI only has a
message to wait for, which takes one more task per request.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.api.http.state import CONNECTION_LOST


class Connection(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 over a transport that joins all writes of one turn of the event loop.

    The `state` of each request holds a future under CONNECTION_LOST, which is done once the connection is lost.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport, self.loop)))
        self._lost = self.loop.create_future()
        self.app_state = {**self.app_state, CONNECTION_LOST: self._lost}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost.set_result(None)


class JoiningTransport:
    """`transport`, except that it holds a write until this turn of `loop` ends, and sends it together with the next."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            joined, self._held = self._held + data, b""
            self._transport.write(joined)
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)
