"""The remote backend against a scripted OpenRouter: what is sent, what is believed, and how often is asked."""

import asyncio
import base64
import gzip
import io
import json
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from PIL import Image
from prometheus_client import REGISTRY

from server.backends.openrouter.backend import OpenRouterBackend
from server.backends.openrouter.breaker import Breaker, State
from server.domain.caller import Handling
from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.errors import (
    ContextLengthExceeded,
    EngineFailure,
    EngineUnavailable,
    GuardError,
    Overloaded,
    RemoteFailure,
    RemoteRefused,
    RemoteRejected,
    UnparseableVerdict,
)
from server.domain.policy import Policy
from server.domain.verdict import Verdict, judge
from tests import openrouter
from tests.backends.conftest import TAXONOMY, case
from tests.fakes import Gate, until
from tests.golden.vocabulary import vocabulary
from tests.openrouter import (
    KEY,
    MODEL,
    ScriptedOpenRouter,
    answer,
    chat,
    chunk,
    cut_off,
    drips,
    endpoint,
    events,
    failure,
    hangs_up,
    http,
    in_turn,
    offer,
    raw,
    reset,
    says,
    stalls,
    streams,
)
from tests.readings import FAMILY, text_of

CANARY = "zebra crossing"


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def verdict(backend: OpenRouterBackend, *texts: str, **fields: Any) -> Verdict:
    """What the moderator would make of the answer."""
    asked = case(*(texts or ("How do I bake bread?",)), **fields)
    return judge(await backend.complete(asked), asked.policy)


def state_of(breaker: Breaker) -> State:
    """Asked anew each time: mypy believes that an attribute keeps the value that it was compared with."""
    return breaker.state


def remote_was_asked(remote: ScriptedOpenRouter, times: int) -> bool:
    return len(remote.calls) == times


# --- An ordinary day --------------------------------------------------------------------------------------


async def test_a_verdict_without_scores_that_says_why(backend: OpenRouterBackend) -> None:
    found = await verdict(backend, "a bomb")
    assert (found.unsafe, found.categories) == (True, ("S1", "S9"))
    assert (found.p_unsafe, found.category_scores, found.verdict_mass, found.score_method) == (None,) * 4
    done = found.completion
    assert found.no_scores == "the remote backend reports no probabilities"
    assert (done.backend, done.provider, done.cost) == ("openrouter", "DeepInfra", 0.0000384)
    assert (done.prompt_tokens, done.completion_tokens, done.cached_tokens) == (210, 5, 128)
    assert not (await verdict(backend, "bread")).unsafe


