"""A server with an audit trail: what it records, what it never does, and what happens when it cannot."""

import asyncio
import errno
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.audit.chain import Secrets
from server.audit.ledger import places_of
from server.audit.places import Folder
from server.audit.verify import Report, verify
from server.checkpoints.profile import load_profile
from server.settings import Settings
from server.store.pepper import pepper_of
from tests.api.test_every_type_everywhere import EXAMPLES
from tests.fakes import FakeBackend

CANARY = "CANARYWORDS"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def settings_of(folder: Path, **changes: Any) -> Settings:
    fields = {
        "profile": "llama-guard-4-12b",
        "data_dir": str(folder / "data"),
        "audit": str(folder / "trail"),
        "audit_seals": str(folder / "seals"),
        **changes,
    }
    return Settings(**fields)


@asynccontextmanager
async def server(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, load_profile(settings.profile), FakeBackend())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost/v1/") as client,
    ):
        yield client


def records(settings: Settings, event: str | None = None) -> list[dict[str, Any]]:
    place, _ = places_of(settings)
    bodies = [json.loads(line.content) for chain in place.chains() for line in place.lines(chain)]
    return [body for body in bodies if event in (None, body["event"])]


def written_below(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*.jsonl"))


def checked(settings: Settings) -> Report:
    return verify(Secrets.of(pepper_of(settings)), *places_of(settings))


async def test_a_verdict_leaves_one_record_with_all_that_decided_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, threshold=0.4)
    async with server(settings) as client:
        reply = await client.post(
            "chat/completions",
            json={"messages": [{"role": "user", "content": f"a bomb {CANARY}"}]},
            headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
        )
    (record,) = records(settings, "verdict")
    guard = reply.json()["guard"]
    assert record["request_id"] == reply.headers["x-request-id"]
    assert record["trace_id"] == TRACE
    assert record["endpoint"] == "/v1/chat/completions"
    assert (record["verdict"], record["p_unsafe"]) == ("unsafe", guard["p_unsafe"])
    assert (record["codes"], record["scores"]) == (guard["categories"], guard["category_scores"])
    assert (record["threshold"], record["backend"], record["cache"]) == (0.4, "fake", None)
    assert re.fullmatch(r"[0-9a-f]{64}", record["content"])
    assert set(record["hashes"]) == {"model", "template", "policy", "code"}
    assert record["seconds"]["total"] > 0
    assert checked(settings).whole


