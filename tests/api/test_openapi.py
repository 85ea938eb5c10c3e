"""The OpenAPI document and its page: complete, true, and from this machine alone."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from server.api import moderations
from server.api.chat import examples as chat
from server.api.litellm import examples as litellm
from server.api.llama import shields
from server.api.openai import examples as openai
from server.api.openrouter import examples as openrouter
from tests.api.shapes import events_of, obeys_openai
from tests.fakes import FakeBackend, always

OF_PATHS = {
    "/v1/moderations": moderations.BODIES,
    "/v1/chat/completions": chat.BODIES,
    "/v1/completions": openai.COMPLETIONS_BODIES,
    "/v1/responses": openai.RESPONSES_BODIES,
    "/v1/safety/run-shield": shields.BODIES,
    "/api/v1/chat/completions": openrouter.BODIES,
    "/beta/litellm_basic_guardrail_api": litellm.BODIES,
}
EXAMPLES = [(path, name) for path, examples in OF_PATHS.items() for name in examples]

OPENROUTER = (
    *("/models", "/models/user", "/models/count", "/model/{author}/{slug}", "/models/{author}/{slug}/endpoints"),
    *("/generation", "/key", "/auth/key", "/credits", "/providers", "/endpoints/zdr"),
)
LENIENT = {"AdditionalParameters"}
"""Objects of other people's making, of which this server reads a part."""


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/openapi.json")
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def request_examples(document: dict[str, Any], path: str) -> dict[str, Any]:
    examples: dict[str, Any] = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    return examples


async def test_every_route_is_described(document: dict[str, Any]) -> None:
    assert {(method, path) for method, path, _ in operations(document)} == {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/moderations"),
        ("POST", "/api/v1/chat/completions"),
        ("POST", "/beta/litellm_basic_guardrail_api"),
        *(("GET", f"/api/v1{path}") for path in OPENROUTER),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/safety/run-shield"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{name}"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("GET", "/v1/files/{file_id}"),
        ("DELETE", "/v1/files/{file_id}"),
        ("GET", "/v1/files/{file_id}/content"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/batches"),
        ("GET", "/v1/batches/{batch_id}"),
        ("POST", "/v1/batches/{batch_id}/cancel"),
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
    }
    assert all(operation["summary"] for _, _, operation in operations(document))


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


async def test_frameworks_own_422_is_nowhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert "422" not in text
    assert "HTTPValidationError" not in text
    assert '"detail":' not in json.dumps([operation["responses"] for _, _, operation in operations(document)])


async def test_every_schema_of_an_object_is_closed(document: dict[str, Any]) -> None:
    """Those of bodies are as strict as the server."""
    objects = {name: schema for name, schema in document["components"]["schemas"].items() if "properties" in schema}
    assert {"ChatRequest", "ModerationRequest", "PolicyOptions", "ImageContent", "Guard", "Batch"} <= set(objects)
    assert {name for name, schema in objects.items() if schema.get("additionalProperties") is not False} == LENIENT


REMOTE: dict[str, Any] = {
    **dict.fromkeys(("levels", "shares", "score_method", "tokens")),
    **{"no_scores": "The remote model reports none.", "provider": "Elsewhere", "cost": 0.0002},
}


@pytest.mark.parametrize("path", OF_PATHS)
@pytest.mark.parametrize("fields", [{}, REMOTE], ids=["local", "remote"])
async def test_answers_with_and_without_probabilities_are_described(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, path: str, fields: dict[str, Any]
) -> None:
    """Cut answers and spelt ones too, where the dialect knows such."""
    backend.script = always("unsafe\nS1,S9", **fields)
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    response = {"input": "x", "max_output_tokens": 4, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    bodies: dict[str, list[dict[str, Any]]] = {
        "/v1/completions": [{"prompt": ["x", "y"], "max_tokens": 4, "logprobs": 2, "n": 2}],
        "/v1/safety/run-shield": [{"messages": [{"role": "user", "content": "x"}]}],
        "/v1/moderations": [
            {"input": ["x", "", "y"], "on_error": "per_item"},
            {"input": ["x", "y"]},
            {"messages": [{"role": "user", "content": "x"}]},
        ],
        "/v1/chat/completions": [chat, {**chat, "n": 2}],
        "/api/v1/chat/completions": [chat],
        "/v1/responses": [response],
        "/beta/litellm_basic_guardrail_api": [{"input_type": "request", "texts": ["x"]}],
    }
    for body in bodies[path]:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        reply_type(app, path).validate_json(answer.text, strict=True)


def reply_type(app: FastAPI, path: str) -> TypeAdapter[Any]:
    """What a POST to `path` answers with, by the route's own word."""
    (route,) = (route for route in app.routes if isinstance(route, APIRoute) and route.path == path)
    return TypeAdapter(route.responses[200]["model"])


async def test_no_name_stands_for_two_schemas(document: dict[str, Any]) -> None:
    """Bodies and answers are described apart, so one could silently stand for the other."""
    replies, bodies = references_from(document, "responses"), references_from(document, "requestBody")
    assert replies
    assert bodies
    assert bodies.isdisjoint(replies)
    # pydantic writes out the module where two types have the same name.
    assert not [name for name in document["components"]["schemas"] if "__" in name]


def references_from(document: dict[str, Any], part: str) -> set[str]:
    """All that is named in `part` of any operation, and all that this names in turn."""
    found: set[str] = set()
    fresh = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps([o.get(part) for *_, o in operations(document)])))
    while fresh:
        found |= fresh
        named = [document["components"]["schemas"][reference.rpartition("/")[2]] for reference in fresh]
        fresh = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(named))) - found
    return found


