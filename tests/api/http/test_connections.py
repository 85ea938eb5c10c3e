"""Behind a real socket: clients that hang up, bodies that are too large, and a server that is told to stop."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import LiveServer, StartServer, wait_until
from tests.api.shapes import error_of
from tests.fakes import FakeBackend, Gate, hanging, held_at

CLIENTS = 200


def send(live: LiveServer, path: str, body: dict[str, Any]) -> socket.socket:
    """Post without waiting for the answer."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=10)
    connection.sendall(head.encode() + content)
    return connection


def hung_up(connection: socket.socket, *, abruptly: bool) -> None:
    if abruptly:
        # A reset instead of the usual end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


# --- Disconnects -----------------------------------------------------------------------------------------

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "I am <client>"}]}
LIST: dict[str, Any] = {"input": ["I am <client>", "you are not <client>", "nobody is <client>"]}


def of_client(body: dict[str, Any], client: int) -> dict[str, Any]:
    """What several ask alike would be judged once."""
    unlike: dict[str, Any] = json.loads(json.dumps(body).replace("<client>", str(client)))
    return unlike


@pytest.mark.parametrize(
    ("path", "body", "verdicts", "abruptly"),
    [
        ("/v1/moderations", {"input": "I am <client>"}, 1, False),
        ("/v1/moderations", LIST, 3, False),
        ("/v1/moderations", LIST, 3, True),
        ("/v1/chat/completions", CHAT, 1, True),
        ("/v1/chat/completions", {**CHAT, "stream": True}, 1, False),
    ],
)
def test_the_work_of_200_clients_that_hang_up_ends(
    start_server: StartServer, backend: FakeBackend, path: str, body: dict[str, Any], verdicts: int, abruptly: bool
) -> None:
    live = start_server(max_queue=CLIENTS * 3)
    backend.script = hanging
    connections = [send(live, path, of_client(body, client)) for client in range(CLIENTS)]
    wait_until(lambda: backend.running == CLIENTS * verdicts)
    assert live.moderator.admission.admitted == CLIENTS * verdicts
    for connection in connections:
        hung_up(connection, abruptly=abruptly)
    wait_until(lambda: backend.running == 0, within=1.0)
    wait_until(lambda: live.moderator.admission.admitted == 0, within=1.0)
    assert backend.cancelled == CLIENTS * verdicts
    backend.script = type(backend)().script
    assert live.client().post("/v1/moderations", json={"input": "x"}).status_code == 200


def test_others_are_not_disturbed_by_one_who_hangs_up(live: LiveServer, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    with ThreadPoolExecutor() as pool, live.client() as client:
        stays = pool.submit(client.post, "/v1/moderations", json={"input": "a bomb"})
        wait_until(lambda: backend.running == 1)
        leaves = send(live, "/v1/moderations", {"input": "another bomb"})
        wait_until(lambda: backend.running == 2)
        leaves.close()
        wait_until(lambda: backend.running == 1, within=1.0)
        gate.open()
        assert stays.result().json()["results"][0]["flagged"] is True


def test_a_client_that_leaves_within_its_body_costs_nothing(live: LiveServer, backend: FakeBackend) -> None:
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=10)
    connection.sendall(b'POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"input": ')
    connection.close()
    assert live.client().get("/health").status_code == 200
    assert backend.cases == []


