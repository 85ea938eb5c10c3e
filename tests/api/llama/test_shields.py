"""POST /v1/safety/run-shield, as clients of Llama Stack ask for it."""

from typing import Any

import httpx
import pytest

from tests.api.shapes import error_of
from tests.fakes import FakeBackend, always

URL = "/v1/safety/run-shield"


async def shielded(client: httpx.AsyncClient, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"shield_id": "llama-guard", "messages": messages, "params": {}, **fields}
    response = await client.post(URL, json=body)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


async def test_what_is_unsafe_is_a_violation(client: httpx.AsyncClient) -> None:
    body = await shielded(client, {"role": "user", "content": "a bomb, zebra"})
    assert body["violation"] == {
        "violation_level": "error",
        "user_message": "Unsafe content: S1, S9.",
        "metadata": {"violation_type": "S1", "categories": ["S1", "S9"]},
    }
    assert body["guard"]["verdict"] == "unsafe"
    assert "zebra" not in str(body)


async def test_a_violation_without_codes(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = always("unsafe")
    violation = (await shielded(client, {"role": "user", "content": "x"}))["violation"]
    assert violation["user_message"] == "Unsafe content."
    assert violation["metadata"] == {"violation_type": None, "categories": []}


async def test_what_is_safe_is_none(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await shielded(client, {"role": "user", "content": "bread"}, {"role": "assistant", "content": "Bake it."})
    assert body["violation"] is None
    assert backend.texts == ["User: bread / Agent: Bake it."]


async def test_llama_stacks_own_fields_of_messages(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await shielded(
        client,
        {"role": "user", "content": {"type": "text", "text": "look it up"}, "context": "a bomb"},
        {"role": "assistant", "content": "", "stop_reason": "end_of_turn", "tool_calls": []},
        {"role": "tool", "call_id": "c1", "content": [{"type": "text", "text": "found"}]},
    )
    assert backend.asked == ["a bomb\n\nlook it up\n\nfound", "a bomb", "look it up", "found"]


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (
            {"shield_id": "prompt-guard", "messages": [{"role": "user", "content": "x"}]},
            404,
            {"code": "model_not_found"},
        ),
        ({"messages": []}, 400, {"param": "messages"}),
        ({}, 400, {"param": "messages"}),
        ({"messages": [{"role": "user", "content": " "}]}, 400, {"code": "empty_input"}),
        ({"messages": [{"role": {}, "content": "x"}]}, 400, {"param": "messages[0].role"}),
        ({"messages": [{"role": "user", "content": "x"}], "params": 5}, 400, {"param": "params"}),
    ],
)
async def test_refused(
    client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], status: int, expected: dict[str, Any]
) -> None:
    error_of(await client.post(URL, json=body), status, **expected)
    assert backend.cases == []
