"""Uvicorn's connections, bounded before anybody has shown a key, and made cheaper in two ways.

Uvicorn's parser takes heads and chunk extensions of any size, keeps silent connections for ever, and loses the body of
a request that offers an upgrade. So it gets a head only once the head is whole and within bounds (head.py), and every
wait for the client has an end.

libuv hands over as much as has arrived, up to 8 MB, before any other connection has its turn. So a connection takes one
request at a time and a bounded number of chunks, and reads nothing more until it has taken what it holds.

A reply is sent in one piece. Uvicorn and uvloop would send the headers and then the body: two system calls, two
segments, and a client that wakes up twice. A request also learns from a future that its client is gone: ASGI only has a
message to wait for, which takes one more task per request.
"""

import asyncio
import resource
import time
from typing import Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.api.http.chunks import Chunks
from server.api.http.errors import error_body
from server.api.http.head import BadHead, body_of, check_target, checked, end_of
from server.api.http.state import CONNECTION_LOST
from server.domain.errors import GuardError, InvalidHttp, RequestTimeout, TooManyConnections
from server.domain.events import ConnectionRefused, publish

HEAD_S = 20.0
"""From the first wait for a request to the end of its head. Also for the rest of a body that nobody reads any more."""

STALLED_S = 60.0
"""For a client that does not read its reply."""

LINGER_S = 2.0
"""After a refusal, what still comes is thrown away for this time. A reset could overtake the refusal otherwise."""

PROBES_S = (0.3, 0.1, 5.0)
"""Waits before the probes of a client that ended its half of the connection. The last one repeats."""

MOST_CONNECTIONS = 10_000
RESERVED_FILES = 96
"""Descriptors that are left for the engine, the database and uploads."""

MAKING_ROOM = 0.1
"""The share of all connections that is closed when there are too many: the idle ones that have waited longest."""

PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"