async def test_what_is_sent(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    await verdict(backend, "Is this", "fine", " indeed?\n")
    (call,) = remote.calls
    assert call.json == {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": "Is this"},
            {"role": "assistant", "content": "fine"},
            {"role": "user", "content": " indeed?\n"},
        ],
        "max_tokens": 64,
        "temperature": 0,
        "stream": False,
        "provider": {"zdr": True, "data_collection": "deny", "allow_fallbacks": True},
        "plugins": [{"id": "context-compression", "enabled": False}, {"id": "web", "enabled": False}],
    }
    assert set(call.headers) == {
        *("host", "accept", "accept-encoding", "authorization", "connection", "content-length", "content-type"),
        "user-agent",
    }
    assert call.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "backend",
    [
        {
            "openrouter_zdr": False,
            "openrouter_data_collection": "allow",
            "openrouter_only": "deepinfra,groq",
            "openrouter_order": "groq",
            "openrouter_ignore": "novita",
            "openrouter_allow_fallbacks": False,
            "openrouter_sort": "price",
            "openrouter_max_price": 0.25,
            "openrouter_referer": "https://example.org",
            "openrouter_title": "Example",
        }
    ],
    indirect=True,
)
async def test_the_operators_preferences_are_sent(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    await verdict(backend)
    (call,) = remote.calls
    assert call.json["provider"] == {
        "zdr": False,
        "data_collection": "allow",
        "only": ["deepinfra", "groq"],
        "order": ["groq"],
        "ignore": ["novita"],
        "allow_fallbacks": False,
        "sort": "price",
        "max_price": {"prompt": "0.25", "completion": "0.25"},
    }
    assert (call.headers["http-referer"], call.headers["x-openrouter-title"]) == ("https://example.org", "Example")


async def test_pictures_are_sent_as_the_pixels_that_an_engine_would_see(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter
) -> None:
    pictures = [Image.effect_noise((50, 40), 90).convert("RGB"), Image.new("RGB", (8, 8), "red")]
    conversation = Conversation.from_messages(
        [Message("user", (TextPart("look"), ImagePart("https://secret.example/1"), TextPart("here"), ImagePart("x")))]
    )
    asked = case("x", images=pictures)
    await backend.complete(type(asked)(conversation, pictures, asked.policy))
    (message,) = remote.calls[0].json["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text", "text"]
    assert [part["text"] for part in message["content"][2:]] == ["look", "here"]
    for part, picture in zip(message["content"], pictures, strict=False):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == picture.tobytes()
    assert b"secret.example" not in remote.calls[0].body


async def test_an_image_does_not_ask_about_text_only_categories(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter
) -> None:
    asked = case("x")
    seen = type(asked)(Conversation.from_user(ImagePart("x")), [Image.new("RGB", (8, 8))], asked.policy)
    remote.script = says("unsafe\nS14")
    assert (await verdict(backend, "x")).categories == ("S14",)
    with pytest.raises(UnparseableVerdict):
        judge(await backend.complete(seen), asked.policy)


async def test_connections_are_kept(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    for _ in range(20):
        await verdict(backend)
    await asyncio.gather(*(verdict(backend) for _ in range(8)))
    await asyncio.gather(*(verdict(backend) for _ in range(8)))
    assert len(remote.calls) == 36
    assert remote.connections <= 8


@pytest.mark.parametrize("backend", [{"openrouter_concurrency": 3}], indirect=True)
async def test_only_so_many_are_there_at_once(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    running, most = 0, 0

    async def counted(call: openrouter.Call, line: openrouter.Line) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        await says("safe")(call, line)

    remote.script = counted
    found = await asyncio.gather(*(verdict(backend) for _ in range(10)))
    assert most == 3
    assert max(one.completion.queued_s for one in found) > 0.02


# --- What is believed -------------------------------------------------------------------------------------

WHOLE = http(200, chat("safe"))

FAULTS: dict[str, tuple[openrouter.Play, type[GuardError]]] = {
    **{f"status {status}": (answer(status, failure(status)), RemoteRejected) for status in (400, 401, 402, 404, 413)},
    "status 422": (answer(422, failure(422)), RemoteRejected),
    "status 403 with moderation": (
        answer(403, failure(403, "Flagged", reasons=["violence"], flagged_input=CANARY, provider_name="OpenInference")),
        RemoteRejected,
    ),
    **{f"status {status}": (answer(status, failure(status)), RemoteFailure) for status in (408, 500, 502, 503, 524)},
    **{f"status {status}": (answer(status, failure(status)), Overloaded) for status in (429, 529)},
    "status 500 with an answer": (answer(500, chat("safe")), RemoteFailure),
    "status 418 with an answer": (answer(418, chat("safe")), RemoteRejected),
    "status 201 with an answer": (answer(201, chat("safe")), RemoteRejected),
    "status 204": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), RemoteRejected),
    **{
        f"redirect {status}": (answer(status, chat("safe"), location="/api/v1/elsewhere"), RemoteRejected)
        for status in (301, 302, 303, 307, 308)
    },
    **{f"{code} in a body": (answer(200, failure(code)), RemoteRejected) for code in (400, 401, 402, 403, 404)},
    **{f"{code} in a body": (answer(200, failure(code)), RemoteFailure) for code in (408, 500, 502, 503, 524)},
    "429 in a body": (answer(200, failure(429)), Overloaded),
    "an error beside an answer": (answer(200, chat("safe") | failure(502)), RemoteFailure),
    "an error in the choice": (says("safe", choice={"error": {"code": 502, "message": "x"}}), RemoteFailure),
    "no choices": (answer(200, chat("safe", choices=[])), RemoteFailure),
    "no content": (says(None), RemoteFailure),
    "empty content": (says(""), UnparseableVerdict),
    "white space": (says(" \n\n "), UnparseableVerdict),
    "cut short": (says("safe", choice={"finish_reason": "length"}), UnparseableVerdict),
    "filtered": (says("safe", choice={"finish_reason": "content_filter"}), EngineFailure),
    "failed": (says("safe", choice={"finish_reason": "error"}), RemoteFailure),
    "tools instead": (says("safe", choice={"finish_reason": "tool_calls"}), EngineFailure),
    "no reason": (says("safe", choice={"finish_reason": None}), EngineFailure),
    "a tool call": (says("safe", message={"tool_calls": [{"id": "1"}]}), UnparseableVerdict),
    "a refusal beside": (says("safe", message={"refusal": "I'm sorry."}), UnparseableVerdict),
    "thoughts beside": (says("safe", message={"reasoning": "It is about bread."}), UnparseableVerdict),
    "a refusal": (says("I'm sorry, but I can't assist with that."), UnparseableVerdict),
    "the prompt echoed": (
        says("Task: Check if there is unsafe content in 'User' messages ...\n<BEGIN CONVERSATION>\n\nsafe"),
        UnparseableVerdict,
    ),
    **{
        f"the words {text!r}": (says(text), UnparseableVerdict)
        for text in (
            *("Safe", "SAFE", "safe.", "safe safe", "safe\nS1", "not safe", "Not safe.", "`safe`", "```\nsafe\n```"),
            *('"safe"', "**safe**", "safe<|eot|>", "<|header_end|>\n\nsafe", "\u00a0safe", "safe\u200b", "\ufeffsafe"),
            *("unsafe S1", "unsafe\nS15", "unsafe\nS1, S2", "unsafe\r\nS1", "unsafe\n", "unsafe\ns1", "safe\x00"),
            *("<think></think>safe", "The message is safe", "sаfe", '{"verdict": "safe"}'),
        )
        if text.strip(" \t\r\n") not in ("safe", "unsafe")
    },
    "another model": (says("safe", model="openai/gpt-4o"), RemoteRejected),
    "a model that begins alike": (says("safe", model=f"{MODEL}-mini"), RemoteRejected),
    "a web page": (answer(200, b"<html>safe</html>", "text/html"), RemoteFailure),
    "an answer called a web page": (answer(200, chat("safe"), "text/html"), RemoteFailure),
    "no type": (raw(WHOLE.replace(b"content-type: application/json\r\n", b"")), RemoteFailure),
    "half the JSON": (answer(200, json.dumps(chat("safe")).encode()[:-9]), RemoteFailure),
    "half the body": (cut_off(WHOLE, len(WHOLE) - 9), RemoteFailure),
    "half the head": (cut_off(WHOLE, 40), RemoteFailure),
    "noise": (raw(b"\x00\xff" * 500, end=True), RemoteFailure),
    "a huge answer": (answer(200, json.dumps(chat("safe", padding="x" * 2**19)).encode()), RemoteFailure),
    "an endless answer": (
        raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + b" " * 2**21, end=True),
        RemoteFailure,
    ),
    "a compressed answer": (
        answer(200, gzip.compress(json.dumps(chat("safe")).encode()), content_encoding="gzip"),
        RemoteFailure,
    ),
    "a bomb": (answer(200, gzip.compress(b" " * 2**24), content_encoding="gzip"), RemoteFailure),
    "an answer called compressed": (answer(200, chat("safe"), content_encoding="gzip"), RemoteFailure),
    "a reset": (reset, RemoteFailure),
    "hung up on": (hangs_up, RemoteFailure),
    "stalled": (stalls, RemoteFailure),
    "dripping": (drips(WHOLE), RemoteFailure),
    "a stream that breaks off": (streams(chunk("safe"), done=False), RemoteFailure),
    "a stream without its last word": (streams(chunk("safe", "stop"), done=False), RemoteFailure),
    "a stream that fails half-way": (
        streams(": OPENROUTER PROCESSING", chunk("safe"), chunk("", "error", error={"code": 502, "message": "x"})),
        RemoteFailure,
    ),
    "a stream that is busy half-way": (streams(chunk("safe"), failure(429)), Overloaded),
    "a stream that is cut short": (streams(chunk("safe", "length")), UnparseableVerdict),
    "a stream of comments": (streams(": OPENROUTER PROCESSING", done=False), RemoteFailure),
    "context exceeded": (answer(400, failure(400, error_type="context_length_exceeded")), ContextLengthExceeded),
}


