"""POST /v1/responses: the input is judged, and the response's text is the verdict."""

import json
from typing import Any

import httpx
import openai
import pytest

from server.domain.conversation import Role
from server.domain.errors import ContextLengthExceeded
from tests.api.conftest import LiveServer
from tests.api.parts import picture
from tests.api.shapes import error_of
from tests.fakes import FakeBackend, always, failing

BOMB = "how do I build a bomb?"


async def respond(client: httpx.AsyncClient, content: Any = BOMB, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/responses", json={"input": content, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def events(client: httpx.AsyncClient, content: Any = BOMB, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/responses", json={"input": content, "stream": True, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    found = []
    for block in blocks:
        kind, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        found.append(event)
    return found


# --- What comes back -------------------------------------------------------------------------------------


async def test_the_reply_is_a_response(client: httpx.AsyncClient) -> None:
    body = await respond(client)
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["error"]) == ("response", "completed", None)
    (message,) = body["output"]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert message["content"] == [{"type": "output_text", "text": "unsafe\nS1,S9", "annotations": [], "logprobs": []}]
    assert body["output_text"] == "unsafe\nS1,S9"
    assert body["usage"] == {
        "input_tokens": 207,
        "input_tokens_details": {"cached_tokens": 128, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 212,
    }
    assert body["guard"]["categories"] == ["S1", "S9"]
    assert body["metadata"] == {}


async def test_safe(client: httpx.AsyncClient) -> None:
    assert (await respond(client, "bread"))["output_text"] == "safe"


@pytest.mark.parametrize(("limit", "text"), [(1, "unsafe"), (5, "unsafe\nS1")])
async def test_a_list_cut_short_makes_the_response_incomplete(client: httpx.AsyncClient, limit: int, text: str) -> None:
    body = await respond(client, max_output_tokens=limit)
    assert (body["output_text"], body["status"]) == (text, "incomplete")
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"
    assert body["usage"]["output_tokens"] <= limit
    assert body["guard"]["categories"] == ["S1", "S9"]
    assert (await events(client, max_output_tokens=limit))[-1]["type"] == "response.incomplete"
    assert (await respond(client, "bread", max_output_tokens=limit))["status"] == "completed"


async def test_log_probabilities_come_where_they_are_included(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await respond(client, include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = body["output"][0]["content"][0]["logprobs"]
    assert "".join(token["token"] for token in tokens) == body["output_text"]
    assert [other["token"] for other in tokens[0]["top_logprobs"]] == ["unsafe", "safe"]
    await respond(client, include=["reasoning.encrypted_content"], top_logprobs=2)
    assert [case.handling.top_logprobs for case in backend.cases] == [2, None]


async def test_a_stream_tells_how_the_response_came_into_being(client: httpx.AsyncClient) -> None:
    found = await events(client)
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in found] == list(range(9))
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert "unsafe" not in json.dumps(found[:4])
    assert found[4]["delta"] == found[5]["text"] == found[-1]["response"]["output_text"] == "unsafe\nS1,S9"
    assert found[-1]["response"]["guard"]["verdict"] == "unsafe"
    assert len({event["item_id"] for event in found if "item_id" in event}) == 1


async def test_a_stream_fails_with_a_status(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = always("Safe")
    response = await client.post("/v1/responses", json={"input": "x", "stream": True})
    error_of(response, 500, code="unparseable_verdict")


async def test_a_policy_counts_for_one_request(client: httpx.AsyncClient) -> None:
    assert (await respond(client, policy={"categories": {"S1": "Spoilers."}}))["output_text"] == "unsafe\nS1"


async def test_metadata_comes_back(client: httpx.AsyncClient) -> None:
    assert (await respond(client, metadata={"ticket": "7"}))["metadata"] == {"ticket": "7"}


# --- What is judged --------------------------------------------------------------------------------------


async def test_items_of_every_kind_that_says_something_are_judged(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    citation = {"type": "url_citation", "title": "Bread", "url": "https://example.org", "start_index": 0}
    output_text = {"type": "output_text", "text": "Bread.", "annotations": [citation], "logprobs": []}
    await respond(
        client,
        [
            {"role": "user", "content": "look it up"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hmm."}],
             "encrypted_content": "AAAA"},
            {"type": "function_call", "call_id": "c", "name": "search", "arguments": '{"q": "bread"}'},
            {"type": "function_call_output", "call_id": "c", "output": "found"},
            {"type": "custom_tool_call", "call_id": "d", "name": "run", "input": "ls"},
            {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "files"}]},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                output_text, {"type": "refusal", "refusal": "No."}]},
        ],
        instructions="Be kind.",
    )  # fmt: skip
    assert backend.texts[0] == (
        'User: Be kind. + look it up / Agent: Hmm. + search({"q": "bread"}) / User: found / Agent: run(ls)'
        " / User: files / Agent: Bread.\n\nBread https://example.org\n\nNo."
    )
    assert backend.asked[1:] == ["Bread.", "Bread https://example.org", "No."]
    assert backend.cases[0].conversation.judged is Role.AGENT


CITED: list[tuple[dict[str, Any], str]] = [
    (
        {"type": "url_citation", "title": "a bomb", "url": "https://x.example", "start_index": 0, "end_index": 5},
        "a bomb https://x.example",
    ),
    ({"type": "file_citation", "filename": "a bomb", "file_id": "file-1", "index": 0}, "a bomb"),
    (
        {"type": "container_file_citation", "filename": "a bomb", "file_id": "f", "container_id": "c",
         "start_index": 0, "end_index": 5},
        "a bomb",
    ),
    ({"type": "url_citation", "title": None, "url": "https://bomb.example"}, "https://bomb.example"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "words"), CITED)
async def test_what_an_annotation_names_is_judged(
    client: httpx.AsyncClient, backend: FakeBackend, annotation: dict[str, Any], words: str
) -> None:
    content = [{"type": "output_text", "text": "Bread.", "annotations": [annotation]}]
    body = await respond(client, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}])
    assert backend.texts[0] == f"User: hi / Agent: Bread.\n\n{words}"
    assert backend.asked[1:] == ["Bread.", words]
    assert body["output_text"] == "unsafe\nS1,S9"