async def test_every_answer_has_its_schema(document: dict[str, Any]) -> None:
    """Each is closed: what an answer holds is described, or it is a fault that schemathesis finds."""
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type == "application/json":
                    assert "$ref" in content["schema"], (method, path, status)
        assert operation["responses"]["default"], (method, path)


async def test_every_example_of_an_answer_matches_its_schema(document: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    held = 0
    for _, _, operation in operations(document):
        for response in operation["responses"].values():
            content = response.get("content", {}).get("application/json", {})
            if "example" in content:
                schema = {**content["schema"], "components": document["components"]}
                jsonschema.Draft202012Validator(schema).validate(content["example"])
                held += 1
    assert held > 50


@pytest.mark.parametrize(("path", "name"), EXAMPLES)
async def test_every_example_works(
    client: httpx.AsyncClient, backend: FakeBackend, document: dict[str, Any], path: str, name: str
) -> None:
    example = request_examples(document, path)[name]
    assert example["summary"]
    response = await client.post(path, json=example["value"])
    assert response.status_code == 200, response.text
    assert backend.cases
    if example["value"].get("stream"):
        assert events_of(response.text)[-1]["usage"]


@pytest.mark.parametrize("path", OF_PATHS)
async def test_every_example_matches_the_schema_beside_it(document: dict[str, Any], path: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = {**content["schema"], "components": document["components"]}
    for example in request_examples(document, path).values():
        jsonschema.Draft202012Validator(schema).validate(example["value"])


async def test_the_example_of_a_reply_is_one(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    for path, schema, body in (
        ("/v1/moderations", "CreateModerationResponse", {"input": "a bomb"}),
        (
            "/v1/chat/completions",
            "CreateChatCompletionResponse",
            {"messages": [{"role": "user", "content": "a bomb"}]},
        ),
        ("/v1/responses", None, {"input": "a bomb"}),
        ("/v1/completions", None, {"prompt": "a bomb"}),
        ("/v1/safety/run-shield", None, {"messages": [{"role": "user", "content": "a bomb"}]}),
    ):
        example = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["example"]
        reply = (await client.post(path, json=body)).json()
        assert keys_of(example) == keys_of(reply)
        if schema is not None:  # the specification at hand has no responses
            obeys_openai(example, schema)


def keys_of(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: keys_of(value) for key, value in sorted(document.items())}
    return [keys_of(item) for item in document if isinstance(item, dict)] if isinstance(document, list) else None


async def test_the_example_of_a_stream_is_one(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    (chunk,) = events_of(responses["200"]["content"]["text/event-stream"]["example"])
    obeys_openai(chunk, "CreateChatCompletionStreamResponse")


async def test_error_examples_have_the_shape(document: dict[str, Any]) -> None:
    for path in (
        "/v1/moderations",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/safety/run-shield",
    ):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "404", "413", "429", "500", "502", "503", "504", "default"}
        for status in set(responses) - {"200", "default"}:
            example = responses[status]["content"]["application/json"]["example"]
            assert list(example) == ["error"]
            assert list(example["error"]) == ["message", "type", "param", "code"]


async def test_the_page_loads_from_this_server_alone(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text
    sources = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert len(sources) >= 3
    for source in sources:
        assert source.startswith("/")
        assert not source.startswith("//")
        assert (await client.get(source)).status_code == 200


async def test_the_root_leads_to_the_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
