"""The bad day: engines that hang or die, servers that are told to stop or are killed. Nothing of it yields "safe"."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import RunningServer, running_server, wait_until

pytestmark = [pytest.mark.kills, pytest.mark.timeout(600)]

LONG_TEXT = "Tell me how the harbour of the old town was built and who paid for it. " * 60


class Load:
    """Clients that keep asking, and what they were answered."""

    def __init__(self, server: RunningServer, clients: int = 8) -> None:
        self.answers: list[tuple[float, int, dict[str, Any]]] = []
        self.refused = 0
        self._url = server.url
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(index,), daemon=True) for index in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.answers) >= 4, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=90)

    def _ask(self, index: int) -> None:
        count = 0
        while not self._stopped.is_set():
            count += 1
            try:
                response = httpx.post(
                    f"{self._url}/v1/moderations", json={"input": f"{index} {count} {LONG_TEXT}"}, timeout=90
                )
                self.answers.append((time.monotonic(), response.status_code, response.json()))
            except httpx.TransportError:
                self.refused += 1
                time.sleep(0.1)


def test_hung_engine_is_not_ready_and_recovers_then_a_dead_one_fails_fast():
    with running_server(GUARD_DEADLINE="8") as server, server.client() as client:
        engine = psutil.Process(server.engine_core_pid())
        workers = engine.children(recursive=True)

        # Stopped: it looks alive to everybody who does not ask for a verdict.
        for process in (engine, *workers):
            process.suspend()
        stopped = time.monotonic()
        answer = client.post("/v1/moderations", json={"input": "hello"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - stopped < 10
        wait_until(lambda: client.get("/ready").status_code == 503, timeout=15 - (time.monotonic() - stopped))
        for process in (engine, *workers):
            process.resume()
        wait_until(lambda: client.get("/ready").status_code == 200, timeout=20)
        assert client.post("/v1/moderations", json={"input": "hello"}).status_code == 200

        # Killed, under load.
        with Load(server) as load:
            engine.kill()
            killed = time.monotonic()
            wait_until(lambda: client.get("/ready").status_code == 503, timeout=2)
            wait_until(lambda: any(status >= 500 for _, status, _ in list(load.answers)), timeout=2)
            assert client.get("/health").status_code == 503
            time.sleep(max(0.0, killed + 2.0 - time.monotonic()))
        after = [(status, body) for moment, status, body in load.answers if moment > killed + 0.5]
        assert after
        assert {status for status, _ in after} == {503}
        assert all(body["error"]["code"] == "engine_unavailable" for _, body in after)


def test_an_engine_that_hangs_for_long_is_for_a_supervisor_and_one_under_load_is_not():
    settings = {
        "GUARD_DEADLINE": "8",
        "GUARD_PROBE_INTERVAL": "1",
        "GUARD_READY_MAX_AGE": "5",
        "GUARD_HUNG_AFTER": "10",
    }
    with running_server(**settings) as server, server.client() as client:
        with Load(server, clients=16):
            until = time.monotonic() + 15
            while time.monotonic() < until:
                assert client.get("/health").status_code == 200
                time.sleep(0.2)
        engine = psutil.Process(server.engine_core_pid())
        processes = [engine, *engine.children(recursive=True)]
        for process in processes:
            process.suspend()
        stopped = time.monotonic()
        wait_until(lambda: client.get("/health").status_code == 503, timeout=20)
        assert time.monotonic() - stopped > 8
        assert client.get("/ready").json()["reason"] == "the engine hangs"
        # It may come back before the supervisor has noticed.
        for process in processes:
            process.resume()
        wait_until(lambda: client.get("/health").status_code == 200, timeout=20)
        # The supervisor's restart: an engine that is stopped does not hold the end up.
        for process in processes:
            process.suspend()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=29) == 0
        wait_until(lambda: not any(_runs(process.pid) for process in processes), timeout=5)


def test_sigterm_finishes_what_was_admitted():
    with running_server() as server, server.client() as client:
        engine_pids = server.engine_pids()
        with Load(server) as load:
            slow = threading.Thread(
                target=lambda: load.answers.append(_answer(client, {"input": [f"{n} {LONG_TEXT}" for n in range(40)]}))
            )
            slow.start()
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            slow.join(timeout=60)
            assert server.process.wait(timeout=40) == 0
            assert time.monotonic() - told < 40
        statuses = {status for _, status, _ in load.answers}
        assert statuses <= {200, 503}
        lists = [(status, body) for _, status, body in load.answers if len(body.get("results", ())) == 40]
        assert [status for status, _ in lists] == [200], "the admitted list was lost"
        shut = [body["error"]["code"] for _, status, body in load.answers if status == 503]
        assert set(shut) <= {"shutting_down"}
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in engine_pids), timeout=10)
        assert not [line for line in server.console if "leaked" in line], "libraries' last words are on the console"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files with a short name: a socket's may have 107 characters in all."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def test_nothing_outlives_a_killed_server_for_longer_than_until_the_next_one(temporary: Path):
    with running_server(TMPDIR=str(temporary)) as server:
        pids = server.engine_pids()
        assert len(pids) >= 2
        left = _own(temporary)
        assert left
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        wait_until(lambda: not any(map(_runs, pids)), timeout=5)
    with running_server(TMPDIR=str(temporary)) as server:
        assert not left & _own(temporary)
        assert server.stop() == 0
    assert not _own(temporary)


def _own(folder: Path) -> set[Path]:
    """What is in the folder for temporary files, without what PyTorch compiles and keeps for its next start."""
    return {path for path in folder.iterdir() if not path.name.startswith("torchinductor_")}


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answer(client: httpx.Client, body: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
    response = client.post("/v1/moderations", json=body)
    return time.monotonic(), response.status_code, response.json()
