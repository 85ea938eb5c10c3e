"""GET /api/v1/generation: figures of the last answers, for those alone who got them."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api.openrouter.generations import Generation, Generations
from server.domain.errors import GenerationNotFound
from tests.api.openrouter.shapes import SLUG, error_of, obeys_openrouter
from tests.api.parts import image, text
from tests.fakes import FakeBackend, completion

GENERATION = Generation(
    id="gen-1",
    owner="key-a",
    request_id="req_1",
    created=1_790_000_000.0,
    model=SLUG,
    provider="llama-guard-server",
    streamed=False,
    finish_reason="stop",
    prompt_tokens=200,
    completion_tokens=1,
    cached_tokens=0,
    images=0,
    cost=0.5,
    upstream_cost=0.5,
    latency_s=0.1,
    computed_s=0.05,
)


async def judged(client: httpx.AsyncClient, **fields: Any) -> tuple[str, httpx.Response]:
    body = {"messages": [{"role": "user", "content": [text("zebra crossing"), image()]}], **fields}
    response = await client.post("/api/v1/chat/completions", json=body)
    return response.text.partition('"id":"')[2].partition('"')[0], response


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answers_figures(client: httpx.AsyncClient, backend: FakeBackend, stream: bool) -> None:
    id_, response = await judged(client, stream=stream)
    body = (await client.get("/api/v1/generation", params={"id": id_})).json()
    data = body["data"]
    assert data["id"] == id_
    assert data["model"] == SLUG
    assert data["provider_name"] == "llama-guard-server"
    assert data["streamed"] is stream
    assert data["cancelled"] is False
    assert (data["finish_reason"], data["native_finish_reason"]) == ("stop", "stop")
    assert (data["tokens_prompt"], data["native_tokens_prompt"]) == (203, 203)
    assert (data["tokens_completion"], data["native_tokens_completion"], data["native_tokens_cached"]) == (1, 1, 128)
    assert data["num_media_prompt"] == 1
    assert (data["total_cost"], data["usage"], data["upstream_inference_cost"]) == (0, 0, None)
    assert data["generation_time"] == pytest.approx(2)
    assert data["latency"] > 0
    assert data["request_id"] == response.headers["x-request-id"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(data["created_at"])).total_seconds()) < 60
    assert "zebra" not in str(body)
    obeys_openrouter(body, path="/generation")


async def test_what_a_remote_answer_cost(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda case: completion(case, "safe", levels=None, provider="DeepInfra", cost=0.25)
    id_, _ = await judged(client)
    data = (await client.get("/api/v1/generation", params={"id": id_})).json()["data"]
    assert (data["provider_name"], data["total_cost"], data["upstream_inference_cost"]) == ("DeepInfra", 0.25, 0.25)
    key = (await client.get("/api/v1/key")).json()["data"]
    assert [key[f"usage{period}"] for period in ("", "_daily", "_weekly", "_monthly")] == [0.25] * 4
    assert (await client.get("/api/v1/credits")).json()["data"]["total_usage"] == 0.25


async def test_anothers_generation_is_none(client: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.served.kept(Generations).add(GENERATION)
    for id_ in ("gen-1", "gen-2"):
        response = await client.get("/api/v1/generation", params={"id": id_})
        error_of(response, 404, error_type="not_found", code="generation_not_found")
        assert id_ not in response.text


@pytest.mark.parametrize("query", [{}, {"id": ""}, {"id": "x" * 201}])
async def test_an_id_is_needed(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    error_of(await client.get("/api/v1/generation", params=query), 400, error_type="invalid_request")


def test_each_owner_sees_only_its_own() -> None:
    generations = Generations()
    generations.add(GENERATION)
    assert generations.of("key-a", "gen-1") == GENERATION
    for owner, id_ in (("key-b", "gen-1"), ("", "gen-1"), ("key-a", "gen-2")):
        with pytest.raises(GenerationNotFound):
            generations.of(owner, id_)
    assert (generations.cost_of("key-a"), generations.cost_of("key-b")) == (0.5, 0.0)
    assert generations.cost_of("key-a", since=1_790_000_001.0) == 0.0


def test_the_oldest_are_forgotten() -> None:
    generations = Generations(limit=3)
    for number in range(5):
        generations.add(replace(GENERATION, id=f"gen-{number}"))
    assert [generation.id for generation in generations.since(0)] == ["gen-2", "gen-3", "gen-4"]
    with pytest.raises(GenerationNotFound):
        generations.of("key-a", "gen-1")


def test_uptime_is_the_share_that_was_answered() -> None:
    generations = Generations()
    assert generations.uptime(300) is None
    generations.add(GENERATION)  # of another year
    assert generations.uptime(300) is None
    generations.add(replace(GENERATION, id="gen-2", created=datetime.now(UTC).timestamp()))
    assert generations.uptime(300) == 100
    for _ in range(3):
        generations.add_failure()
    assert generations.uptime(300) == 25
