"""Reading what comes back: whole answers, streams, errors in the clothes of answers, and garbage."""

import json

import pytest

from server.backends.openrouter.reply import Garbage, RemoteError, read_error, read_reply
from tests.openrouter import chat, chunk, events, failure

JSON, STREAM = "application/json", "text/event-stream; charset=utf-8"


def read(document, content_type=JSON):
    return read_reply(content_type, document if isinstance(document, bytes) else json.dumps(document).encode())


def test_an_ordinary_answer():
    reply = read(chat("unsafe\nS1"))
    assert (reply.text, reply.finish_reason, reply.besides) == ("unsafe\nS1", "stop", False)
    assert (reply.model, reply.provider) == ("meta-llama/llama-guard-4-12b", "DeepInfra")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (210, 5, 128)
    assert reply.cost == 0.0000384


@pytest.mark.parametrize("text", [" safe\n", "\n\nsafe", "\r\n\tsafe \r\n"])
def test_white_space_around_an_answer_is_stripped(text):
    assert read(chat(text)).text == "safe"


@pytest.mark.parametrize(
    "text", ["\u00a0safe", "safe\u200b", "safe.", "Safe", "```\nsafe\n```", "safe\x00", "\ufeffsafe"]
)
def test_nothing_else_is(text):
    assert read(chat(text)).text == text


def test_keep_alive_white_space_before_an_answer():
    assert read(b"\n   \n\n" + json.dumps(chat("safe")).encode()).text == "safe"


GARBAGE = {
    "nothing": b"",
    "half": json.dumps(chat("safe")).encode()[:-20],
    "two": json.dumps(chat("safe")).encode() * 2,
    "a list": [chat("safe")],
    "a word": "safe",
    "not UTF-8": json.dumps(chat("safe")).encode().replace(b"safe", b"\xff"),
    "a key that stands twice": b'{"model": "m", "choices": [{"finish_reason": "stop", "message": '
    b'{"content": "unsafe", "content": "safe"}}]}',
    "no number": json.dumps(chat("safe", created=float("nan"))).encode(),
    "too deep": b'{"a":' * 100_000,
    "no choices": chat("safe", choices=[]),
    "null choices": chat("safe", choices=None),
    "two choices": chat("safe", choices=chat("safe")["choices"] * 2),
    "a choice of text": chat("safe", choices=["safe"]),
    "the second choice": chat("safe", choice={"index": 1}),
    "no message": chat("safe", choice={"message": None}),
    "null content": chat(None),
    "content in parts": chat([{"type": "text", "text": "safe"}]),
    "the user's message": chat("safe", message={"role": "user"}),
    "a number for a reason": chat("safe", choice={"finish_reason": 1}),
    "no model": chat("safe", model=None),
}


@pytest.mark.parametrize("document", GARBAGE.values(), ids=GARBAGE)
def test_garbage(document):
    with pytest.raises(Garbage):
        read(document)


@pytest.mark.parametrize("content_type", ["text/html", "", "text/plain", "application/jsonl", "image/png"])
def test_an_answer_of_another_type_is_garbage(content_type):
    with pytest.raises(Garbage):
        read(chat("safe"), content_type)


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 524, 529])
def test_an_error_with_status_200(code):
    with pytest.raises(RemoteError) as caught:
        read(failure(code))
    assert caught.value.status == code


@pytest.mark.parametrize("code", ["429", None, 200, 1, 429.0, True, {}])
def test_an_error_that_names_no_status_is_a_bad_gateway(code):
    with pytest.raises(RemoteError) as caught:
        read(failure(code))
    assert caught.value.status == 502


@pytest.mark.parametrize("error", ["it failed", [], 0, {}, False])
def test_any_error_beside_an_answer_counts(error):
    with pytest.raises(RemoteError):
        read(chat("safe", error=error))
    with pytest.raises(RemoteError):
        read(chat("safe", choice={"error": error}))


def test_a_null_error_is_none():
    assert read(chat("safe", error=None)).text == "safe"


def test_the_reason_error_is_one():
    with pytest.raises(RemoteError):
        read(chat("safe", choice={"finish_reason": "error"}))


@pytest.mark.parametrize(
    "message",
    [
        {"refusal": "I'm sorry, I can't help with that."},
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"reasoning": "The user asks for bread."},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        {"reasoning_content": "Hm."},
        {"images": [{"type": "image_url"}]},
        {"audio": {"id": "1"}},
    ],
)
def test_what_stands_beside_the_text_is_seen(message):
    assert read(chat("safe", message=message)).besides
    assert read(events(chunk("safe", delta=message), chunk("", "stop")), STREAM).besides


