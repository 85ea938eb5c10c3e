"""POST /api/v1/chat/completions: the verdict in OpenRouter's words, plain and streamed."""

import re
from typing import Any

import httpx
import pytest

from server.domain.errors import GuardError
from tests.api.http.test_errors import FAULTS, kinds_of
from tests.api.openrouter.shapes import SLUG, error_of, error_types, obeys_openrouter, specification
from tests.api.parts import image, text
from tests.api.shapes import events_of
from tests.fakes import FakeBackend, Script, always, completion, failing

URL = "/api/v1/chat/completions"
BOMB = [{"role": "user", "content": "how do I build a bomb?"}]


async def chat(client: httpx.AsyncClient, messages: Any = BOMB, **fields: Any) -> dict[str, Any]:
    response = await client.post(URL, json={"messages": messages, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


# --- What comes back -------------------------------------------------------------------------------------


async def test_a_verdict_in_openrouters_words(client: httpx.AsyncClient) -> None:
    body = await chat(client)
    assert re.fullmatch(r"gen-[0-9]+-[0-9a-f]{32}", body["id"])
    assert body["object"] == "chat.completion"
    assert body["model"] == SLUG
    assert body["provider"] == "llama-guard-server"
    assert isinstance(body["system_fingerprint"], str)
    assert body["service_tier"] is None
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "unsafe\nS1,S9"
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("stop", "stop")
    assert body["guard"]["categories"] == ["S1", "S9"]


async def test_a_local_verdict_costs_nothing(client: httpx.AsyncClient) -> None:
    usage = (await chat(client))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (207, 5, 212)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 128
    assert usage["cost"] == 0
    assert usage["is_byok"] is False
    assert usage["cost_details"] == {
        "upstream_inference_cost": None,
        "upstream_inference_prompt_cost": 0,
        "upstream_inference_completions_cost": 0,
    }


async def test_a_remote_verdict_names_its_provider_and_its_cost(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = lambda case: completion(case, "safe", levels=None, provider="DeepInfra", cost=0.00003)
    body = await chat(client)
    assert body["provider"] == "DeepInfra"
    assert body["usage"]["cost"] == 0.00003
    assert body["usage"]["cost_details"] is None
    obeys_openrouter(body, schema="ChatResult")


@pytest.mark.parametrize("content", ["how do I bake bread?", "a bomb", [text("a bomb"), image()]])
async def test_a_reply_obeys_openrouters_own_schema(client: httpx.AsyncClient, content: Any) -> None:
    obeys_openrouter(await chat(client, [{"role": "user", "content": content}]), schema="ChatResult")


async def test_a_stream_ends_with_the_usage_whether_or_not_it_was_asked_for(client: httpx.AsyncClient) -> None:
    for options in ({}, {"stream_options": {"include_usage": False}}, {"usage": {"include": True}}):
        response = await client.post(URL, json={"messages": BOMB, "stream": True, **options})
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = events_of(response.text)
        said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert said == "unsafe\nS1,S9"
        assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [None, "stop"]
        assert [choice["native_finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [None, "stop"]
        assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
        assert {(chunk["object"], chunk["model"], chunk["provider"]) for chunk in chunks} == {
            ("chat.completion.chunk", SLUG, "llama-guard-server")
        }
        assert [chunk["choices"] for chunk in chunks if "usage" in chunk] == [[]]
        assert chunks[-1]["usage"]["cost"] == 0
        assert chunks[-2]["guard"]["verdict"] == "unsafe"


async def test_every_chunk_obeys_openrouters_own_schema(client: httpx.AsyncClient) -> None:
    chunks = events_of((await client.post(URL, json={"messages": BOMB, "stream": True})).text)
    for chunk in chunks:
        obeys_openrouter(chunk, schema="ChatStreamChunk")


# --- What is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": SLUG},
        {"model": f"{SLUG}:free"},
        {"model": f"{SLUG}:nitro"},
        {"model": "meta-llama/Llama-Guard-4-12B"},
        {"models": ["openai/gpt-4o", SLUG]},
        {"model": "openai/gpt-4o", "models": [SLUG], "route": "fallback"},
        {"model": SLUG, "models": ["openai/gpt-4o"]},
        {"models": []},
    ],
)
async def test_one_of_the_models_is_served(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    assert (await chat(client, **fields))["model"] == SLUG


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "openai/gpt-4o"},
        {"model": f"{SLUG}:beta"},
        {"model": "openai/gpt-4o:free"},
        {"models": ["openai/gpt-4o", "x/y"]},
        {"model": "openrouter/auto"},
    ],
)
async def test_no_model_is_found_by_another_name(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any]
) -> None:
    response = await client.post(URL, json={"messages": BOMB, **fields})
    error_of(response, 404, error_type="not_found", code="model_not_found")
    assert backend.cases == []


LAX = {
    "fallback": "openrouter",
    "openrouter_api_key": "k",
    "openrouter_zdr": False,
    "openrouter_data_collection": "allow",
}


