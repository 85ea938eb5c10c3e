"""/v1/batches and the work behind them, on the fake backend."""

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from sqlalchemy import delete, insert, select, text, update

from server.api.openai.batches import Batch
from server.app import create_app
from server.batches import runner as batch_runner
from server.batches.endpoints import ENDPOINTS
from server.batches.lines import MAX_FAULTS, MAX_LINES, Line, read_lines, request_of
from server.checkpoints.profile import load_profile
from server.domain.errors import DeadlineExceeded, EngineUnavailable, InvalidRequest
from server.moderation.moderator import PROBE
from server.settings import Settings
from server.store.batches import Batches
from server.store.database import Unstorable
from server.store.tables import batch_suspects, batches, files
from tests.api.conftest import PROFILE, As, LiveServer, wait_until
from tests.api.openai.test_files import upload
from tests.api.shapes import error_of, obeys_openai
from tests.fakes import FakeBackend, Gate, always, by_word, failing, hanging, held_at, lasting, until, words_of

CANARY = "zebra crossing"


def line(custom_id: Any, body: Any = None, **changes: Any) -> dict[str, Any]:
    default = {"custom_id": custom_id, "method": "POST", "url": "/v1/moderations"}
    return {**default, "body": {"input": f"bread-{custom_id}"} if body is None else body, **changes}


def written(*lines: Any) -> bytes:
    return b"".join(item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n" for item in lines)


async def create(client: httpx.AsyncClient, *lines: Any, **changes: Any) -> dict[str, Any]:
    file = await upload(client, written(*lines))
    body = {"input_file_id": file["id"], "endpoint": "/v1/moderations", "completion_window": "24h", **changes}
    response = await client.post("/v1/batches", json=body)
    assert response.status_code == 200, response.text
    batch: dict[str, Any] = response.json()
    described(batch)
    return batch


def described(batch: dict[str, Any]) -> None:
    """By our own document, whatever state it is in, and by OpenAI's where that is at hand."""
    TypeAdapter(Batch).validate_python(batch)
    obeys_openai(batch, "Batch")


async def get(client: httpx.AsyncClient, batch: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/v1/batches/{batch['id']}")).json()
    return found


async def ended(client: httpx.AsyncClient, batch: dict[str, Any], *statuses: str) -> dict[str, Any]:
    """The batch once it has one of `statuses`, or has ended."""
    async with asyncio.timeout(20):
        while True:
            found = await get(client, batch)
            assert "status" in found, found
            if found["status"] in (*statuses, "completed", "failed", "expired", "cancelled"):
                described(found)
                return found
            await asyncio.sleep(0.01)


async def answers(client: httpx.AsyncClient, batch: dict[str, Any], kind: str = "output") -> list[dict[str, Any]]:
    file_id = batch.get(f"{kind}_file_id")
    if file_id is None:
        return []
    return [json.loads(line) for line in (await client.get(f"/v1/files/{file_id}/content")).text.splitlines()]


async def five_are_done(client: httpx.AsyncClient, batch: dict[str, Any]) -> None:
    await so_many_are_done(client, batch, 5)


async def so_many_are_done(client: httpx.AsyncClient, batch: dict[str, Any], lines: int) -> None:
    async with asyncio.timeout(10):
        while (await get(client, batch))["request_counts"]["completed"] < lines:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- From a file to its answers --------------------------------------------------------------------------


async def test_every_line_is_answered_as_a_request_would_be(client: httpx.AsyncClient) -> None:
    batch = await create(
        client,
        line("a", {"input": "a bomb"}),
        b"\r\n",
        line("b", {"input": ["bread", "a bomb"], "model": "omni-moderation-latest"}),
        line("c", {"input": ""}),
        metadata={"for": "tests"},
    )
    assert (batch["status"], batch["metadata"]) == ("validating", {"for": "tests"})
    assert batch["expires_at"] - batch["created_at"] == 86_400
    done = await ended(client, batch)
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert done["usage"]["output_tokens"] == 5 + 1 + 5
    assert done["created_at"] <= done["in_progress_at"] <= done["finalizing_at"] <= done["completed_at"]
    first, second = await answers(client, done)
    assert list(first) == ["id", "custom_id", "response", "error"]
    assert (first["custom_id"], first["error"], first["response"]["status_code"]) == ("a", None, 200)
    assert first["id"].startswith("batch_req_")
    assert first["response"]["request_id"].startswith("req_")
    obeys_openai(first["response"]["body"], "CreateModerationResponse")
    assert first["response"]["body"]["results"][0]["flagged"] is True
    assert [result["flagged"] for result in second["response"]["body"]["results"]] == [False, True]
    (wrong,) = await answers(client, done, "error")
    live = await client.post("/v1/moderations", json={"input": ""})
    assert (wrong["custom_id"], wrong["error"]) == ("c", None)
    assert (wrong["response"]["status_code"], wrong["response"]["body"]) == (live.status_code, live.json())


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
async def test_every_endpoint_takes_batches(client: httpx.AsyncClient, endpoint: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/moderations": {"input": "a bomb"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a bomb"}]},
        "/v1/completions": {"prompt": "a bomb"},
        "/v1/responses": {"input": "a bomb"},
    }
    body = bodies[endpoint]
    batch = await create(
        client, line("a", body, url=endpoint), line("s", {**body, "stream": True}, url=endpoint), endpoint=endpoint
    )
    done = await ended(client, batch)
    (judged,) = await answers(client, done)
    assert set(judged["response"]["body"]) == set((await client.post(endpoint, json=body)).json())
    (streamed,) = await answers(client, done, "error")
    assert streamed["response"]["status_code"] == 400
    assert streamed["response"]["body"]["error"]["param"] == "stream"