async def test_every_item_of_a_list_has_its_record_and_a_refused_request_has_none(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with server(settings) as client:
        assert (await client.post("moderations", json={"input": ["one", "two", "one"]})).status_code == 200
        assert (await client.post("moderations", json={"input": ""})).status_code == 400
    found = records(settings, "verdict")
    assert [record["content"] == found[0]["content"] for record in found] == [True, False, True]
    assert [record["cache"] for record in found] == [None, None, "joined"]


async def test_of_a_list_with_errors_in_their_places_each_verdict_has_its_record(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with server(settings) as client:
        body = {"input": ["one", "", "two"], "on_error": "per_item"}
        response = await client.post("moderations", json=body)
    assert ["error" in result for result in response.json()["results"]] == [False, True, False]
    assert len(records(settings, "verdict")) == 2


@pytest.mark.parametrize("path", sorted(EXAMPLES.keys() - {"/v1/batches"}))
async def test_no_endpoint_gives_a_verdict_without_a_record(tmp_path: Path, path: str) -> None:
    settings = settings_of(tmp_path)
    async with server(settings) as client:
        for title, body in EXAMPLES[path].values():
            before = len(records(settings, "verdict"))
            # The model's name is a placeholder there.
            named = {name: value for name, value in body.items() if name not in ("model", "models")}
            response = await client.post(f"http://localhost{path}", json=named)
            assert response.status_code == 200, title
            last = records(settings, "verdict")[-1]
            assert len(records(settings, "verdict")) > before, title
            assert (last["endpoint"], last["request_id"]) == (path, response.headers["x-request-id"])


async def test_a_policy_of_a_request_has_another_hash(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with server(settings) as client:
        await client.post("moderations", json={"input": "one"})
        await client.post("moderations", json={"input": "one", "policy": {"threshold": 0.1}})
    one, other = records(settings, "verdict")
    assert one["hashes"]["policy"] != other["hashes"]["policy"]
    assert one["hashes"]["template"] == other["hashes"]["template"]


async def test_no_content_reaches_the_trail_the_seals_or_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    settings = settings_of(tmp_path)
    async with server(settings) as client:
        for path, body in (
            ("moderations", {"input": CANARY}),
            ("chat/completions", {"model": CANARY, "messages": [{"role": "user", "content": CANARY}]}),
            ("chat/completions", {"messages": [{"role": "user", "content": CANARY}], "user": CANARY}),
            ("moderations", {"input": "x", "policy": {"categories": {"S1": CANARY}}}),
            (CANARY, {}),
        ):
            await client.post(path, json=body, headers={"traceparent": CANARY, "user-agent": CANARY})
    written = written_below(tmp_path)
    assert b'"event":"verdict"' in written
    assert CANARY.encode() not in written
    # httpx is the client here, which knows what it sends.
    assert not [each for each in caplog.records if CANARY in each.getMessage() and not each.name.startswith("http")]


async def test_a_start_names_the_settings_that_changed_and_holds_no_value(tmp_path: Path) -> None:
    pepper = "pepper-of-at-least-32-characters-CANARY"
    for changes in ({"threshold": 0.25}, {"threshold": 0.75, "max_queue": 300}):
        settings = settings_of(tmp_path, key_pepper=pepper, **changes)
        async with server(settings):
            pass
    _, second = records(settings, "start")
    assert second["settings"]["changed"] == ["GUARD_MAX_QUEUE", "GUARD_THRESHOLD"]
    written = written_below(tmp_path)
    assert b"CANARY" not in written
    assert b"0.75" not in written
    assert checked(settings).whole


# --- A place that fails ----------------------------------------------------------------------------------


class FullDisk:
    """`os.write` of a disk that has `room` bytes left: it writes what fits, then raises ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr("server.audit.places.os.write", self)

    def __call__(self, file: int, content: Any) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(file, bytes(content)[: self.room])
        self.room -= written
        return written


async def test_no_verdict_leaves_without_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path)
    async with server(settings) as client:
        assert (await client.post("moderations", json={"input": "one"})).status_code == 200
        disk = FullDisk(monkeypatch, room=100)
        refused = await client.post("moderations", json={"input": "two"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "audit_unavailable"
        assert "results" not in refused.json()
        shaped = await client.post(
            "http://localhost/api/v1/chat/completions", json={"messages": [{"role": "user", "content": "two"}]}
        )
        assert (shaped.status_code, shaped.json()["error"]["code"]) == (503, 503)
        disk.room = 10**9
        assert (await client.post("moderations", json={"input": "three"})).status_code == 200
    assert len(records(settings, "verdict")) == 2
    assert checked(settings).whole


async def test_with_continue_the_verdict_leaves_and_the_trail_says_how_many_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, audit_failure="continue")
    async with server(settings) as client:
        disk = FullDisk(monkeypatch, room=0)
        for _ in range(3):
            assert (await client.post("moderations", json={"input": "one"})).status_code == 200
        counted = (await client.get("http://localhost/metrics")).text
        disk.room = 10**9
        assert (await client.post("moderations", json={"input": "two"})).status_code == 200
    assert sum(record["records"] for record in records(settings, "lost")) + len(records(settings, "verdict")) == 4
    assert "guard_audit_failures_total" in counted
    assert checked(settings).whole


async def test_a_slow_disk_holds_up_its_verdicts_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write serves all verdicts that wait for it."""
    synced = list[float]()

    def slowly(file: int) -> None:
        synced.append(time.monotonic())
        time.sleep(0.4)

    settings = settings_of(tmp_path)
    async with server(settings) as client:
        monkeypatch.setattr("server.audit.places.os.fdatasync", slowly)
        began = time.monotonic()
        asked = [asyncio.create_task(client.post("moderations", json={"input": f"{n}"})) for n in range(40)]
        await asyncio.sleep(0.05)
        before = time.monotonic()
        assert (await client.get("http://localhost/health")).status_code == 200
        assert time.monotonic() - before < 0.3
        assert not any(task.done() for task in asked)
        assert {(await task).status_code for task in asked} == {200}
        assert time.monotonic() - began >= 0.4
        assert len(synced) <= 4
    assert len(records(settings, "verdict")) == 40


async def test_a_disk_that_hangs_is_answered_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr("server.audit.writer.LATEST_S", 0.2)
    async with server(settings_of(tmp_path)) as client:
        monkeypatch.setattr("server.audit.places.os.fdatasync", lambda file: go_on.wait(20))
        reply = await client.post("moderations", json={"input": "one"})
        go_on.set()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "audit_unavailable")


async def test_a_queue_that_is_full_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    async with server(settings_of(tmp_path)) as client:
        app_writer = client._transport.app.state.served.service.ledger._writer  # type: ignore[attr-defined]
        app_writer._most_waiting = 2
        monkeypatch.setattr("server.audit.places.os.fdatasync", lambda file: go_on.wait(20))
        asked = [asyncio.create_task(client.post("moderations", json={"input": f"{n}"})) for n in range(5)]
        await asyncio.sleep(0.3)
        go_on.set()
        statuses = sorted([(await task).status_code for task in asked])
    assert statuses == [200, 200, 503, 503, 503]


async def test_lines_of_a_batch_are_recorded_too(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/moderations", "body": {"input": f"{CANARY} {n}"}}
        for n in range(3)
    ]
    async with server(settings) as client:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = (await client.post("files", data={"purpose": "batch"}, files={"file": ("a.jsonl", content)})).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
        batch = (await client.post("batches", json=body)).json()
        async with asyncio.timeout(30):
            while (await client.get(f"batches/{batch['id']}")).json()["status"] != "completed":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    found = records(settings, "verdict")
    assert [(each["request_id"], each["endpoint"]) for each in found] == [(batch["id"], "/v1/moderations")] * 3
    assert CANARY.encode() not in written_below(tmp_path)


async def test_a_server_whose_trail_cannot_be_written_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "trail").write_text("a file where the folder should be")
    with pytest.raises(Exception, match="The audit trail cannot be written"):
        async with server(settings_of(tmp_path)):
            pass


# --- Other places ----------------------------------------------------------------------------------------


async def test_a_trail_in_a_database_is_checked_like_one_in_files(tmp_path: Path, database_url: str) -> None:
    settings = settings_of(tmp_path, audit="database", audit_seals="", database_url=database_url)
    async with server(settings) as client:
        await client.post("moderations", json={"input": ["one", "two"]})
    assert len(records(settings, "verdict")) == 2
    report = checked(settings)
    assert report.whole
    assert report.chains[0].records == report.chains[0].sealed == 4
    place, _ = places_of(settings)
    next(iter(place.parts())).drop()
    assert not checked(settings).whole


def test_seals_beside_the_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another place"):
        settings_of(tmp_path, audit_seals=str(tmp_path / "trail"))


def test_rights_of_the_files_are_the_owners(tmp_path: Path) -> None:
    place = Folder(tmp_path / "trail")
    place.append("20261201T120000000000Z-000000000001", 0, [b"{}"])
    place.close()
    (file,) = (tmp_path / "trail").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "trail").stat().st_mode & 0o777 == 0o700