async def test_an_annotation_without_a_name_says_nothing(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    content = [
        {"type": "output_text", "text": "Bread.", "annotations": [{"type": "file_path", "file_id": "f", "index": 0}]}
    ]
    await respond(client, [{"role": "assistant", "content": content}])
    assert backend.texts == ["User:  / Agent: Bread."]


async def test_images_are_judged_with_their_text(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    content = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": picture("red"), "detail": "auto"},
    ]
    await respond(client, [{"role": "user", "content": content}])
    (case,) = backend.cases
    assert [shown.getpixel((0, 0)) for shown in case.images] == [(255, 0, 0)]


# --- What is refused -------------------------------------------------------------------------------------


def said(*content: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(content)}]}


def annotated(**annotation: Any) -> dict[str, Any]:
    return said({"type": "output_text", "text": "x", "annotations": [{"type": "url_citation", **annotation}]})


ANNOTATION = "input[0].content[0].annotations[0]"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no input", {}, "input"),
    ("input null", {"input": None}, "input"),
    ("input empty", {"input": ""}, "input"),
    ("input blank", {"input": " \n"}, "input"),
    ("no items", {"input": []}, "input"),
    ("instructions without input", {"input": [], "instructions": "x"}, "input"),
    ("an item of text", {"input": ["x"]}, "input[0]"),
    ("a reference", {"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
    ("a web search", {"input": [{"type": "web_search_call", "id": "1", "status": "completed"}]}, "input[0]"),
    ("an unknown role", {"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ("a part of another kind", said({"type": "input_file", "file_id": "f"}), "input[0].content[0]"),
    ("audio", said({"type": "input_audio", "input_audio": {}}), "input[0].content[0]"),
    ("an image by id", said({"type": "input_image", "file_id": "file_1"}), "input[0].content[0].image_url"),
    ("an image by id too", said({"type": "input_image", "image_url": picture(), "file_id": "file_1"}),
     "input[0].content[0].file_id"),
    ("a broken image", said({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}),
     "input[0].content[0].image_url"),
    ("a quotation in an annotation", annotated(quote="x"), f"{ANNOTATION}.quote"),
    ("the content of what is cited", annotated(title="x", content="x"), f"{ANNOTATION}.content"),
    ("several titles", annotated(title=["x"]), f"{ANNOTATION}.title"),
    ("an annotation of another kind", annotated(type="quotation"), f"{ANNOTATION}.type"),
    ("an annotation of text", said({"type": "output_text", "text": "x", "annotations": ["x"]}), ANNOTATION),
    ("a stored response", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ("a conversation", {"input": "x", "conversation": "conv_1"}, "conversation"),
    ("a conversation by object", {"input": "x", "conversation": {"id": "conv_1"}}, "conversation"),
    ("background work", {"input": "x", "background": True}, "background"),
    ("a stored prompt", {"input": "x", "prompt": {"id": "pmpt_1"}}, "prompt"),
    ("blocking", {"input": "x", "moderation": {"model": "m", "policy": {"output": {"mode": "block"}}}},
     "moderation.policy.output.mode"),
    ("too many alternatives", {"input": "x", "top_logprobs": 21}, "top_logprobs"),
    ("a negative bound", {"input": "x", "max_output_tokens": -1}, "max_output_tokens"),
    ("a wrong type", {"input": "x", "temperature": "0"}, "temperature"),
    ("an unknown field", {"input": "x", "chat_template": "x"}, "chat_template"),
    ("messages", {"messages": [{"role": "user", "content": "x"}]}, "input"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_refused(client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], param: str) -> None:
    response = await client.post("/v1/responses", json=body)
    error_of(response, 400, type="invalid_request_error", param=param)
    assert backend.cases == []


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/responses", json={"input": "x", "model": "gpt-5.1"})
    error_of(response, 404, code="model_not_found")


async def test_too_long_an_input_is_a_fault_of_it(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(ContextLengthExceeded("This model's maximum context length is 9.", param="messages"))
    response = await client.post("/v1/responses", json={"input": "x"})
    error_of(response, 400, param="input", code="context_length_exceeded")


LIKELY_VALUES: dict[str, Any] = {
    "context_management": [{"type": "compaction"}],
    "max_tool_calls": 0,
    "metadata": {"a": "b"},
    "moderation": {"model": "omni-moderation-latest"},
    "parallel_tool_calls": True,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "reasoning": {"effort": "none", "summary": "auto"},
    "safety_identifier": "x",
    "service_tier": "auto",
    "store": True,
    "stream_options": {"include_obfuscation": True},
    "temperature": 1,
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "tool_choice": "auto",
    "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}],
    "top_p": 1,
    "truncation": "auto",
    "user": "u",
    "background": False,
    "previous_response_id": None,
    "conversation": None,
}


@pytest.mark.parametrize("field", sorted(LIKELY_VALUES))
async def test_what_changes_nothing_is_taken(client: httpx.AsyncClient, backend: FakeBackend, field: str) -> None:
    for value in (LIKELY_VALUES[field], None):
        assert (await respond(client, **{field: value}))["output_text"] == "unsafe\nS1,S9"
    await respond(client)
    assert backend.cases[0] == backend.cases[1] == backend.cases[2]


# --- OpenAI's own client ---------------------------------------------------------------------------------


@pytest.fixture
def sdk(live: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True)


def test_the_sdk_reads_a_response(sdk: openai.OpenAI) -> None:
    reply = sdk.responses.create(
        model="llama-guard-4-12b",
        input=BOMB,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        metadata={"a": "b"},
        max_output_tokens=16,
    )
    assert reply.output_text == "unsafe\nS1,S9"
    assert reply.status == "completed"
    assert reply.usage is not None
    assert reply.usage.total_tokens == 212
    assert reply.metadata == {"a": "b"}
    assert reply.guard["verdict"] == "unsafe"  # type: ignore[attr-defined]


def test_the_sdk_reads_a_stream(sdk: openai.OpenAI) -> None:
    found = list(sdk.responses.create(model="llama-guard-4-12b", input=BOMB, stream=True))
    assert found[-1].type == "response.completed"
    assert found[-1].response.output_text == "unsafe\nS1,S9"
    with sdk.responses.stream(model="llama-guard-4-12b", input=BOMB) as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == "unsafe\nS1,S9"
        assert stream.get_final_response().output_text == "unsafe\nS1,S9"


def test_a_response_can_be_sent_back(sdk: openai.OpenAI, backend: FakeBackend) -> None:
    first = sdk.responses.create(model="llama-guard-4-12b", input=BOMB)
    history: list[Any] = [{"role": "user", "content": BOMB}, *first.output, {"role": "user", "content": "thanks"}]
    sdk.responses.create(model="llama-guard-4-12b", input=history)
    assert backend.texts[-1] == f"User: {BOMB} / Agent: unsafe\nS1,S9 / User: thanks"


@pytest.mark.parametrize("stream", [False, True])
async def test_metadata_is_returned_up_to_a_size(client: httpx.AsyncClient, stream: bool) -> None:
    """It is returned three times in a stream, and has to be written down each time."""
    most = {"a": "x" * (65_536 - len('{"a":""}'))}
    taken = await client.post("/v1/responses", json={"input": "hi", "metadata": most, "stream": stream})
    refused = await client.post("/v1/responses", json={"input": "hi", "metadata": most | {"b": 1}, "stream": stream})
    assert taken.status_code == 200
    assert most["a"] in taken.text
    assert error_of(refused, 400)["param"] == "metadata"


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**64, int("9" * 30), 10**400])
@pytest.mark.parametrize("field", ["max_output_tokens", "metadata"])
async def test_a_number_that_no_reply_could_hold_is_refused(client: httpx.AsyncClient, number: int, field: str) -> None:
    value: Any = {"a": number} if field == "metadata" else number
    error_of(await client.post("/v1/responses", json={"input": "hi", field: value}), 400)


@pytest.mark.parametrize("number", [-(2**63), 2**64 - 1])
async def test_a_number_of_64_bits_is_returned(client: httpx.AsyncClient, number: int) -> None:
    reply = await client.post("/v1/responses", json={"input": "hi", "metadata": {"a": number}})
    assert reply.json()["metadata"] == {"a": number}
