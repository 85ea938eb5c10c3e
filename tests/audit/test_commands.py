"""`audit verify` and `audit replay`, the records of keys, and processes that are killed."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.__main__ import main

WORDS = "PRIVATEWORDS"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUARD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("GUARD_DATABASE_URL", "")
    monkeypatch.setenv("GUARD_AUDIT", str(tmp_path / "trail"))
    monkeypatch.setenv("GUARD_PROFILE", "llama-guard-4-12b")
    return tmp_path / "trail"


class Server:
    """`tests.fake_server` in a process of its own, with the variables of this one."""

    def __init__(self, log: Path, **limits: Any) -> None:
        self.log = log
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fake_server", "0"], stdout=sink, stderr=subprocess.STDOUT, **limits
            )
        deadline = time.monotonic() + 60
        while "ready at" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.url = log.read_text().partition("ready at ")[2].split()[0]

    def moderate(self, text: str) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/moderations", json={"input": text}, timeout=20)

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(30)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Any]:
    running: list[Server] = []

    def start(**limits: Any) -> Server:
        running.append(Server(tmp_path / f"log{len(running)}", **limits))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


def verified(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = main(["audit", "verify", "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_change_of_keys_leaves_a_record_without_the_key(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", WORDS, "--requests-per-minute", "7"]) == 0
    key, said = capsys.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)
    assert main(["keys", "revoke", made["id"]]) == 0
    written = "".join(file.read_text() for file in sorted(place.iterdir()))
    assert '"event":"key.created"' in written
    assert '"event":"key.revoked"' in written
    assert '"requests_per_minute":7' in written
    assert made["id"] in written
    assert WORDS not in written
    assert key.strip() not in written
    assert f"key {made['id']} is created" in said
    status, report = verified(capsys)
    assert (status, len(report["chains"])) == (0, 2)


def test_a_key_that_cannot_be_recorded_is_not_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.parent.joinpath("trail").write_text("no folder")
    assert main(["keys", "create", "one"]) == 2
    assert "audit trail" in capsys.readouterr().err
    place.unlink()
    assert main(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_old_records_are_dropped_by_command_and_the_rest_is_whole(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert main(["keys", "create", name]) == 0
    assert main(["audit", "drop", "--older-than", "1"]) == 0
    assert "dropped: 0 parts" in capsys.readouterr().out
    assert len(list(place.iterdir())) == 3, "with the chain of the command itself"
    assert main(["audit", "drop", "--older-than", "0"]) == 0
    assert "dropped: 3 parts" in capsys.readouterr().out
    (left,) = place.iterdir()
    assert '"program":"audit drop"' in left.read_text()
    assert verified(capsys)[0] == 0
    assert main(["audit", "drop", "--older-than", "-1"]) == 2


def test_verify_tells_whole_from_tampered_from_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify"]) == 2
    assert main(["keys", "create", "one"]) == 0
    assert main(["audit", "verify"]) == 0
    assert "the trail is whole" in capsys.readouterr().out
    (file,) = place.iterdir()
    file.write_bytes(file.read_bytes().replace(b'"expires_at":null', b'"expires_at":1234'))
    assert main(["audit", "verify", str(place)]) == 1
    told = capsys.readouterr().out
    assert "TAMPERED" in told
    assert f"{file.name}, line 2: record 1 was altered" in told


def test_another_pepper_is_never_made_up(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["keys", "create", "one"]) == 0
    monkeypatch.setenv("GUARD_DATA_DIR", str(place.parent / "elsewhere"))
    assert main(["audit", "verify"]) == 2
    assert "pepper" in capsys.readouterr().err
    assert not (place.parent / "elsewhere").exists()


def test_a_server_that_is_killed_leaves_a_whole_trail_with_every_verdict_that_left(
    place: Path, servers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = servers()
    told = list[str]()

    def ask(number: int) -> None:
        with contextlib.suppress(httpx.HTTPError):
            while True:
                told.append(server.moderate(f"{WORDS} {number}").headers["x-request-id"])

    askers = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for asker in askers:
        asker.start()
    while len(told) < 40:
        time.sleep(0.01)
    server.end(signal.SIGKILL)  # in the middle of its work
    for asker in askers:
        asker.join(20)
    written = "".join(file.read_text() for file in place.iterdir())
    assert all(request in written for request in told)
    assert WORDS not in written
    assert WORDS not in server.log.read_text()
    status, report = verified(capsys)
    assert status == 0
    assert not report["chains"][0]["ended"]
    server = servers()
    server.moderate("again")
    server.end()
    status, report = verified(capsys)
    assert status == 0
    assert [chain["ended"] for chain in report["chains"]] == [False, True]


def test_two_servers_write_to_one_place(place: Path, servers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = servers(), servers()
    for number in range(10):
        assert one.moderate(f"one {number}").status_code == other.moderate(f"other {number}").status_code == 200
    one.end()
    other.end()
    status, report = verified(capsys)
    assert status == 0
    assert [chain["records"] for chain in report["chains"]] == [12, 12]


def test_a_server_on_a_full_disk_refuses_and_its_trail_stays_whole(
    place: Path, servers: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses to let any file grow past the limit: a write is cut short, and the next one fails."""
    monkeypatch.setenv("GUARD_AUDIT_SEALS", str(place.parent / "seals"))
    limit = 400_000  # the database of the keys and batches needs some too

    def bound() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    server = servers(preexec_fn=bound)
    statuses = list[int]()
    with httpx.Client(base_url=server.url, timeout=20) as client:
        while statuses.count(503) < 3 and len(statuses) < 200:
            statuses.append(client.post("/v1/moderations", json={"input": ["a bomb"] * 20}).status_code)
    server.end()
    assert statuses[0] == 200
    assert statuses[-3:] == [503] * 3
    assert set(statuses) == {200, 503}
    status, report = verified(capsys)
    assert status == 0
    (chain,) = report["chains"]
    # The last record of all is small, and may still have fitted.
    assert chain["records"] - chain["ended"] == 1 + 20 * statuses.count(200)


