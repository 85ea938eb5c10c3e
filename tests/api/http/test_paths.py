"""Groq's client asks below /openai/v1, older ones of Llama Stack below /v1/openai/v1: all meet what is below /v1."""

import httpx
import pytest

from tests.api.shapes import error_of


@pytest.mark.parametrize("prefix", ["/openai/v1", "/v1/openai/v1"])
async def test_a_verdict_below_a_clients_prefix(client: httpx.AsyncClient, prefix: str) -> None:
    body = {"model": "meta-llama/llama-guard-4-12b", "messages": [{"role": "user", "content": "a bomb"}]}
    response = await client.post(f"{prefix}/chat/completions", json=body)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "unsafe\nS1,S9"
    assert (await client.post(f"{prefix}/moderations", json={"input": "x"})).status_code == 200
    assert (await client.get(f"{prefix}/models/Llama-Guard")).json() == (await client.get("/v1/models")).json()["data"][
        0
    ]


async def test_it_is_measured_under_the_paths_own_name(client: httpx.AsyncClient) -> None:
    await client.post("/openai/v1/moderations", json={"input": "bread"})
    exposition = (await client.get("/metrics")).text
    assert 'route="/v1/moderations"' in exposition
    assert "/openai" not in exposition


@pytest.mark.parametrize(
    "path",
    [
        *("/openai/v2/models", "/openai", "/openai/v1", "/openai/openai/v1/models", "/openaiv1/models"),
        *("/v1/openai/v1", "/v1/openai/v2/models", "/v1/openai/models", "/v1/openai/v1/openai/v1/models"),
    ],
)
async def test_nothing_else_is_renamed(client: httpx.AsyncClient, path: str) -> None:
    error_of(await client.get(path), 404, code="unknown_url")
