"""Every door is locked when keys are on: no path, header or method gets past, and each key opens its own doors only."""

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount, Route

from server.__main__ import main
from server.api.http.access import OPEN, Access
from server.api.http.dialect import Dialect
from server.api.http.hosts import Hosts
from server.api.http.middleware import METHODS
from server.app import DIALECTS, create_app
from server.checkpoints.profile import load_profile
from server.domain.caller import ANYONE, Scope
from server.settings import Settings
from server.store.keys import create, list_all, revoke
from tests.api.conftest import PROFILE, LiveServer, StartServer, wait_until
from tests.api.shapes import error_of
from tests.fakes import FakeBackend, Gate, held_at

PEPPER = "pepper for tests " * 2
LOCKED = {"auth": "required", "key_pepper": PEPPER}
locked = pytest.mark.parametrize("settings", [LOCKED], indirect=True)

MakeKey = Callable[..., Awaitable[str]]


@pytest.fixture
def make_key(app: FastAPI) -> MakeKey:
    """Makes a key in the application's database; all scopes unless some are given."""

    async def make(*scopes: Scope, **fields: Any) -> str:
        fields = {"name": "test", "scopes": scopes or tuple(Scope), **fields}
        return (await create(app.state.served.database, PEPPER.encode(), **fields))[0]

    return make


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


BODY = {"input": "x"}


# --- All routes ------------------------------------------------------------------------------------------