def test_a_pipelined_request_is_not_taken_for_a_disconnect(live: LiveServer, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    with send(live, "/v1/moderations", {"input": "first"}) as connection:
        wait_until(lambda: backend.running == 1)
        content = b'{"input": "second"}'
        connection.sendall(b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 19\r\n\r\n" + content)
        gate.open()
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 2:
            part = connection.recv(65536)
            assert part, received
            received += part
    assert backend.texts == ["User: first", "User: second"]


# --- Bodies that are too large ---------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_with_a_status_and_the_connection_lives_on(
    start_server: StartServer, backend: FakeBackend, chunked: bool
) -> None:
    live = start_server(max_body_bytes=10_000)
    body = json.dumps({"input": "x" * 3_000_000}).encode()
    with live.client() as client:
        for _ in range(2):
            content = iter([body[:5000], body[5000:]]) if chunked else body
            response = client.post("/v1/moderations", content=content)
            error_of(response, 413, code="request_too_large")
        assert client.post("/v1/moderations", json={"input": "x"}).status_code == 200
    assert len(backend.cases) == 1


# --- The end ---------------------------------------------------------------------------------------------


def test_a_server_that_is_told_to_stop_finishes_what_it_admitted(live: LiveServer, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/moderations", {"input": "a bomb of <client>"}),
        ("/v1/moderations", {"input": [f"bomb {number} of <client>" for number in range(40)]}),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
    ]
    with ThreadPoolExecutor(20) as pool, live.client() as client:
        asked = [(path, of_client(body, number)) for number, (path, body) in enumerate(bodies * 4)]
        admitted = [pool.submit(client.post, path, json=body) for path, body in asked]
        wait_until(lambda: backend.running == 4 * (1 + 32 + 1 + 1))
        live.terminate()
        assert live.moderator.admission.draining
        wait_until(lambda: refuses_connections(live))
        assert all(not request.done() for request in admitted)
        gate.open()
        responses = [request.result() for request in admitted]
    assert [response.status_code for response in responses] == [200] * 16
    assert [len(response.json()["results"]) for response in responses[1::4]] == [40] * 4
    assert all(response.text.endswith("data: [DONE]\n\n") for response in responses[3::4])
    live.thread.join(5)
    assert not live.thread.is_alive()
    assert backend.closed


def test_a_stopping_server_is_first_of_all_not_ready(live: LiveServer, backend: FakeBackend) -> None:
    """Between the signal and the closing of the sockets, connections that are open hear it."""
    heard: list[httpx.Response] = []
    stopped = threading.Event()

    def keep_asking() -> None:
        with live.client() as client:
            try:
                while not stopped.is_set():
                    heard.append(client.get("/ready"))
                    heard.append(client.post("/v1/moderations", json={"input": "x"}))
            except httpx.TransportError:
                pass

    asking = threading.Thread(target=keep_asking)
    asking.start()
    wait_until(lambda: len(heard) > 4)
    live.terminate()
    live.thread.join(5)
    stopped.set()
    asking.join(5)
    statuses = [(response.request.url.path, response.status_code) for response in heard]
    first_refusal = next(index for index, (_, status) in enumerate(statuses) if status != 200)
    assert {status for _, status in statuses[:first_refusal]} == {200}
    assert {status for _, status in statuses[first_refusal:]} == {503}
    assert ("/ready", 503) in statuses
    assert heard[-1].status_code == 503


def test_a_request_that_never_ends_does_not_hold_the_end_up(start_server: StartServer, backend: FakeBackend) -> None:
    live = start_server(drain_timeout=1)
    backend.script = hanging
    with send(live, "/v1/moderations", {"input": "x"}):
        wait_until(lambda: backend.running == 1)
        live.terminate()
        live.thread.join(5)
        assert not live.thread.is_alive()
    assert (backend.running, backend.closed) == (0, True)


def test_requests_in_work_at_the_end_of_the_drain_are_answered(start_server: StartServer, backend: FakeBackend) -> None:
    live = start_server(drain_timeout=0.5)
    backend.script = hanging
    with ThreadPoolExecutor() as pool, live.client() as client:
        asked = [pool.submit(client.post, "/v1/moderations", json={"input": str(number)}) for number in range(5)]
        wait_until(lambda: backend.running == 5)
        live.terminate()
        for request in asked:
            error_of(request.result(timeout=5), 503, code="shutting_down")
    live.thread.join(5)
    assert not live.thread.is_alive()


DRIPS = {
    "nothing": b"",
    "half of a header": b"POST /v1/moderations HTTP/1.1\r\nHost: gu",
    "a body": b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{",
    "a body in chunks": b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\n{\r\n",
    "an upload": b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    b"Content-Length: 100000\r\n\r\n--x\r\n",
}


def test_what_drips_does_not_hold_the_end_up(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, backend: FakeBackend
) -> None:
    live = start_server(drain_timeout=1)
    with contextlib.ExitStack() as stack:
        dripping = []
        for head in DRIPS.values():
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", live.port), timeout=10))
            connection.sendall(head)
            dripping.append(connection)
        stop = threading.Event()
        stack.callback(stop.set)
        threading.Thread(target=drip, args=[dripping, stop], daemon=True).start()
        with live.client() as idle:
            assert idle.get("/health").status_code == 200
            live.terminate()
            told = time.monotonic()
            live.thread.join(5)
            assert not live.thread.is_alive()
        assert time.monotonic() - told < 3
        # Whoever sent enough to get an answer has got one.
        for connection, told_why in zip(dripping, (False, False, True, True, True), strict=True):
            assert (b"shutting_down" in all_of(connection)) == told_why
    assert "Traceback" not in caplog.text
    assert backend.closed


def drip(connections: list[socket.socket], stop: threading.Event) -> None:
    while not stop.wait(0.05):
        for connection in connections[:3]:
            with contextlib.suppress(OSError):
                connection.sendall(b"a")


def all_of(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            received += part
    return received


def test_a_slow_reader_does_not_hold_the_end_up(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = start_server(drain_timeout=1, database_url=f"sqlite:///{tmp_path}/guard.db")
    with live.client() as client:
        content = b"x" * (20 * 2**20)
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", content)}).json()
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET /v1/files/{file['id']}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        live.terminate()
        told = time.monotonic()
        live.thread.join(5)
        assert not live.thread.is_alive()
        assert time.monotonic() - told < 3
    assert "Traceback" not in caplog.text
    assert "without completing" not in caplog.text


def refuses_connections(live: LiveServer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", live.port), timeout=1).close()
    except (ConnectionRefusedError, ConnectionResetError, IndexError):  # reset: the listener closed meanwhile
        return True
    return False
