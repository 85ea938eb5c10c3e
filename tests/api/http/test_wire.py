"""What reaches this server before a key does: heads, connections and their ends, byte by byte over a real socket."""

import contextlib
import gzip
import json
import re
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.http import chunks, connection, encoding, head
from server.api.http.chunks import Chunks
from server.domain.errors import UnsupportedEncoding
from tests.api.conftest import LiveServer, StartServer, wait_until
from tests.api.shapes import error_of
from tests.fakes import FakeBackend, Gate, held_at

BODY = json.dumps({"input": "How do I bake bread?"}).encode()
HOST = b"Host: localhost\r\n"
POST = b"POST /v1/moderations HTTP/1.1\r\n" + HOST
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def connected(live: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), timeout=10)


def answer(live: LiveServer, *pieces: bytes, pause: float = 0.02, end: bool = False) -> bytes:
    """Everything that the server sends until it closes the connection or falls silent after an answer."""
    with connected(live) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause)
        if end:
            client.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := client.recv(65536):
                received += piece
                client.settimeout(10 if end else 0.4)
        except TimeoutError:
            pass
        return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


# --- Heads -----------------------------------------------------------------------------------------------


def test_a_head_of_any_size_is_refused_at_64_kib(live: LiveServer) -> None:
    for head_ in (
        b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000,  # a value without an end
        b"GET /" + b"a" * 70_000,
        b"GET /health HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 900) for n in range(80)) + b"\r\n",
    ):
        received = answer(live, head_)
        assert statuses(received) == [431]
        assert b'"code":"request_header_fields_too_large"' in received


def test_more_than_100_headers_are_refused(live: LiveServer) -> None:
    def with_headers(number: int) -> bytes:
        return b"GET /health HTTP/1.1\r\n" + HOST + b"X: y\r\n" * (number - 2) + b"Connection: close\r\n\r\n"

    assert statuses(answer(live, with_headers(head.MAX_HEADERS))) == [200]
    assert statuses(answer(live, with_headers(head.MAX_HEADERS + 1))) == [431]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 1000])
def test_a_request_may_come_in_pieces_of_any_size(live: LiveServer, step: int) -> None:
    request = POST + LENGTH + b"\r\n" + BODY
    pieces = [request[start : start + step] for start in range(0, len(request), step)]
    assert statuses(answer(live, *pieces, pause=0.0)) == [200]


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY,
        POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: identity\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: +5\r\n\r\n" + BODY,
        POST + b"Content-Length: 5, 5\r\n\r\n" + BODY,
        POST + b"Content-Length : 5\r\n\r\n" + BODY,
        POST + b" Folded: x\r\n" + LENGTH + b"\r\n" + BODY,
        b"POST /v1/moderations HTTP/1.1\n" + HOST + LENGTH + b"\r\n" + BODY,
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET /health HTTP/2.0\r\n" + HOST + b"\r\n",
        b"GET /health HTTP/0.9\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: local host\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: evil.example@localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost/x\r\n\r\n",
        b"GET http://evil.example/health HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://evil.example:80?x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /health#x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"POST /v1/moderations HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_two_servers_could_read_differently_is_refused(
    live: LiveServer, backend: FakeBackend, request_: bytes
) -> None:
    received = answer(live, request_, POST + LENGTH + b"\r\n" + BODY)
    assert statuses(received) == [400]
    assert b'"code":"invalid_http"' in received
    assert b"connection: close" in received
    assert backend.cases == []


def test_a_target_may_name_the_host_of_the_request(live: LiveServer) -> None:
    assert statuses(answer(live, b"GET http://LocalHost/health HTTP/1.1\r\n" + HOST + b"\r\n")) == [200]
    assert statuses(answer(live, b"GET http://[::1]:80/health HTTP/1.1\r\nHost: [::1]:80\r\n\r\n")) == [200]


def test_requests_that_come_together_are_answered_in_order(live: LiveServer) -> None:
    health, judged = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", POST + LENGTH + b"\r\n" + BODY
    nothing = b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n"
    together = (health + judged + nothing) * 20
    for end in (True, False):
        assert statuses(answer(live, together, end=end)) == [200, 200, 404] * 20


def test_of_requests_that_come_together_one_is_taken_at_a_time(live: LiveServer, backend: FakeBackend) -> None:
    """Otherwise one connection makes as many tasks as fit into what the event loop reads at once."""
    gate = Gate()
    backend.script = held_at(gate)
    with connected(live) as client:
        client.sendall((POST + LENGTH + b"\r\n" + BODY) * 1000)
        wait_until(lambda: backend.running == 1)
        time.sleep(0.2)
        assert len(live.server.server_state.tasks) == 1
        (taken,) = live.server.server_state.connections
        assert not taken.pipeline  # type: ignore[union-attr]
        gate.open()


