"""The served model, its one endpoint and its one provider, as OpenRouter shows them."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api.chat.request import ChatRequest
from server.app import create_app
from server.checkpoints.profile import load_profile
from server.settings import Settings
from tests.api.openrouter.shapes import SLUG, error_of, obeys_openrouter
from tests.fakes import FakeBackend

POCKET_WEIGHTS = {"bfloat16": "bf16", "float32": "fp32"}[load_profile("pocket").engine["dtype"]]

REQUIRED = {
    *("id", "canonical_slug", "name", "created", "pricing", "context_length", "architecture", "top_provider"),
    *("per_request_limits", "supported_parameters", "default_parameters", "supported_voices", "links"),
}


async def get(client: httpx.AsyncClient, path: str, **query: Any) -> dict[str, Any]:
    response = await client.get(f"/api/v1{path}", params=query)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("path", ["/models", "/models/user"])
async def test_the_list_has_the_one_model(client: httpx.AsyncClient, path: str) -> None:
    body = await get(client, path)
    (model,) = body["data"]
    assert set(model) >= REQUIRED
    assert (model["id"], model["canonical_slug"], model["name"]) == (SLUG, SLUG, "Llama-Guard-4-12B")
    assert model["hugging_face_id"] == "meta-llama/Llama-Guard-4-12B"
    assert model["context_length"] == 163840
    assert model["architecture"] == {
        "modality": "text+image->text",
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "tokenizer": "Llama4",
        "instruct_type": None,
    }
    assert model["pricing"]["prompt"] == model["pricing"]["completion"] == "0"
    assert model["top_provider"]["is_moderated"] is False
    assert body["total_count"] == 1
    assert body["links"] == {"next": None}
    obeys_openrouter(body, path=path)


async def test_only_parameters_that_are_read_are_claimed(client: httpx.AsyncClient) -> None:
    (model,) = (await get(client, "/models"))["data"]
    assert set(model["supported_parameters"]) <= set(ChatRequest.model_fields)
    assert "temperature" not in model["supported_parameters"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "GUARD"}, 1),
        ({"q": "gpt"}, 0),
        ({"input_modalities": "text,image"}, 1),
        ({"input_modalities": "audio"}, 0),
        ({"output_modalities": "text"}, 1),
        ({"output_modalities": "all"}, 1),
        ({"output_modalities": "image"}, 0),
        ({"supported_parameters": "tools"}, 0),
        ({"category": "programming"}, 0),
        ({"context": 8192}, 1),
        ({"context": 200_000}, 0),
        ({"sort": "newest", "zdr": "true"}, 1),
    ],
)
async def test_filters(client: httpx.AsyncClient, query: dict[str, Any], found: int) -> None:
    body = await get(client, "/models", **query)
    assert (len(body["data"]), body["total_count"]) == (found, found)


async def test_a_page_beyond_the_end_is_empty(client: httpx.AsyncClient) -> None:
    body = await get(client, "/models", offset=1, limit=10)
    assert (body["data"], body["total_count"]) == ([], 1)
    assert len((await get(client, "/models", offset=0, limit=1))["data"]) == 1


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"offset": -1}, {"context": "many"}])
async def test_a_wrong_query_is_told_in_the_dialect(client: httpx.AsyncClient, query: dict[str, Any]) -> None:
    error_of(await client.get("/api/v1/models", params=query), 400, error_type="invalid_request")


async def test_the_count(client: httpx.AsyncClient) -> None:
    body = await get(client, "/models/count")
    assert body == {"data": {"count": 1}}
    assert (await get(client, "/models/count", output_modalities="image"))["data"]["count"] == 0
    obeys_openrouter(body, path="/models/count")


@pytest.mark.parametrize("name", [SLUG, "meta-llama/Llama-Guard-4-12B", f"{SLUG}:free", "openai/llama-guard"])
async def test_the_model_by_its_names(client: httpx.AsyncClient, name: str) -> None:
    body = await get(client, f"/model/{name}")
    assert body["data"] == (await get(client, "/models"))["data"][0]
    obeys_openrouter(body, path="/model/{author}/{slug}")


async def test_another_model_is_not_found(client: httpx.AsyncClient) -> None:
    for path in ("/model/openai/gpt-4o", "/models/openai/gpt-4o/endpoints"):
        error_of(await client.get(f"/api/v1{path}"), 404, error_type="not_found", code="model_not_found")


async def test_its_link_leads_to_its_one_endpoint(client: httpx.AsyncClient) -> None:
    (model,) = (await get(client, "/models"))["data"]
    body = (await client.get(model["links"]["details"])).json()
    (endpoint,) = body["data"]["endpoints"]
    assert endpoint["provider_name"] == endpoint["tag"] == "llama-guard-server"
    assert endpoint["quantization"] == "bf16"
    assert endpoint["status"] == 0
    obeys_openrouter(body, path="/models/{author}/{slug}/endpoints")


async def test_figures_nobody_has_are_null_and_others_are_measured(client: httpx.AsyncClient) -> None:
    figures = ("uptime_last_5m", "uptime_last_30m", "uptime_last_1d", "latency_last_30m", "throughput_last_30m")
    (before,) = (await get(client, "/endpoints/zdr"))["data"]
    assert [before[figure] for figure in figures] == [None] * 5
    for count in (1, 2):
        body = {"messages": [{"role": "user", "content": "x"}]}
        assert (await client.post("/api/v1/chat/completions", json=body)).status_code == 200
        zdr = await get(client, "/endpoints/zdr")
        (after,) = zdr["data"]
        assert [after[figure] for figure in figures[:3]] == [100.0] * 3
        assert 0 < after["latency_last_30m"]["p50"] <= after["latency_last_30m"]["p99"] < 60_000, count
        assert after["throughput_last_30m"]["p50"] > 0
        obeys_openrouter(zdr, path="/endpoints/zdr")


@pytest.mark.parametrize(
    ("settings", "listed"),
    [
        ({"fallback": "openrouter", "openrouter_api_key": "k"}, 1),
        ({"fallback": "openrouter", "openrouter_api_key": "k", "openrouter_zdr": False}, 0),
    ],
    indirect=["settings"],
)
async def test_who_may_send_on_to_those_that_keep_data_is_none_that_does_not(
    client: httpx.AsyncClient, listed: int
) -> None:
    assert len((await get(client, "/endpoints/zdr"))["data"]) == listed


async def test_a_server_that_is_not_ready_says_so(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.alive = False
    assert (await get(client, "/endpoints/zdr"))["data"][0]["status"] < 0


async def test_the_provider_is_this_server(client: httpx.AsyncClient) -> None:
    body = await get(client, "/providers")
    (provider,) = body["data"]
    assert (provider["name"], provider["slug"]) == ("llama-guard-server", "llama-guard-server")
    assert provider["privacy_policy_url"] is None
    obeys_openrouter(body, path="/providers")


@pytest.mark.parametrize(
    ("profile", "slug", "inputs", "quantization", "tokenizer"),
    [
        ("pocket", "llama-guard-server/llama-guard-pocket", ["text"], POCKET_WEIGHTS, "Other"),
        ("llama-guard-4-12b:text-only", SLUG, ["text"], "bf16", "Llama4"),
        ("llama-guard-4-12b:24gb", SLUG, ["text", "image"], "fp8", "Llama4"),
    ],
)
async def test_other_profiles(
    backend: FakeBackend, profile: str, slug: str, inputs: list[str], quantization: str, tokenizer: str
) -> None:
    app: FastAPI = create_app(Settings(profile=profile), load_profile(profile), backend)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        (model,) = (await get(client, "/models"))["data"]
        assert model["id"] == slug
        assert model["architecture"]["input_modalities"] == inputs
        assert model["architecture"]["tokenizer"] == tokenizer
        (endpoint,) = (await get(client, f"/models/{slug}/endpoints"))["data"]["endpoints"]
        assert endpoint["quantization"] == quantization
        body = {"model": slug, "messages": [{"role": "user", "content": "x"}]}
        assert (await client.post("/api/v1/chat/completions", json=body)).json()["model"] == slug