async def test_faults_of_a_body_are_the_lines_own(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    bodies: list[Any] = [{}, {"input": 5}, {"input": "x", "uuid": "1"}, {"input": "x", "model": 5}]
    done = await ended(client, await create(client, *(line(str(index), body) for index, body in enumerate(bodies))))
    failed = await answers(client, done, "error")
    assert [answer["response"]["status_code"] for answer in failed] == [400] * 4
    assert [answer["response"]["body"]["error"]["param"] for answer in failed] == ["input", "input", "uuid", "model"]
    assert "output_file_id" not in done
    assert backend.cases == []


async def test_lines_go_behind_live_requests_and_keep_what_their_owner_said(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    be: As,
) -> None:
    be("key_anna", never_remote=True)
    await ended(client, await create(client, line("a")))
    handling = backend.cases[0].handling
    assert (handling.background, handling.tenant, handling.never_remote) == (True, "key_anna", True)
    be("key_bert")
    await ended(client, await create(client, line("a")))
    assert (backend.cases[1].handling.tenant, backend.cases[1].handling.never_remote) == ("key_bert", False)


async def test_a_request_can_say_that_its_batch_stays_here(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    client.headers["x-guard-never-remote"] = "1"
    await ended(client, await create(client, line("a")))
    assert backend.cases[0].handling.never_remote


# --- Files with faults -----------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Any, str, str | None]] = {
    "no json": (b"zebra\n", "invalid_json_line", None),
    "no object": ([1], "invalid_json_line", None),
    "two readings": (b'{"custom_id": "a", "custom_id": "zebra"}\n', "invalid_json_line", None),
    "not utf-8": (b'{"custom_id": "\xff"}\n', "invalid_json_line", None),
    "no custom_id": (line(None), "missing_required_parameter", "custom_id"),
    "an empty custom_id": (line(""), "missing_required_parameter", "custom_id"),
    "a number for custom_id": (line(5), "invalid_value", "custom_id"),
    "a long custom_id": (line("x" * 513), "invalid_value", "custom_id"),
    "the same custom_id": (line("first"), "duplicate_custom_id", "custom_id"),
    "no method": (line("x", method=None), "missing_required_parameter", "method"),
    "another method": (line("x", method="GET"), "invalid_method", "method"),
    "no url": (line("x", url=None), "missing_required_parameter", "url"),
    "another url": (line("x", url="/v1/chat/completions"), "url_mismatch", "url"),
    "no body": ({"custom_id": "x", "method": "POST", "url": "/v1/moderations"}, "missing_required_parameter", "body"),
    "a text for a body": (line("x", body="zebra"), "invalid_value", "body"),
    "another model": (line("x", {"input": "x", "model": "zebra"}), "model_mismatch", "body.model"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_in_the_file_fails_the_batch_and_not_its_making(
    client: httpx.AsyncClient, backend: FakeBackend, name: str
) -> None:
    wrong, code, param = FAULTS[name]
    failed = await ended(client, await create(client, line("first"), wrong, line("last")))
    assert failed["status"] == "failed"
    assert failed["failed_at"] >= failed["created_at"]
    assert failed["errors"]["object"] == "list"
    (entry,) = failed["errors"]["data"]
    assert (entry["code"], entry["param"], entry["line"]) == (code, param, 2)
    assert "zebra" not in entry["message"]
    assert backend.cases == []


async def test_a_file_of_nothing(client: httpx.AsyncClient) -> None:
    for content in (b"", b"\n \n\r\n"):
        failed = await ended(client, await create(client, content))
        assert [entry["code"] for entry in failed["errors"]["data"]] == ["empty_file"]


async def test_only_so_many_faults_are_told(client: httpx.AsyncClient) -> None:
    failed = await ended(client, await create(client, b"zebra\n" * 1000))
    assert [entry["line"] for entry in failed["errors"]["data"]] == list(range(1, MAX_FAULTS + 1))


async def test_a_file_of_too_many_lines(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_LINES == 50_000
    monkeypatch.setattr("server.batches.lines.MAX_LINES", 3)
    failed = await ended(client, await create(client, *(line(str(number)) for number in range(4))))
    assert [entry["code"] for entry in failed["errors"]["data"]] == ["too_many_tasks"]
    assert (await ended(client, await create(client, *map(line, "abc"))))["status"] == "completed"


@pytest.mark.parametrize("settings", [{"max_body_bytes": 2000}], indirect=True)
async def test_a_line_that_is_longer_than_a_request(client: httpx.AsyncClient) -> None:
    failed = await ended(client, await create(client, line("a"), line("b", {"input": "x" * 2000}), line("c")))
    assert [(entry["code"], entry["line"]) for entry in failed["errors"]["data"]] == [("invalid_json_line", 2)]


# --- Making, looking up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"input_file_id": "file-" + "0" * 32}, 404, "input_file_id"),
        ({"input_file_id": "zebra\0"}, 404, "input_file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"endpoint": 5}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {"a": 5}}, 400, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, 400, "metadata"),
        ({"metadata": {"a": "x" * 513}}, 400, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, 400, "output_expires_after.seconds"),
        ({"zebra": 1}, 400, "zebra"),
    ],
)
async def test_what_is_wrong_with_a_request_is_told_at_once(
    client: httpx.AsyncClient, changes: dict[str, Any], status: int, param: str
) -> None:
    file = await upload(client, written(line("a")))
    body = {"input_file_id": file["id"], "endpoint": "/v1/moderations", "completion_window": "24h", **changes}
    error_of(await client.post("/v1/batches", json=body), status, param=param)
    assert (await client.get("/v1/batches")).json()["data"] == []


async def test_what_a_batch_wrote_cannot_be_read_by_another(client: httpx.AsyncClient) -> None:
    done = await ended(
        client, await create(client, line("a"), output_expires_after={"anchor": "created_at", "seconds": 3600})
    )
    output = (await client.get(f"/v1/files/{done['output_file_id']}")).json()
    assert (output["purpose"], output["filename"]) == ("batch_output", f"{done['id']}_output.jsonl")
    assert output["expires_at"] == output["created_at"] + 3600
    body = {"input_file_id": output["id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
    error_of(await client.post("/v1/batches", json=body), 400, param="input_file_id")


async def test_lists_page(client: httpx.AsyncClient) -> None:
    made = [(await create(client, line("a")))["id"] for _ in range(3)][::-1]
    first = (await client.get("/v1/batches", params={"limit": 2})).json()
    obeys_openai(first, "ListBatchesResponse")
    assert ([batch["id"] for batch in first["data"]], first["has_more"]) == (made[:2], True)
    rest = (await client.get("/v1/batches", params={"after": first["last_id"]})).json()
    assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == (made[2:], False)
    for query in ("limit=0", "limit=101", "after=zebra"):
        error_of(await client.get(f"/v1/batches?{query}"), 400, param=query.partition("=")[0])


async def test_another_callers_batch_is_not_there(client: httpx.AsyncClient, be: As) -> None:
    be("key_anna")
    batch = await create(client, line("a"))
    done = await ended(client, batch)
    be("key_bert")
    error_of(await client.get(f"/v1/batches/{batch['id']}"), 404, code="not_found")
    error_of(await client.post(f"/v1/batches/{batch['id']}/cancel"), 404, code="not_found")
    error_of(await client.get(f"/v1/files/{done['output_file_id']}/content"), 404, code="not_found")
    body = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
    error_of(await client.post("/v1/batches", json=body), 404, param="input_file_id")
    assert (await client.get("/v1/batches")).json()["data"] == []


# --- While it runs ---------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same waits, but short."""
    monkeypatch.setattr(batch_runner, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(batch_runner, "HEARTBEAT_S", 0.05)


async def test_counts_move_and_a_cancelled_batch_keeps_what_is_done(
    client: httpx.AsyncClient, backend: FakeBackend, patient: None
) -> None:
    gate = Gate()

    def some(case: Any) -> Any:
        return held_at(gate)(case) if "late" in words_of(case) else by_word(case)

    backend.script = some
    lines = [line(str(number), {"input": f"late {number}" if number >= 5 else "bread"}) for number in range(40)]
    batch = await create(client, *lines)
    await five_are_done(client, batch)
    running = await get(client, batch)
    assert (running["status"], running["request_counts"]) == ("in_progress", {"total": 40, "completed": 5, "failed": 0})
    error_of(await client.delete(f"/v1/files/{batch['input_file_id']}"), 409, code="conflict")
    assert backend.running == 16
    cancelling = await client.post(f"/v1/batches/{batch['id']}/cancel")
    assert cancelling.json()["status"] == "cancelling"
    cancelled = await ended(client, batch)
    assert cancelled["status"] == "cancelled"
    assert cancelled["cancelling_at"] <= cancelled["cancelled_at"]
    assert backend.running == 0
    assert [answer["custom_id"] for answer in await answers(client, cancelled)] == list("01234")
    assert cancelled["request_counts"] == {"total": 40, "completed": 5, "failed": 0}
    error_of(await client.post(f"/v1/batches/{batch['id']}/cancel"), 409, code="conflict")
    assert (await client.delete(f"/v1/files/{batch['input_file_id']}")).status_code == 200


async def test_what_is_not_judged_in_time_expires_and_the_rest_is_kept(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, patient: None
) -> None:
    backend.script = lambda case: hanging(case) if "late" in words_of(case) else by_word(case)
    batch = await create(
        client, *(line(str(number), {"input": f"late {number}" if number % 2 else "bread"}) for number in range(10))
    )
    await five_are_done(client, batch)
    async with app.state.served.database.begin() as connection:
        await connection.execute(update(batches).values(expires_at=1))
    # The runner holds what it read; a server that starts now reads the new time.
    await restart(app)
    expired = await ended(client, batch)
    assert (expired["status"], expired["request_counts"]) == ("expired", {"total": 10, "completed": 5, "failed": 5})
    assert [answer["custom_id"] for answer in await answers(client, expired)] == list("02468")
    late = await answers(client, expired, "error")
    assert [answer["custom_id"] for answer in late] == list("13579")
    assert {answer["error"]["code"] for answer in late} == {"batch_expired"}
    assert {answer["response"] for answer in late} == {None}


async def restart(app: FastAPI) -> None:
    """Another server takes over: of this one's lease nothing is left."""
    await Batches(app.state.served.database).release_all()


async def test_a_batch_waits_for_an_engine_that_is_down(
    client: httpx.AsyncClient, backend: FakeBackend, patient: None
) -> None:
    backend.script = failing(EngineUnavailable("It is down."))
    batch = await create(client, *map(line, "abc"))
    await until(lambda: len(backend.cases) > 5 * 3 * batch_runner.TRIES)
    assert (await get(client, batch))["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
    backend.script = by_word
    done = await ended(client, batch)
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 3)


async def test_a_line_that_never_comes_to_a_verdict_holds_nobody_up(
    client: httpx.AsyncClient, backend: FakeBackend, patient: None
) -> None:
    def script(case: Any) -> Any:
        if "slow" in words_of(case) and case.conversation != PROBE:
            raise DeadlineExceeded("No verdict in time.")
        return by_word(case)

    backend.script = script
    done = await ended(client, await create(client, line("a"), line("b", {"input": "slow"})))
    (failed,) = await answers(client, done, "error")
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("b", 504)
    assert len(backend.cases) == 1 + batch_runner.TRIES


@pytest.mark.parametrize(
    ("script", "code"), [(always("Sure!"), "unparseable_verdict"), (failing(ValueError(CANARY)), "internal_error")]
)
async def test_what_another_try_would_not_cure_is_not_tried_again_and_never_safe(
    client: httpx.AsyncClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture, script: Any, code: str
) -> None:
    caplog.set_level(logging.DEBUG)
    backend.script = script
    done = await ended(client, await create(client, line("a", {"input": CANARY})))
    (failed,) = await answers(client, done, "error")
    assert failed["response"]["body"]["error"]["code"] == code
    assert len(backend.cases) == 1
    assert "output_file_id" not in done
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("server")]
    assert not [message for message in ours if "zebra" in message]


@pytest.mark.parametrize("settings", [{"max_queue": 8, "list_concurrency": 4, "batch_concurrency": 16}], indirect=True)
async def test_half_of_the_queue_stays_for_live_requests(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend
) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    batch = await create(client, *(line(str(number)) for number in range(50)))
    await backend.busy_with(4)
    asked = [{"input": f"live {number}"} for number in range(4)]
    live = [asyncio.create_task(client.post("/v1/moderations", json=body)) for body in asked]
    await backend.busy_with(8)
    assert app.state.served.service.moderator.admission.admitted == 8
    assert sum("live" in words for words in backend.texts) == 4
    gate.open()
    assert [response.status_code for response in await asyncio.gather(*live)] == [200] * 4
    done = await ended(client, batch)
    assert done["request_counts"]["completed"] == 50


async def test_a_short_batch_does_not_wait_for_a_long_one(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    gate = Gate()

    def some(case: Any) -> Any:
        return held_at(gate)(case) if "late" in words_of(case) else by_word(case)

    backend.script = some
    long = await create(client, *(line(str(number), {"input": f"late {number}"}) for number in range(10)))
    await backend.busy_with(10)
    short = await ended(client, await create(client, line("a")))
    assert short["status"] == "completed"
    assert (await get(client, long))["status"] == "in_progress"
    gate.open()
    assert (await ended(client, long))["status"] == "completed"


async def test_metrics_tell_of_batches(client: httpx.AsyncClient) -> None:
    await ended(client, await create(client, line("a"), line("b", {})))
    text = (await client.get("/metrics")).text
    for sample in ('guard_batches_total{status="completed"}', 'guard_batch_lines_total{outcome="failed"}'):
        assert sample in text


# --- The bad day -----------------------------------------------------------------------------------------


def test_a_stopping_server_does_not_wait_for_a_batch(live: LiveServer, backend: FakeBackend) -> None:
    backend.script = lambda case: by_word(case) if case.conversation == PROBE else hanging(case)
    with live.client() as client:
        content = written(*(line(str(number)) for number in range(100)))
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", content)}).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
        assert client.post("/v1/batches", json=body).status_code == 200
        wait_until(lambda: backend.running == 16)
        live.terminate()
    live.thread.join(3)
    assert not live.thread.is_alive()
    assert (backend.running, backend.closed) == (0, True)


@contextlib.asynccontextmanager
async def full(app: FastAPI, *tables: str) -> AsyncIterator[None]:
    """The database takes nothing new and forgets nothing of these tables, as one on a full disk."""
    triggers = [(f"{table}_{event}", table, event) for table in tables for event in ("INSERT", "UPDATE", "DELETE")]
    async with app.state.served.database.begin() as connection:
        for name, table, event in triggers:
            body = "BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
            statement = f"CREATE TRIGGER {name} BEFORE {event} ON {table} {body}"
            await connection.execute(text(statement))
    yield
    async with app.state.served.database.begin() as connection:
        for name, _, _ in triggers:
            await connection.execute(text(f"DROP TRIGGER {name}"))


async def test_a_database_that_fails_is_told_and_nothing_is_reported_as_done(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend
) -> None:
    file = await upload(client, written(line("a")))
    body = {"input_file_id": file["id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
    async with full(app, "files", "batches"):
        for response in (
            await client.post("/v1/batches", json=body),
            await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x")}),
            await client.delete(f"/v1/files/{file['id']}"),
        ):
            error_of(response, 503, code="store_unavailable")
            assert response.headers["x-should-retry"] == "true"
        # Live verdicts need no database.
        assert (await client.post("/v1/moderations", json={"input": "bread"})).status_code == 200
    assert (await client.get("/v1/batches")).json()["data"] == []
    assert len((await client.get("/v1/files")).json()["data"]) == 1


async def test_a_batch_outlives_a_database_that_fails_for_a_while(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, patient: None
) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    batch = await create(client, *map(line, "abc"))
    await backend.busy_with(3)
    async with full(app, "batches", "batch_results"):
        gate.open()
        await until(lambda: backend.running == 0)
        await asyncio.sleep(0.3)  # several heartbeats and attempts to record
        assert (await get(client, batch))["request_counts"]["completed"] == 0
    await restart(app)
    done = await ended(client, batch)
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 3, "completed": 3, "failed": 0})
    assert [answer["custom_id"] for answer in await answers(client, done)] == list("abc")


# --- Lines that poison, and servers that fall -------------------------------------------------------------


class Panic(BaseException):
    """What a library in Rust raises when it fails: no Exception."""


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), Panic(CANARY)], ids=repr)
async def test_a_line_that_cannot_be_read_is_its_own_error(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    refuse(monkeypatch, error)
    done = await ended(client, await create(client, *(line(str(number)) for number in range(20)), line("poison")))
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 21, "completed": 20, "failed": 1})
    (failed,) = await answers(client, done, "error")
    assert (failed["response"]["status_code"], failed["custom_id"]) == (500, "")
    assert failed["response"]["body"]["error"]["code"] == "internal_error"


def refuse(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let lines with the word `poison` be read once, by the check of the file, and never again."""
    read = request_of

    def reading(found: Line) -> Any:
        if b"poison" in (found.content or b""):
            raise error
        return read(found)

    monkeypatch.setattr(batch_runner, "request_of", reading)


async def test_a_line_that_panics_in_the_engine_is_its_own_error(
    client: httpx.AsyncClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    def script(case: Any) -> Any:
        if "poison" in words_of(case):
            raise Panic(CANARY)
        return by_word(case)

    backend.script = script
    done = await ended(client, await create(client, line("a"), line("poison", {"input": "poison"}), line("b")))
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 3, "completed": 2, "failed": 1})
    assert CANARY not in caplog.text


async def test_a_result_that_the_database_cannot_hold_is_its_own_error(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Batches.record

    async def refusing(self: Batches, batch_id: str, worker: str, results: Any) -> None:
        if any("poison" in result.document for result in results):
            raise Unstorable("It is too long.")
        await record(self, batch_id, worker, results)

    monkeypatch.setattr(Batches, "record", refusing)
    done = await ended(client, await create(client, *(line(str(number)) for number in range(20)), line("poison")))
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 21, "completed": 20, "failed": 1})


async def test_a_file_whose_check_fails_ends_its_batch(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("server.batches.lines.LineCheck.read", fail)
    failed = await ended(client, await create(client, line("a")))
    assert (failed["status"], [entry["code"] for entry in failed["errors"]["data"]]) == ("failed", ["server_error"])


async def test_a_batch_ends_at_its_deadline_whatever_its_lines_are(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.script = lambda case: by_word(case) if case.conversation == PROBE else hanging(case)
    batch = await create(client, *(line(str(number)) for number in range(3)), line("poison"))
    await backend.busy_with(4)
    refuse(monkeypatch, RecursionError())
    await change(app, batch, expires_at=1)
    await falls(app, batch)
    expired = await ended(client, batch)
    assert (expired["status"], expired["request_counts"]) == ("expired", {"total": 4, "completed": 0, "failed": 4})
    assert [answer["custom_id"] for answer in await answers(client, expired, "error")] == ["0", "1", "2", ""]


async def test_a_batch_that_is_not_even_checked_in_time_expires(client: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.served.service.drain()  # so that nobody begins with it
    batch = await create(client, line("a"))
    await change(app, batch, expires_at=1)
    app.state.served.service.moderator.admission.draining = False
    app.state.served.batches_changed.set()
    expired = await ended(client, batch)
    assert (expired["status"], expired["request_counts"]["total"]) == ("expired", 0)


async def test_a_batch_without_its_file_fails_and_keeps_what_is_done(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, patient: None
) -> None:
    backend.script = lambda case: hanging(case) if "late" in words_of(case) else by_word(case)
    lines = [line(str(number), {"input": "bread" if number < 5 else f"late {number}"}) for number in range(10)]
    batch = await create(client, *lines)
    await five_are_done(client, batch)
    async with app.state.served.database.begin() as connection:
        await connection.execute(delete(files).where(files.c.id == batch["input_file_id"]))
    await falls(app, batch)
    failed = await ended(client, batch)
    assert (failed["status"], [entry["code"] for entry in failed["errors"]["data"]]) == ("failed", ["file_not_found"])
    assert [answer["custom_id"] for answer in await answers(client, failed)] == list("01234")


async def change(app: FastAPI, batch: dict[str, Any], **values: Any) -> None:
    async with app.state.served.database.begin() as connection:
        await connection.execute(update(batches).where(batches.c.id == batch["id"]).values(**values))


async def falls(app: FastAPI, batch: dict[str, Any], suspects: dict[int, int] | None = None) -> None:
    """The server that worked on the batch is dead, and so were earlier ones that judged `suspects` alone."""
    async with app.state.served.database.begin() as connection:
        for number, tries in (suspects or {}).items():
            await connection.execute(insert(batch_suspects).values(batch_id=batch["id"], line=number, tries=tries))
    await change(app, batch, worker="dead", worker_until=1)


def held(gate: Gate, *words: str) -> Any:
    """Hangs at cases with one of these words until `gate` is open."""
    return lambda case: held_at(gate)(case) if any(word in words_of(case) for word in words) else by_word(case)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner, "PAUSE_S", 0.01)


async def test_after_a_fall_the_lines_that_may_be_the_cause_are_judged_alone(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, patient: None
) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    batch = await create(client, *(line(str(number)) for number in range(60)))
    await backend.busy_with(16)
    await falls(app, batch)
    await until(lambda: backend.running == 1)  # of all that were in work, one is
    async with app.state.served.database.begin() as connection:
        suspects = (await connection.execute(select(batch_suspects.c.line, batch_suspects.c.tries))).all()
    assert [tuple(each) for each in suspects] == [(1, 1)]
    gate.open()
    done = await ended(client, batch)
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 60)
    assert [answer["custom_id"] for answer in await answers(client, done)] == [str(number) for number in range(60)]


async def test_a_line_that_servers_fell_at_comes_last_and_alone(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, patient: None, quick: None
) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    batch = await create(client, *(line(str(number)) for number in range(40)))
    await backend.busy_with(16)
    await falls(app, batch, suspects={3: 1})
    await until(lambda: backend.running == 1)
    seen = len(backend.texts)
    gate.open()
    done = await ended(client, batch)
    assert done["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    assert backend.texts[-1] == "User: bread-2"
    assert backend.texts[seen:].count("User: bread-2") == 1


async def test_a_line_that_servers_fell_at_repeatedly_is_not_tried_again(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, patient: None, quick: None
) -> None:
    backend.script = held(gate := Gate(), "bread-2")
    batch = await create(client, *(line(str(number)) for number in range(4)))
    await so_many_are_done(client, batch, 3)
    await falls(app, batch, suspects={3: batch_runner.TRIES_ALONE})
    done = await ended(client, batch)
    assert done["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    (failed,) = await answers(client, done, "error")
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("2", 500)
    assert "stopped 2 times" in failed["response"]["body"]["error"]["message"]
    assert len(backend.cases) == 4
    gate.open()


async def test_a_file_that_servers_fell_at_repeatedly_is_given_up(client: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.served.service.drain()
    batch = await create(client, line("a"))
    await change(app, batch, falls=batch_runner.FALLS_OF_A_FILE)
    app.state.served.service.moderator.admission.draining = False
    app.state.served.batches_changed.set()
    failed = await ended(client, batch)
    assert (failed["status"], [entry["code"] for entry in failed["errors"]["data"]]) == ("failed", ["server_error"])


async def test_a_server_that_stops_orderly_did_not_fall_unless_its_engine_is_dead(
    app: FastAPI, client: httpx.AsyncClient, backend: FakeBackend, patient: None
) -> None:
    backend.script = held(gate := Gate(), "bread")
    batch = await create(client, line("a"))
    await until(lambda: backend.running == 1)
    for alive, expected in ((True, 0), (False, 1)):
        backend.alive = alive
        (work,) = [task for task in asyncio.all_tasks() if "_work_on" in repr(task.get_coro())]
        work.cancel()
        await asyncio.wait({work})
        async with app.state.served.database.begin() as connection:
            assert (await connection.execute(select(batches.c.falls))).scalar_one() == expected
        await until(lambda: backend.running == 1)
    backend.alive = True
    gate.open()
    assert (await ended(client, batch))["status"] == "completed"


# --- Many owners -----------------------------------------------------------------------------------------


async def test_a_short_batch_of_one_owner_is_done_soon_behind_long_ones_of_another(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, be: As
) -> None:
    backend.script = lasting(lambda words: 0.0 if "hello" in words else 0.05)
    be("key_anna")
    long = [await create(client, *(line(f"{batch} {number}") for number in range(400))) for batch in range(5)]
    await backend.busy_with(16)
    be("key_bert")
    short = await create(client, line("a"))
    asked = len(backend.cases)
    assert (await ended(client, short))["status"] == "completed"
    assert len(backend.cases) - asked < 200  # of 2,000
    be("key_anna")
    statuses = [(await get(client, batch))["status"] for batch in long]
    assert "completed" not in statuses
    for batch in long:
        await client.post(f"/v1/batches/{batch['id']}/cancel")


async def test_a_batch_that_only_has_to_end_does_not_wait_for_others(
    client: httpx.AsyncClient, backend: FakeBackend, patient: None
) -> None:
    backend.script = held(gate := Gate(), "late")
    for number in range(4):
        await create(client, line(f"late {number}"))
    await backend.busy_with(4)
    fifth = await create(client, line("late"))
    await client.post(f"/v1/batches/{fifth['id']}/cancel")
    assert (await ended(client, fifth))["status"] == "cancelled"
    gate.open()


async def test_owners_of_many_batches_give_way_to_those_without(
    client: httpx.AsyncClient, backend: FakeBackend, be: As, patient: None
) -> None:
    """Eight batches of two owners are at work, as many as there may be. A third owner's is done long before them."""
    backend.script = lasting(lambda words: 0.05 if "bread" in words else 0.0)
    long: list[tuple[str, dict[str, Any]]] = []
    for owner in ("key_anna", "key_bert"):
        be(owner)
        for number in range(4):
            lines = (line(f"{owner} {number} {each}") for each in range(400))
            long.append((owner, await create(client, *lines)))
    await backend.busy_with(16)
    be("key_carl")
    short = await create(client, line("a", {"input": "hello"}))
    asked = len(backend.cases)
    assert (await ended(client, short))["status"] == "completed"
    assert len(backend.cases) - asked < 400  # of 3,200
    for owner, batch in long:
        be(owner)
        assert (await client.post(f"/v1/batches/{batch['id']}/cancel")).json()["status"] == "cancelling"


@pytest.mark.parametrize("settings", [{"max_open_batches": 2, "max_stored_bytes": 2**20}], indirect=True)
async def test_what_one_owner_may_have_is_limited(client: httpx.AsyncClient, backend: FakeBackend, be: As) -> None:
    backend.script = held(gate := Gate(), "bread")
    be("key_anna")
    made = [await create(client, line("a", {"input": "bread"})) for _ in range(2)]
    body = {"input_file_id": made[0]["input_file_id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
    response = await client.post("/v1/batches", json=body)
    error_of(response, 429, code="insufficient_quota")
    assert response.headers["x-should-retry"] == "false"
    big = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x" * 2**20)})
    error_of(big, 429, code="insufficient_quota", param="file")
    be("key_bert")
    await create(client, line("a", {"input": "bread"}))
    gate.open()
    be("key_anna")
    await ended(client, made[0])
    await create(client, line("a"))


# --- What a reader of the runner found ------------------------------------------------------------------


async def test_a_result_that_cannot_be_stored_is_not_bought_again_at_once(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend
) -> None:
    async with full(app, "batch_results"):
        batch = await create(client, *(line(str(number)) for number in range(10)))
        await until(lambda: len(backend.cases) == 10)
        # Several rounds of the runner: its lease, and not the runner's eagerness, says when it is tried again.
        for _ in range(5):
            app.state.served.batches_changed.set()
            await asyncio.sleep(0.05)
        assert len(backend.cases) == 10
        assert (await get(client, batch))["request_counts"] == {"total": 10, "completed": 0, "failed": 0}


async def test_a_line_that_was_accepted_stays_readable_when_bodies_must_be_shorter(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/guard.db"

    @contextlib.asynccontextmanager
    async def serving(backend: FakeBackend, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = Settings(profile=PROFILE, database_url=url, **changes)
        app = create_app(settings, load_profile(PROFILE), backend)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            yield client

    stuck = FakeBackend()
    stuck.script = held_at(Gate())
    async with serving(stuck) as client:
        batch = await create(client, line("a"), line("b", {"input": "x" * 2000}))
        await ended(client, batch, "in_progress")
    async with serving(FakeBackend(), max_body_bytes=1024) as client:
        done = await ended(client, batch)
        assert done["status"] == "completed"
        assert done["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


async def test_a_change_at_the_very_moment_of_the_end_does_not_keep_the_server_running(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    runner = batch_runner.BatchRunner(
        app.state.served.database, app.state.served.service, app.state.served.readiness, changed := asyncio.Event()
    )
    work = asyncio.create_task(runner.run())
    await until(lambda: bool(changed._waiters))
    changed.set()
    work.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait({work})
    assert work.cancelled()


async def test_blank_lines_cost_no_call_each() -> None:
    async def piece() -> AsyncIterator[bytes]:
        yield b"\n" * 2**20

    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        assert [found async for found in read_lines(piece(), 1000)] == [[], []]
    finally:
        sys.setprofile(None)
    assert calls < 1000


@pytest.mark.parametrize("step", [1, 2, 3, 4, 100])
async def test_a_byte_order_mark_is_no_part_of_the_first_line(step: int) -> None:
    mark, content = b"\xef\xbb\xbf", b'{"a":1}\n{"b":2}\n'

    async def pieces(whole: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(whole), step):
            yield whole[start : start + step]

    async def lines(whole: bytes) -> list[bytes | None]:
        return [line.content async for found in read_lines(pieces(whole), 1000) for line in found]

    assert await lines(mark + content) == [b'{"a":1}', b'{"b":2}']
    assert await lines(mark + b'{"a":1}') == [b'{"a":1}']
    assert await lines(b'{"a":1}\n' + mark + b"x") == [b'{"a":1}', mark + b"x"], "only at the start"


def test_a_wait_stays_short_however_often_it_failed() -> None:
    assert batch_runner.wait_after(1) < batch_runner.wait_after(3) <= batch_runner.LONGEST_WAIT_S
    assert batch_runner.wait_after(10_000) == batch_runner.LONGEST_WAIT_S


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[]",
        b"{}",
        b'{"custom_id": "a"}',
        b'{"custom_id": 1, "body": {}}',
        b'{"custom_id": "a", "body": []}',
        b"\xff",
    ]
    + [b'{"custom_id": "a", "body": {"a": ' + b"[" * levels + b"]" * levels + b"}}" for levels in (101, 983, 100_000)],
)
def test_a_line_that_cannot_be_read_again_is_an_error_of_its_own(content: bytes | None) -> None:
    """It was checked once, maybe by another version. The lines around it must not end with it."""
    custom_id, error = request_of(Line(6, content))
    assert custom_id == ""
    assert isinstance(error, InvalidRequest)
