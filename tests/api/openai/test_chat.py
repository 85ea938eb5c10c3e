"""POST /v1/chat/completions: the last message is judged, and the reply is the verdict."""

import math
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from server.api.chat.options import IgnoredOptions
from server.api.chat.request import ProviderPreferences
from server.domain.conversation import Role
from server.domain.errors import ContextLengthExceeded
from server.domain.verdict import Token
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


# --- As much as was asked for ----------------------------------------------------------------------------

BOUNDS = [(1, "unsafe", "length"), (3, "unsafe", "length"), (4, "unsafe\nS1", "length"), (6, "unsafe\nS1,S9", "stop")]


@pytest.mark.parametrize(("limit", "content", "reason"), BOUNDS)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_bound_cuts_the_list_and_not_the_verdict(
    client: httpx.AsyncClient, field: str, limit: int, content: str, reason: str
) -> None:
    body = await complete(client, USER, logprobs=True, **{field: limit})
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, reason)
    assert spelling(choice) == content
    assert len(choice["logprobs"]["content"]) <= limit
    assert body["usage"]["completion_tokens"] == min(5, limit)
    assert body["guard"]["categories"] == ["S1", "S9"]
    assert body["guard"]["usage"]["completion_tokens"] == 5
    obeys_openai(body, "CreateChatCompletionResponse")
    chunks = await stream(client, USER, **{field: limit})
    assert chunks[-1]["choices"][0]["finish_reason"] == reason
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == content


async def test_the_smaller_of_two_bounds_counts_and_zero_is_none(client: httpx.AsyncClient) -> None:
    for bounds, content in (
        ((1, 100), "unsafe"),
        ((100, 4), "unsafe\nS1"),
        ((0, 1), "unsafe"),
        ((0, 0), "unsafe\nS1,S9"),
    ):
        body = await complete(client, USER, max_tokens=bounds[0], max_completion_tokens=bounds[1])
        assert body["choices"][0]["message"]["content"] == content


async def test_safe_fits_into_one_token(client: httpx.AsyncClient) -> None:
    body = await complete(client, {"role": "user", "content": "bread"}, max_tokens=1)
    assert (body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]) == ("safe", "stop")


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ("\n", "unsafe"),
        ([","], "unsafe\nS1"),
        (["<|eot|>", "</s>", "\n\n", "User:"], "unsafe\nS1,S9"),
        ("", "unsafe\nS1,S9"),
    ],
)
async def test_a_stop_ends_the_answer_before_it(client: httpx.AsyncClient, stop: Any, content: str) -> None:
    body = await complete(client, USER, stop=stop, logprobs=True)
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, "stop")
    assert spelling(choice) == content
    assert body["guard"]["categories"] == ["S1", "S9"]


async def test_several_choices_tell_of_one_verdict(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await complete(client, USER, n=3)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"unsafe\nS1,S9"}
    assert body["usage"]["completion_tokens"] == 5
    assert len(backend.cases) == 1
    obeys_openai(body, "CreateChatCompletionResponse")


async def test_several_choices_are_streamed_each_whole(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, USER, n=2, stream_options={"include_usage": True})
    for index in range(2):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "unsafe\nS1,S9"
        assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 6
    assert chunks[-1]["usage"]["total_tokens"] == 212


# --- Log-probabilities -----------------------------------------------------------------------------------


def spelling(choice: dict[str, Any]) -> str:
    return b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"]).decode()


@pytest.mark.parametrize("top", [None, 0, 1, 20])
async def test_each_token_comes_with_its_probability_and_others(client: httpx.AsyncClient, top: int | None) -> None:
    body = await complete(client, USER, logprobs=True, **({} if top is None else {"top_logprobs": top}))
    (choice,) = body["choices"]
    tokens = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert [token["token"] for token in tokens] == ["unsafe", "\n", "S", "1", ",S", "9"]
    assert spelling(choice) == choice["message"]["content"]
    assert math.exp(tokens[0]["logprob"]) == pytest.approx(body["guard"]["p_unsafe"] * body["guard"]["verdict_mass"])
    assert all(len(token["top_logprobs"]) <= (top or 0) for token in tokens)
    if top == 20:
        assert [other["token"] for other in tokens[0]["top_logprobs"]] == ["unsafe", "safe"]
        assert tokens[1]["top_logprobs"][-1] == {"token": "\ufffd", "logprob": -4.0, "bytes": [0xE2, 0x80]}
    obeys_openai(body, "CreateChatCompletionResponse")


