"""One rule for every level of every body: what holds nothing is dropped, bookkeeping is ignored, the rest is refused.

And no field that is ignored hides words: they are judged, or the request is refused.
"""

import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.api.chat.options import ModerationMode
from server.api.chat.request import ChatRequest
from server.api.litellm.body import AdditionalParameters, GuardrailRequest
from server.api.messages import ImageContent, ImageUrl, TextContent
from server.api.openai.items import ItemReference
from server.api.wire import MAX_REPEATED, Ignored, WireModel, holds_nothing
from tests.api.parts import image, picture, text
from tests.api.shapes import error_of
from tests.fakes import FakeBackend

CHAT, RESPONSES, MODERATIONS = "/v1/chat/completions", "/v1/responses", "/v1/moderations"
LITELLM = "/beta/litellm_basic_guardrail_api"

EMPTY: list[Any] = [None, "", [], {}, [None], {"a": None}, [{"a": [""]}, {}], {"refusal": None, "b": {"c": []}}]
SOMETHING: list[Any] = [False, 0, 0.0, True, 1, " ", "x", [0], {"a": False}, [[], [{"a": "x"}]]]

# --- Every model -------------------------------------------------------------------------------------------


def models(base: type[WireModel] = WireModel) -> Iterator[type[WireModel]]:
    for model in base.__subclasses__():
        if model.__module__.startswith("server."):
            yield model
        yield from models(model)


MODELS = sorted(set(models()), key=lambda model: model.__name__)


def a_value_for(name: str, schema: dict[str, Any], known: dict[str, Any]) -> Any:
    """The smallest value that a schema of a field takes."""
    if "$ref" in schema:
        return a_value_for(name, known[schema["$ref"].rpartition("/")[2]], known)
    if (branches := schema.get("anyOf") or schema.get("oneOf")) and "properties" not in schema:
        return a_value_for(name, branches[0], known)
    if "const" in schema or "enum" in schema:
        return schema.get("const") or schema["enum"][0]
    match schema.get("type"):
        case "string":
            return "x"
        case "array":
            return [a_value_for(name, schema["items"], known)] if schema.get("minItems") else []
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "object":
            return {
                field: a_value_for(field, schema["properties"][field], known) for field in schema.get("required", [])
            }
    raise AssertionError(f"no value for {name}: {schema}")


def smallest(model: type[WireModel]) -> dict[str, Any]:
    if model is ModerationMode:
        return {"mode": "score"}
    schema = model.model_json_schema()
    body: dict[str, Any] = a_value_for(model.__name__, schema, schema.get("$defs", {}))
    return body


def test_all_models_of_bodies_are_known() -> None:
    named = {model.__name__ for model in MODELS}
    assert {"ChatRequest", "ChatMessage", "ToolCall", "StreamOptions", "InputText", "BatchRequest"} <= named
    assert len(MODELS) > 40


USABLE = [model for model in MODELS if model is not ItemReference]


@pytest.mark.parametrize("model", USABLE)
def test_an_optional_field_that_is_null_is_one_that_is_left_out(model: type[WireModel]) -> None:
    body = smallest(model)
    whole = model.model_validate(body)
    optional = [name for name, field in model.model_fields.items() if not field.is_required()]
    for name in optional:
        assert model.model_validate({**body, name: None}) == whole, name
    assert model.model_validate({**body, **dict.fromkeys(optional)}) == whole


@pytest.mark.parametrize("model", USABLE)
def test_an_optional_field_may_be_empty_in_any_language(model: type[WireModel]) -> None:
    body = smallest(model)
    for name, field in model.model_fields.items():
        if not field.is_required():
            for empty in EMPTY[1:4]:
                try:
                    model.model_validate({**body, name: empty})
                except ValidationError as error:
                    # A list that must not be empty says so.
                    assert [fault["type"] for fault in error.errors()] == ["too_short"]  # noqa: PT017


