"""What goes wrong, and how callers are told: OpenAI's shape, a status that fits, nothing of what they wrote."""

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api.http.middleware import METHODS
from server.domain.errors import EngineFailure, EngineUnavailable, GuardError
from tests.api.shapes import error_of
from tests.fakes import FakeBackend, Gate, Script, always, failing, hanging, held_at

CANARY = "zebra crossing"
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/moderations": {"input": CANARY},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": CANARY}]},
}
PATHS = [*REQUESTS, "stream"]


async def post(client: httpx.AsyncClient, path: str) -> httpx.Response:
    if path == "stream":
        return await client.post("/v1/chat/completions", json={**REQUESTS["/v1/chat/completions"], "stream": True})
    return await client.post(path, json=REQUESTS[path])


# --- URLs and methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/moderation",
        "/v1/moderations/",
        "/v1/chat/completions/",
        "//v1/moderations",
        "/V1/moderations",
        "/v1/embeddings",
        "/redoc",
        "/%00",
    ],
)
async def test_an_unknown_url(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        response = await client.request(method, path)
        error_of(response, 404, type="invalid_request_error", param=None, code="unknown_url")


async def test_an_unknown_file_of_the_documentation(client: httpx.AsyncClient) -> None:
    error_of(await client.get("/static-offline-docs/none.js"), 404, code="unknown_url")
    error_of(await client.get("/static-offline-docs/%2e%2e/core.py"), 404, code="unknown_url")
    error_of(await client.post("/static-offline-docs/none.js"), 405, code="method_not_allowed")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/moderations", "POST"),
        ("/v1/chat/completions", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/ready", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_one(client: httpx.AsyncClient, path: str, allowed: str) -> None:
    for method in METHODS.difference(allowed.split(", "), ["HEAD"]):
        response = await client.request(method, path)
        error_of(response, 405, type="invalid_request_error", code="method_not_allowed")
        assert response.headers["allow"] == allowed


async def test_a_hostile_host_header_leads_nowhere(client: httpx.AsyncClient) -> None:
    for path in ("/", "/v1/moderations/", "/docs/", "//evil.example/docs"):
        response = await client.get(path, headers={"host": "evil.example"})
        assert "evil.example" not in response.text + response.headers.get("location", "")


# --- Faults of the backend -------------------------------------------------------------------------------

FAULTS: list[tuple[str, Script, int, str, str, str]] = [
    ("a failed request", failing(EngineFailure("The engine failed.")), 500, "server_error", "engine_failure", "true"),
    ("a dead engine", failing(EngineUnavailable("It is dead.")), 503, "server_error", "engine_unavailable", "true"),
    ("no verdict", always("I cannot say"), 500, "server_error", "unparseable_verdict", "false"),
    ("an empty answer", always(""), 500, "server_error", "unparseable_verdict", "false"),
    ("a safe one in capitals", always("Safe"), 500, "server_error", "unparseable_verdict", "false"),
    ("an unknown code", always("unsafe\nS15"), 500, "server_error", "unparseable_verdict", "false"),
    ("an aborted answer", always("safe", finish_reason="abort"), 500, "server_error", "engine_failure", "true"),
    ("a cut answer", always("safe", finish_reason="length"), 500, "server_error", "unparseable_verdict", "false"),
    ("an error without exception", always("", finish_reason="error"), 500, "server_error", "engine_failure", "true"),
    ("a defect", failing(ValueError(CANARY)), 500, "server_error", "internal_error", "false"),
    ("a defect with a cause", failing(KeyError(CANARY)), 500, "server_error", "internal_error", "false"),
    ("no memory", failing(MemoryError(CANARY)), 500, "server_error", "internal_error", "false"),
    ("dropped work", failing(asyncio.CancelledError(CANARY)), 500, "server_error", "engine_failure", "true"),
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("script", "status", "type_", "code", "retry"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
async def test_a_fault_is_an_error_and_never_a_verdict(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    caplog: pytest.LogCaptureFixture,
    path: str,
    script: Script,
    status: int,
    type_: str,
    code: str,
    retry: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    backend.script = script
    response = await post(client, path)
    error_of(response, status, type=type_, param=None, code=code)
    assert response.headers["x-should-retry"] == retry
    assert "zebra" not in response.text
    logged = [record.getMessage() + str(record.exc_info or "") for record in caplog.records]
    assert not [line for line in logged if "zebra" in line]


async def test_a_defect_leaves_its_place_and_request_in_the_log(
    client: httpx.AsyncClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.script = failing(ValueError(CANARY))
    response = await post(client, "/v1/moderations")
    assert f"{response.headers['x-request-id']}: defect ValueError at" in caplog.text
    assert "fakes.py" in caplog.text


# --- Load, deadlines, death, drain -----------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"max_queue": 3, "list_concurrency": 2}], indirect=True)
async def test_beyond_the_queue_requests_are_shed_at_once(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    # Each another text: the same one would be judged once.
    texts = [asyncio.create_task(client.post("/v1/moderations", json={"input": text})) for text in ("one", "two")]
    admitted = [*texts, asyncio.create_task(post(client, "stream"))]
    await backend.busy_with(3)
    for path in PATHS:
        response = await asyncio.wait_for(post(client, path), 1)
        error_of(response, 429, type="requests", param=None, code="rate_limit_exceeded")
        assert response.headers["x-should-retry"] == "true"
        assert 1 <= int(response.headers["retry-after"]) <= 30
    assert len(backend.cases) == 3
    gate.open()
    assert [response.status_code for response in await asyncio.gather(*admitted)] == [200, 200, 200]
    assert (await post(client, "/v1/moderations")).status_code == 200


@pytest.mark.parametrize("settings", [{"max_queue": 3, "list_concurrency": 2}], indirect=True)
async def test_a_list_takes_as_many_places_as_it_uses_at_once(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    lists = [
        asyncio.create_task(client.post("/v1/moderations", json={"input": [f"{name}{n}" for n in range(5)]}))
        for name in "ab"
    ]
    await backend.busy_with(2)
    single = asyncio.create_task(post(client, "/v1/moderations"))
    await backend.busy_with(3)
    gate.open()
    assert sorted(response.status_code for response in await asyncio.gather(*lists)) == [200, 429]
    assert (await single).status_code == 200


@pytest.mark.parametrize("settings", [{"deadline": 0.05}], indirect=True)
@pytest.mark.parametrize("path", PATHS)
async def test_no_verdict_by_the_deadline(client: httpx.AsyncClient, backend: FakeBackend, path: str) -> None:
    backend.script = hanging
    response = await post(client, path)
    error_of(response, 504, type="server_error", param=None, code="deadline_exceeded")
    assert response.headers["x-should-retry"] == "true"
    assert (backend.running, backend.cancelled) == (0, 1)


@pytest.mark.parametrize("path", PATHS)
async def test_a_draining_server_takes_nothing_new(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, path: str
) -> None:
    app.state.served.service.drain()
    response = await post(client, path)
    error_of(response, 503, type="server_error", code="shutting_down")
    assert int(response.headers["retry-after"]) >= 1
    assert backend.cases == []


# --- The table in the documentation's hands --------------------------------------------------------------


def kinds_of(error: type[GuardError]) -> list[type[GuardError]]:
    return [error, *(kind for child in error.__subclasses__() for kind in kinds_of(child))]


@pytest.mark.parametrize("error", kinds_of(GuardError))
async def test_every_kind_of_error_has_the_shape(
    client: httpx.AsyncClient, backend: FakeBackend, error: type[GuardError]
) -> None:
    backend.script = failing(error("Told.", param="a.b", retry_after=7))
    response = await post(client, "/v1/moderations")
    error_of(response, error.status, message="Told.", type=error.type, code=error.code)
    assert response.headers["x-should-retry"] == json.dumps(error.retryable)
    assert response.headers["retry-after"] == "7"


# --- Bodies that wait to be admitted, and the operator's own policy ---------------------------------------


@pytest.mark.parametrize("settings", [{"max_body_bytes": 80_000}], indirect=True)
async def test_bodies_in_memory_are_bounded_and_shared(app: FastAPI, backend: FakeBackend) -> None:
    """They are read before a request can be admitted, so the queue alone does not bound them."""

    def asked(address: str, port: int, text: str) -> asyncio.Task[httpx.Response]:
        """Ask on a connection of its own, as clients do that ask several things at once."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app, client=(address, port))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as connection:
                return await connection.post("/v1/moderations", json={"input": text})

        return asyncio.create_task(ask())

    budget = app.state.served.body_budget
    gate = Gate()
    backend.script = held_at(gate)
    large = [str(number) + "x" * 79_000 for number in range(13)]
    held = [asked("10.0.0.1", port, text) for port, text in enumerate(large[:11], start=1)]
    await backend.busy_with(11)
    refused = await asked("10.0.0.1", 12, large[-1])
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    small = asked("10.0.0.1", 13, "small")
    other = asked("10.0.0.2", 1, large[-2])
    await backend.busy_with(13)
    gate.open()
    assert {response.status_code for response in await asyncio.gather(*held, small, other)} == {200}
    assert (await asked("10.0.0.1", 12, large[-1])).status_code == 200
    assert budget.free == 320_000, "everything was given back"


@pytest.mark.parametrize("settings", [{"deadline": 0.2}], indirect=True)
async def test_a_body_that_does_not_arrive_is_not_waited_for(app: FastAPI) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/moderations", "headers": [], "query_string": b""}
    await app({**scope, "raw_path": b"/v1/moderations", "http_version": "1.1", "scheme": "http"}, receive, send)
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("settings", [{"request_policy": False}], indirect=True)
async def test_an_operator_can_keep_the_policy_to_himself(client: httpx.AsyncClient) -> None:
    for path, request in REQUESTS.items():
        refused = await client.post(path, json={**request, "policy": {"threshold": 0.9}})
        error_of(refused, 400, param="policy")
        assert (await client.post(path, json=request)).status_code == 200