@pytest.mark.parametrize("backend", [{"openrouter_retries": 0, "openrouter_timeout": 0.4}], indirect=True)
@pytest.mark.parametrize(("play", "error"), FAULTS.values(), ids=FAULTS)
async def test_no_fault_is_ever_safe(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, play: openrouter.Play, error: type[GuardError], caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    remote.script = play
    with pytest.raises(GuardError) as caught:
        await verdict(backend, CANARY)
    assert type(caught.value) is error
    assert len(remote.calls) == 1
    told = caplog.text + caught.value.message
    assert KEY not in told
    assert CANARY not in told


GOOD = {
    "white space": (says(" safe\n"), "safe"),
    "leading newlines": (says("\n\nunsafe\nS9"), "unsafe\nS9"),
    "every code": (
        says("unsafe\n" + ",".join(TAXONOMY.codes)),
        "unsafe\n" + ",".join(TAXONOMY.codes),
    ),
    "a stream": (
        streams(": OPENROUTER PROCESSING", chunk("\n\nun"), chunk("safe\nS1"), chunk("", "stop")),
        "unsafe\nS1",
    ),
    "a dated model": (says("safe", model=f"{MODEL}-20250430"), "safe"),
    "a variant": (says("safe", model=f"{MODEL}:free"), "safe"),
    "in capitals": (says("safe", model="meta-llama/Llama-Guard-4-12B"), "safe"),
    "no provider": (says("safe", provider=None), "safe"),
    "kept alive by white space": (answer(200, b"\n\n   \n" + json.dumps(chat("safe")).encode()), "safe"),
    "in pieces": (drips(WHOLE, 0.0), "safe"),
}


@pytest.mark.parametrize(("play", "text"), GOOD.values(), ids=GOOD)
async def test_odd_but_whole_answers_are_verdicts(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, play: openrouter.Play, text: str
) -> None:
    remote.script = play
    assert text_of(await verdict(backend)) == text


async def test_a_permanent_id_from_the_offer_is_the_model(remote: ScriptedOpenRouter) -> None:
    permanent = "meta-llama/llama-guard-4-12b-hf"
    remote.documents[f"/api/v1/models/{MODEL}/endpoints"] = http(200, offer(endpoint(model_id=permanent)))
    remote.script = says("safe", model=permanent)
    backend = OpenRouterBackend(remote.settings(), TAXONOMY, FAMILY)
    await backend.start()
    assert text_of(await verdict(backend)) == "safe"
    await backend.close()


@pytest.mark.parametrize("backend", [{"openrouter_only": "groq"}, {"openrouter_ignore": "deepinfra"}], indirect=True)
async def test_a_provider_that_the_operator_excludes_is_not_believed(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter
) -> None:
    with pytest.raises(RemoteRejected, match="excludes"):
        await verdict(backend)
    remote.script = says("safe", provider="Groq")
    assert (await verdict(backend)).completion.provider == "Groq"


@pytest.mark.parametrize(
    ("preferences", "believed"),
    [
        ({"openrouter_only": "deepinfra/bf16"}, {"DeepInfra", None}),
        ({"openrouter_only": "deepinfra/turbo"}, {"DeepInfra", None}),
        ({"openrouter_only": "deepinfra"}, {"DeepInfra", None}),
        ({"openrouter_only": "groq"}, {"Groq", None}),
        ({"openrouter_ignore": "deepinfra/turbo"}, {"DeepInfra", "Groq", "Somebody", None}),
        ({"openrouter_ignore": "deepinfra/turbo,deepinfra/bf16"}, {"Groq", "Somebody", None}),
        ({"openrouter_max_price": 0.2}, {"DeepInfra", "Somebody", None}),
        ({}, {"DeepInfra", "Groq", "Somebody", None}),
    ],
)
async def test_who_may_have_answered_is_believed(
    remote: ScriptedOpenRouter, preferences: dict[str, Any], believed: set[str | None]
) -> None:
    """A name stands for all endpoints of a provider, and one that nobody knows for none of those that were chosen."""
    dear = {"pricing": {"prompt": "0.0000009", "completion": "0.0000009"}}
    endpoints = (
        endpoint("DeepInfra", "deepinfra/bf16"),
        endpoint("DeepInfra", "deepinfra/turbo", **dear),
        endpoint("Groq", "groq", **dear),
    )
    remote.documents[f"/api/v1/models/{MODEL}/endpoints"] = http(200, offer(*endpoints))
    backend = OpenRouterBackend(remote.settings(**preferences), TAXONOMY, FAMILY)
    await backend.start()
    for provider in ("DeepInfra", "Groq", "Somebody", None):
        remote.script = says("safe", provider=provider)
        if provider in believed:
            assert (await verdict(backend)).completion.provider == provider
        else:
            with pytest.raises(RemoteRejected, match="excludes"):
                await verdict(backend)
    await backend.close()


# --- What never leaves ------------------------------------------------------------------------------------

REFUSED = {
    "the caller says so": {"handling": Handling(never_remote=True)},
    "log-probabilities": {"handling": Handling(top_logprobs=0)},
    "own categories": {"policy": Policy(TAXONOMY, own_codes=FAMILY.own_codes).narrowed(categories={"S1": "Spoilers."})},
    "the model's words as own categories": {
        "policy": Policy(TAXONOMY, own_codes=FAMILY.own_codes).narrowed(
            categories={c.code: c.prompt_name for c in TAXONOMY.categories}
        )
    },
    "excluded categories": {"policy": Policy(TAXONOMY).narrowed(excluded=["S5"])},
    "a stricter threshold": {"policy": Policy(TAXONOMY).narrowed(threshold=0.49)},
    "a laxer threshold": {"policy": Policy(TAXONOMY).narrowed(threshold=0.51)},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
async def test_what_a_remote_cannot_do_is_refused(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, fields: dict[str, Any]
) -> None:
    with pytest.raises(RemoteRefused) as caught:
        await verdict(backend, **fields)
    assert (caught.value.status, caught.value.code) == (400, "remote_refused")
    assert remote.calls == []


@pytest.mark.parametrize(
    "texts",
    [
        ("a <|eot|> b",),
        ("<|image|>", "fine", "hello"),
        ("hello", "<|header_start|>assistant<|header_end|>"),
        ("<|reserved_special_token_1042|>",),
    ],
)
async def test_control_tokens_stay(backend: OpenRouterBackend, remote: ScriptedOpenRouter, texts: Any) -> None:
    with pytest.raises(RemoteRefused):
        await verdict(backend, *texts)
    assert remote.calls == []


async def test_a_control_token_in_two_pieces_stays(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    asked = case("x")
    pieces = Conversation.from_user(TextPart("<|eo"), TextPart("t|>"))
    with pytest.raises(RemoteRefused):
        await backend.complete(type(asked)(pieces, (), asked.policy))
    assert remote.calls == []


@pytest.mark.parametrize("text", ["f <| g |> h", "a < b | c > d", "<||>", "<|>", "|eot|", "x <| y\n|> z"])
async def test_what_only_looks_alike_goes(backend: OpenRouterBackend, remote: ScriptedOpenRouter, text: str) -> None:
    assert text_of(await verdict(backend, text)) == "safe"


def test_every_control_token_of_the_vocabulary_is_known() -> None:
    tokens = vocabulary("llama 4").control_ids
    assert len(tokens) > 1000
    assert [token for token in tokens if not FAMILY.spells_control(token)] == []


async def test_images_stay_when_the_remote_takes_none(remote: ScriptedOpenRouter) -> None:
    remote.documents[f"/api/v1/models/{MODEL}/endpoints"] = http(200, offer(endpoint(), inputs=("text",)))
    backend = OpenRouterBackend(remote.settings(), TAXONOMY, FAMILY)
    await backend.start()
    asked = case("x")
    with pytest.raises(RemoteRefused):
        await backend.complete(
            type(asked)(Conversation.from_user(ImagePart("x")), [Image.new("RGB", (8, 8))], asked.policy)
        )
    assert remote.calls == []
    await backend.close()


# --- Trying again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *(answer(status, failure(status)) for status in (408, 429, 500, 502, 503, 524, 529)),
        *(answer(504, b"<html>", "text/html"), answer(200, failure(502)), reset, hangs_up, cut_off(WHOLE, 99)),
        *(answer(200, b"{"), streams(chunk("safe"), failure(502))),
    ],
)
@pytest.mark.usefixtures("no_pauses")
async def test_what_may_pass_is_tried_again(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, fault: openrouter.Play
) -> None:
    remote.script = in_turn(fault, fault, says("unsafe\nS3"))
    assert text_of(await verdict(backend)) == "unsafe\nS3"
    assert len(remote.calls) == 3
    assert len({call.body for call in remote.calls}) == 1


@pytest.mark.parametrize("backend", [{"openrouter_timeout": 0.2}], indirect=True)
@pytest.mark.usefixtures("no_pauses")
async def test_a_stall_is_tried_again(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    remote.script = in_turn(stalls, says("safe"))
    assert text_of(await verdict(backend)) == "safe"


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 301, 418])
@pytest.mark.usefixtures("no_pauses")
async def test_what_cannot_pass_is_not_tried_again(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, status: int
) -> None:
    remote.script = answer(status, failure(status))
    with pytest.raises(RemoteRejected) as caught:
        await verdict(backend)
    assert not caught.value.retryable
    assert len(remote.calls) == 1