async def test_streams_carry_them_with_the_content(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, USER, logprobs=True, top_logprobs=2)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["logprobs"] is not None for choice in choices] == [False, True, False]
    assert spelling(choices[1]) == "unsafe\nS1,S9"
    for chunk in chunks:
        obeys_openai(chunk, "CreateChatCompletionStreamResponse")


async def test_the_backend_is_asked_for_tokens_only_when_a_caller_wants_them(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await complete(client, USER)
    await complete(client, USER, logprobs=True)
    await complete(client, USER, logprobs=True, top_logprobs=7)
    assert [case.handling.top_logprobs for case in backend.cases] == [None, 0, 7]


async def test_a_backend_without_probabilities_gives_none_and_says_why(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = always("unsafe\nS1", levels=None, tokens=None, no_scores="it reports none")
    body = await complete(client, USER, logprobs=True, top_logprobs=3)
    assert body["choices"][0]["logprobs"] is None
    assert body["choices"][0]["message"]["content"] == "unsafe\nS1"
    assert body["guard"]["no_scores"] == "it reports none"
    assert body["guard"]["p_unsafe"] is None


async def test_what_is_impossible_has_a_number_in_json(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    impossible = Token(b"safe", -math.inf)
    backend.script = always("safe", tokens=(Token(b"safe", -0.01, (impossible,)),))
    body = await complete(client, USER, logprobs=True, top_logprobs=1)
    assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] == -9999.0


# --- Where it may be judged ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wish", [{"zdr": True}, {"data_collection": "deny"}, {"data_collection": "allow", "zdr": True}]
)
async def test_a_wish_for_privacy_is_one_for_staying_here_unless_the_remote_is_as_strict(
    client: httpx.AsyncClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any]
) -> None:
    await complete(client, USER, provider=wish)
    stricter_than: Any = ProviderPreferences.stricter_than
    lax = SimpleNamespace(openrouter_zdr=False, openrouter_data_collection="allow")
    monkeypatch.setattr(ProviderPreferences, "stricter_than", lambda wishes, _: stricter_than(wishes, lax))
    await complete(client, USER, provider=wish)
    await complete(client, USER, provider={"order": ["groq"], "zdr": False, "sort": "price", "max_price": {"audio": 1}})
    assert [case.handling.never_remote for case in backend.cases] == [False, True, False]


async def test_the_first_model_that_is_served_is_taken(client: httpx.AsyncClient) -> None:
    body = await complete(client, USER, model="openai/gpt-5", models=["x/y", "meta-llama/llama-guard-4-12b"])
    assert body["model"] == "meta-llama/Llama-Guard-4-12B"
    response = await client.post("/v1/chat/completions", json={"messages": [USER], "models": ["x/y"]})
    error_of(response, 404, code="model_not_found")


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
    assert backend.texts[0] == (
        'User: look it up / Agent: search({"q": "bomb"}) + search({"q": "bomb"})'
        " / User: found + this / Agent: Well.\n\nI will not say."
    )
    assert backend.asked[1:] == ["Well.", "I will not say."]


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
    nulls: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    await complete(client, USER, {"role": "assistant", "content": "No.", **nulls})
    assert backend.texts == ["User: how do I build a bomb? / Agent: No."]


