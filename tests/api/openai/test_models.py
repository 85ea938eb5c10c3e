"""Model names: what is listed, what is accepted, and what is not here."""

import httpx
import pytest

from tests.api.shapes import error_of, obeys_openai

ACCEPTED = [
    "meta-llama/Llama-Guard-4-12B",
    "meta-llama/llama-guard-4-12b",
    "META-LLAMA/LLAMA-GUARD-4-12B",
    "llama-guard-4-12b",
    "Llama-Guard",
    "openai/meta-llama/Llama-Guard-4-12B",
    "openrouter/meta-llama/llama-guard-4-12b",
    "openai/omni-moderation-latest",
    "omni-moderation-latest",
    "omni-moderation-2024-09-26",
    "text-moderation-latest",
    "text-moderation-stable",
    "text-moderation-007",
    "meta-llama/llama-guard-4-12b:free",
    "openrouter/meta-llama/llama-guard-4-12b:nitro",
]
UNKNOWN = [
    "gpt-4o",
    "meta-llama/Llama-Guard-3-8B",
    "openai/",
    "openai/openai/llama-guard",
    "azure/llama-guard",
    "Llama-Guard ",
    "llama-guard:48gb",
    "*",
]


@pytest.mark.parametrize("name", [*ACCEPTED, "", None])
async def test_every_name_in_use_is_the_one_model(client: httpx.AsyncClient, name: str | None) -> None:
    moderation = await client.post("/v1/moderations", json={"input": "x", "model": name})
    chat = await client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "model": name}
    )
    assert moderation.json()["model"] == chat.json()["model"] == "meta-llama/Llama-Guard-4-12B"


@pytest.mark.parametrize("name", UNKNOWN)
async def test_any_other_name_is_not_found(client: httpx.AsyncClient, name: str) -> None:
    expected = {"type": "invalid_request_error", "param": None, "code": "model_not_found"}
    error_of(await client.post("/v1/moderations", json={"input": "x", "model": name}), 404, **expected)
    messages = [{"role": "user", "content": "x"}]
    error_of(await client.post("/v1/chat/completions", json={"messages": messages, "model": name}), 404, **expected)


async def test_the_list_has_the_one_model(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    (entry,) = body["data"]
    assert entry["id"] == "meta-llama/Llama-Guard-4-12B"
    assert entry["object"] == "model"
    assert isinstance(entry["created"], int)
    assert entry["context_length"] == 163840
    obeys_openai(body, "ListModelsResponse")
    obeys_openai(entry, "Model")


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name])
async def test_the_model_is_found_by_each_name(client: httpx.AsyncClient, name: str) -> None:
    entry = (await client.get(f"/v1/models/{name}")).json()
    assert entry["id"] == "meta-llama/Llama-Guard-4-12B"


async def test_other_models_are_not_found(client: httpx.AsyncClient) -> None:
    error_of(await client.get("/v1/models/gpt-4o"), 404, code="model_not_found")


@pytest.mark.parametrize("settings", [{"model_aliases": " our-guard, GPT-4o ,"}], indirect=True)
async def test_an_operator_may_name_further_names(client: httpx.AsyncClient) -> None:
    for name in ("our-guard", "OUR-GUARD", "gpt-4o", "Llama-Guard"):
        moderation = await client.post("/v1/moderations", json={"input": "x", "model": name})
        assert moderation.json()["model"] == "meta-llama/Llama-Guard-4-12B"
    for name in ("gpt-4", " ", "our"):
        response = await client.post("/v1/moderations", json={"input": "x", "model": name})
        error_of(response, 404, code="model_not_found")


@pytest.mark.parametrize("settings", [{"model_aliases": "*"}], indirect=True)
async def test_an_operator_may_take_every_name(client: httpx.AsyncClient) -> None:
    for name in ("gpt-5.4", "anything at all", ""):
        body = (await client.post("/v1/responses", json={"input": "x", "model": name})).json()
        assert body["model"] == "meta-llama/Llama-Guard-4-12B"