@pytest.mark.parametrize("model", USABLE)
def test_a_field_of_another_api_is_dropped_only_if_it_holds_nothing(model: type[WireModel]) -> None:
    body = smallest(model)
    whole = model.model_validate(body)
    for empty in EMPTY:
        assert model.model_validate({**body, "zebra": empty}) == whole
    if model in (AdditionalParameters, GuardrailRequest):
        return  # other guardrails' settings; and LiteLLM's numbers, which test_guardrail.py knows
    for value in SOMETHING:
        with pytest.raises(ValidationError) as refused:
            model.model_validate({**body, "zebra": value})
        (fault,) = refused.value.errors()
        assert (fault["type"], fault["loc"][-1]) == ("extra_forbidden", "zebra")


@pytest.mark.parametrize("model", USABLE)
def test_a_whole_number_may_be_spelt_as_a_float(model: type[WireModel]) -> None:
    body, schema = smallest(model), model.model_json_schema()["properties"]
    for name in model.model_fields:
        kinds = [branch.get("type") for branch in schema[name].get("anyOf", [schema[name]])]
        if "integer" in kinds and "number" not in kinds:
            extra = {"logprobs": True} if name == "top_logprobs" and model is ChatRequest else {}
            number = float(schema[name].get("minimum", 1))
            read = getattr(model.model_validate({**body, **extra, name: number}), name)
            assert (read, type(read)) == (number, int)
            for wrong in (number + 0.5, 1e300, -1e300):
                with pytest.raises(ValidationError):
                    model.model_validate({**body, **extra, name: wrong})


def test_an_empty_list_is_phps_empty_object() -> None:
    for model in USABLE:
        if not any(field.is_required() for field in model.model_fields.values()):
            assert model.model_validate([]) == model.model_validate({})
    with pytest.raises(ValidationError, match="url"):
        ImageContent.model_validate({"type": "image_url", "image_url": []})


NESTED = st.recursive(
    st.sampled_from([None, "", 0, False, "x"]), lambda below: st.lists(below) | st.dictionaries(st.text(), below)
)


@given(NESTED)
def test_nothing_is_what_has_no_value_anywhere(value: Any) -> None:
    def leaves(value: Any) -> Iterator[Any]:
        if isinstance(value, list | dict):
            for item in value.values() if isinstance(value, dict) else value:
                yield from leaves(item)
        else:
            yield value

    assert holds_nothing(value) is all(leaf is None or leaf == "" for leaf in leaves(value))


# --- What real clients send --------------------------------------------------------------------------------

SIGNED = {"google": {"thought_signature": "EpYCCpMCAdHtim9/lots+of=="}}


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "zebra"}, {"role": "assistant", "content": "bread", **fields}]}


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{**text("zebra"), **fields}]}]}


def call(where: str = "call", **fields: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}", **(fields if where == "function" else {})}
    made = {"id": "call_1", "type": "function", "function": function, **(fields if where == "call" else {})}
    return {"messages": [{"role": "user", "content": "zebra"}, {"role": "assistant", "tool_calls": [made]}]}


def shown(**fields: Any) -> dict[str, Any]:
    picture_ = {"url": picture(), **fields}
    return {"messages": [{"role": "user", "content": [text("zebra"), {"type": "image_url", "image_url": picture_}]}]}


def options(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "zebra"}], **fields}


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "zebra"}, fields]}


