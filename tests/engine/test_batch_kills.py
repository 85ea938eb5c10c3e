"""A batch of 10,000 rows whose server is killed again and again: every row is answered exactly once."""

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import PostgreSQL, RunningServer, running, wait_until
from tests.fake_server import CRASH, FREEZE

pytestmark = [pytest.mark.kills, pytest.mark.timeout(900)]

ROWS = 10_000
WRONG = 100
"""Every so many rows one has an empty input: its answer is an error."""


@contextlib.contextmanager
def fake_server(url: str, seconds: float = 0.004):
    with running("tests.fake_server", str(seconds), GUARD_DATABASE_URL=url) as server:
        yield server


def line(number: int, text: str) -> bytes:
    body = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/moderations", "body": {"input": text}}
    return json.dumps(body).encode() + b"\n"


def rows() -> bytes:
    words = ("a bomb", "bread", "bread")
    return b"".join(
        line(number, "" if number % WRONG == 0 else f"{words[number % 3]} {number}") for number in range(ROWS)
    )


def submit(client: httpx.Client, content: bytes | None = None) -> str:
    sent = {"file": ("rows.jsonl", content or rows())}
    file = client.post("/v1/files", data={"purpose": "batch"}, files=sent).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
    batch_id: str = client.post("/v1/batches", json=body).json()["id"]
    return batch_id


def kill(server: RunningServer) -> None:
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()


def check(client: httpx.Client, batch: dict[str, Any]) -> None:
    """Nothing lost, nothing doubled, every answer right, and the counts are those of the files."""
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": ROWS, "completed": ROWS - ROWS // WRONG, "failed": ROWS // WRONG}
    seen: Counter[str] = Counter()
    for file_id, status in ((batch["output_file_id"], 200), (batch["error_file_id"], 400)):
        for line in client.get(f"/v1/files/{file_id}/content").text.splitlines():
            answer = json.loads(line)
            seen[answer["custom_id"]] += 1
            number = int(answer["custom_id"].removeprefix("row-"))
            assert answer["response"]["status_code"] == status
            assert (number % WRONG == 0) == (status == 400)
            if status == 200:
                assert answer["response"]["body"]["results"][0]["flagged"] == (number % 3 == 0)
    assert set(seen) == {f"row-{number}" for number in range(ROWS)}
    assert set(seen.values()) == {1}
    assert batch["usage"]["output_tokens"] > 0


def killed_many_times(url: str, kills: int, seed: int, seconds: float = 0.004) -> list[str]:
    """Statuses in which a batch was when its server was killed. It must be complete and right in the end.

    A verdict takes so many `seconds`: enough that the last kill comes before the last line on a fast machine too.
    """
    chance = random.Random(seed)
    statuses: list[str] = []
    batch_id = ""
    while len(statuses) < kills:
        # The first few die early, so that some are killed while the file is still being checked.
        with fake_server(url, seconds) as server, server.client() as client:
            batch_id = batch_id or submit(client)
            time.sleep(chance.uniform(0, 0.6 if len(statuses) < 3 else 12 / kills))
            status = client.get(f"/v1/batches/{batch_id}").json()["status"]
            if status == "completed":
                break
            kill(server)
            statuses.append(status)
    with fake_server(url, seconds=0.0) as server, server.client() as client:
        wait_until(lambda: client.get(f"/v1/batches/{batch_id}").json()["status"] == "completed", timeout=120)
        check(client, client.get(f"/v1/batches/{batch_id}").json())
    print(f"killed {len(statuses)} times: {Counter(statuses)}")
    return statuses


def test_a_batch_survives_its_server_being_killed(tmp_path: Path) -> None:
    assert len(killed_many_times(f"sqlite:///{tmp_path}/guard.db", kills=6, seed=1)) >= 4


def test_a_batch_on_postgresql_survives_its_servers_being_killed(postgresql: PostgreSQL) -> None:
    """Two servers at one batch: whichever is killed, the other one goes on when the lease is over."""
    url = postgresql.new_database()
    with fake_server(url) as first, fake_server(url, seconds=0.001) as second:
        with first.client() as client:
            batch_id = submit(client)
            wait_until(lambda: counts(client, batch_id)["completed"] > 500, timeout=60)
        kill(first)
        with second.client() as client:
            wait_until(lambda: client.get(f"/v1/batches/{batch_id}").json()["status"] == "completed", timeout=120)
            check(client, client.get(f"/v1/batches/{batch_id}").json())


@pytest.mark.parametrize("poison", [FREEZE, CRASH])
def test_a_line_that_fells_every_server_is_given_up_and_the_rest_is_answered(tmp_path: Path, poison: str) -> None:
    """A supervisor restarts the server whenever it is dead or does not answer."""
    url, batch_id, starts, silent = f"sqlite:///{tmp_path}/guard.db", "", 0, 0
    lines = [line(number, poison if number == 20 else f"bread {number}") for number in range(60)]
    while starts < 8:
        starts += 1
        with fake_server(url, seconds=0.01) as server, server.client(timeout=1) as client:
            batch_id = batch_id or submit(client, b"".join(lines))
            answered, status = supervised(client, batch_id)
            silent += not answered
            if status == "completed":
                batch = client.get(f"/v1/batches/{batch_id}").json()
                (failed,) = client.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
                break
            kill(server)
    else:
        pytest.fail("the batch felled server after server")
    assert starts <= 4, "three falls: in work with others, alone, and alone once more"
    assert silent <= 1, "a restarted server serves, also before it tries the line again"
    assert batch["request_counts"] == {"total": 60, "completed": 59, "failed": 1}
    assert json.loads(failed)["custom_id"] == "row-20"


def supervised(client: httpx.Client, batch_id: str) -> tuple[bool, str]:
    """Ask until the batch has ended, or the server has not answered for a second: (whether it ever did, the status)."""
    answered, status = False, ""
    while status != "completed":
        try:
            answered = client.get("/health").status_code == 200
            status = client.get(f"/v1/batches/{batch_id}").json()["status"]
        except httpx.TransportError:
            break
        time.sleep(0.05)
    return answered, status


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills(tmp_path: Path) -> None:
    assert len(killed_many_times(f"sqlite:///{tmp_path}/guard.db", kills=50, seed=2, seconds=0.012)) == 50


def counts(client: httpx.Client, batch_id: str) -> dict[str, int]:
    found: dict[str, int] = client.get(f"/v1/batches/{batch_id}").json()["request_counts"]
    return found
