"""Health, readiness, metrics, and what every response carries."""

import asyncio
import re
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.shapes import error_of
from tests.fakes import FakeBackend, always, failing, hanging, until

CANARY = "zebra crossing"
JUDGE = {"model": "meta-llama/Llama-Guard-4-12B", "stand_in": False}
FAST = {"probe_interval": 0.1, "ready_max_age": 0.3}


async def status_of(client: httpx.AsyncClient, path: str) -> int:
    return (await client.get(path)).status_code


async def answers(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    """Ask until the answer has this status."""
    async with asyncio.timeout(5):
        while (response := await client.get(path)).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return response


# --- Health and readiness --------------------------------------------------------------------------------


async def test_a_started_server_is_alive_and_ready(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert backend.probes == 1
    assert (await client.get("/health")).json() == {"status": "alive"}
    assert (await client.get("/ready")).json() == {"status": "ready", **JUDGE}


@pytest.mark.parametrize("settings", [FAST], indirect=True)
async def test_a_hung_engine_is_alive_but_not_ready_until_it_answers_again(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = hanging
    response = await answers(client, "/ready", 503)
    assert response.json() == {"status": "not ready", "reason": "no recent verdict from the engine", **JUDGE}
    assert await status_of(client, "/health") == 200
    backend.script = always("safe")
    await answers(client, "/ready", 200)


@pytest.mark.parametrize("settings", [{**FAST, "hung_after": 0.9}], indirect=True)
async def test_an_engine_that_hangs_for_long_is_for_a_supervisor(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = hanging
    assert (await answers(client, "/health", 503)).json() == {"status": "dead"}
    assert (await answers(client, "/ready", 503)).json()["reason"] == "the engine hangs"
    assert 'guard_backend_alive{backend="fake"} 0.0' in (await client.get("/metrics")).text
    backend.script = always("safe")
    await answers(client, "/health", 200)
    await answers(client, "/ready", 200)
    assert 'guard_backend_alive{backend="fake"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize("settings", [FAST], indirect=True)
async def test_an_engine_that_only_talks_nonsense_is_not_ready(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = always("Sure!")
    await answers(client, "/ready", 503)


@pytest.mark.parametrize("settings", [FAST], indirect=True)
async def test_an_idle_server_stays_ready(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    before = backend.probes
    for _ in range(40):
        assert await status_of(client, "/ready") == 200
        await asyncio.sleep(0.02)
    assert backend.probes - before >= 3


async def test_a_dead_engine_is_neither_alive_nor_ready(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.alive = False
    assert (await client.get("/health")).json() == {"status": "dead"}
    assert await status_of(client, "/health") == 503
    response = await answers(client, "/ready", 503)
    assert response.json()["reason"] == "the engine is dead"


async def test_a_draining_server_is_alive_but_not_ready(client: httpx.AsyncClient, app: Any) -> None:
    app.state.served.service.drain()
    assert (await answers(client, "/ready", 503)).json()["reason"] == "shutting down"
    assert await status_of(client, "/health") == 200


# --- Headers ---------------------------------------------------------------------------------------------


async def test_every_response_says_its_id_and_its_time(client: httpx.AsyncClient) -> None:
    responses = [
        await client.post("/v1/moderations", json={"input": "x"}),
        await client.post("/v1/moderations", content=b"?"),
        await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}),
        await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "stream": True}
        ),
        *[
            await client.get(path)
            for path in ("/", "/none", "/v1/moderations", "/health", "/ready", "/metrics", "/docs", "/openapi.json")
        ],
    ]
    ids = [response.headers["x-request-id"] for response in responses]
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", id_) for id_ in ids)
    assert len(set(ids)) == len(ids)
    assert all(int(response.headers["openai-processing-ms"]) >= 0 for response in responses)


async def test_a_callers_own_request_id_is_not_believed(client: httpx.AsyncClient) -> None:
    response = await client.get("/health", headers={"x-request-id": CANARY})
    assert response.headers["x-request-id"] != CANARY


# --- Metrics ---------------------------------------------------------------------------------------------


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """All of our own samples: `name{label="value"}` to its value."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.name.startswith("guard_") and "_bucket" not in sample.name and "_created" not in sample.name
    }


async def test_counts_move_with_what_happens(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    before = await metrics(client)
    await client.post("/v1/moderations", json={"input": ["a bomb", "bread", "water"]})
    await client.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a bomb"}]},
    )
    backend.script = always("Sure!")
    await client.post("/v1/moderations", json={"input": "x"})
    await client.post("/v1/moderations", json={"input": ""})
    after = await metrics(client)
    moved = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert {name: value for name, value in moved.items() if "seconds_sum" not in name} == {
        "guard_requests_total method=GET route=/metrics status=200": 1,
        "guard_requests_total method=POST route=/v1/chat/completions status=200": 1,
        "guard_requests_total method=POST route=/v1/moderations status=200": 1,
        "guard_requests_total method=POST route=/v1/moderations status=400": 1,
        "guard_requests_total method=POST route=/v1/moderations status=500": 1,
        "guard_request_seconds_count route=/metrics": 1,
        "guard_request_seconds_count route=/v1/chat/completions": 1,
        "guard_request_seconds_count route=/v1/moderations": 3,
        "guard_errors_total kind=empty_input": 1,
        "guard_errors_total kind=unparseable_verdict": 1,
        "guard_verdicts_total backend=fake judged=agent verdict=unsafe": 1,
        "guard_verdicts_total backend=fake judged=user verdict=safe": 2,
        "guard_verdicts_total backend=fake judged=user verdict=unsafe": 1,
        "guard_verdict_categories_total category=S1": 2,
        "guard_verdict_categories_total category=S9": 2,
        "guard_passes_total": 4,
        "guard_verdict_seconds_count": 4,
        "guard_engine_queue_seconds_count": 4,
        "guard_tokens_total kind=prompt": 813,
        "guard_tokens_total kind=cached": 512,
        "guard_tokens_total kind=completion": 12,
        "guard_backend_tokens_total backend=fake": 825,
    }


@pytest.mark.parametrize("settings", [FAST], indirect=True)
async def test_probes_do_not_count_as_verdicts(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    before, probes = await metrics(client), backend.probes
    await until(lambda: backend.probes >= probes + 2)
    after = await metrics(client)
    changed = {name for name in after if after[name] != before.get(name, 0)}
    assert not [name for name in changed if "requests" not in name and "request_seconds" not in name]


async def test_ready_and_admitted_are_as_they_are_now(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await metrics(client))["guard_ready"] == 1
    backend.script = hanging
    waiting = asyncio.create_task(client.post("/v1/moderations", json={"input": [*map(str, range(40))]}))
    await backend.busy_with(32)
    assert (await metrics(client))["guard_admitted_verdicts"] == 32
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    backend.alive = False
    now = await metrics(client)
    assert (now["guard_ready"], now["guard_admitted_verdicts"]) == (0, 0)


async def test_no_label_holds_what_a_caller_wrote(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    own = {"categories": {"S1": CANARY}}
    await client.post("/v1/moderations", json={"input": f"{CANARY} bomb", "policy": own})
    await client.post("/v1/moderations", json={"input": "x", CANARY: 1, "model": CANARY})
    await client.get("/v1/models/zebra")
    await client.get("/zebra")
    await client.request("ZEBRA", "/v1/moderations")
    backend.script = failing(ValueError(CANARY))
    await client.post("/v1/moderations", json={"input": CANARY})
    response = await client.get("/metrics")
    assert "zebra" not in response.text.lower()
    assert 'route="unknown"' in response.text
    assert 'method="other"' in response.text


async def test_a_made_up_method_is_refused(client: httpx.AsyncClient) -> None:
    error_of(await client.request("ZEBRA", "/v1/moderations"), 405)