# --- Expect: 100-continue --------------------------------------------------------------------------------

EXPECT = b"Expect: 100-continue\r\n"


def test_a_client_that_asks_first_sends_its_body_and_stays(live: LiveServer) -> None:
    with connected(live) as client:
        for _ in range(2):
            client.sendall(POST + EXPECT + LENGTH + b"\r\n")
            assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(BODY)
            received = client.recv(65536)
            assert statuses(received) == [200]
            assert b"connection: close" not in received.lower()


@pytest.mark.parametrize(
    "head_", [b"POST /nothing HTTP/1.1\r\n" + HOST + LENGTH, POST + b"Content-Length: 999999999\r\n"]
)
def test_a_client_that_asks_first_and_is_refused_is_not_asked_for_the_body(live: LiveServer, head_: bytes) -> None:
    """It may go on with its next request, which must not be taken for the body of this one."""
    received = answer(live, head_ + EXPECT + b"\r\n", b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", pause=0.2)
    assert len(statuses(received)) == 1
    assert statuses(received)[0] in (404, 413)
    assert b"connection: close" in received


def test_http_1_0_is_never_told_to_continue(live: LiveServer) -> None:
    request = b"POST /v1/moderations HTTP/1.0\r\n" + HOST + EXPECT + LENGTH + b"\r\n"
    assert statuses(answer(live, request, BODY, pause=0.1)) == [200]


# --- Offers to upgrade -----------------------------------------------------------------------------------

OFFERS = {
    "h2c, as stock Java clients": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    b"Upgrade: h2c\r\n",
    "h2c, as curl": b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAA\r\nconnection: Upgrade, HTTP2-Settings\r\n",
    "TLS": b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("split", ["together", "body apart", "head apart"])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_is_ignored_and_the_body_is_read(
    live: LiveServer, backend: FakeBackend, offer: bytes, split: str, chunked: bool
) -> None:
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else LENGTH
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    request = POST + offer + framing + b"\r\n"
    pieces = {
        "together": [request + body],
        "body apart": [request, body],
        "head apart": [request[:40], request[40:90], request[90:] + body],
    }[split]
    assert statuses(answer(live, *pieces)) == [200]
    assert backend.texts == ["User: How do I bake bread?"]


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_a_body_after_an_offer_is_no_request(live: LiveServer, backend: FakeBackend, offer: bytes) -> None:
    inner = POST + LENGTH + b"\r\n" + BODY
    request = b"POST /nothing HTTP/1.1\r\n" + HOST + offer + b"Content-Length: %d\r\n\r\n" % len(inner)
    assert statuses(answer(live, request, inner)) == [404]
    assert backend.cases == []


@pytest.mark.parametrize("together", [True, False])
def test_what_follows_a_chunked_body_is_a_request_of_its_own(
    live: LiveServer, backend: FakeBackend, together: bool
) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    second = b"GET /health HTTP/1.1\r\n" + HOST + OFFERS["TLS"] + b"\r\n"
    assert statuses(answer(live, *[chunked + second] if together else [chunked, second])) == [200, 200]
    too_large = b"GET /health HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 200 + b"\r\n"
    assert statuses(answer(live, chunked + too_large)) == [200, 431], "each has its own answer, in order"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 10_000])