SENT: list[tuple[str, str, dict[str, Any]]] = [
    ("Gemini's signature in a call", CHAT, call(extra_content=SIGNED)),
    ("Gemini's signature in an answer", CHAT, turn(extra_content=SIGNED)),
    ("LiteLLM's model_dump", CHAT, turn(provider_specific_fields={"refusal": None}, function_call=None, audio=None)),
    ("LiteLLM's signatures", CHAT, turn(provider_specific_fields={"thought_signatures": ["EpYC/+=="]})),
    ("LiteLLM's call", CHAT, call(provider_specific_fields=SIGNED["google"])),
    ("a call of a stream", CHAT, call(index=0, type=None)),
    ("a function without arguments", CHAT, call("function", arguments=None)),
    ("a parsed call", CHAT, call("function", parsed_arguments=None)),
    ("a part with an id", CHAT, part(id="part_1", index=0, annotations=[])),
    ("a part dumped as a union", CHAT, part(image_url=None, refusal=None, input_audio=None, file=None)),
    (
        "a part without its text",
        CHAT,
        {"messages": [{"role": "user", "content": [text("zebra"), {**text(""), "text": None}]}]},
    ),
    ("a cached part", CHAT, part(cache_control={"type": "ephemeral", "ttl": "1h"})),
    (
        "a cached message",
        CHAT,
        {"messages": [{"role": "user", "content": "zebra", "cache_control": {"type": "ephemeral"}}]},
    ),
    ("a picture with its format", CHAT, shown(format="image/png")),
    ("a picture without detail", CHAT, shown(detail="")),
    (
        "a picture part with nulls",
        CHAT,
        {"messages": [{"role": "user", "content": [text("zebra"), {**image(), "text": None, "id": 3}]}]},
    ),
    ("usage null", CHAT, options(stream_options={"include_usage": None})),
    ("usage of every chunk", CHAT, options(stream_options={"include_usage": False, "continuous_usage_stats": False})),
    ("no log-probabilities", CHAT, options(logprobs=False, top_logprobs=0)),
    ("a bound as a float", CHAT, options(max_tokens=1024.0, n=1.0, seed=7.0, top_k=40.0)),
    ("PHP's objects", CHAT, options(metadata=[], stream_options=[], logit_bias=[], provider=[], policy=[], user=None)),
    ("an empty name of a model", CHAT, options(model="")),
    ("an answer of a fine-tuning set", CHAT, turn(weight=0, prefix=False, id="msg_1", index=0, phase=None)),
    ("null for a user", MODERATIONS, {"input": "zebra", "user": None, "encoding_format": None}),
    ("a user", MODERATIONS, {"input": "zebra", "user": "u-1", "safety_identifier": "s", "metadata": {"a": "b"}}),
    ("parts of a moderation", MODERATIONS, {"input": [{**text("zebra"), "image_url": None, "id": "1"}]}),
    ("the Llama API's nulls", MODERATIONS, turn(stop_reason=None, tool_calls=None)),
    (
        "a message without content",
        RESPONSES,
        {
            "input": [
                {"type": "message", "role": "assistant", "content": None, "id": "msg_1"},
                {"role": "user", "content": "zebra"},
            ]
        },
    ),
    ("an output of nothing", RESPONSES, item(type="function_call_output", call_id="c", output=None, status=None)),
    ("a call without arguments", RESPONSES, item(type="function_call", call_id="c", name="f", arguments=None)),
    (
        "an image without detail",
        RESPONSES,
        item(role="user", content=[{"type": "input_image", "image_url": picture(), "detail": ""}]),
    ),
    (
        "a text with its tokens",
        RESPONSES,
        item(
            role="assistant",
            content=[
                {
                    "type": "output_text",
                    "text": "good bread",
                    "annotations": [],
                    "logprobs": [
                        {
                            "token": word,
                            "logprob": -0.1,
                            "bytes": [1],
                            "top_logprobs": [{"token": "tea", "logprob": -2, "bytes": []}],
                        }
                        for word in ("good", " bread")
                    ],
                }
            ],
        ),
    ),
    (
        "a whole response sent back",
        RESPONSES,
        item(
            type="function_call",
            call_id="c",
            name="f",
            arguments="{}",
            id="fc_1",
            status="completed",
            namespace=None,
            caller=None,
            created_by=None,
        ),
    ),
    (
        "bounds as floats",
        RESPONSES,
        {"input": "zebra", "max_output_tokens": 16.0, "metadata": [], "text": [], "tools": []},
    ),
    (
        "LiteLLM's nulls",
        LITELLM,
        {
            "input_type": "request",
            "texts": ["zebra"],
            "images": None,
            "tool_calls": [],
            "additional_provider_specific_params": {"policy": None},
        },
    ),
    (
        "LiteLLM's null texts",
        LITELLM,
        {
            "input_type": "request",
            "structured_messages": [{"role": "user", "content": [text("zebra"), {**text(""), "text": None}]}],
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), [row[1:] for row in SENT], ids=[row[0] for row in SENT])
async def test_what_real_clients_send_is_taken(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict[str, Any]
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert "zebra" in backend.texts[0]


async def test_every_chunk_may_carry_the_usage_so_far(client: httpx.AsyncClient) -> None:
    body = options(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    lines = (await client.post(CHAT, json=body)).text.split("\n\n")[:-2]
    usages = [httpx.Response(200, text=line.removeprefix("data: ")).json()["usage"] for line in lines]
    assert [usage["completion_tokens"] for usage in usages] == [0, 1, 1, 1]
    assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)


@pytest.mark.parametrize("blank", ["", " \n", "\u200b", "\ufeff", "\u2800", "\u00ad\u2060\U000e0041", "\x00"])
async def test_a_text_that_nobody_can_see_is_nothing_to_judge(client: httpx.AsyncClient, blank: str) -> None:
    for path, body in (
        (MODERATIONS, {"input": blank}),
        (MODERATIONS, {"input": [blank]}),
        (MODERATIONS, {"input": [text(blank)]}),
        (MODERATIONS, {"messages": [{"role": "user", "content": blank}]}),
        (CHAT, {"messages": [{"role": "user", "content": blank}]}),
        (RESPONSES, {"input": blank}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": blank}]}]}),
        (LITELLM, {"input_type": "request", "texts": [blank]}),
    ):
        error_of(await client.post(path, json=body), 400, code="empty_input")


# --- At every level of whole bodies ------------------------------------------------------------------------

FUNCTION = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [text("zebra"), image(picture("red"))]},
    {
        "role": "assistant",
        "content": [text("bread"), {"type": "refusal", "refusal": "no"}],
        "reasoning_details": [{"type": "reasoning.text", "text": "hm"}],
        "annotations": [{"type": "url_citation", "url_citation": {"url": "u", "title": "t"}}],
        "tool_calls": [FUNCTION, {"id": "2", "type": "custom", "custom": {"name": "g", "input": "i"}}],
        "function_call": {"name": "h", "arguments": "j"},
        "images": [image(picture("blue"))],
    },
]
ITEMS: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "zebra"}, {"type": "input_image", "image_url": picture()}],
    },
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "o"}]},
    {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "i"},
    {
        "role": "assistant",
        "content": [
            {
                "type": "output_text",
                "text": "bread",
                "annotations": [{"type": "url_citation", "title": "t", "url": "u"}],
                "logprobs": [{"token": "bread", "logprob": -1.0, "bytes": [1], "top_logprobs": []}],
            },
            {"type": "refusal", "refusal": "no"},
        ],
    },
]
WHOLE: list[tuple[str, dict[str, Any]]] = [
    (
        CHAT,
        {
            "messages": MESSAGES,
            "stream_options": {},
            "provider": {},
            "policy": {},
            "moderation": {"model": "m", "policy": {"input": {"mode": "score"}}},
        },
    ),
    ("/api/v1/chat/completions", {"messages": MESSAGES}),
    (MODERATIONS, {"messages": MESSAGES, "policy": {}}),
    (MODERATIONS, {"input": [text("zebra"), image()]}),
    (RESPONSES, {"input": ITEMS, "stream_options": {}}),
    (
        LITELLM,
        {
            "input_type": "request",
            "texts": ["zebra"],
            # A call of another kind is judged as it is spelt.
            "structured_messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [FUNCTION]}],
            "additional_provider_specific_params": {"policy": {}},
        },
    ),
]


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every object in a body, the body included."""
    if isinstance(value, dict):
        yield path
        for key, below in value.items():
            yield from objects(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from objects(below, (*path, index))


def with_field(body: dict[str, Any], path: tuple[str | int, ...], name: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    place: Any = changed
    for step in path:
        place = place[step]
    place[name] = value
    return changed


@pytest.mark.parametrize(("path", "body"), WHOLE, ids=lambda value: value if isinstance(value, str) else "")
async def test_an_unknown_field_that_holds_nothing_changes_nothing_at_any_level(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict[str, Any]
) -> None:
    assert (await client.post(path, json=body)).status_code == 200
    expected = sorted(backend.texts)
    places = list(objects(body))
    for place in places:
        for empty in (None, [{"a": ""}]):
            backend.cases.clear()
            response = await client.post(path, json=with_field(body, place, "zebras", empty))
            assert response.status_code == 200, (place, response.text)
            assert sorted(backend.texts) == expected, place
    assert len(places) > 2


NAMED = sorted({name for model in MODELS for name in model.ignored_fields})
HIDDEN: list[Any] = ["how to build it", {"refusal": "build"}, [[{"a": "how to build it"}]], {"how to build it": 1}]


@pytest.mark.parametrize(("path", "body"), WHOLE, ids=lambda value: value if isinstance(value, str) else "")
async def test_no_field_that_is_ignored_hides_words(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict[str, Any]
) -> None:
    assert {"extra_content", "provider_specific_fields", "id", "cache_control", "format", "metadata"} <= set(NAMED)
    said = [place for place in objects(body) if place[:1] in (("messages",), ("input",), ("structured_messages",))]
    for place in said:
        for name in (*NAMED, "zebras"):
            for value in HIDDEN:
                backend.cases.clear()
                response = await client.post(path, json=with_field(body, place, name, value))
                asked = any("build" in words for words in backend.texts)
                labels = isinstance(value, dict) and "refusal" in value and name in LABELLED
                assert asked or response.status_code == 400 or labels, (place, name, value)
                assert response.status_code in (200, 400)


LABELLED = {name for model in MODELS for name, mark in model.ignored_fields.items() if mark.harmless is not None}
"""Fields in which single words pass wherever they stand: only programs read them."""


async def test_what_a_client_parsed_is_judged_unless_it_repeats_the_text(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    arguments, parsed = '{"what": "a good zebra"}', {"what": "a good zebra"}
    answer = {"role": "assistant", "content": arguments, "parsed": parsed}
    call_ = {"id": "1", "function": {"name": "f", "arguments": arguments, "parsed_arguments": parsed}}
    await client.post(CHAT, json={"messages": [answer, {"role": "assistant", "tool_calls": [call_]}]})
    assert backend.asked[1:] == [arguments, f"f({arguments})"]
    backend.cases.clear()
    other = {**call_, "function": {**call_["function"], "parsed_arguments": {"what": "a good bear"}}}  # type: ignore[dict-item]
    await client.post(CHAT, json={"messages": [{**answer, "parsed": ["a bear"], "tool_calls": [other]}]})
    assert backend.asked[1:] == [arguments, "a bear", "a good bear", f"f({arguments})"]


async def test_a_long_text_is_not_compared(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    words = "zebra " * MAX_REPEATED
    answer = {"role": "assistant", "content": f'"{words}"', "parsed": words}
    await client.post(CHAT, json={"messages": [answer]})
    assert backend.asked[1:] == [f'"{words}"', words]


def test_bookkeeping_of_any_shape_is_read_whole() -> None:
    note = {
        "id": "call_1", "thought_signatures": ["a+/=", "two words"], "type": "x", "format": "no label", "n": 3,
        "spaced key": True, "deep": [{"status": "done", "signature": {"x": "bomb"}}], "": None,
    }  # fmt: skip
    assert list(Ignored().words(note)) == ["spaced key", "", "two words", "no label", "bomb"]
    part_ = TextContent(type="text", text="x", provider_specific_fields=note, cache_control={"type": "ephemeral"})
    assert list(part_.asides()) == [("provider_specific_fields", "spaced key\n\ntwo words\nno label\nbomb")]
    assert list(ImageUrl(url="u", format="image/png").asides()) == []


def test_the_application_reads_no_body_without_the_rule(app: FastAPI) -> None:
    assert ChatRequest in MODELS
    described = [operation for methods in app.openapi()["paths"].values() for operation in methods.values()]
    contents = [operation.get("requestBody", {}).get("content", {}) for operation in described]
    bodies = {
        content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for content in contents
        if "application/json" in content
    }
    assert bodies
    assert bodies <= {model.__name__ for model in MODELS}
