"""Answers in a caller's schema, as structured-output libraries ask for them: they obey it, or nothing is judged."""

import json
import time
from enum import Enum
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from server.api.chat.plans import FREE, Plan, Told, plan_of
from server.api.chat.schemas import MAX_DEPTH, MAX_PARTS, Budget, Unfit
from tests.api.conftest import LiveServer
from tests.api.shapes import error_of, events_of, obeys_openai
from tests.fakes import FakeBackend, always

CHAT, RESPONSES, OPENROUTER = "/v1/chat/completions", "/v1/responses", "/api/v1/chat/completions"
BOMB = {"messages": [{"role": "user", "content": "how do I build a bomb?"}]}
BREAD = {"messages": [{"role": "user", "content": "how do I bake bread?"}]}
CODES = {f"S{number}": (f"S{number}", f"slug_{number}", f"Name {number}") for number in range(1, 15)}


def an_object(*optional: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


BOOLEAN, TEXT, NUMBER = {"type": "boolean"}, {"type": "string"}, {"type": "number"}
TEXTS = {"type": "array", "items": TEXT}
WORDS = {"type": "string", "enum": ["safe", "unsafe"]}
VERDICT = an_object(verdict=WORDS, categories=TEXTS, p_unsafe=NUMBER)


UNSAFE = Told(True, ("S1", "S9"), 0.98)


def instance(schema: Any, told: Told = UNSAFE) -> dict[str, Any]:
    return plan_of(schema, CODES, Budget()).instance(told)


# --- What a schema can hold --------------------------------------------------------------------------------

HONOURED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("a verdict", VERDICT, {"verdict": "unsafe", "categories": ["S1", "S9"], "p_unsafe": 0.98}),
    ("flagged", an_object(flagged=BOOLEAN), {"flagged": True}),
    ("unsafe", an_object(unsafe=BOOLEAN), {"unsafe": True}),
    ("is_unsafe", an_object(is_unsafe=BOOLEAN), {"is_unsafe": True}),
    ("safe", an_object(safe=BOOLEAN), {"safe": False}),
    ("isSafe", an_object(isSafe=BOOLEAN), {"isSafe": False}),
    ("a word", an_object(verdict=TEXT), {"verdict": "unsafe"}),
    ("capitals", an_object(verdict={"enum": ["SAFE", "UNSAFE"]}), {"verdict": "UNSAFE"}),
    ("a third word", an_object(label={"enum": ["Safe", "Unsafe", "unknown"]}), {"label": "Unsafe"}),
    ("the AI SDK's enum", an_object(result=WORDS), {"result": "unsafe"}),
    ("pydantic-ai's wrapper", an_object(response=WORDS), {"response": "unsafe"}),
    ("a probability", an_object(p_unsafe={**NUMBER, "minimum": 0, "maximum": 1}), {"p_unsafe": 0.98}),
    ("a score beside a verdict", an_object(flagged=BOOLEAN, score=NUMBER), {"flagged": True, "score": 0.98}),
    ("others that are optional", an_object("reason", flagged=BOOLEAN, reason=TEXT), {"flagged": True}),
    (
        "others that may be null",
        an_object(flagged=BOOLEAN, reason={"type": ["string", "null"]}, note={"anyOf": [TEXT, {"type": "null"}]}),
        {"flagged": True, "reason": None, "note": None},
    ),
    ("a nullable flag", an_object(flagged={"anyOf": [BOOLEAN, {"type": "null"}]}), {"flagged": True}),
    (
        "pydantic's enum",
        {"$defs": {"W": {**WORDS, "title": "W"}}, **an_object(verdict={"$ref": "#/$defs/W", "description": "d"})},
        {"verdict": "unsafe"},
    ),
    (
        "the categories by their slugs",
        an_object(flagged=BOOLEAN, categories={**TEXTS, "items": {"enum": [f"slug_{n}" for n in range(1, 15)]}}),
        {"flagged": True, "categories": ["slug_1", "slug_9"]},
    ),
    (
        "draft 7 of zod",
        {"$schema": "http://json-schema.org/draft-07/schema#", **an_object(verdict=WORDS)},
        {"verdict": "unsafe"},
    ),
    ("a reference at the top", {"$ref": "#/$defs/V", "$defs": {"V": an_object(safe=BOOLEAN)}}, {"safe": False}),
    (
        "a category list that is optional and cannot be filled",
        an_object("categories", flagged=BOOLEAN, categories={**TEXTS, "minItems": 1}),
        {"flagged": True},
    ),
]


