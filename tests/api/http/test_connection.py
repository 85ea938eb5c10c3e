"""A reply leaves as one piece, and nothing waits for a piece that does not come."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvicorn
import uvloop
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from server.api.http.connection import Connection, JoiningTransport

OK: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}


class Written:
    """As much of a transport as the joining one needs of it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.pieces.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def written() -> Written:
    return Written()


@pytest.fixture
async def joining(written: Written) -> JoiningTransport:
    return JoiningTransport(cast(asyncio.Transport, written), asyncio.get_running_loop())


async def test_two_writes_of_one_turn_go_together(joining, written):
    joining.write(b"head ")
    assert not written.pieces
    joining.write(b"body")
    assert written.pieces == [b"head body"]
    await asyncio.sleep(0)
    assert written.pieces == [b"head body"], "once"


async def test_a_write_that_stays_alone_leaves_as_the_turn_ends(joining, written):
    joining.write(b"100 Continue")
    await asyncio.sleep(0)
    assert written.pieces == [b"100 Continue"]


async def test_nothing_is_lost_or_turned_round_in_many_writes(joining, written):
    for number in range(5):
        joining.write(b"%d" % number)
    await asyncio.sleep(0)
    assert b"".join(written.pieces) == b"01234"


async def test_what_waits_is_written_before_the_end(joining, written):
    joining.write(b"400 Bad Request")
    joining.close()
    assert (written.pieces, written.closed) == ([b"400 Bad Request"], True)
    await asyncio.sleep(0)


async def test_what_waits_for_a_client_that_is_gone_is_dropped(joining, written):
    joining.write(b"head")
    written.closed = True
    await asyncio.sleep(0)
    assert not written.pieces


# --- On uvicorn and uvloop -------------------------------------------------------------------------------

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Counting:
    """A transport, and what was written to it."""

    def __init__(self, transport: asyncio.Transport, pieces: list[bytes]) -> None:
        self._transport = transport
        self._pieces = pieces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        self._transport.write(data)


@asynccontextmanager
async def listening(app: App) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, list[bytes]]]:
    """A client's connection to `app` behind uvicorn's protocol, and the pieces that are written to it."""
    pieces: list[bytes] = []

    class Observed(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            counting = Counting(cast(asyncio.Transport, transport), pieces)
            super().connection_made(cast(asyncio.Transport, counting))

    config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: Observed(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer, pieces
        writer.close()


def test_a_reply_comes_whole_and_a_stream_piece_by_piece():
    goes_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(OK)
        if scope["path"] == "/stream":
            await goes_on.wait()
            for piece in (b"on", b"ly"):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0.05)
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": b"safe"})

    async def run() -> None:
        async with listening(app) as (reader, writer, pieces):
            for number in range(1, 4):  # the connection stays
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await reader.readuntil(b"safe")).startswith(b"HTTP/1.1 200 OK\r\n")
                assert len(pieces) == number
            writer.write(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")  # the headers come though no piece is there yet
            goes_on.set()
            await reader.readuntil(b"only")
            assert pieces[-2:] == [b"on", b"ly"]

    uvloop.run(asyncio.wait_for(run(), 20))


def test_a_request_that_is_no_http_is_told_so():
    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    async def run() -> None:
        async with listening(app) as (reader, writer, _):
            writer.write(b"\x16\x03\x01\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")

    uvloop.run(asyncio.wait_for(run(), 20))