def doors(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of everything that is routed, by any method there is, with parameters filled in."""
    for route in app.routes:
        if isinstance(route, Mount):
            paths = [route.path, f"{route.path}/", f"{route.path}/swagger-ui-bundle.js"]
        else:
            assert isinstance(route, Route | APIRoute), "a new kind of route: decide how it is closed"
            paths = [re.sub(r"\{\w+\}", "llama-guard", route.path_format)]
        for path in paths:
            for method in sorted(METHODS):
                yield method, path


@locked
async def test_no_door_opens_without_a_key(client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend) -> None:
    found = [door for door in doors(app) if door[1] not in OPEN]
    assert {"/v1/moderations", "/v1/chat/completions", "/metrics", "/docs", "/openapi.json", "/"} <= {
        path for _, path in found
    }
    for method, path in found:
        response = await client.request(method, path, json=BODY)
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert "invalid_api_key" in response.text
    assert backend.cases == []


@locked
@pytest.mark.parametrize("held", Scope)
async def test_a_key_opens_the_doors_of_its_scope_and_no_others(
    client: httpx.AsyncClient, app: FastAPI, make_key: MakeKey, held: Scope
) -> None:
    key = await make_key(held)
    for method, path in doors(app):
        response = await client.request(method, path, json=BODY, headers=bearer(key))
        opens = path in OPEN or app.state.served.access.scope_of(path) is held
        assert (response.status_code not in (401, 403)) is opens, (method, path)
        if not opens and method != "HEAD":
            assert response.status_code == 403
            assert "missing_scope" in response.text


@locked
async def test_every_door_opens_with_all_scopes(client: httpx.AsyncClient, app: FastAPI, make_key: MakeKey) -> None:
    key = await make_key()
    for method, path in doors(app):
        response = await client.request(method, path, json=BODY, headers=bearer(key))
        assert response.status_code not in (401, 403), (method, path)


@locked
async def test_health_and_readiness_are_all_that_is_open(client: httpx.AsyncClient) -> None:
    assert frozenset({"/health", "/ready"}) == OPEN
    for path in OPEN:
        response = await client.get(path)
        assert response.status_code == 200
        # A start-up probe has no key, and must be able to tell a stand-in from the model.
        assert list(response.json()) == ["status", *(["model", "stand_in"] if path == "/ready" else [])]


async def test_without_keys_every_door_is_open(client: httpx.AsyncClient, app: FastAPI) -> None:
    for method, path in doors(app):
        for headers in ({}, {"authorization": "Bearer none"}, {"x-api-key": "sk-of-somebody-else"}):
            response = await client.request(method, path, json=BODY, headers=headers)
            assert response.status_code not in (401, 403), (method, path)


async def test_without_keys_pages_of_other_sites_stay_outside(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
        response = await client.post("/v1/moderations", json={"input": "x"}, headers={"sec-fetch-site": site})
        assert response.status_code == status, site
    assert len(backend.cases) == 2
    assert (await client.get("/health", headers={"sec-fetch-site": "cross-site"})).status_code == 200


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/moderations", Scope.MODERATE),
        ("/v1/chat/completions", Scope.MODERATE),
        ("/v1/responses", Scope.MODERATE),
        ("/v1/models", Scope.MODERATE),
        ("/v1/models/meta-llama/Llama-Guard-4-12B", Scope.MODERATE),
        ("/api/v1", Scope.MODERATE),
        ("/api/v1/chat/completions", Scope.MODERATE),
        ("/beta/litellm_basic_guardrail_api", Scope.MODERATE),
        ("/v1/files", Scope.BATCH),
        ("/v1/files/file-1/content", Scope.BATCH),
        ("/v1/batches/batch_1/cancel", Scope.BATCH),
        ("/metrics", Scope.ADMIN),
        ("/", Scope.ADMIN),
        ("", Scope.ADMIN),
        ("/v1", Scope.ADMIN),
        ("/v1/", Scope.ADMIN),
        ("/v1/anything-new", Scope.ADMIN),
        ("/v1/moderationsx", Scope.ADMIN),
        ("/v1/filesystem", Scope.ADMIN),
        ("/api/v1x", Scope.ADMIN),
        ("/api", Scope.ADMIN),
        ("//v1/moderations", Scope.ADMIN),
        ("/V1/moderations", Scope.ADMIN),
    ],
)
async def test_the_longest_path_says_the_scope(app: FastAPI, path: str, scope: Scope) -> None:
    assert app.state.served.access.scope_of(path) is scope


async def test_a_long_path_is_placed_at_once(app: FastAPI) -> None:
    started = time.perf_counter()
    app.state.served.access.scope_of("/v1/models" + "/" * 200_000)
    assert time.perf_counter() - started < 0.1


def test_what_is_open_needs_no_scope() -> None:
    assert not {path for dialect in DIALECTS for path in dialect.scopes} & OPEN


@pytest.mark.parametrize("dialects", [[], [dialect for dialect in DIALECTS if "/v1/files" not in dialect.scopes]])
def test_a_path_that_no_dialect_speaks_of_needs_admin(dialects: list[Dialect]) -> None:
    """A dialect that forgets its scopes is closed to all but admins."""
    access = Access(
        None,
        Hosts((), needs_keys=False),
        {path: scope for dialect in dialects for path, scope in dialect.scopes.items()},
    )
    assert access.scope_of("/v1/files") is Scope.ADMIN


# --- What is not HTTP -------------------------------------------------------------------------------------


async def asgi(app: FastAPI, scope: dict[str, Any], *received: dict[str, Any]) -> list[dict[str, Any]]:
    """What the application sends in one scope."""
    incoming, sent = list(received), list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("settings", [{}, LOCKED], indirect=True)
@pytest.mark.parametrize("path", ["/v1/moderations", "/openai/v1/moderations", "/health", "/none"])
async def test_a_websocket_is_refused_before_it_is_accepted(app: FastAPI, make_key: MakeKey, path: str) -> None:
    """With a key that opens every other door too."""
    headers = [(b"authorization", f"Bearer {await make_key()}".encode())]
    scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "headers": headers, "query_string": b""}
    (message,) = await asgi(app, scope, {"type": "websocket.connect"})
    assert (message["type"], message["code"]) == ("websocket.close", 1008)


async def test_what_is_neither_http_nor_lifespan_reaches_no_route(app: FastAPI) -> None:
    """Not even a route that would take it."""
    reached = list[str]()

    async def route(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    app.mount("/anything", route)
    with pytest.raises(NotImplementedError, match="webtransport"):
        await asgi(app, {"type": "webtransport", "path": "/anything", "headers": []})
    await asgi(app, {"type": "websocket", "path": "/anything", "headers": []}, {"type": "websocket.connect"})
    assert reached == []


# --- What is presented ------------------------------------------------------------------------------------


@locked
@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer KEY")],
        [("Authorization", "bearer KEY")],
        [("AUTHORIZATION", "BEARER   KEY  ")],
        [("x-api-key", "KEY")],
        [("X-API-Key", " KEY ")],
        [("authorization", "Bearer KEY"), ("x-api-key", "KEY")],
        [("authorization", "Bearer KEY"), ("authorization", "Bearer KEY")],
    ],
)
async def test_a_key_is_taken(client: httpx.AsyncClient, make_key: MakeKey, headers: list[tuple[str, str]]) -> None:
    key = await make_key()
    response = await client.post(
        "/v1/moderations", json=BODY, headers=[(name, value.replace("KEY", key)) for name, value in headers]
    )
    assert response.status_code == 200


@locked
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "KEY")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "BearerKEY")],
        [("authorization", "Basic KEY")],
        [("authorization", "Token KEY")],
        [("authorization", "Bearer KEY, Bearer KEY")],
        [("authorization", "Bearer KEY KEY")],
        [("authorization", "Bearer KEY;")],
        [("authorization", "Bearer 'KEY'")],
        [("authorization", "Bearer KEYA")],
        [("authorization", "Bearer none")],
        [("authorization", b"Bearer \xff\xfe")],
        [("authorization", "Bearer " + "lgs_" * 5000)],
        [("x-api-key", "Bearer KEY")],
        [("x-api-key", "")],
        [("api-key", "KEY")],
        [("cookie", "key=KEY")],
        [("proxy-authorization", "Bearer KEY")],
        [("x-forwarded-user", "admin")],
        [("authorization", "Bearer KEY"), ("authorization", "Bearer OTHER")],
        [("authorization", "Bearer OTHER"), ("authorization", "Bearer KEY")],
        [("authorization", "Bearer KEY"), ("authorization", "Bearer x")],
        [("authorization", "Bearer x"), ("authorization", "Bearer KEY")],
        [("authorization", "Bearer x"), ("x-api-key", "KEY")],
        [("authorization", "Bearer KEY"), ("x-api-key", "OTHER")],
        [("authorization", "Basic eDp5"), ("x-api-key", "KEY")],
    ],
)
async def test_anything_else_is_refused_in_words_that_repeat_nothing(
    client: httpx.AsyncClient, make_key: MakeKey, backend: FakeBackend, headers: list[tuple[str, str | bytes]]
) -> None:
    key, other = await make_key(), await make_key()
    sent = [
        (name.encode(), value.replace(b"KEY", key.encode()).replace(b"OTHER", other.encode()))
        for name, value in ((name, value if isinstance(value, bytes) else value.encode()) for name, value in headers)
    ]
    response = await client.post("/v1/moderations", json=BODY, headers=sent)
    error_of(response, 401, type="invalid_request_error", param=None, code="invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-should-retry"] == "false"
    assert "x-ratelimit-limit-requests" not in response.headers
    assert key not in response.text
    assert backend.cases == []


@locked
async def test_a_key_in_the_url_is_no_key(client: httpx.AsyncClient, make_key: MakeKey) -> None:
    """URLs are logged everywhere."""
    key = await make_key()
    for query in (f"api_key={key}", f"key={key}", f"access_token={key}"):
        assert (await client.post(f"/v1/moderations?{query}", json=BODY)).status_code == 401


@locked
async def test_refusals_speak_the_dialect_of_the_path(client: httpx.AsyncClient, make_key: MakeKey) -> None:
    response = await client.post("/api/v1/chat/completions", json=BODY)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == 401
    assert response.json()["error"]["metadata"]["code"] == "invalid_api_key"
    response = await client.get("/api/v1/models", headers=bearer(await make_key(Scope.BATCH)))
    assert (response.status_code, response.json()["error"]["code"]) == (403, 403)


@locked
async def test_a_missing_scope_is_named(client: httpx.AsyncClient, make_key: MakeKey) -> None:
    response = await client.get("/metrics", headers=bearer(await make_key(Scope.MODERATE)))
    error = error_of(response, 403, type="invalid_request_error", param=None, code="missing_scope")
    assert error["message"].endswith("Missing scopes: admin.")


@locked
async def test_revoked_and_expired_keys_open_nothing(
    client: httpx.AsyncClient, app: FastAPI, make_key: MakeKey
) -> None:
    expired = await make_key(expires_at=int(time.time()))
    revoked = await make_key()
    await revoke(app.state.served.database, revoked.split("_")[1])
    for key in (expired, revoked):
        error_of(await client.post("/v1/moderations", json=BODY, headers=bearer(key)), 401, code="invalid_api_key")


@locked
async def test_no_key_reaches_logs_or_metrics(
    client: httpx.AsyncClient, make_key: MakeKey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = await make_key()
    wrong = key[:-4] + "AAAA"
    for presented in (key, wrong, "sk-canary"):
        await client.post("/v1/moderations", json=BODY, headers=bearer(presented))
        await client.post("/v1/moderations", json={"input": 1}, headers={"x-api-key": presented})
    exposition = (await client.get("/metrics", headers=bearer(key))).text
    assert 'guard_errors_total{kind="invalid_api_key"}' in exposition
    for secret in (key, wrong, key.rpartition("_")[2], "sk-canary"):
        assert secret not in exposition
        assert secret not in caplog.text


# --- What a key says reaches the work ---------------------------------------------------------------------


@locked
async def test_callers_are_tenants_and_keep_what_is_theirs_here(
    client: httpx.AsyncClient, app: FastAPI, make_key: MakeKey, backend: FakeBackend
) -> None:
    free, bound = await make_key(), await make_key(never_remote=True)
    for key in (free, bound, free):
        await client.post("/v1/moderations", json=BODY, headers=bearer(key))
    ids = [key.id for key in await list_all(app.state.served.database)]
    handled = [case.handling for case in backend.cases]
    assert {handled[0].tenant, handled[1].tenant} == set(ids)
    assert handled[0].tenant == handled[2].tenant != handled[1].tenant
    assert [handling.never_remote for handling in handled] == [False, True, False]


async def test_nobody_is_a_tenant_where_nobody_needs_a_key(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.post("/v1/moderations", json=BODY, headers=bearer("none"))
    assert backend.cases[0].handling.tenant is None
    assert ANYONE.id is None


# --- The database is away ---------------------------------------------------------------------------------


@locked
async def test_without_the_database_unknown_keys_are_no_keys(
    client: httpx.AsyncClient, app: FastAPI, make_key: MakeKey, backend: FakeBackend
) -> None:
    known = await make_key()
    assert (await client.post("/v1/moderations", json=BODY, headers=bearer(known))).status_code == 200
    made_later = await make_key()
    await app.state.served.database.close()
    assert (await client.post("/v1/moderations", json=BODY, headers=bearer(known))).status_code == 200
    response = await client.post("/v1/moderations", json=BODY, headers=bearer(made_later))
    error_of(response, 503, type="server_error", code="keys_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert (await client.get("/health")).status_code == 200
    assert len(backend.cases) == 2
    await app.state.served.database.open()


@locked
async def test_a_server_that_cannot_read_its_keys_is_not_ready(
    client: httpx.AsyncClient, app: FastAPI, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_key()
    assert (await client.get("/ready")).status_code == 200
    monkeypatch.setattr("server.store.keys.TRUSTED_S", -1.0)  # nothing that was read is believed any more
    response = await client.get("/ready")
    assert (response.status_code, response.json()["reason"]) == (503, "API keys cannot be read from the database")
    assert (await client.get("/health")).status_code == 200
    monkeypatch.undo()
    assert (await client.get("/ready")).status_code == 200


@locked
async def test_a_defect_at_the_door_lets_nobody_in(
    client: httpx.AsyncClient, app: FastAPI, make_key: MakeKey, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(app.state.served.access, "caller_of", broken)
    error_of(await client.post("/v1/moderations", json=BODY), 500, code="internal_error")
    assert backend.cases == []


# --- Limits of keys ---------------------------------------------------------------------------------------

LIMIT_HEADERS = [
    f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
]


def told(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in LIMIT_HEADERS}


@locked
async def test_requests_are_limited_by_key_and_failed_ones_count(
    client: httpx.AsyncClient, make_key: MakeKey, backend: FakeBackend
) -> None:
    key, other = await make_key(requests_per_minute=3), await make_key(requests_per_minute=3)
    statuses, remaining = [], []
    for body in (BODY, {"input": ""}, {"input": [*map(str, range(50))]}, BODY, BODY):
        response = await client.post("/v1/moderations", json=body, headers=bearer(key))
        statuses.append(response.status_code)
        remaining.append(told(response)["x-ratelimit-remaining-requests"])
        assert response.headers["x-ratelimit-limit-requests"] == "3"
    assert statuses == [200, 400, 200, 429, 429]
    assert remaining == ["2", "1", "0", "0", "0"]
    error_of(response, 429, type="requests", param=None, code="rate_limit_exceeded")
    assert response.headers["x-should-retry"] == "true"
    assert 15 <= int(response.headers["retry-after"]) <= 20
    assert len(backend.cases) == 51
    assert (await client.get("/health", headers=bearer(key))).status_code == 200
    assert (await client.get("/v1/models", headers=bearer(key))).status_code == 429
    assert (await client.post("/v1/moderations", json=BODY, headers=bearer(other))).status_code == 200


@locked
async def test_tokens_are_limited_by_what_verdicts_took(client: httpx.AsyncClient, make_key: MakeKey) -> None:
    key = await make_key(tokens_per_minute=1000)
    plain = await client.post("/v1/moderations", json=BODY, headers=bearer(key))
    usage = plain.json()["results"][0]["guard"]["usage"]
    spent = usage["prompt_tokens"] + usage["completion_tokens"]
    assert told(plain)["x-ratelimit-limit-tokens"] == "1000"
    assert abs(int(told(plain)["x-ratelimit-remaining-tokens"]) - (1000 - spent)) <= 1
    listed = await client.post("/v1/moderations", json={"input": ["x"] * 10}, headers=bearer(key))
    assert listed.status_code == 200
    assert told(listed)["x-ratelimit-remaining-tokens"] == "0"
    refused = await client.post("/v1/moderations", json=BODY, headers=bearer(key))
    error_of(refused, 429, type="tokens", param=None, code="rate_limit_exceeded")
    owed = spent * 11 - 1000
    assert abs(int(refused.headers["retry-after"]) - owed * 60 / 1000) <= 2


@locked
async def test_a_stream_pays_as_well_and_says_so(client: httpx.AsyncClient, make_key: MakeKey) -> None:
    key = await make_key(tokens_per_minute=10_000, requests_per_minute=10)
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    response = await client.post("/v1/chat/completions", json=body, headers=bearer(key))
    assert response.text.endswith("data: [DONE]\n\n")
    assert told(response)["x-ratelimit-remaining-requests"] == "9"
    assert 9000 < int(told(response)["x-ratelimit-remaining-tokens"]) < 9900
    assert response.headers["x-request-id"].startswith("req_")
    assert int(response.headers["openai-processing-ms"]) >= 0
    assert response.headers["x-guard-backend"] == "fake"


@locked
async def test_a_limit_is_reached_before_the_queue_is_asked(
    client: httpx.AsyncClient, app: FastAPI, make_key: MakeKey
) -> None:
    key = await make_key(requests_per_minute=1)
    await client.post("/v1/moderations", json=BODY, headers=bearer(key))
    app.state.served.service.drain()
    assert (await client.post("/v1/moderations", json=BODY, headers=bearer(key))).status_code == 429


# --- Limits of the server ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"max_queue": 40}], indirect=True)
async def test_without_limits_of_a_key_the_servers_own_are_told(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    context = load_profile(PROFILE).context_tokens
    idle = told(await client.post("/v1/moderations", json=BODY))
    assert idle == {
        "x-ratelimit-limit-requests": "40",
        "x-ratelimit-remaining-requests": "40",
        "x-ratelimit-reset-requests": "0s",
        "x-ratelimit-limit-tokens": str(40 * context),
        "x-ratelimit-remaining-tokens": str(40 * context),
        "x-ratelimit-reset-tokens": "0s",
    }
    gate = Gate()
    backend.script = held_at(gate)
    held = asyncio.create_task(client.post("/v1/moderations", json={"input": [*map(str, range(32))]}))
    await backend.busy_with(32)
    busy = told(await client.post("/v1/moderations", json={"input": ""}))
    assert busy["x-ratelimit-remaining-requests"] == "8"
    assert busy["x-ratelimit-remaining-tokens"] == str(8 * context)
    assert busy["x-ratelimit-reset-requests"] not in ("0s", "0ms")
    gate.open()
    assert (await held).status_code == 200


async def test_limits_are_told_where_verdicts_are_asked_for(client: httpx.AsyncClient) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    answers = [
        await client.post("/v1/moderations", json=BODY),
        await client.post("/v1/moderations", content=b"?"),
        await client.post("/v1/chat/completions", json=chat),
        await client.post("/v1/chat/completions", json={**chat, "stream": True}),
        await client.get("/v1/moderations"),
    ]
    assert all(set(LIMIT_HEADERS) <= set(answer.headers) for answer in answers)
    for path in ("/health", "/ready", "/metrics", "/docs", "/none"):
        assert not set(LIMIT_HEADERS) & set((await client.get(path)).headers)


# --- Behind a real socket ---------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A data folder that the server and the command line share."""
    folder = str(tmp_path / "data")
    monkeypatch.setenv("GUARD_DATA_DIR", folder)
    monkeypatch.setenv("GUARD_DATABASE_URL", "")
    return {"data_dir": folder, "database_url": ""}


@pytest.fixture
def guarded(start_server: StartServer, data: dict[str, str]) -> LiveServer:
    return start_server(auth="required", **data)


def raw(live: LiveServer, request: bytes) -> bytes:
    """Send these bytes and return all that comes back until the connection ends or falls silent."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as connection:
        connection.sendall(request)
        received = b""
        connection.settimeout(0.5)
        try:
            while part := connection.recv(65536):
                received += part
        except TimeoutError:
            pass
    return received


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


TARGETS = [
    "/v1/moderations",
    "//v1/moderations",
    "/v1//moderations",
    "/v1/./moderations",
    "/./v1/moderations",
    "/health/../v1/moderations",
    "/health/%2e%2e/v1/moderations",
    "/health%2f..%2fv1%2fmoderations",
    "/health/..;/v1/moderations",
    "/v1/../health",
    "/v1/moderations?/health",
    "/v1/moderations#/health",
    "/v1/moderations;/health",
    "/v1/moderations%3f/health",
    "/%76%31/moderations",
    "/v1%2fmoderations",
    "/v1/moderations%00",
    "/v1/moderations%20",
    "/v1/moderations/",
    "/V1/MODERATIONS",
    "/health/",
    "//health",
    "/health%00",
    "/health%2f",
    "/health;/v1/moderations",
    "/Health",
    "/ready/",
    "/metrics",
    "/%6detrics",
    "/docs",
    "/openapi.json",
    "/static-offline-docs/swagger-ui-bundle.js",
    "/static-offline-docs/../metrics",
    "http://localhost/v1/moderations",
    "http://evil.example/metrics",
    "http://localhost/health/../metrics",
    "/nothing/here",
    "/" + "a/" * 2000,
]


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
def test_no_spelling_of_a_path_gets_past(guarded: LiveServer, backend: FakeBackend, method: str) -> None:
    body = json.dumps(BODY).encode()
    for target in TARGETS:
        for host in ("guard", "127.0.0.1", "localhost", "evil.example", "", "guard/health?", "a, b"):
            request = (
                f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                f"X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\n"
                f"X-HTTP-Method-Override: GET\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            answer = raw(guarded, request.encode() + body)
            (status,) = statuses(answer)
            assert status in (400, 401), (target, host, answer)
        if host == "guard":
            assert status == 401
    assert backend.cases == []


@pytest.mark.parametrize(
    "request_",
    [
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT guard:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer\r\n x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_no_spelling_of_a_request_gets_past(guarded: LiveServer, request_: bytes) -> None:
    assert set(statuses(raw(guarded, request_))) <= {400, 401}


def test_what_follows_an_open_request_on_its_connection_is_closed(guarded: LiveServer, backend: FakeBackend) -> None:
    body = json.dumps(BODY).encode()
    smuggled = b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert statuses(raw(guarded, health + smuggled)) == [200, 401]
    with_body = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(smuggled), smuggled)
    assert statuses(raw(guarded, with_body)) == [200]
    assert backend.cases == []


def test_a_refusal_does_not_wait_for_the_body(guarded: LiveServer) -> None:
    head = b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000000\r\n"
    for more in (b"", b"Expect: 100-continue\r\n"):
        assert statuses(raw(guarded, head + more + b"\r\n")) == [401]


def test_a_limit_does_not_wait_for_the_body_either(guarded: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "slow", "--requests-per-minute", "1"]) == 0
    key = capsys.readouterr().out.strip()
    with guarded.client() as client:
        assert client.post("/v1/moderations", json=BODY, headers=bearer(key)).status_code == 200
    head = f"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\nContent-Length: 60000000\r\n\r\n"
    assert statuses(raw(guarded, head.encode())) == [429]


# --- From the command line to a running server --------------------------------------------------------------


def test_a_key_is_made_used_and_revoked_beside_a_running_server(
    guarded: LiveServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded.client() as client:
        assert client.post("/v1/moderations", json=BODY).status_code == 401
        for _ in range(3):  # at once, not when the server next looks
            assert main(["keys", "create", "another"]) == 0
            key = capsys.readouterr().out.strip()
            assert client.post("/v1/moderations", json=BODY, headers=bearer(key)).status_code == 200
        assert client.get("/metrics", headers=bearer(key)).status_code == 403
        assert main(["keys", "revoke", key.rpartition("_")[0]]) == 0
        wait_until(
            lambda: client.post("/v1/moderations", json=BODY, headers=bearer(key)).status_code == 401, within=6.5
        )


def example_printed(server: LiveServer, capfd: pytest.CaptureFixture[str]) -> str:
    """The request that a server tells its operator to try: printed before it answers for the first time."""
    with server.client() as client:
        assert client.get("/health").status_code == 200
    return capfd.readouterr().out


def test_the_console_says_that_keys_are_missing_and_how_one_is_made(
    start_server: StartServer, data: dict[str, str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    server = start_server(host="0.0.0.0", **data)
    assert "API keys are on, but there are none" in caplog.text
    assert "llama-guard-server keys create NAME" in caplog.text
    assert '-H "Authorization: Bearer $GUARD_API_KEY"' in example_printed(server, capfd)
    assert "with your key in GUARD_API_KEY:" in caplog.text


def test_the_console_says_how_many_keys_there_are(
    start_server: StartServer, data: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert main(["keys", "create", "one"]) == main(["keys", "create", "two"]) == 0
    start_server(auth="required", **data)
    assert "API keys are on for every path except /health and /ready: 2 valid" in caplog.text


def test_the_console_says_that_keys_are_off(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    server = start_server(data_dir=str(tmp_path / "data"))
    assert "API keys are off" in caplog.text
    example = example_printed(server, capfd)
    assert "curl" in example
    assert "Authorization" not in example
    assert not (tmp_path / "data").exists(), "a server without keys needs no pepper"


async def test_bound_elsewhere_a_server_is_locked_by_itself(backend: FakeBackend) -> None:
    app = create_app(Settings(profile=PROFILE, host="0.0.0.0", key_pepper=PEPPER), load_profile(PROFILE), backend)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        assert (await client.post("/v1/moderations", json=BODY)).status_code == 401
