"""POST /v1/chat/completions: the last message is judged, and the reply is the verdict."""

from typing import Any

import httpx
import pytest

from server.api.chat import IGNORED_FIELDS
from server.conversation import Role
from server.errors import ContextLengthExceeded
from tests.api.parts import image, picture, text
from tests.api.shapes import error_of, events_of, obeys_openai
from tests.fakes import FakeBackend, always, failing

USER = {"role": "user", "content": "how do I build a bomb?"}


async def complete(client: httpx.AsyncClient, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json={"messages": messages, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def stream(client: httpx.AsyncClient, *messages: dict[str, Any], **fields: Any) -> list[Any]:
    response = await client.post("/v1/chat/completions", json={"messages": messages, "stream": True, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


# --- What comes back -------------------------------------------------------------------------------------


async def test_the_reply_is_a_chat_completion(client: httpx.AsyncClient) -> None:
    body = await complete(client, USER)
    assert set(body) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage", "guard"}
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert isinstance(body["created"], int)
    assert body["model"] == "meta-llama/Llama-Guard-4-12B"
    assert body["system_fingerprint"].startswith("fp_")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "unsafe\nS1,S9", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 207,
        "completion_tokens": 5,
        "total_tokens": 212,
        "prompt_tokens_details": {"cached_tokens": 128, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert body["guard"]["categories"] == ["S1", "S9"]


@pytest.mark.parametrize("answer", ["safe", "unsafe", "unsafe\nS2", "unsafe\nS1,S14"])
async def test_the_content_is_what_clients_compare_with(
    client: httpx.AsyncClient, backend: FakeBackend, answer: str
) -> None:
    backend.script = always(answer)
    assert (await complete(client, USER))["choices"][0]["message"]["content"] == answer
    chunks = await stream(client, USER)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == answer


async def test_replies_and_chunks_obey_openais_own_schema(client: httpx.AsyncClient) -> None:
    for words in ("how do I build a bomb?", "how do I bake bread?"):
        message = {"role": "user", "content": words}
        obeys_openai(await complete(client, message), "CreateChatCompletionResponse")
        for chunk in await stream(client, message, stream_options={"include_usage": True}):
            if chunk["usage"] is None:
                del chunk["usage"]  # the schema's description wants the null that its type forbids
            obeys_openai(chunk, "CreateChatCompletionStreamResponse")


async def test_two_replies_share_no_id(client: httpx.AsyncClient) -> None:
    assert (await complete(client, USER))["id"] != (await complete(client, USER))["id"]


# --- Streaming -------------------------------------------------------------------------------------------


async def test_a_stream_is_role_content_finish(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, USER)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "unsafe\nS1,S9"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["guard"]["verdict"] == "unsafe"


async def test_a_stream_with_usage_ends_in_one_chunk_without_choices(client: httpx.AsyncClient) -> None:
    *chunks, last = await stream(client, USER, stream_options={"include_usage": True, "include_obfuscation": False})
    assert len(chunks) == 3
    assert [chunk["usage"] for chunk in chunks] == [None, None, None]
    assert last["choices"] == []
    assert last["usage"] == (await complete(client, USER))["usage"]


@pytest.mark.parametrize("streamed", [False, None])
async def test_stream_false_or_null_is_one_reply(client: httpx.AsyncClient, streamed: bool | None) -> None:
    assert (await complete(client, USER, stream=streamed))["object"] == "chat.completion"


async def test_a_stream_fails_with_a_status_before_its_first_byte(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = always("Safe")
    response = await client.post("/v1/chat/completions", json={"messages": [USER], "stream": True})
    error_of(response, 500, code="unparseable_verdict")


# --- What reaches the backend ----------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool", "function"])
async def test_every_role_that_speaks_to_the_assistant_is_judged_as_user(
    client: httpx.AsyncClient, backend: FakeBackend, role: str
) -> None:
    body = await complete(client, {"role": role, "content": "a bomb", "tool_call_id": "call_1", "name": "n"})
    assert backend.texts == ["User: a bomb"]
    assert body["guard"]["verdict"] == "unsafe"


async def test_the_last_message_is_judged_in_its_conversation(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = {"role": "assistant", "content": "I can't help with that."}
    body = await complete(client, {"role": "system", "content": "Be kind."}, USER, answer)
    assert backend.texts == ["User: Be kind. + how do I build a bomb? / Agent: I can't help with that."]
    assert backend.cases[0].conversation.judged is Role.AGENT
    assert body["choices"][0]["message"]["content"] == "safe"


async def test_nothing_that_a_message_says_escapes(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"q": "bomb"}'}}
    await complete(
        client,
        {"role": "user", "content": "look it up"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [text("found"), text("this")]},
        {"role": "assistant", "content": "Well.", "refusal": "I will not say."},
    )
    assert backend.texts == [
        'User: look it up / Agent: search({"q": "bomb"}) + search({"q": "bomb"})'
        " / User: found + this / Agent: Well. + I will not say."
    ]


async def test_a_tool_call_alone_can_be_judged(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "run", "arguments": "make a bomb"}}
    body = await complete(client, USER, {"role": "assistant", "tool_calls": [call]})
    assert body["choices"][0]["message"]["content"] == "unsafe\nS1,S9"


async def test_images_of_all_messages_are_shown_in_order(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await complete(
        client,
        {"role": "user", "content": [text("first"), image(picture("red"))]},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": [image(picture("blue")), text("second")]},
    )
    (case,) = backend.cases
    assert [shown.getpixel((0, 0)) for shown in case.images] == [(255, 0, 0), (0, 0, 255)]
    assert [len(turn.images) for turn in case.conversation.turns] == [1, 0, 1]


async def test_a_message_as_the_sdk_sends_it_back_is_taken(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    nulls = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    await complete(client, USER, {"role": "assistant", "content": "No.", **nulls})
    assert backend.texts == ["User: how do I build a bomb? / Agent: No."]


async def test_a_policy_counts_for_one_request(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await complete(client, USER, policy={"categories": {"S1": "Spoilers."}}))["choices"][0]["message"][
        "content"
    ] == "unsafe\nS1"
    assert (await complete(client, USER))["choices"][0]["message"]["content"] == "unsafe\nS1,S9"


# --- Fields ----------------------------------------------------------------------------------------------

LIKELY_VALUES: dict[str, Any] = {
    "temperature": 0.7,
    "stop": ["unsafe"],
    "max_tokens": 1,
    "logit_bias": {"60411": 100},
    "response_format": {"type": "json_object"},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "metadata": {"a": "b"},
}


@pytest.mark.parametrize("field", sorted(IGNORED_FIELDS))
async def test_an_ignored_field_changes_nothing(client: httpx.AsyncClient, backend: FakeBackend, field: str) -> None:
    for value in (LIKELY_VALUES.get(field, "x"), None):
        body = await complete(client, USER, **{field: value})
        assert body["choices"][0]["message"]["content"] == "unsafe\nS1,S9"
    await complete(client, USER)
    assert backend.cases[0] == backend.cases[1] == backend.cases[2]


COULD_CHANGE_A_VERDICT = [
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "uuid",
    "cache_salt",
    "prompt_embeds",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "documents",
    "structured_outputs",
    "vllm_xargs",
    "prompt",
    "input",
]
WOULD_MISLEAD = ["audio", "moderation", "top_logprobs", "web_search_options"]


@pytest.mark.parametrize("field", [*COULD_CHANGE_A_VERDICT, *WOULD_MISLEAD, "massages", "Temperature"])
async def test_an_unknown_field_is_refused_by_name(client: httpx.AsyncClient, backend: FakeBackend, field: str) -> None:
    for value in ({"a": 1}, "x", 5, None):
        response = await client.post("/v1/chat/completions", json={"messages": [USER], field: value})
        error = error_of(response, 400, type="invalid_request_error", param=field)
        assert error["message"] == f"Unknown parameter: '{field}'."
    assert backend.cases == []


def user(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x", **fields}]}


def assistant(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", **fields}]}


CALL = {"name": "f", "arguments": "{}"}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no messages", {}, "messages"),
    ("messages null", {"messages": None}, "messages"),
    ("no message", {"messages": []}, "messages"),
    ("messages as text", {"messages": "x"}, "messages"),
    ("a message as text", {"messages": ["x"]}, "messages[0]"),
    ("a message without role", {"messages": [{"content": "x"}]}, "messages[0].role"),
    ("an unknown role", {"messages": [USER, {"role": "root", "content": "x"}]}, "messages[1].role"),
    ("a role in capitals", {"messages": [{"role": "User", "content": "x"}]}, "messages[0].role"),
    ("content missing", {"messages": [{"role": "user"}]}, "messages"),
    ("content null", user(content=None), "messages"),
    ("content empty", user(content=""), "messages"),
    ("content an empty list", user(content=[]), "messages"),
    ("an empty last turn", assistant(content=""), "messages"),
    ("content a number", user(content=5), "messages[0].content"),
    ("content of strings", user(content=["x"]), "messages[0].content[0]"),
    ("uuid in a message", user(uuid="1"), "messages[0].uuid"),
    ("uuid in a text part", user(content=[{**text("x"), "uuid": "1"}]), "messages[0].content[0].uuid"),
    ("uuid in an image part", user(content=[{**image(), "uuid": "1"}]), "messages[0].content[0].uuid"),
    ("image embeddings", user(content=[{"type": "image_embeds", "image_embeds": "x"}]), "messages[0].content[0]"),
    ("audio", user(content=[{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0]"),
    ("a file", user(content=[{"type": "file", "file": {}}]), "messages[0].content[0]"),
    ("a deprecated call", assistant(content="x", function_call=CALL), "messages[1].function_call"),
    ("reasoning", assistant(content="x", reasoning="hmm"), "messages[1].reasoning"),
    ("a call of another type", assistant(tool_calls=[{"type": "custom", "custom": {}}]),
     "messages[1].tool_calls[0].type"),
    ("a call without arguments", assistant(tool_calls=[{"type": "function", "function": {"name": "f"}}]),
     "messages[1].tool_calls[0].function.arguments"),
    ("arguments as an object", assistant(tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}]),
     "messages[1].tool_calls[0].function.arguments"),
    ("two choices", {**user(), "n": 2}, "n"),
    ("no choice", {**user(), "n": 0}, "n"),
    ("n as a string", {**user(), "n": "1"}, "n"),
    ("n as a boolean", {**user(), "n": True}, "n"),
    ("log-probabilities", {**user(), "logprobs": True}, "logprobs"),
    ("logprobs as a number", {**user(), "logprobs": 0}, "logprobs"),
    ("stream as text", {**user(), "stream": "true"}, "stream"),
    ("stream as a number", {**user(), "stream": 1}, "stream"),
    ("unknown stream options", {**user(), "stream_options": {"chunks": 9}}, "stream_options.chunks"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_refused(client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], param: str) -> None:
    response = await client.post("/v1/chat/completions", json=body)
    error_of(response, 400, type="invalid_request_error", param=param)
    assert backend.cases == []


@pytest.mark.parametrize("fields", [{"n": 1}, {"n": None}, {"logprobs": False}, {"logprobs": None}, {"model": None}])
async def test_what_asks_for_nothing_special_is_taken(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    await complete(client, USER, **fields)


async def test_an_image_fault_is_told_by_its_path(client: httpx.AsyncClient) -> None:
    messages = [USER, {"role": "assistant", "content": [text("x"), image("data:image/png;base64,AAAA")]}]
    response = await client.post("/v1/chat/completions", json={"messages": messages})
    error_of(response, 400, param="messages[1].content[1].image_url.url", code="invalid_value")


async def test_a_conversation_beyond_the_context_is_a_fault_of_messages(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = failing(ContextLengthExceeded("This model's maximum context length is 9.", param="messages"))
    response = await client.post("/v1/chat/completions", json={"messages": [USER]})
    error_of(response, 400, type="invalid_request_error", param="messages", code="context_length_exceeded")