def most_connections() -> int:
    """As many as the limit on open files leaves room for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MOST_CONNECTIONS, files - RESERVED_FILES))


class Connection(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 over a transport that joins all writes of one turn of the event loop.

    The `state` of each request holds a future under CONNECTION_LOST, which is done once the connection is lost.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._joining = JoiningTransport(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, self._joining))
        self._lost = self.loop.create_future()
        self.app_state = {**self.app_state, CONNECTION_LOST: self._lost}
        self._idle_since = time.monotonic()
        self._pending = b""
        """What has arrived and must wait: for the reply to the request before it, or for the next turn of the loop."""
        self._held = b""
        """A head that is not complete yet."""
        self._body_left = 0
        """Bytes of the body that are still to come, if it has a length."""
        self._chunks: Chunks | None = None
        self._complete = True
        """Whether the last request has come in full, so that the next byte begins a head."""
        self._keeps = True
        """Whether the connection may stay after the request, if its body comes."""
        self._refused = False
        self._stalled: asyncio.TimerHandle | None = None
        self._waiting: asyncio.TimerHandle | None = self.loop.call_later(HEAD_S, self._waited)
        if len(self.connections) > most_connections():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._resumed()
        super().connection_lost(exc)
        if not self._lost.done():
            self._lost.set_result(None)

    # --- What comes in -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._pending += data
        self._take()

    def _take(self) -> None:
        """Take what has arrived, as far as it may be taken in this turn of the loop."""
        data, self._pending = self._pending, b""
        while data and not self._refused and not self.transport.is_closing():
            if not self._complete:
                data = self._take_body(data)
                if data and not self._complete:
                    self.loop.call_soon(self._take)
                    break
            elif self._in_flight:
                # Without a wish to keep the connection, nothing after the last request is read.
                data = data.lstrip(b"\r\n") if self.cycle.keep_alive else b""
                break  # on_response_complete goes on
            else:
                data = self._take_head(data)
        self._pending = b"" if self._refused else data
        self._joining.hold_reading(bool(self._pending))

    def _take_head(self, data: bytes) -> bytes:
        """Feed a head to the parser once it is complete. Returns what follows it."""
        held = (self._held + data).lstrip(b"\r\n")
        if not held:
            return b""  # empty lines are no request: the connection is as idle as before
        self._unset_keepalive_if_required()
        try:
            end = end_of(held, len(self._held))
            if end is None:
                self._held = held
                if self._waiting is None:
                    self._waiting = self.loop.call_later(HEAD_S, self._waited)
                return b""
            head = checked(held[:end])
        except BadHead as bad:
            self._refuse(bad.error)
            return b""
        self._held, self._complete = b"", False
        self._stop_waiting()
        self._feed(head)
        return held[end:]

    def _take_body(self, data: bytes) -> bytes:
        """Feed what belongs to the body to the parser. Returns what follows it, or chunks for the next turn."""
        try:
            size = self._body_left if self._chunks is None else self._chunks.take(data)
        except BadHead as bad:
            self._refuse(bad.error)
            return b""
        piece, rest = data[:size], data[size:]
        self._body_left -= len(piece)
        self._feed(piece)
        return rest

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            bad = error.__context__
            self._refuse(bad.error if isinstance(bad, BadHead) else InvalidHttp("The request is not valid HTTP/1.1."))

    def on_message_begin(self) -> None:
        if self._complete:  # the parser sees another end of the body than this class
            raise BadHead(InvalidHttp("The request is not valid HTTP/1.1."))
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        length = body_of(self.headers, version)
        check_target(self.url, self.headers)
        self._chunks, self._body_left = (Chunks(), 0) if length is None else (None, length)
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
        super().on_headers_complete()
        self._keeps = self.cycle.keep_alive
        if self.expect_100_continue:
            # A client that is refused before it sends the body may never send it, and go on with its next request.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self.expect_100_continue:
            self._body_comes()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._complete = True
        if self.expect_100_continue:
            self._body_comes()
        if self.cycle.response_complete:
            self._stop_waiting()
        super().on_message_complete()

    def _body_comes(self) -> None:
        """The client does send the body that it asked about, so the connection may stay."""
        self.expect_100_continue = False
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.cycle is None or self.cycle.scope is not self.scope:  # otherwise a trailer, which nobody reads
            super().on_header(name, value)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a client that only ended its own half, if a complete request still waits."""
        if not self._in_flight or not self._complete or self._refused:
            return False  # uvicorn's transport then closes
        self.cycle.keep_alive = False
        self.loop.call_later(PROBES_S[0], self._probe, 1)
        return True

    def _probe(self, number: int) -> None:
        """Write something that every client skips: a client that is gone answers with a reset, which ends the work.

        A client that closes its socket looks like one that ends its half, until something is sent to it.
        """
        if not self._in_flight or self.transport.is_closing() or self.cycle.scope["http_version"] != "1.1":
            return
        if not self.cycle.response_started:
            self.transport.write(PROBE)
        self.loop.call_later(PROBES_S[min(number, len(PROBES_S) - 1)], self._probe, number + 1)

    # --- Waits and refusals ------------------------------------------------------------------------------

    @property
    def _in_flight(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = time.monotonic()
        if not self._complete and not self.transport.is_closing():
            # The rest of a body that was refused. It may take its time, but not for ever.
            self._stop_waiting()
            self._waiting = self.loop.call_later(HEAD_S, self.transport.close)
        elif self._pending:
            self.loop.call_soon(self._take)

    def shutdown(self) -> None:
        self._keeps = False
        super().shutdown()

    def _waited(self) -> None:
        self._waiting = None
        if self._held:
            self._refuse(RequestTimeout(f"The head of the request did not arrive within {HEAD_S:g} seconds."))
        elif not self._in_flight:
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resumed()

    def _resumed(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _make_room(self) -> None:
        """Close idle connections, or without any the one that has been sending its body for the longest time."""
        others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
        others.sort(key=lambda connection: connection._idle_since)
        idle = [each for each in others if not each._in_flight][: max(1, int(len(self.connections) * MAKING_ROOM))]
        closed = idle or [each for each in others if not each._complete][:1]
        for connection in closed:
            connection.transport.close()
            publish(ConnectionRefused("idle" if idle else "slow"))
        if not closed:
            self._refuse(
                TooManyConnections("The server has too many connections. Try again in a second.", retry_after=1)
            )

    def _refuse(self, error: GuardError) -> None:
        """Answer and end the connection. What still comes is thrown away."""
        self._refused = True
        self._stop_waiting()
        publish(ConnectionRefused(error.code or error.type))
        if self._in_flight:
            self.cycle.keep_alive = False
            if not self.cycle.more_body:
                return  # what came before is answered first, and this never
            if self.cycle.response_started:
                self.transport.close()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        content = orjson.dumps(error_body(error))
        retry = b"" if error.retry_after is None else b"retry-after: %d\r\n" % error.retry_after
        length = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(content)
        self.transport.write(STATUS_LINE[error.status] + length + retry + b"connection: close\r\n\r\n" + content)
        self.flow.resume_reading()
        self._joining.hold_reading(False)
        self.loop.call_later(LINGER_S, self.transport.close)


class JoiningTransport:
    """`transport`, except that it holds a write until this turn of `loop` ends, and sends it together with the next.

    It reads while neither uvicorn's flow control nor its protocol (`hold_reading`) wants it to pause.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._paused = self._holds = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        self._read_or_pause(paused=True, holds=self._holds)

    def resume_reading(self) -> None:
        self._read_or_pause(paused=False, holds=self._holds)

    def hold_reading(self, holds: bool) -> None:
        if holds != self._holds:
            self._read_or_pause(paused=self._paused, holds=holds)

    def _read_or_pause(self, *, paused: bool, holds: bool) -> None:
        before, after = self._paused or self._holds, paused or holds
        self._paused, self._holds = paused, holds
        if before == after or self._transport.is_closing():
            return
        if after:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

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