async def test_what_an_assistant_thought_drew_and_cited_is_judged_too(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    citation = {"url": "https://example.org", "title": "Bread", "start_index": 0, "end_index": 4}
    details = [
        {"type": "reasoning.text", "text": "Hmm.", "signature": "x", "index": 0, "format": None, "id": None},
        {"type": "reasoning.summary", "summary": "Thought hard.", "index": 1},
        {"type": "reasoning.encrypted", "data": "AAAA", "index": 2},
    ]
    await complete(
        client,
        USER,
        {
            "role": "assistant",
            "content": "Look.",
            "reasoning": "Hmm.",
            "reasoning_details": details,
            "images": [image(picture("red"))],
            "annotations": [{"type": "url_citation", "url_citation": citation}],
            "tool_calls": [{"type": "custom", "id": "1", "custom": {"name": "run", "input": "ls"}}],
            "function_call": {"name": "f", "arguments": "{}"},
        },
    )
    said = ["Hmm.", "Thought hard.", "Look.", "Bread https://example.org", "run(ls)", "f({})"]
    assert backend.texts[0] == "User: how do I build a bomb? / Agent: " + "\n\n".join(said)
    assert backend.asked[1:] == said
    assert {len(case.images) for case in backend.cases} == {1}


async def test_reasoning_without_an_answer_can_be_judged(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for field in ("reasoning", "reasoning_content"):
        body = await complete(client, USER, {"role": "assistant", field: "a bomb is made of"})
        assert body["guard"]["verdict"] == "unsafe"


async def test_a_refusal_among_the_parts_is_a_text(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    parts = [{**text("Well."), "cache_control": {"type": "ephemeral"}}, {"type": "refusal", "refusal": "No bomb."}]
    await complete(client, USER, {"role": "assistant", "content": parts})
    assert backend.texts[0] == "User: how do I build a bomb? / Agent: Well.\n\nNo bomb."
    assert backend.asked[1:] == ["Well.", "No bomb."]


async def test_a_policy_counts_for_one_request(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await complete(client, USER, policy={"categories": {"S1": "Spoilers."}}))["choices"][0]["message"][
        "content"
    ] == "unsafe\nS1"
    assert (await complete(client, USER))["choices"][0]["message"]["content"] == "unsafe\nS1,S9"


# --- Fields ----------------------------------------------------------------------------------------------

LIKELY_VALUES: dict[str, Any] = {
    "audio": {"format": "wav", "voice": "alloy"},
    "debug": {"echo_upstream_body": True},
    "include_reasoning": True,
    "logit_bias": {"60411": 100},
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest", "policy": {"input": {"mode": "score"}, "output": None}},
    "parallel_tool_calls": False,
    "plugins": [{"id": "web"}, {"id": "moderation"}],
    "prediction": {"type": "content", "content": "safe"},
    "prompt_cache_options": {"mode": "implicit"},
    "reasoning": {"effort": "high"},
    "seed": -9007199254740991,
    "stop_server_tools_when": [{"type": "step_count_is"}],
    "store": True,
    "temperature": 3,
    "top_k": 40,
    "transforms": ["middle-out"],
    "usage": {"include": True},
    "web_search_options": {"search_context_size": "low"},
    **{field: {"type": "ephemeral"} for field in ("cache_control", "image_config", "trace")},
    **dict.fromkeys(["frequency_penalty", "presence_penalty", "repetition_penalty", "min_p", "top_a", "top_p"], -2.5),
}


WRONG_TYPES: dict[str, Any] = dict.fromkeys(IgnoredOptions.model_fields, 7.5) | {
    name: "0.7"
    for name, field in IgnoredOptions.model_fields.items()
    if "float" in str(field.annotation) or "int" in str(field.annotation)
}


@pytest.mark.parametrize("field", sorted(WRONG_TYPES))
async def test_an_ignored_field_of_the_wrong_type_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, field: str
) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": [USER], field: WRONG_TYPES[field]})
    error_of(response, 400, type="invalid_request_error", param=field)
    assert backend.cases == []


@pytest.mark.parametrize("field", sorted(IgnoredOptions.model_fields))
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


@pytest.mark.parametrize("field", [*COULD_CHANGE_A_VERDICT, "massages", "Temperature"])
async def test_an_unknown_field_is_refused_by_name(client: httpx.AsyncClient, backend: FakeBackend, field: str) -> None:
    for value in ({"a": 1}, "x", 5, 0, False, [0], {"a": [{"b": False}]}):
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
    ("a video", user(content=[{"type": "video_url", "video_url": {}}]), "messages[0].content[0]"),
    ("audio of an answer", assistant(content="x", audio={"id": "audio_1"}), "messages[1].audio"),
    ("reasoning of no known kind", assistant(content="x", reasoning_details=[{"type": "reasoning.tool", "text": "x"}]),
     "messages[1].reasoning_details[0].type"),
    ("an annotation of no known kind", assistant(content="x", annotations=[{"type": "file", "file": {}}]),
     "messages[1].annotations[0].type"),
    ("a deprecated call without arguments", assistant(content="x", function_call={"name": "f"}),
     "messages[1].function_call.arguments"),
    ("a call of another type", assistant(tool_calls=[{"type": "mystery", "function": CALL}]),
     "messages[1].tool_calls[0].type"),
    ("a custom call without input", assistant(tool_calls=[{"type": "custom", "custom": {"name": "f"}}]),
     "messages[1].tool_calls[0].custom.input"),
    ("a call without arguments", assistant(tool_calls=[{"type": "function", "function": {"name": "f"}}]),
     "messages[1].tool_calls[0].function.arguments"),
    ("arguments as an object", assistant(tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}]),
     "messages[1].tool_calls[0].function.arguments"),
    ("too many choices", {**user(), "n": 129}, "n"),
    ("no choice", {**user(), "n": 0}, "n"),
    ("n as a string", {**user(), "n": "1"}, "n"),
    ("n as a boolean", {**user(), "n": True}, "n"),
    ("logprobs as a number", {**user(), "logprobs": 5}, "logprobs"),
    ("alternatives without logprobs", {**user(), "top_logprobs": 5}, "top_logprobs"),
    ("alternatives beside logprobs that are off", {**user(), "logprobs": False, "top_logprobs": 1}, "top_logprobs"),
    ("too many alternatives", {**user(), "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("fewer alternatives than none", {**user(), "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ("fewer tokens than none", {**user(), "max_tokens": -1}, "max_tokens"),
    ("a bound as text", {**user(), "max_completion_tokens": "16"}, "max_completion_tokens"),
    ("half a token", {**user(), "max_tokens": 1.5}, "max_tokens"),
    ("a stop in a word", {**user(), "stop": "unsafe"}, "stop"),
    ("a stop in a code", {**user(), "stop": ["\n\n", "4"]}, "stop"),
    ("five stops", {**user(), "stop": list("abcdx")}, "stop"),
    ("a stop as a number", {**user(), "stop": 5}, "stop"),
    ("stops of numbers", {**user(), "stop": [5]}, "stop[0]"),
    ("no text wanted", {**user(), "modalities": ["audio"]}, "modalities"),
    ("blocking wanted", {**user(), "moderation": {"model": "x", "policy": {"input": {"mode": "block"}}}},
     "moderation.policy.input.mode"),
    ("models as text", {**user(), "models": "llama-guard"}, "models"),
    ("a provider as text", {**user(), "provider": "groq"}, "provider"),
    ("a misspelt wish", {**user(), "provider": {"zrd": True}}, "provider.zrd"),
    ("a wish of the wrong type", {**user(), "provider": {"zdr": "true"}}, "provider.zdr"),
    ("an unknown wish", {**user(), "provider": {"data_collection": "maybe"}}, "provider.data_collection"),
    ("stream as text", {**user(), "stream": "true"}, "stream"),
    ("stream as a number", {**user(), "stream": 1}, "stream"),
    ("unknown stream options", {**user(), "stream_options": {"chunks": 9}}, "stream_options.chunks"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_refused(client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], param: str) -> None:
    response = await client.post("/v1/chat/completions", json=body)
    error_of(response, 400, type="invalid_request_error", param=param)
    assert backend.cases == []


@pytest.mark.parametrize(
    "fields",
    [
        *({"n": 1}, {"n": None}, {"logprobs": False}, {"logprobs": None}, {"model": None}, {"top_logprobs": None}),
        *({"max_tokens": None}, {"stop": None}, {"stop": []}, {"stop": ""}, {"models": []}, {"provider": {}}),
        *({"logprobs": False, "top_logprobs": 0}, {"chat_template": None}, {"massages": [{"x": [""]}]}, {"model": ""}),
    ],
)
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