def test_chunks_end_where_they_end_in_pieces_of_any_size(step: int) -> None:
    for trailers in (b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"):
        body = b"3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\n" + trailers + b"\r\n"
        data, chunks, taken = body + b"GET / HTTP/1.1\r\n", Chunks(), 0
        while not chunks.ended:
            taken += chunks.take(data[taken : taken + step])
        assert taken == len(body)


def test_trailers_and_chunk_extensions_are_dropped_and_bounded(live: LiveServer, backend: FakeBackend) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n%x;name=value\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    assert statuses(answer(live, chunked + b"Host: evil.example\r\nX-Api-Key: x\r\n\r\n")) == [200]
    endless = POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 200_000
    assert statuses(answer(live, endless)) == [400]
    assert len(backend.cases) == 1


def test_a_body_of_endless_tiny_chunks_is_refused(live: LiveServer) -> None:
    tiny = b"1\r\na\r\n" * (chunks.MOST_TINY + 1)
    for path, expected in (("/v1/moderations", [400]), ("/nothing", [404, 400])):
        start = b"POST %s HTTP/1.1\r\n" % path.encode() + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        assert statuses(answer(live, start + tiny)) == expected


@given(st.integers(0, 3000), st.integers(1, 400))
def test_chunks_are_taken_a_few_at_a_time_and_none_is_lost(number: int, size: int) -> None:
    body = b"%x\r\n%s\r\n" % (size, b"a" * size) * number + b"0\r\n\r\n"
    followed, taken, calls = Chunks(), 0, 0
    while not followed.ended:
        step = followed.take(body[taken:])
        assert step <= chunks.MOST_LINES * (size + 8)
        taken, calls = taken + step, calls + 1
    assert taken == len(body)
    assert calls >= number / chunks.MOST_LINES


def test_tiny_chunks_are_no_overhead(live: LiveServer) -> None:
    content = json.dumps({"input": "bread " * 3000}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    assert statuses(answer(live, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)) == [200]


# --- Connections that wait -------------------------------------------------------------------------------


def closes_within(client: socket.socket, seconds: float) -> bytes:
    client.settimeout(seconds)
    received = b""
    while piece := client.recv(65536):
        received += piece
    return received


def test_silent_and_half_sent_connections_are_closed(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    live = start_server()
    with connected(live) as silent, connected(live) as half, connected(live) as drips, connected(live) as again:
        half.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        again.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\nGET /he")
        drips.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(10):
            time.sleep(0.1)
            try:
                drips.sendall(b"X: y\r\n")
            except OSError:
                break
        assert closes_within(silent, 5) == b""
        assert statuses(closes_within(half, 5)) == [408]
        assert statuses(closes_within(again, 5)) == [200, 408]


def test_empty_lines_do_not_keep_a_connection(start_server: StartServer) -> None:
    live = start_server()
    live.server.config.timeout_keep_alive = 1
    with connected(live) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert statuses(client.recv(65536)) == [200]
        started = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012
            while time.monotonic() - started < 20:
                client.sendall(b"\r\n")
                time.sleep(0.1)
        assert time.monotonic() - started < 10


def test_a_refused_body_that_ends_leaves_the_connection_open(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    live = start_server()
    with connected(live) as client:
        client.sendall(b"POST /nothing HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n")
        assert statuses(client.recv(65536)) == [404]
        client.sendall(b"0123456789")
        time.sleep(1.0)
        client.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert statuses(client.recv(65536)) == [200]


def test_the_rest_of_a_refused_body_may_not_drip_for_ever(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    live = start_server()
    with connected(live) as client:
        client.sendall(b"POST /nothing HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n")
        started = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012
            while time.monotonic() - started < 20:
                client.sendall(b"x")
                time.sleep(0.05)
                client.settimeout(0.01)
        assert time.monotonic() - started < 10


def test_when_there_are_too_many_connections_idle_ones_make_room(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 20)
    live = start_server()
    idle = [connected(live) for _ in range(60)]
    try:
        with live.client() as client:
            assert client.get("/health").status_code == 200
        assert len(live.server.server_state.connections) <= 21
    finally:
        for each in idle:
            each.close()


def test_with_every_connection_at_work_one_more_is_told_so(
    start_server: StartServer, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 3)
    live, gate = start_server(), Gate()
    backend.script = held_at(gate)

    def ask(number: int) -> httpx.Response:
        return httpx.post(f"{live.url}/v1/moderations", json={"input": f"bread {number}"}, timeout=30)

    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(ask, number) for number in range(3)]
        wait_until(lambda: backend.running == 3)
        received = answer(live, b"")
        assert statuses(received) == [503]
        assert b"retry-after: 1" in received
        gate.open()
        assert [each.result().status_code for each in asked] == [200] * 3


def test_connections_that_hold_back_their_bodies_make_room_if_none_is_idle(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 10)
    live = start_server()
    slow = [connected(live) for _ in range(30)]
    try:
        for each in slow:
            with contextlib.suppress(OSError):
                each.sendall(POST + LENGTH + b"\r\n")
            time.sleep(0.01)
        with live.client() as client:
            assert client.get("/health").status_code == 200
    finally:
        for each in slow:
            each.close()
    assert [record.message for record in caplog.records if "too many connections" in record.message][1:] == []


def test_a_client_that_ends_its_half_is_answered(live: LiveServer, backend: FakeBackend) -> None:
    request = POST + LENGTH + b"\r\n" + BODY
    assert statuses(answer(live, request, end=True)) == [200]
    assert statuses(answer(live, b"GET /health HTTP/1.0\r\n\r\n", end=True)) == [200]


def test_a_client_that_ends_its_half_gets_a_slow_answer_too(live: LiveServer, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    with connected(live) as client:
        client.sendall(POST + LENGTH + b"\r\n" + BODY)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: backend.running == 1)
        time.sleep(0.8)
        assert backend.running == 1
        gate.open()
        received = closes_within(client, 10)
    *probes, last = statuses(received)
    assert (set(probes), last) == ({100}, 200), "a client skips 100 Continue"


def test_a_refusal_arrives_although_the_client_goes_on_sending(live: LiveServer) -> None:
    with connected(live) as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + HOST)
        try:
            for _ in range(200):
                client.sendall(b"X: " + b"a" * 10_000 + b"\r\n")
        except OSError:
            pass
        assert statuses(closes_within(client, 10)) == [431]


# --- HTTP/1.0, HEAD, Allow -------------------------------------------------------------------------------


def test_http_1_0_gets_a_stream_in_one_piece(live: LiveServer) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "stream": True}).encode()
    request = b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
    received = answer(live, request + body, end=True)
    head_, _, content = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head_
    assert b"content-length: %d" % len(content) in head_
    assert content.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/metrics", "/docs", "/", "/openapi.json"])
def test_head_is_get_without_the_body(live: LiveServer, path: str) -> None:
    with live.client() as client:
        got, head_ = client.get(path), client.head(path)
    assert head_.status_code == got.status_code
    assert head_.content == b""
    own = {"x-request-id", "openai-processing-ms", "date", "content-length"}
    assert {name for name in got.headers if name not in own} == {name for name in head_.headers if name not in own}


async def test_allow_names_every_method(client: httpx.AsyncClient) -> None:
    for path, methods in {
        "/v1/files": "GET, HEAD, POST",
        "/v1/files/file-x": "DELETE, GET, HEAD",
        "/v1/moderations": "POST",
        "/health": "GET, HEAD",
    }.items():
        response = await client.request("PATCH", path)
        assert (response.status_code, response.headers["allow"]) == (405, methods)


async def test_pages_may_not_be_framed(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/docs")).headers
    assert headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


# --- Compressed and encoded bodies -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZip", gzip.compress)]
)
async def test_a_packed_body_is_read(client: httpx.AsyncClient, backend: FakeBackend, name: str, pack) -> None:
    headers = {"content-encoding": name, "content-type": "application/json"}
    response = await client.post("/v1/moderations", content=pack(BODY), headers=headers)
    assert response.status_code == 200
    assert backend.texts == ["User: How do I bake bread?"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-encoding": "br"}, BODY),
        ({"content-encoding": "zstd"}, BODY),
        ({"content-encoding": "gzip, gzip"}, gzip.compress(gzip.compress(BODY))),
        ({"content-encoding": "gzip"}, BODY),
        ({"content-encoding": "gzip"}, gzip.compress(BODY)[:-4]),
        ({"content-encoding": "gzip"}, gzip.compress(BODY) + b"x"),
        ({"content-encoding": "gzip"}, gzip.compress(BODY) * 2),
        ({"content-encoding": "gzip"}, b""),
        ({"content-type": "application/json; charset=utf-16"}, BODY),
        ({"content-type": 'application/json; charset="latin-1"'}, BODY),
    ],
)
async def test_what_is_packed_otherwise_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, headers: dict[str, str], body: bytes
) -> None:
    response = await client.post("/v1/moderations", content=body, headers=headers)
    message = error_of(response, 415, code="unsupported_encoding")["message"]
    if headers.get("content-encoding") in ("br", "zstd"):
        assert headers["content-encoding"] in message
    assert backend.cases == []


