"""The end of a server: whatever signal tells it to stop and whatever its clients do, it answers, and ends in time.

The server is real and runs in a process of its own. Its engine is a fake.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import RunningServer, running, wait_until
from tests.fake_server import STUCK

pytestmark = [pytest.mark.kills, pytest.mark.timeout(120)]

BAR_S = 30.0
"""Kubernetes kills a container so long after it told it to stop."""


@contextlib.contextmanager
def fake_server(seconds: float, **environment: str) -> Iterator[RunningServer]:
    with running("tests.fake_server", str(seconds), **environment) as server:
        yield server


def connect(server: RunningServer, content: bytes) -> socket.socket:
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=10)
    connection.sendall(content)
    return connection


def told(server: RunningServer, stop: signal.Signals) -> float:
    server.process.send_signal(stop)
    return time.monotonic()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda stop: stop.name)
def test_requests_in_work_are_answered_whatever_signal_comes(stop: signal.Signals) -> None:
    with fake_server(1.0) as server, ThreadPoolExecutor(20) as pool, server.client() as client:
        asked = [pool.submit(client.post, "/v1/moderations", json={"input": f"{number}"}) for number in range(20)]
        time.sleep(0.5)
        since = told(server, stop)
        assert [request.result().status_code for request in asked] == [200] * 20
        assert server.process.wait(10) == 0
        assert time.monotonic() - since < 5
    assert not [line for line in server.console if "Traceback" in line]


def test_several_signals_are_one_end() -> None:
    """A terminal that closes sends SIGHUP to a server that systemd tells to stop."""
    with fake_server(1.0) as server, ThreadPoolExecutor(20) as pool, server.client() as client:
        asked = pool.submit(client.post, "/v1/moderations", json={"input": "x"})
        time.sleep(0.3)
        stop = threading.Event()
        threading.Thread(target=keep_telling, args=[server, stop], daemon=True).start()
        assert asked.result().status_code == 200
        assert server.process.wait(10) == 0
        stop.set()
    assert not [line for line in server.console if "Traceback" in line]


def keep_telling(server: RunningServer, stop: threading.Event) -> None:
    while not stop.wait(0.02):
        for each in (signal.SIGTERM, signal.SIGHUP):
            server.process.send_signal(each)


def test_with_default_settings_nothing_holds_the_end_up_for_longer_than_a_supervisor_waits() -> None:
    upload = (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b'Content-Length: 100000\r\n\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    body = b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{"
    with fake_server(100.0) as server, contextlib.ExitStack() as stack:
        drips = [stack.enter_context(connect(server, content)) for content in (upload, body, b"GET /hea", b"")]
        long = b'{"input": "x"}'
        post = b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(long)
        slow = stack.enter_context(connect(server, post + long))
        stop = threading.Event()
        stack.callback(stop.set)
        threading.Thread(target=drip, args=[drips[:2], stop], daemon=True).start()
        time.sleep(0.5)
        since = told(server, signal.SIGTERM)
        assert server.process.wait(BAR_S + 10) == 0
        seconds = time.monotonic() - since
        assert seconds < BAR_S
        for connection in (*drips[:2], slow):
            assert connection.recv(1000).startswith(b"HTTP/1.1 503")
    print(f"ended {seconds:.1f} s after SIGTERM")
    assert not [line for line in server.console if "Traceback" in line]


def drip(connections: list[socket.socket], stop: threading.Event) -> None:
    while not stop.wait(1.0):
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(b"a")


def test_an_engine_that_cannot_be_closed_does_not_hold_the_end_up() -> None:
    with fake_server(0.0, GUARD_DRAIN_TIMEOUT="1", **{STUCK: "1"}) as server:
        since = told(server, signal.SIGTERM)
        assert server.process.wait(20) == 1
        assert 4 < time.monotonic() - since < 8
    wait_until(lambda: any("did not close within 5 s" in line for line in server.console), timeout=5)


def test_what_a_killed_server_left_is_tidied_by_the_next_one(tmp_path: Path) -> None:
    where = {"TMPDIR": str(tmp_path), "GUARD_DATABASE_URL": "sqlite://"}
    with fake_server(0.0, **where) as beside:
        (its,) = tmp_path.glob("guard-*")
        with fake_server(0.0, **where) as server:
            left = set(tmp_path.glob("guard-*")) - {its}
            server.process.kill()
            server.process.wait()
        assert left <= set(tmp_path.glob("guard-*"))
        with fake_server(0.0, **where) as following:
            assert not left & set(tmp_path.glob("guard-*"))
            assert its.is_dir()
            with beside.client() as client:
                assert client.get("/v1/files").status_code == 200
            assert following.stop() == 0
        assert beside.stop() == 0
    assert list(tmp_path.glob("guard-*")) == []