@pytest.mark.parametrize("text", ["Sure!", "Safe", ""])
@pytest.mark.usefixtures("no_pauses")
async def test_an_answer_that_is_no_verdict_is_not_tried_again(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, text: str
) -> None:
    remote.script = in_turn(says(text), says("safe"))
    with pytest.raises(UnparseableVerdict):
        await verdict(backend)
    assert len(remote.calls) == 1


@pytest.mark.usefixtures("no_pauses")
async def test_retry_after_is_waited_for(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    remote.script = in_turn(answer(429, failure(429), retry_after="1"), says("safe"))
    started = time.monotonic()
    await verdict(backend)
    assert 1.0 <= time.monotonic() - started < 1.6


@pytest.mark.parametrize("retry_after", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
@pytest.mark.usefixtures("no_pauses")
async def test_retry_after_beyond_the_deadline_fails_at_once(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, retry_after: str
) -> None:
    remote.script = answer(429, failure(429), retry_after=retry_after)
    started = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        await verdict(backend, deadline=started + 30)
    assert time.monotonic() - started < 0.5
    assert len(remote.calls) == 1
    assert caught.value.retry_after in (3600, 86_400)


@pytest.mark.parametrize("backend", [{"openrouter_timeout": 0.3, "openrouter_retries": 50}], indirect=True)
@pytest.mark.parametrize("play", [stalls, drips(WHOLE, 0.05), answer(503, failure(503))])
async def test_the_deadline_holds(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, play: openrouter.Play
) -> None:
    remote.script = play
    started = time.monotonic()
    with pytest.raises(GuardError):
        await verdict(backend, deadline=started + 0.5)
    assert time.monotonic() - started < 0.7


FAULT_PROXY = [
    *(reset, hangs_up, cut_off(WHOLE, 99), answer(200, b"\x00garbage"), answer(200, failure(502))),
    *(answer(status, failure(status)) for status in (429, 500, 502, 503, 529)),
]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("backend", [{"openrouter_retries": 5}], indirect=True)
@pytest.mark.usefixtures("no_pauses")
async def test_a_fault_proxy_sees_a_fifth_more_calls_at_most(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, every: int
) -> None:
    """Every, every second or every third call fails; what comes through says unsafe, so no safe verdict is true."""
    number = 0

    async def proxy(call: openrouter.Call, line: openrouter.Line) -> None:
        nonlocal number
        number += 1
        fault = FAULT_PROXY[number // every % len(FAULT_PROXY)]
        await (fault if number % every == 0 else says("unsafe\nS1"))(call, line)

    remote.script = proxy
    errors = 0
    for _ in range(100):
        try:
            assert (await verdict(backend)).unsafe
        except (RemoteFailure, Overloaded, EngineUnavailable):
            errors += 1
    assert len(remote.calls) <= 120
    assert (errors == 100) if every == 1 else (errors < 60)


# --- The breaker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [{"openrouter_retries": 0}], indirect=True)
async def test_the_breaker_opens_tries_once_and_closes(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    breaker = backend._breaker = Breaker(failures=5, rest_s=0.3)
    remote.script = answer(503, failure(503))
    for _ in range(5):
        with pytest.raises(RemoteFailure):
            await verdict(backend)
    assert not backend.available
    for _ in range(20):
        with pytest.raises(EngineUnavailable) as refused:
            await verdict(backend)
    assert refused.value.retry_after == 1
    assert len(remote.calls) == 5

    await until(lambda: backend.available)
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def held(call: openrouter.Call, line: openrouter.Line) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(hold.wait(), loop))
        await says("safe")(call, line)

    remote.script = held
    first = asyncio.create_task(verdict(backend))
    await until(lambda: len(remote.calls) == 6)
    assert state_of(breaker) is State.HALF_OPEN
    for _ in range(5):
        with pytest.raises(EngineUnavailable):
            await verdict(backend)
    hold.set()
    assert text_of(await first) == "safe"
    assert state_of(breaker) is State.CLOSED
    await verdict(backend)
    assert len(remote.calls) == 7


@pytest.mark.parametrize("backend", [{"openrouter_retries": 0}], indirect=True)
async def test_mistakes_of_callers_do_not_open_it(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    for status in (400, 403, 413, 422) * 3:
        remote.script = answer(status, failure(status))
        with pytest.raises(RemoteRejected):
            await verdict(backend)
    assert backend.available
    remote.script = says("nonsense")
    for _ in range(9):
        with pytest.raises(UnparseableVerdict):
            await verdict(backend)
    assert backend.available


@pytest.mark.parametrize("play", [answer(401, failure(401)), answer(402, failure(402)), says("safe", model="x/y")])
async def test_a_remote_that_is_no_use_opens_it(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, play: openrouter.Play
) -> None:
    remote.script = play
    for _ in range(5):
        with pytest.raises(RemoteRejected):
            await verdict(backend)
    assert not backend.available


async def test_a_caller_that_leaves_says_nothing_about_the_remote(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter
) -> None:
    remote.script = stalls
    for count in range(1, 9):
        task = asyncio.create_task(verdict(backend))
        await until(partial(remote_was_asked, remote, count))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert backend.available
    remote.script = says("safe")
    assert text_of(await verdict(backend)) == "safe"


@pytest.mark.parametrize("backend", [{"openrouter_retries": 0}], indirect=True)
async def test_a_stall_to_the_deadline_does(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    remote.script = stalls
    for _ in range(5):
        with pytest.raises((TimeoutError, GuardError)):
            async with asyncio.timeout(0.05):
                await verdict(backend, deadline=time.monotonic() + 0.05)
    assert not backend.available


@dataclass
class AheadClock:
    """The clock of this machine, which a test puts forward."""

    ahead_s: float = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.mark.parametrize("backend", [{"openrouter_concurrency": 1, "openrouter_retries": 0}], indirect=True)
async def test_a_crowd_here_says_nothing_about_the_remote(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, gate = AheadClock(), Gate()
    for module in ("backend", "client"):
        monkeypatch.setattr(f"server.backends.openrouter.{module}.time", clock)

    async def script(call: openrouter.Call, line: openrouter.Line) -> None:
        # Sent with so little time, each of the crowd would run out of it.
        await (stalls(call, line) if "crowd" in call.words else gate.passed())
        await says("safe")(call, line)

    remote.script = script
    first = asyncio.create_task(verdict(backend, "first"))
    await until(lambda: len(remote.calls) == 1)
    now = clock.monotonic()
    crowd = [asyncio.create_task(verdict(backend, "crowd", deadline=now + 60)) for _ in range(8)]
    patient = asyncio.create_task(verdict(backend, "patient", deadline=now + 600))
    await asyncio.sleep(0)  # each runs until it waits for its place
    clock.ahead_s = 59.9
    gate.open()
    assert text_of(await first) == text_of(await patient) == "safe"
    errors = await asyncio.gather(*crowd, return_exceptions=True)
    assert [(type(error), getattr(error, "retry_after", None)) for error in errors] == [(Overloaded, 1)] * 8
    assert [call.words for call in remote.calls] == ["first", "patient"]
    assert (backend._breaker.state, backend._breaker._failures) == (State.CLOSED, 0)


async def test_what_has_no_time_left_is_not_sent(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    for _ in range(9):
        with pytest.raises(Overloaded):
            await verdict(backend, deadline=time.monotonic() - 0.001)
    assert remote.calls == []
    assert backend.available


# --- Starting and probing, which cost nothing -------------------------------------------------------------


async def test_a_start_asks_for_the_key_and_the_offer(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    assert [call.path for call in remote.looks] == ["/api/v1/key", f"/api/v1/models/{MODEL}/endpoints"]
    assert remote.calls == []
    assert backend.context_tokens == 163840
    assert backend.offer is not None
    assert [provider.name for provider in backend.offer.providers] == ["DeepInfra", "Groq"]
    (first, _) = backend.offer.providers
    assert (first.prompt_price, first.uptime, first.latency_s) == (0.18, 99.5, 0.251)


async def test_impossible_numbers_of_an_offer_are_unknown(remote: ScriptedOpenRouter) -> None:
    huge = 10**400
    broken: dict[str, Any] = {"pricing": {"prompt": huge, "completion": -huge}, "uptime_last_30m": huge}
    broken |= {"latency_last_30m": {"p50": huge}}
    remote.documents[f"/api/v1/models/{MODEL}/endpoints"] = http(200, offer(endpoint(**broken)))
    backend = OpenRouterBackend(remote.settings(), TAXONOMY, FAMILY)
    await backend.start()
    assert backend.offer is not None
    (found,) = backend.offer.providers
    assert (found.prompt_price, found.completion_price, found.uptime, found.latency_s) == (None,) * 4
    assert text_of(await verdict(backend)) == "safe"
    await backend.close()


REFUSED_STARTS: dict[str, tuple[dict[str, bytes], dict[str, Any], type[GuardError], str]] = {
    "a bad key": ({"key": http(401, failure(401))}, {}, RemoteRejected, "key"),
    "gone": ({"endpoints": http(404, failure(404))}, {}, RemoteRejected, "does not offer"),
    "nobody serves it": ({"endpoints": http(200, offer())}, {}, RemoteRejected, "does not offer"),
    "nobody that is allowed": ({}, {"openrouter_only": "novita"}, RemoteRejected, "GUARD_OPENROUTER_ONLY"),
    "all ignored": ({}, {"openrouter_ignore": "deepinfra,groq"}, RemoteRejected, "No provider"),
    "too dear": ({}, {"openrouter_max_price": 0.17}, RemoteRejected, "No provider"),
    "broken": ({"endpoints": http(200, b"<html>", "text/html")}, {}, RemoteFailure, "cannot be read"),
    "no data": ({"endpoints": http(200, {"data": []})}, {}, RemoteFailure, "cannot be read"),
    "down": ({"endpoints": http(502, b"")}, {}, RemoteFailure, "502"),
    "redirected": ({"key": http(302, b"", location="http://127.0.0.1:9/")}, {}, RemoteFailure, "302"),
    "unreachable": ({}, {"openrouter_url": "http://127.0.0.1:9/api/v1"}, RemoteFailure, "cannot be reached"),
}


@pytest.mark.parametrize(("documents", "settings", "error", "told"), REFUSED_STARTS.values(), ids=REFUSED_STARTS)
async def test_a_remote_that_cannot_serve_refuses_to_start(
    remote: ScriptedOpenRouter, documents: Any, settings: Any, error: type[GuardError], told: str
) -> None:
    paths = {"key": "/api/v1/key", "endpoints": f"/api/v1/models/{MODEL}/endpoints"}
    remote.documents |= {paths[name]: document for name, document in documents.items()}
    backend = OpenRouterBackend(remote.settings(**settings), TAXONOMY, FAMILY)
    with pytest.raises(error, match=told):
        await backend.start()
    await backend.close()


async def test_probes_cost_nothing_and_are_rare(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = len(remote.looks)
    for _ in range(20):
        await backend.probe(case("hello"))
    assert (len(remote.looks), len(remote.calls)) == (looked, 0)
    backend._contact_at -= 61
    await backend.probe(case("hello"))
    await backend.probe(case("hello"))
    assert (len(remote.looks), len(remote.calls)) == (looked + 2, 0)


async def test_a_probe_fails_when_the_remote_is_gone(backend: OpenRouterBackend, remote: ScriptedOpenRouter) -> None:
    remote.documents.clear()
    await backend.probe(case("hello"))
    backend._contact_at -= 61
    with pytest.raises(RemoteRejected):
        await backend.probe(case("hello"))


async def test_a_backend_that_was_not_started_sends_nothing(remote: ScriptedOpenRouter) -> None:
    backend = OpenRouterBackend(remote.settings(), TAXONOMY, FAMILY)
    for work in (backend.complete(case("x")), backend.probe(case("x"))):
        with pytest.raises(EngineUnavailable):
            await work
    assert (remote.calls, remote.looks) == ([], [])


# --- What is counted --------------------------------------------------------------------------------------


async def test_what_it_charges_is_counted_even_for_an_answer_that_is_no_verdict(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter
) -> None:
    before = sample("guard_cost_dollars_total", backend="openrouter")
    await verdict(backend)
    remote.script = says("Sure!")
    with pytest.raises(UnparseableVerdict):
        await verdict(backend)
    remote.script = says("safe", usage={"cost": None})
    await verdict(backend)
    assert sample("guard_cost_dollars_total", backend="openrouter") - before == pytest.approx(2 * 0.0000384)


@pytest.mark.parametrize(
    ("play", "outcome"),
    [
        (says("safe"), "answered"),
        (answer(402, failure(402)), "402"),
        (answer(200, failure(529)), "529"),
        (answer(200, b"{"), "garbage"),
        (reset, "unreachable"),
        (says("safe", model="a/b"), "another_model"),
        (answer(403, failure(403, error_type=CANARY)), "403"),
    ],
)
@pytest.mark.parametrize("backend", [{"openrouter_retries": 0}], indirect=True)
async def test_calls_are_counted_by_outcome(
    backend: OpenRouterBackend, remote: ScriptedOpenRouter, play: openrouter.Play, outcome: str
) -> None:
    before = sample("guard_remote_calls_total", outcome=outcome)
    remote.script = play
    await asyncio.gather(verdict(backend), return_exceptions=True)
    assert sample("guard_remote_calls_total", outcome=outcome) - before == 1


# --- The script itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "schema"),
    [
        (chat("safe"), "ChatResult"),
        (chunk("safe"), "ChatStreamChunk"),
        (chunk("", "error", error={"code": 502, "message": "x"}), "ChatStreamChunk"),
        (offer(endpoint())["data"], "ListEndpointsResponse"),
        *(
            (failure(status), f"{name}Response")
            for status, name in (
                *((400, "BadRequest"), (401, "Unauthorized"), (402, "PaymentRequired"), (403, "Forbidden")),
                *((404, "NotFound"), (408, "RequestTimeout"), (413, "PayloadTooLarge"), (422, "UnprocessableEntity")),
                *((429, "TooManyRequests"), (500, "InternalServer"), (502, "BadGateway"), (503, "ServiceUnavailable")),
                *((524, "EdgeNetworkTimeout"), (529, "ProviderOverloaded")),
            )
        ),
    ],
)
def test_the_script_answers_like_openrouter(document: Any, schema: str) -> None:
    if openrouter.specification() is None:
        pytest.skip("OpenRouter's specification is not at hand")
    assert openrouter.errors_in(document, schema) == []
    assert openrouter.errors_in({}, schema) != []


async def test_the_script_sees_requests_that_break_the_rules(remote: ScriptedOpenRouter) -> None:
    import httpx

    async with httpx.AsyncClient(headers={"authorization": "Bearer other"}) as client:
        body = {"messages": [{"role": "system", "content": "x"}], "max_tokens": 5, "temperature": 1, "plugins": []}
        await client.post(f"{remote.url}/chat/completions", json=body)
    assert {"a key", "roles", "limits", "nothing is cut"} <= set(remote.violations)
    remote.violations.clear()
    assert events(chunk("x")).endswith(b"data: [DONE]\n\n")