@given(st.binary(max_size=3000), st.integers(1, 300), st.integers(0, 9), st.booleans())
def test_what_was_packed_is_unpacked_in_steps_of_any_size(content: bytes, step: int, level: int, as_gzip: bool) -> None:
    content = content * 5
    packed = gzip.compress(content, level) if as_gzip else zlib.compress(content, level)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "STEP", step)
        assert encoding.unpacked(packed, len(content)) == content
        for bad in (packed[:-1], packed + b"x", packed + packed):
            with pytest.raises(UnsupportedEncoding):
                encoding.unpacked(bad, len(content))


class Sliced(bytes):
    """A body that adds up what is copied of it."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        type(self).copied += len(part)
        return part


def test_a_body_is_copied_once_while_it_is_unpacked() -> None:
    content = bytes(range(256)) * 80_000
    Sliced.copied, packed = 0, Sliced(zlib.compress(content, 0))
    assert encoding.unpacked(packed, len(content)) == content
    assert Sliced.copied == len(packed)


@pytest.mark.parametrize("settings", [{"max_body_bytes": 10_000}], indirect=True)
async def test_a_bomb_is_a_body_that_is_too_large(client: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b'{"input": "' + b"a" * 5_000_000 + b'"}')
    assert len(bomb) < 10_000
    response = await client.post("/v1/moderations", content=bomb, headers={"content-encoding": "gzip"})
    error_of(response, 413, code="request_too_large")


async def test_a_byte_order_mark_is_no_part_of_the_body(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await client.post("/v1/moderations", content=b"\xef\xbb\xbf" + BODY)).status_code == 200
    assert backend.texts == ["User: How do I bake bread?"]