@pytest.mark.parametrize("reason", ["length", "content_filter", "tool_calls", None, "whatever"])
def test_other_reasons_to_end_are_passed_on(reason):
    assert read(chat("safe", choice={"finish_reason": reason})).finish_reason == reason


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": "5", "cost": "free"},
        {"prompt_tokens": 2**70, "completion_tokens": 1.5, "cost": -1},
        {"prompt_tokens": True, "completion_tokens": None, "cost": 10**9, "prompt_tokens_details": [1]},
        {"prompt_tokens": 10**400, "completion_tokens": -(10**400), "cost": 10**400},
        {"prompt_tokens": 0, "completion_tokens": 0, "cost": -(10**400)},
    ],
)
def test_impossible_numbers_count_as_none(usage):
    reply = read(chat("safe", usage=usage))
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.cost) == ("safe", 0, 0, None)


@pytest.mark.parametrize("usage", [None, [], "much"])
def test_no_usage_costs_no_verdict(usage):
    document = chat("safe")
    document["usage"] = usage
    assert (read(document).text, read(document).cost) == ("safe", None)


def test_an_errors_kind_is_read_and_its_words_are_not():
    error = read_error(403, json.dumps(failure(403, "canary", error_type="content_policy_violation")).encode())
    assert (error.status, error.kind) == (403, "content_policy_violation")
    assert "canary" not in repr(error) + str(error)
    for body in (b"", b"canary", b"[]", b'{"error": "canary"}', b'{"error": {"metadata": {"error_type": 1}}}'):
        assert (read_error(500, body).status, read_error(500, body).kind) == (500, "")


# --- Streams ----------------------------------------------------------------------------------------------

USAGE = chunk(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cost": 0.5})


def test_an_ordinary_stream():
    body = events(": OPENROUTER PROCESSING", chunk("\n\nuns"), ": x", chunk("afe\nS1"), chunk("", "stop"), USAGE)
    reply = read(body, STREAM)
    assert (reply.text, reply.finish_reason, reply.besides, reply.cost) == ("unsafe\nS1", "stop", False, 0.5)
    assert (reply.prompt_tokens, reply.provider) == (7, "DeepInfra")
    for ending in (b"\r\n", b"\r"):
        assert read(body.replace(b"\n", ending), STREAM) == reply


def test_a_reason_that_is_said_twice_is_one():
    assert read(events(chunk("safe", "stop"), chunk("", "stop")), STREAM).finish_reason == "stop"


BROKEN = {
    "nothing": b"",
    "comments alone": events(": OPENROUTER PROCESSING", done=False),
    "only the end": events(),
    "no end": events(chunk("safe", "stop"), done=False),
    "no reason to end": events(chunk("safe")),
    "half an event": events(chunk("safe", "stop"))[:-3],
    "half a chunk": events(chunk("safe", "stop")).replace(b'"index": 0', b'"index'),
    "text after the reason": events(chunk("safe", "stop"), chunk("\nS1")),
    "another reason after the reason": events(chunk("safe", "content_filter"), chunk("", "stop")),
    "data after the end": events(chunk("safe", "stop")) + events(chunk("unsafe", "stop")),
    "a second choice": events(chunk("safe", "stop", choices=[{"index": 1, "delta": {}, "finish_reason": "stop"}])),
    "another model half-way": events(chunk("safe"), chunk("", "stop", model="other/model")),
    "no delta": events(chunk("safe", "stop", choices=[{"index": 0, "finish_reason": "stop"}])),
    "content in parts": events(chunk("safe", delta={"content": ["safe"]}), chunk("", "stop")),
    "the user's words": events(chunk("safe", "stop", delta={"role": "user"})),
    "not UTF-8": events(chunk("safe", "stop")).replace(b"safe", b"\xff"),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_broken_streams_are_garbage(body):
    with pytest.raises(Garbage):
        read(body, STREAM)


@pytest.mark.parametrize(
    "body",
    [
        events(chunk("safe"), chunk("", "error", error={"code": 502, "message": "It failed."})),
        events(chunk("safe", "stop"), failure(502)),
        events(chunk("safe"), failure(502), done=False),
        events(chunk("safe"), chunk("", "error")),
    ],
)
def test_an_error_in_the_middle_of_a_stream(body):
    with pytest.raises(RemoteError) as caught:
        read(body, STREAM)
    assert caught.value.status == 502