def test_replay_finds_the_record_by_its_content_and_shows_what_differs(
    place: Path, servers: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers()
    for text in ("a cake", "a bomb"):
        server.moderate(text)
    rows = [
        {"id": "row", "text": "a cake"},
        {"id": "body", "input": "a bomb"},
        {"id": "never seen", "text": "something else"},
    ]
    file = place.parent / "kept.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    capsys.readouterr()
    assert main(["audit", "replay", str(file), "--url", server.url, "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(result["id"], result["result"]) for result in results] == [("row", "same"), ("body", "same")]
    assert all(item["changed"] == [] for result in results for item in result["items"])
    server.end()

    monkeypatch.setenv("GUARD_THRESHOLD", "1.0")
    server = servers()
    assert main(["audit", "replay", str(file), "--url", server.url, "--json"]) == 1
    row, body = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["result"], body["result"]) == ("same", "different")
    assert body["items"][0]["recorded"]["verdict"] == "unsafe"
    assert body["items"][0]["now"]["verdict"] == "safe"
    assert body["items"][0]["changed"] == ["policy"]
    file.write_text(json.dumps(rows[2]) + "\n")
    assert main(["audit", "replay", str(file), "--url", server.url]) == 2
    assert "not recorded" in capsys.readouterr().out
    server.end()


def test_lines_of_a_server_are_json_if_it_is_told_so(
    place: Path, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_LOG_FORMAT", "json")
    monkeypatch.setenv("GUARD_AUTH", "required")
    server = servers()
    for _ in range(5):
        assert server.moderate(WORDS).status_code == 401
    server.end()
    lines = [line for line in server.log.read_text().splitlines() if not line.startswith("curl ")]
    records = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    refused = [record for record in records if record.get("event") == "request_refused"]
    assert 1 <= len(refused) < 5
    assert refused[0]["request_id"].startswith("req_")
    assert WORDS not in server.log.read_text()
    assert os.fspath(place) not in "".join(record["message"] for record in refused)