@pytest.mark.parametrize(("schema", "expected"), [row[1:] for row in HONOURED], ids=[row[0] for row in HONOURED])
def test_a_verdict_fits(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert instance(schema) == expected
    for told in (Told(False, (), 0.0), Told(True, (), 1.0), Told(True, tuple(CODES), 0.5), Told(False, (), 0.49)):
        jsonschema.Draft202012Validator(schema).validate(instance(schema, told))


REFUSED: list[tuple[str, Any, str, tuple[str, ...]]] = [
    ("another subject", an_object(name=TEXT, age={"type": "integer"}), "none of its properties", ()),
    ("a reason", an_object(flagged=BOOLEAN, reason=TEXT), "requires a property", ("properties", "reason")),
    ("categories alone, which are empty for some unsafe texts", an_object(categories=TEXTS), "none of its", ()),
    ("a score alone, of which nobody knows the direction", an_object(score=NUMBER), "none of its properties", ()),
    (
        "a score of a hundred",
        an_object(safe=BOOLEAN, score={**NUMBER, "maximum": 100}),
        "requires a",
        ("properties", "score"),
    ),
    ("other words", an_object(verdict={"enum": ["allow", "block"]}), "none of its properties", ()),
    ("one word", an_object(verdict={"const": "safe"}), "none of its properties", ()),
    ("two spellings", an_object(verdict={"enum": ["safe", "Safe", "unsafe"]}), "none of its properties", ()),
    ("yes and no", an_object(unsafe={"enum": ["yes", "no"]}), "none of its properties", ()),
    ("a verdict of yes and no", an_object(verdict=BOOLEAN), "none of its properties", ()),
    ("an answer of any text", an_object(answer=TEXT), "none of its properties", ()),
    ("safety of somebody else", an_object(response_safety=WORDS), "none of its properties", ()),
    ("a flag that is always set", an_object(flagged={"const": True}), "none of its properties", ()),
    ("a percentage", an_object(p_unsafe={"type": "integer"}), "none of its properties", ()),
    (
        "one category at least",
        an_object(safe=BOOLEAN, categories={**TEXTS, "minItems": 1}),
        "requires a",
        ("properties", "categories"),
    ),
    (
        "too few categories",
        an_object(safe=BOOLEAN, codes={**TEXTS, "items": {"enum": ["S1", "S2"]}}),
        "leaves out",
        ("properties", "codes"),
    ),
    ("a pattern", an_object(verdict={**TEXT, "pattern": "(a+)+$"}), "does not check", ("properties", "verdict")),
    ("a condition at the top", {**VERDICT, "if": {}}, "does not check", ()),
    ("a list", {"type": "array", "items": VERDICT}, "does not check", ()),
    ("a text", TEXT, "does not describe an object", ()),
    ("no object", [], "not an object", ()),
    ("a remote reference", {"$ref": "https://example.org/schema"}, "another document", ()),
    ("a reference to nothing", {"$ref": "#/$defs/V"}, "leads nowhere", ()),
    ("itself", {"$ref": "#"}, "refers to itself|does not describe", ()),
    ("a wrong type", an_object(flagged={"type": "bool"}), "not a valid", ("properties", "flagged")),
    ("a wrong bound", an_object(p_unsafe={**NUMBER, "minimum": "x"}), "not a valid", ("properties", "p_unsafe")),
    ("required as a text", {**VERDICT, "required": "verdict"}, "a list", ()),
    ("properties as a list", {**VERDICT, "properties": ["verdict"]}, "not an object", ()),
    (
        "an object without properties",
        {"type": "object", "properties": {}, "additionalProperties": False},
        "none of its",
        (),
    ),
    ("unknown required properties", {"type": "object", "required": ["x"]}, "none of its", ()),
]


@pytest.mark.parametrize(("schema", "why", "path"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_no_verdict_fits(schema: Any, why: str, path: tuple[str, ...]) -> None:
    with pytest.raises(Unfit, match=why) as refused:
        plan_of(schema, CODES, Budget())
    assert refused.value.path == path


def test_null_by_openapis_older_word() -> None:
    schema = an_object(flagged=BOOLEAN, why={**TEXT, "nullable": True})
    assert instance(schema) == {"flagged": True, "why": None}


def test_any_object_is_a_verdict_categories_and_a_probability() -> None:
    for schema in (None, {}, {"type": "object"}, {"type": "object", "required": ["verdict"]}):
        assert plan_of(schema, CODES, Budget()) is FREE
    assert FREE.instance(Told(False)) == {"verdict": "safe", "categories": [], "p_unsafe": None}


def test_without_a_probability_it_is_null_or_left_out_or_an_error() -> None:
    told = Told(True, ("S1",), None)
    assert instance(an_object(flagged=BOOLEAN, p_unsafe={"type": ["number", "null"]}), told)["p_unsafe"] is None
    assert instance(an_object("p_unsafe", flagged=BOOLEAN, p_unsafe=NUMBER), told) == {"flagged": True}
    with pytest.raises(Unfit, match="needs a probability"):
        instance(an_object(flagged=BOOLEAN, p_unsafe=NUMBER), told)


# --- Whatever the schema -----------------------------------------------------------------------------------

NAMES = ["verdict", "flagged", "isSafe", "label", "categories", "p_unsafe", "score", "reason", "$ref", "type", "x"]
KEYWORDS = st.sampled_from(
    [
        *("type", "enum", "const", "properties", "required", "items", "anyOf", "oneOf", "allOf", "$ref", "nullable"),
        *("minItems", "minimum", "maximum", "minLength", "additionalProperties", "not", "if", "pattern", "title"),
        *("$defs", "uniqueItems"),
    ]
)
LIKELY: list[Any] = [*NAMES, True, False, None, 0, 1, -1, 0.5, 3, BOOLEAN, TEXTS, WORDS, NUMBER]
LIKELY += ["string", "boolean", "object", "null", "number", "array", "#", "#/$defs/a", "#/properties/x", "safe", "("]
VALUES = st.sampled_from(LIKELY)
SCHEMAS = st.recursive(
    VALUES,
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(KEYWORDS | st.sampled_from(NAMES), below, max_size=5)
        | st.builds(
            lambda properties, required, rest: {"properties": properties, "required": required, **rest},
            st.dictionaries(st.sampled_from(NAMES), below, max_size=4),
            st.lists(st.sampled_from(NAMES), max_size=3),
            st.dictionaries(st.sampled_from(["type", "$defs", "additionalProperties"]), below, max_size=2),
        )
    ),
    max_leaves=30,
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.booleans(), st.lists(st.sampled_from(sorted(CODES)), unique=True), st.floats(0, 1))
def test_what_is_made_obeys_the_schema_and_says_the_verdict(
    schema: Any, unsafe: bool, codes: list[str], p_unsafe: float
) -> None:
    try:
        plan = plan_of(schema, CODES, Budget())
    except Unfit:
        return
    told = Told(unsafe, tuple(codes) if unsafe else (), p_unsafe)
    found = plan.instance(told)
    if schema is not None:
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError:
            pass  # a part that no answer touches is wrong
        else:
            jsonschema.Draft202012Validator(schema).validate(found)
    assert says(plan, found, told)


def says(plan: Plan, found: dict[str, Any], told: Told) -> bool:
    """Whether each value tells the verdict by its name."""
    meanings: dict[str, Any] = {"flagged": told.unsafe, "isSafe": not told.unsafe, "p_unsafe": told.p_unsafe}
    meanings |= {"score": told.p_unsafe, "categories": list(told.codes), "verdict": "unsafe" if told.unsafe else "safe"}
    meanings["label"] = meanings["verdict"]
    filled = {fill.name for fill in plan.fills}
    return bool(filled & {"flagged", "isSafe", "p_unsafe", "verdict", "label"}) and all(
        value is None if name not in filled else value == meanings[name] for name, value in found.items()
    )


BOMBS: list[tuple[str, Any]] = [
    (
        "a chain of references",
        {
            "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)},
            **an_object(flagged={"$ref": "#/$defs/d0"}),
        },
    ),
    ("deep", an_object(flagged=json.loads('{"anyOf":[' * 200 + "true" + "]}" * 200))),
    ("wide", an_object(flagged={"anyOf": [BOOLEAN] * 40_000})),
    ("a long enum", an_object(verdict={"enum": ["safe", "unsafe"] * 20_000})),
    ("many that are required", {**an_object(flagged=BOOLEAN), "required": [f"p{n}" for n in range(40_000)]}),
    ("many properties", an_object(**{name: BOOLEAN for n in range(400) for name in (f"p{n}", "flagged" + "-" * n)})),
    ("many names", an_object(**{f"{'is'}{'_' * n}safe": BOOLEAN for n in range(900)}, safe=BOOLEAN)),
    ("a long pattern", an_object(safe=BOOLEAN, note={"pattern": "(" * 50_000})),
]


@pytest.mark.parametrize("schema", [row[1] for row in BOMBS], ids=[row[0] for row in BOMBS])
def test_no_schema_takes_long(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    take = Budget.take

    def counted(budget: Budget, depth: int) -> None:
        nonlocal taken
        taken += 1
        take(budget, depth)
        assert depth <= MAX_DEPTH

    monkeypatch.setattr(Budget, "take", counted)
    started = time.process_time()
    with pytest.raises(Unfit):
        plan_of(schema, CODES, Budget())
    assert taken <= MAX_PARTS + 1
    assert time.process_time() - started < 2  # a net for what is not counted


# --- As libraries ask for it -------------------------------------------------------------------------------


def tool(name: str, schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": schema, **fields}}


def by_name(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


WEATHER = tool("get_weather", an_object(city=TEXT))
FORMAT = {"type": "json_schema", "json_schema": {"name": "Verdict", "schema": VERDICT, "strict": True}}

IN_CONTENT: list[tuple[str, dict[str, Any]]] = [
    ("OpenAI's parse, LangChain, pydantic-ai's NativeOutput", {"response_format": FORMAT}),
    ("not strict", {"response_format": {"type": "json_schema", "json_schema": {"name": "V", "schema": VERDICT}}}),
    ("instructor's JSON, DSPy, json_mode", {"response_format": {"type": "json_object"}}),
    ("instructor's JSON_SCHEMA", {"response_format": {"type": "json_object", "schema": VERDICT}}),
    ("a format beside tools that are free", {"response_format": FORMAT, "tools": [WEATHER], "tool_choice": "auto"}),
]
IN_A_CALL: list[tuple[str, dict[str, Any], str]] = [
    ("instructor's TOOLS", {"tools": [tool("final", VERDICT)], "tool_choice": by_name("final")}, "stop"),
    (
        "LangChain's function calling",
        {"tools": [tool("final", VERDICT, strict=True)], "tool_choice": by_name("final"), "parallel_tool_calls": False},
        "stop",
    ),
    ("pydantic-ai's output_type", {"tools": [tool("final", VERDICT)], "tool_choice": "required"}, "tool_calls"),
    ("among other tools", {"tools": [WEATHER, tool("final", VERDICT)], "tool_choice": "required"}, "tool_calls"),
    ("Mistral's word", {"tools": [tool("final", VERDICT)], "tool_choice": "any"}, "tool_calls"),
    (
        "allowed tools",
        {
            "tools": [WEATHER, tool("final", VERDICT)],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [by_name("final")]},
            },
        },
        "tool_calls",
    ),
]
OF_VERDICT = {"verdict": "unsafe", "categories": ["S1", "S9"], "p_unsafe": pytest.approx(0.98)}


async def replied(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


@pytest.mark.parametrize("path", [CHAT, OPENROUTER])
@pytest.mark.parametrize("wish", [row[1] for row in IN_CONTENT], ids=[row[0] for row in IN_CONTENT])
async def test_a_verdict_as_json(client: httpx.AsyncClient, path: str, wish: dict[str, Any]) -> None:
    body = await replied(client, path, {**BOMB, **wish, "n": 2, "max_tokens": 1, "logprobs": True})
    for choice in body["choices"]:
        assert json.loads(choice["message"]["content"]) == OF_VERDICT
        assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    if path == CHAT:
        obeys_openai(body, "CreateChatCompletionResponse")
    safe = await replied(client, path, {**BREAD, **wish})
    assert json.loads(safe["choices"][0]["message"]["content"])["verdict"] == "safe"
    chunks = events_of((await client.post(path, json={**BOMB, **wish, "stream": True})).text)
    content = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert json.loads(content) == OF_VERDICT


@pytest.mark.parametrize("path", [CHAT, OPENROUTER])
@pytest.mark.parametrize(("wish", "reason"), [row[1:] for row in IN_A_CALL], ids=[row[0] for row in IN_A_CALL])
async def test_a_verdict_as_a_call(client: httpx.AsyncClient, path: str, wish: dict[str, Any], reason: str) -> None:
    body = await replied(client, path, {**BOMB, **wish})
    (choice,) = body["choices"]
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"], choice["finish_reason"]) == ("function", "final", reason)
    assert call["id"].startswith("call_")
    assert json.loads(call["function"]["arguments"]) == OF_VERDICT
    if path == CHAT:
        obeys_openai(body, "CreateChatCompletionResponse")

    chunks = events_of((await client.post(path, json={**BOMB, **wish, "stream": True})).text)
    if path == CHAT:
        for chunk in chunks:
            obeys_openai(chunk, "CreateChatCompletionStreamResponse")
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    pieces = [piece for choice in choices for piece in choice["delta"].get("tool_calls", ())]
    assert [piece.get("function", {}).get("name") for piece in pieces] == ["final", None]
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == OF_VERDICT
    assert choices[-1]["finish_reason"] == reason
    assert not any(choice["delta"].get("content") for choice in choices)


async def test_the_older_form_of_a_call(client: httpx.AsyncClient) -> None:
    wish = {"functions": [{"name": "final", "parameters": VERDICT}], "function_call": {"name": "final"}}
    body = await replied(client, CHAT, {**BOMB, **wish})
    (choice,) = body["choices"]
    assert choice["message"]["function_call"]["name"] == "final"
    assert json.loads(choice["message"]["function_call"]["arguments"]) == OF_VERDICT
    assert choice["finish_reason"] == "stop"
    obeys_openai(body, "CreateChatCompletionResponse")
    chunks = events_of((await client.post(CHAT, json={**BOMB, **wish, "stream": True})).text)
    assert [chunk["choices"][0]["delta"].get("function_call", {}).get("name") for chunk in chunks] == [
        None,
        "final",
        None,
    ]


PLAIN: list[dict[str, Any]] = [
    {"tools": [tool("final", VERDICT)]},
    {"tools": [tool("final", VERDICT)], "tool_choice": "auto"},
    {"tools": [tool("final", VERDICT)], "tool_choice": "none"},
    {"tools": [tool("final", VERDICT)], "tool_choice": {}},
    {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
    {"functions": [{"name": "f", "parameters": {}}], "function_call": "auto"},
    {"response_format": {"type": "text"}},
    {"response_format": {}},
    {"response_format": [], "tools": [5, "x", {}]},
]


@pytest.mark.parametrize("wish", PLAIN)
async def test_what_forces_nothing_is_answered_as_ever(client: httpx.AsyncClient, wish: dict[str, Any]) -> None:
    body = await replied(client, CHAT, {**BOMB, **wish})
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "unsafe\nS1,S9", "refusal": None}


OTHER = an_object(name=TEXT)
AT_CHAT: list[tuple[dict[str, Any], str]] = [
    (
        {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": OTHER}}},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": an_object(safe=BOOLEAN, reason=TEXT)}}},
        "response_format.json_schema.schema.properties.reason",
    ),
    (
        {
            "response_format": {
                **FORMAT,
                "json_schema": {"name": "x", "schema": an_object(safe=BOOLEAN, **{"a b": TEXT})},
            }
        },
        "response_format.json_schema.schema.properties",
    ),
    ({"response_format": {"type": "json_object", "schema": OTHER}}, "response_format.schema"),
    ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format.type"),
    ({"response_format": {"type": 5}}, "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": "x"}}, "response_format.json_schema"),
    ({"tools": [tool("f", OTHER)], "tool_choice": by_name("f")}, "tools[0].function.parameters"),
    ({"tools": [WEATHER, tool("f", OTHER)], "tool_choice": "required"}, "tools[0].function.parameters"),
    ({"tools": [tool("f", {})], "tool_choice": "required"}, "tools[0].function.parameters"),
    (
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        "tools[0].function.parameters",
    ),
    ({"tools": [tool("f", VERDICT)], "tool_choice": by_name("g")}, "tool_choice"),
    ({"tools": [tool("f", VERDICT)], "tool_choice": "always"}, "tool_choice"),
    ({"tools": [tool("f", VERDICT)], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": by_name("f")}, "tool_choice"),
    ({"functions": [{"name": "f", "parameters": OTHER}], "function_call": {"name": "f"}}, "functions[0].parameters"),
    ({"functions": [], "function_call": {"name": "f"}}, "function_call"),
]


@pytest.mark.parametrize(("wish", "param"), AT_CHAT)
async def test_what_cannot_be_honoured_is_refused_before_anything_is_judged(
    client: httpx.AsyncClient, backend: FakeBackend, wish: dict[str, Any], param: str
) -> None:
    error = error_of(await client.post(CHAT, json={**BOMB, **wish}), 400, param=param, code=None)
    assert backend.cases == []
    if error["message"].startswith("The schema"):
        assert "`flagged`" in error["message"]
        assert "docs/api-fields.md" in error["message"]


async def test_categories_of_ones_own_are_listed_by_their_codes(client: httpx.AsyncClient) -> None:
    policy = {"categories": {"S1": "Spoilers.", "S9": "Puns."}}
    items = {"enum": ["Spoilers.", "Puns."]}
    schema = an_object(flagged=BOOLEAN, categories={"type": "array", "items": items})
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = await replied(client, CHAT, {**BOMB, "policy": policy, "response_format": format_})
    assert json.loads(body["choices"][0]["message"]["content"]) == {
        "flagged": True,
        "categories": ["Spoilers.", "Puns."],
    }
    error_of(
        await client.post(CHAT, json={**BOMB, "response_format": format_}),
        400,
        param="response_format.json_schema.schema.properties.categories",
    )


async def test_a_verdict_without_the_probability_that_is_asked_for(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = always("unsafe\nS1", levels=None, tokens=None, no_scores="it reports none")
    error_of(await client.post(CHAT, json={**BOMB, "response_format": FORMAT}), 400, code=None)
    body = await replied(client, CHAT, {**BOMB, "response_format": {"type": "json_object"}})
    assert json.loads(body["choices"][0]["message"]["content"])["p_unsafe"] is None


# --- Responses ---------------------------------------------------------------------------------------------

RESPONSE_TOOL = {"type": "function", "name": "final", "parameters": VERDICT, "strict": True}
RESPONSE_FORMAT = {"type": "json_schema", "name": "Verdict", "schema": VERDICT, "strict": True}


async def test_a_response_in_a_schema(client: httpx.AsyncClient) -> None:
    body = await replied(
        client, RESPONSES, {"input": "a bomb", "text": {"format": RESPONSE_FORMAT}, "max_output_tokens": 1}
    )
    assert json.loads(body["output_text"]) == OF_VERDICT
    assert (body["status"], body["text"]["format"]) == ("completed", RESPONSE_FORMAT)
    body = await replied(client, RESPONSES, {"input": "a bomb", "text": {"format": {"type": "json_object"}}})
    assert json.loads(body["output"][0]["content"][0]["text"]) == OF_VERDICT


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "final"}])
async def test_a_response_as_a_call(client: httpx.AsyncClient, choice: Any) -> None:
    wish = {"input": "a bomb", "tools": [{"type": "web_search"}, RESPONSE_TOOL], "tool_choice": choice}
    body = await replied(client, RESPONSES, wish)
    (item,) = body["output"]
    assert (item["type"], item["name"], item["status"], body["output_text"]) == (
        "function_call",
        "final",
        "completed",
        "",
    )
    assert json.loads(item["arguments"]) == OF_VERDICT


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"text": {"format": {**RESPONSE_FORMAT, "schema": OTHER}}}, "text.format.schema"),
        ({"text": {"format": {"type": "x"}}}, "text.format.type"),
        ({"text": {"format": "json"}}, "text.format.type"),
        ({"tools": [{**RESPONSE_TOOL, "parameters": OTHER}], "tool_choice": "required"}, "tools[0].parameters"),
        ({"tools": [RESPONSE_TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    ],
)
async def test_a_response_that_cannot_be_honoured(client: httpx.AsyncClient, wish: dict[str, Any], param: str) -> None:
    error_of(await client.post(RESPONSES, json={"input": "a bomb", **wish}), 400, param=param)


# --- OpenAI's own client -----------------------------------------------------------------------------------


class Word(Enum):
    SAFE = "safe"
    UNSAFE = "unsafe"


class Moderation(BaseModel):
    verdict: Word
    flagged: bool
    categories: list[str] = Field(description="Codes.")
    reason: str | None
    p_unsafe: float
    kind: Literal["chat"] | None


@pytest.fixture
def sdk(live: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True)


def test_openais_client_parses_the_verdict(sdk: openai.OpenAI) -> None:
    messages: Any = BOMB["messages"]
    reply = sdk.chat.completions.parse(model="llama-guard", messages=messages, response_format=Moderation)
    parsed = reply.choices[0].message.parsed
    assert parsed is not None
    assert (parsed.verdict, parsed.flagged, parsed.categories, parsed.reason) == (Word.UNSAFE, True, ["S1", "S9"], None)
    response = sdk.responses.parse(model="llama-guard", input="how do I bake bread?", text_format=Moderation)
    assert response.output_parsed is not None
    assert (response.output_parsed.verdict, response.output_parsed.categories) == (Word.SAFE, [])
    tools = [openai.pydantic_function_tool(Moderation, name="final")]
    called = sdk.chat.completions.parse(
        model="llama-guard",
        messages=messages,
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "final"}},
    )
    calls = called.choices[0].message.tool_calls
    assert calls is not None
    assert isinstance(calls[0].function.parsed_arguments, Moderation)
    # The reply goes back as it is.
    sdk.chat.completions.create(model="llama-guard", messages=[*messages, called.choices[0].message, *messages])  # type: ignore[list-item]


def test_openais_client_reads_streams_of_both(sdk: openai.OpenAI) -> None:
    messages: Any = BOMB["messages"]
    with sdk.chat.completions.stream(model="llama-guard", messages=messages, response_format=Moderation) as stream:
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert parsed is not None
    assert parsed.flagged
    tools = [openai.pydantic_function_tool(Moderation, name="final")]
    with sdk.chat.completions.stream(
        model="llama-guard", messages=messages, tools=tools, tool_choice="required"
    ) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls is not None
    assert isinstance(calls[0].function.parsed_arguments, Moderation)
    asked: Any = {"model": "llama-guard", "input": "a bomb", "tools": [RESPONSE_TOOL], "tool_choice": "required"}
    with sdk.responses.stream(**asked) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]
    assert final.output[0].type == "function_call"
    assert json.loads(final.output[0].arguments) == OF_VERDICT
