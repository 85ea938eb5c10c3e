"""The pages about the API say what the code does, and all of it."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from server.api.chat import plans
from server.api.chat.options import IgnoredOptions
from server.api.chat.request import ChatRequest
from server.api.chat.schemas import MAX_DEPTH, MAX_PARTS
from server.api.http.direct import DirectRoute
from server.api.http.json_reader import MAX_KEYS, MAX_VALUES
from server.api.messages import ChatMessage
from server.api.moderations import ModerationRequest
from server.api.names import OPENAI_NAMES
from server.api.openai.completions import CompletionRequest, IgnoredCompletionOptions
from server.api.openai.responses import IgnoredResponseOptions, ResponsesRequest
from server.api.openrouter.generations import REMEMBERED
from server.api.policy import PolicyOptions
from server.checkpoints.profile import load_profile
from server.domain.errors import GuardError
from tests.api.conftest import PROFILE
from tests.api.http.test_errors import kinds_of
from tests.api.shapes import specification
from tests.fakes import FakeBackend, always

DOCS = Path(__file__).parents[2] / "docs"
API, DIALECTS, FIELDS, ERRORS = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("api.md", "dialects.md", "api-fields.md", "errors.md")
)
EXAMPLE = re.compile(
    r"^```bash\ncurl [^\n]*?http://127\.0\.0\.1:8000(?P<path>\S+) .*?-d '(?P<body>.*?)'\n```\n\n"
    r"```json\n(?P<reply>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
EXAMPLES = [match.groupdict() for page in (API, DIALECTS, ERRORS) for match in EXAMPLE.finditer(page)]


def section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if not set("".join(line)) <= set("- ")]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


READ, IGNORED, DANGEROUS = (names(cell) for _, cell in rows(section(FIELDS, "Chat completions"))[1:])


def test_the_table_of_chat_fields_is_the_codes() -> None:
    assert set(ChatRequest.model_fields) == READ | IGNORED
    assert set(IgnoredOptions.model_fields) == IGNORED
    assert not READ & IGNORED
    assert not (READ | IGNORED) & DANGEROUS


def test_the_table_of_response_fields_is_the_codes() -> None:
    read, ignored, stored = (names(cell) for _, cell in rows(section(FIELDS, "Responses"))[1:])
    assert set(ResponsesRequest.model_fields) == read | ignored | stored
    assert set(IgnoredResponseOptions.model_fields) == ignored
    assert not read & stored


def test_the_table_of_completion_fields_is_the_codes() -> None:
    read, ignored, refused = (names(cell) for _, cell in rows(section(FIELDS, "Completions"))[1:])
    assert set(CompletionRequest.model_fields) == read | ignored | refused
    assert set(IgnoredCompletionOptions.model_fields) == ignored


def test_the_table_of_moderation_fields_is_the_codes() -> None:
    read, ignored = (names(cell) for _, cell in rows(section(FIELDS, "Moderations"))[1:])
    assert set(ModerationRequest.model_fields) == read | ignored


def test_the_names_that_schemas_may_use_are_the_codes() -> None:
    *_, flags, safe, words, choices, categories, probabilities, score = rows(section(FIELDS, "Answers in a schema"))
    assert names(flags[0]) == plans.UNSAFE_FLAGS
    assert names(safe[0]) == plans.SAFE_FLAGS
    assert names(words[0]) == plans.VERDICTS
    assert names(choices[0]) == plans.CHOICES - plans.VERDICTS
    assert names(categories[0]) == plans.CATEGORIES
    assert names(probabilities[0]) == plans.PROBABILITIES
    assert names(score[0]) == plans.SCORES
    page = section(FIELDS, "Answers in a schema")
    assert f"{MAX_PARTS} parts" in page
    assert f"{MAX_DEPTH} levels" in page


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
    named = names(FIELDS.partition("\n### Messages\n")[2].partition("\n### ")[0])
    assert set(ChatMessage.model_fields) <= named


def test_the_table_of_errors_is_the_tree() -> None:
    table = rows(ERRORS)[1:]
    documented = {(status, type_.strip("`"), code.strip("`"), retry) for status, type_, code, retry, _ in table}
    told = [kind for kind in kinds_of(GuardError) if kind is not GuardError]
    assert documented == {
        (str(kind.status), kind.type, kind.code or "null", "yes" if kind.retryable else "no") for kind in told
    }


def test_as_many_generations_as_it_says_are_remembered() -> None:
    assert f"{REMEMBERED:,} generations" in section(DIALECTS, "OpenRouter")


async def test_the_tables_of_guard_and_policy_are_complete(client: httpx.AsyncClient) -> None:
    (result,) = (await client.post("/v1/moderations", json={"input": "x"})).json()["results"]
    table = rows(section(API, "The field `guard`"))[1:]
    assert set().union(*(names(key) for key, _ in table)) == {*result["guard"], "finished_prompt"}
    explained = {key: names(what) for keys, what in table for key in names(keys)}
    assert set(result["guard"]["usage"]) == explained["usage"]
    assert set(result["guard"]["timing"]) == explained["timing"]
    policy = rows(section(FIELDS, "The field `policy`"))[1:]
    assert {key.strip("`") for key, _ in policy} == set(PolicyOptions.model_fields)


def test_the_mapping_is_the_taxonomys() -> None:
    documented = {}
    for codes, categories in rows(section(API, "Moderations"))[5:]:
        for name in codes.split(", "):
            code, _, title = name.partition(" ")
            documented[code] = (title, names(categories))
    assert documented == {
        hazard.code: (hazard.name, {*hazard.openai, *(category for _, category in hazard.openai_with)})
        for hazard in load_profile(PROFILE).taxonomy.categories
    }


def test_every_endpoint_is_listed(app: FastAPI) -> None:
    documented = set().union(*(names(cell) for cell, _ in rows(section(API, "Every endpoint"))[1:]))
    served = {
        f"{method} {route.path_format.replace(':path', '')}"
        for route in app.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    assert documented == served | {"GET /docs", "GET /openapi.json"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example['path']} {example['body'][:12]}")
async def test_an_example_shows_what_is_sent(
    client: httpx.AsyncClient, backend: FakeBackend, example: dict[str, str]
) -> None:
    """Pages leave out parts of replies, but make up none."""
    backend.script = always("unsafe\nS9")
    reply = await client.post(example["path"], json=json.loads(example["body"]))
    assert made_up(json.loads(example["reply"]), reply.json()) == []


def made_up(shown: Any, sent: Any, path: str = "") -> list[str]:
    """Paths of what is shown and was not sent, or is of another type there."""
    if type(shown) is not type(sent):
        return [path]
    if isinstance(shown, dict):
        unknown = [f"{path}.{key}" for key in shown if key not in sent]
        return unknown or [bad for key in shown for bad in made_up(shown[key], sent[key], f"{path}.{key}")]
    if isinstance(shown, list):
        return [bad for one, other in zip(shown, sent, strict=True) for bad in made_up(one, other, f"{path}[]")]
    return []


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ({"a": 0.5}, []),
        ({"a": 1}, [".a"]),
        ({"c": 1}, [".c"]),
        ({"b": [{"x": ""}]}, []),
        ({"b": [{"y": ""}]}, [".b[].y"]),
    ],
)
def test_what_an_example_makes_up_is_noticed(shown: Any, found: list[str]) -> None:
    assert made_up(shown, {"a": 0.1, "b": [{"x": "z"}]}) == found


def test_every_endpoint_that_judges_has_an_example(app: FastAPI) -> None:
    judging = {route.path for route in app.routes if isinstance(route, DirectRoute)}
    assert {example["path"] for example in EXAMPLES} == judging


def test_numbers_and_names() -> None:
    assert f"{MAX_VALUES:,} values" in API
    assert f"{MAX_KEYS:,} keys" in API
    assert set(OPENAI_NAMES) <= names(section(API, "Model names"))