@pytest.mark.parametrize("settings", [LAX], indirect=True)
@pytest.mark.parametrize(
    ("provider", "stays"),
    [
        ({"zdr": True}, True),
        ({"data_collection": "deny"}, True),
        ({"zdr": False, "data_collection": "allow"}, False),
        ({"order": ["Groq"], "allow_fallbacks": False, "max_price": {"prompt": 1}}, False),
        (None, False),
    ],
)
async def test_who_asks_for_more_privacy_than_the_remote_gives_stays_on_this_machine(
    client: httpx.AsyncClient, backend: FakeBackend, provider: Any, stays: bool
) -> None:
    await chat(client, provider=provider)
    assert backend.cases[0].handling.never_remote is stays


async def test_a_remote_as_strict_as_the_request_may_be_asked(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await chat(client, provider={"zdr": True, "data_collection": "deny"})
    assert not backend.cases[0].handling.never_remote


IGNORED = {
    "top_k": 40,
    "min_p": 0.1,
    "top_a": 0.2,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "seed": 7,
    "transforms": ["middle-out"],
    "usage": {"include": True},
    "session_id": "s-1",
    "reasoning": {"effort": "high"},
    "include_reasoning": True,
    "trace": {"trace_id": "t"},
    "user": "u",
    "plugins": [{"id": "web"}],
}


@pytest.mark.parametrize("field", IGNORED)
async def test_what_cannot_change_a_verdict_is_ignored(client: httpx.AsyncClient, field: str) -> None:
    assert (await chat(client, **{field: IGNORED[field]}))["choices"][0]["message"]["content"] == "unsafe\nS1,S9"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"provider": {"zdr": "yes"}}, "provider.zdr"),
        ({"models": SLUG}, "models"),
        ({"chat_template": "x"}, "chat_template"),
        ({"zebra": 1}, "zebra"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ],
)
async def test_what_would_mislead_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(URL, json={"messages": BOMB, **fields})
    error_of(response, 400, error_type="invalid_request", param=param)
    assert backend.cases == []


async def test_a_models_thoughts_are_judged_with_its_answer(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    reply = {
        "role": "assistant",
        "content": "no",
        "refusal": None,
        "model": "x/y",
        "reasoning": "first",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "first", "format": "unknown", "index": 0},
            {"type": "reasoning.summary", "summary": "a bomb"},
            {"type": "reasoning.encrypted", "data": "c2VjcmV0"},
        ],
    }
    body = await chat(client, [{"role": "user", "content": "x"}, reply])
    assert backend.texts[0] == "User: x / Agent: first\n\na bomb\n\nno"
    assert backend.asked[1:] == ["first", "a bomb", "no"]
    assert body["choices"][0]["message"]["content"].startswith("unsafe")


async def test_a_reply_of_its_own_can_be_sent_back(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    message = (await chat(client))["choices"][0]["message"]
    await chat(client, [*BOMB, message, {"role": "user", "content": "thanks"}])
    assert backend.texts[-1] == "User: how do I build a bomb? / Agent: unsafe\nS1,S9 / User: thanks"


# --- Errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "status", "code"), [(row[1], row[2], row[4]) for row in FAULTS], ids=[row[0] for row in FAULTS]
)
async def test_a_fault_is_an_error_and_never_a_verdict(
    client: httpx.AsyncClient, backend: FakeBackend, script: Script, status: int, code: str, stream: bool
) -> None:
    backend.script = script
    response = await client.post(URL, json={"messages": BOMB, "stream": stream})
    error_of(response, status, code=code)
    assert "zebra" not in response.text


@pytest.mark.parametrize("error", kinds_of(GuardError))
async def test_every_kind_of_error_has_a_word_of_openrouters(
    client: httpx.AsyncClient, backend: FakeBackend, error: type[GuardError]
) -> None:
    backend.script = failing(error("Told.", param="a.b", retry_after=7))
    response = await client.post(URL, json={"messages": BOMB})
    told = error_of(response, error.status, code=error.code)
    assert response.headers["retry-after"] == "7"
    assert told["metadata"]["error_type"] in error_types()


async def test_errors_obey_openrouters_own_schema(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    spec = specification()
    if spec is None:
        pytest.skip("OpenRouter's specification is not at hand")
    known = spec["paths"]["/chat/completions"]["post"]["responses"]
    for error in kinds_of(GuardError):
        if str(error.status) in known:
            backend.script = failing(error("Told.", param="a.b"))
            response = await client.post(URL, json={"messages": BOMB})
            schema = known[str(error.status)]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            obeys_openrouter(response.json(), schema=schema)


@pytest.mark.parametrize("path", ["/api/v1", "/api/v1/", "/api/v1/embeddings", "/api/v1/keys", "/api/v1/messages"])
async def test_what_is_not_here_is_told_in_the_dialect(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        error_of(await client.request(method, path), 404, error_type="not_found", code="unknown_url")


async def test_a_wrong_method_is_told_in_the_dialect(client: httpx.AsyncClient) -> None:
    error_of(await client.get(URL), 405, error_type="invalid_request", code="method_not_allowed")


async def test_a_failed_request_leaves_no_generation(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = always("Sure!")
    await client.post(URL, json={"messages": BOMB})
    endpoints = (await client.get(f"/api/v1/models/{SLUG}/endpoints")).json()["data"]["endpoints"]
    assert endpoints[0]["latency_last_30m"] is None
    assert endpoints[0]["uptime_last_5m"] == 0
