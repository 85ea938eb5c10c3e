"""No 500 for anything a caller sends: every type of JSON in the place of every value, at every endpoint with a body.

The bodies are those of the documentation and whole ones that use every kind of message, part and item.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api import moderations
from server.api.chat import examples as chat
from server.api.litellm import examples as litellm
from server.api.llama import shields
from server.api.openai import examples as openai
from server.api.openrouter import examples as openrouter
from tests.api.test_structured import FORMAT, RESPONSE_FORMAT, RESPONSE_TOOL, VERDICT, by_name, tool
from tests.api.test_tolerance import WHOLE

TYPES: list[Any] = [
    *(None, True, False, 0, -1, 2**63, 2**70, 0.5, 1e300, "", "x", "{", "é"),
    *([], [None], ["x"], [{}], {}, {"x": None}, {"type": "x"}, {"type": {}}, {"": {}}),
]
"""A value of each type, empty and not, and some that break what only looks at the type."""

EXAMPLES = {
    "/v1/moderations": moderations.BODIES,
    "/v1/chat/completions": chat.BODIES,
    "/api/v1/chat/completions": openrouter.BODIES,
    "/v1/completions": openai.COMPLETIONS_BODIES,
    "/v1/responses": openai.RESPONSES_BODIES,
    "/v1/safety/run-shield": shields.BODIES,
    "/v1/batches": openai.BATCH_BODIES,
    "/beta/litellm_basic_guardrail_api": litellm.BODIES,
}
STRUCTURED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "response_format": FORMAT}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "tools": [tool("f", VERDICT)], "tool_choice": by_name("f")},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "functions": [{"name": "f", "parameters": {"$defs": {"v": VERDICT}, "$ref": "#/$defs/v"}}],
            "function_call": {"name": "f"},
        },
    ),
    ("/v1/responses", {"input": "x", "text": {"format": RESPONSE_FORMAT}, "metadata": {"a": "b"}}),
    ("/v1/responses", {"input": "x", "tools": [RESPONSE_TOOL], "tool_choice": {"type": "function", "name": "final"}}),
    (
        "/v1/safety/run-shield",
        {
            "messages": [
                {"role": "user", "content": {"type": "text", "text": "x"}, "context": [{"type": "text", "text": "y"}]},
                {"role": "assistant", "content": "z", "stop_reason": "end_of_turn", "call_id": "c"},
            ]
        },
    ),
    (
        "/beta/litellm_basic_guardrail_api",
        {
            "input_type": "request",
            "structured_messages": [
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "y"}]},
                {"role": "tool", "content": [{"type": "tool_reference", "tool_name": "f"}], "thinking_blocks": [{}]},
                {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
            ],
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, {"type": "x"}],
            "additional_provider_specific_params": {"policy": {"threshold": 0.5}, "category_scores": "all"},
        },
    ),
]
BODIES = [
    *((path, body) for path, examples in EXAMPLES.items() for _, body in examples.values()),
    *STRUCTURED,
    *(row for row in WHOLE if row[0] != "/api/v1/chat/completions"),
]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value in a body."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(below, dict | list):
            yield from places(below, (*path, key))


def exchanged(body: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


def test_every_endpoint_with_a_body_of_json_is_here(app: FastAPI) -> None:
    described = app.openapi()["paths"]
    with_bodies = {
        path
        for path, methods in described.items()
        for operation in methods.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    assert with_bodies == set(EXAMPLES)


@pytest.mark.parametrize(("path", "body"), BODIES, ids=[f"{n}{path}" for n, (path, _) in enumerate(BODIES)])
async def test_nothing_that_is_sent_is_a_defect(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    for place in places(body):
        for value in TYPES:
            sent = exchanged(body, place, value)
            response = await client.post(path, json=sent)
            assert response.status_code < 500, (place, value, response.text)
            if response.status_code != 200:
                assert "error" in response.json(), (place, value)


@pytest.mark.parametrize("path", EXAMPLES)
async def test_no_body_is_a_defect(client: httpx.AsyncClient, path: str) -> None:
    for value in TYPES:
        response = await client.post(path, content=json.dumps(value))
        assert 400 <= response.status_code < 500, (value, response.text)
