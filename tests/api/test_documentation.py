"""docs/api.md says what the code does, and all of it."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from server.api.chat.options import IgnoredOptions
from server.api.chat.request import ChatRequest
from server.api.http.body import MAX_KEYS, MAX_VALUES
from server.api.messages import ChatMessage
from server.api.names import OPENAI_NAMES
from server.api.openai.responses import IgnoredResponseOptions, ResponsesRequest
from server.api.openrouter.generations import REMEMBERED
from server.api.policy import PolicyOptions
from server.checkpoints.profile import load_profile
from server.domain.errors import GuardError
from tests.api.conftest import PROFILE
from tests.api.http.test_errors import kinds_of
from tests.api.shapes import specification

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if not set("".join(line)) <= set("- ")]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


READ, IGNORED, DANGEROUS = (names(cell) for _, cell in rows(section("Chat completions"))[1:])


def test_the_table_of_chat_fields_is_the_codes() -> None:
    assert set(ChatRequest.model_fields) == READ | IGNORED
    assert set(IgnoredOptions.model_fields) == IGNORED
    assert not READ & IGNORED
    assert not (READ | IGNORED) & DANGEROUS


def test_the_table_of_response_fields_is_the_codes() -> None:
    read, ignored, stored = (names(cell) for _, cell in rows(section("Responses"))[1:])
    assert set(ResponsesRequest.model_fields) == read | ignored | stored
    assert set(IgnoredResponseOptions.model_fields) == ignored
    assert not read & stored


@pytest.mark.parametrize("field", sorted(DANGEROUS))
async def test_what_it_calls_refused_is_refused(client: httpx.AsyncClient, field: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], field: "x"}
    assert (await client.post("/v1/chat/completions", json=body)).json()["error"]["param"] == field


def test_every_chat_field_that_openai_knows_is_in_the_table() -> None:
    spec = specification()
    if spec is None:
        pytest.skip("OpenAI's specification is not at hand")
    assert fields_of({"$ref": "#/components/schemas/CreateChatCompletionRequest"}, spec) <= READ | IGNORED


def fields_of(schema: dict[str, Any], spec: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        return fields_of(spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]], spec)
    return set(schema.get("properties", {})).union(*(fields_of(part, spec) for part in schema.get("allOf", [])))


def test_the_fields_of_a_message_are_named() -> None:
    named = names(section("Chat completions").partition("\nOf a message, ")[2].partition("\n\n")[0])
    assert set(ChatMessage.model_fields) <= named


def test_the_table_of_errors_is_the_tree() -> None:
    table = rows(section("Errors"))[1:]
    documented = {(status, type_.strip("`"), code.strip("`"), retry) for status, type_, code, retry, _ in table}
    told = [kind for kind in kinds_of(GuardError) if kind is not GuardError]
    assert documented == {
        (str(kind.status), kind.type, kind.code or "null", "yes" if kind.retryable else "no") for kind in told
    }
    assert len(table) == len(told)


def test_as_many_generations_as_it_says_are_remembered() -> None:
    assert f"{REMEMBERED:,} generations" in section("OpenRouter's dialect")


async def test_the_tables_of_guard_and_policy_are_complete(client: httpx.AsyncClient) -> None:
    (result,) = (await client.post("/v1/moderations", json={"input": "x"})).json()["results"]
    table = rows(section("The field `guard`"))[1:]
    assert set().union(*(names(key) for key, _ in table)) == {*result["guard"], "finished_prompt"}
    explained = {key: names(what) for keys, what in table for key in names(keys)}
    assert set(result["guard"]["usage"]) == explained["usage"]
    assert set(result["guard"]["timing"]) == explained["timing"]
    assert {key.strip("`") for key, _ in rows(section("The field `policy`"))[1:]} == set(PolicyOptions.model_fields)


def test_the_mapping_is_the_taxonomys() -> None:
    documented = {}
    for codes, categories in rows(section("Moderations"))[5:]:
        for name in codes.split(", "):
            code, _, title = name.partition(" ")
            documented[code] = (title, names(categories))
    assert documented == {
        hazard.code: (hazard.name, {*hazard.openai, *(category for _, category in hazard.openai_with)})
        for hazard in load_profile(PROFILE).taxonomy.categories
    }


def test_every_endpoint_is_listed(app: FastAPI) -> None:
    documented = set().union(*(names(cell) for cell, _ in rows(PAGE.partition("\n## ")[0])[1:]))
    served = {
        f"{method} {route.path_format.replace(':path', '')}"
        for route in app.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    assert documented == served | {"GET /docs", "GET /openapi.json"}


def test_numbers_and_names() -> None:
    assert f"{MAX_VALUES:,} values" in PAGE
    assert f"{MAX_KEYS:,} keys" in PAGE
    assert set(OPENAI_NAMES) <= names(section("Model names"))
