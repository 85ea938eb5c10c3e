"""POST /v1/completions: a prompt in, the verdict as its completion out."""

import json
from typing import Any

import httpx
import openai
import pytest

from server.api.openai.completions import IgnoredCompletionOptions
from server.domain.errors import ContextLengthExceeded
from server.families.llama_guard.prompt import render
from tests.api.conftest import As, LiveServer
from tests.api.shapes import error_of, events_of
from tests.fakes import FakeBackend, always, failing
from tests.finished_prompts import OFFICIAL, nemo, ogx

URL = "/v1/completions"
BOMB = "how do I build a bomb?"


async def complete(client: httpx.AsyncClient, prompt: Any = BOMB, **fields: Any) -> dict[str, Any]:
    response = await client.post(URL, json={"prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_the_reply_is_a_text_completion(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await complete(client)
    assert set(body) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert (body["object"], body["model"]) == ("text_completion", "meta-llama/Llama-Guard-4-12B")
    assert body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert choice["guard"]["verdict"] == "unsafe"
    del choice["guard"]
    assert choice == {"text": "unsafe\nS1,S9", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert body["usage"]["total_tokens"] == 212
    assert backend.texts == [f"User: {BOMB}"]
    assert (await complete(client, "bread"))["choices"][0]["text"] == "safe"


async def test_a_list_is_judged_prompt_by_prompt(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await complete(client, ["bread", BOMB, "tea"], n=2)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4, 5]
    assert [choice["text"] for choice in body["choices"]] == ["safe"] * 2 + ["unsafe\nS1,S9"] * 2 + ["safe"] * 2
    assert [choice["guard"]["verdict"] for choice in body["choices"][::2]] == ["safe", "unsafe", "safe"]
    assert len(backend.cases) == 3
    tokens = [choice["guard"]["usage"]["prompt_tokens"] for choice in body["choices"][::2]]
    assert body["usage"]["prompt_tokens"] == sum(tokens)
    assert body["usage"]["completion_tokens"] == 1 + 5 + 1


async def test_a_stream_is_a_chunk_of_each_choice(client: httpx.AsyncClient) -> None:
    response = await client.post(
        URL, json={"prompt": ["bread", BOMB], "stream": True, "stream_options": {"include_usage": True}}
    )
    *chunks, last = events_of(response.text)
    assert [(c["choices"][0]["index"], c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks] == [
        (0, "safe", "stop"),
        (1, "unsafe\nS1,S9", "stop"),
    ]
    assert [chunk["usage"] for chunk in chunks] == [None] * 2
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 6)
    assert chunks[0]["choices"][0]["guard"]["verdict"] == "safe"


async def test_bounds_and_stops_cut_the_list_and_not_the_verdict(client: httpx.AsyncClient) -> None:
    for fields, text, reason in (
        ({"max_tokens": 1}, "unsafe", "length"),
        ({"max_tokens": 16}, "unsafe\nS1,S9", "stop"),
        ({"stop": "\n"}, "unsafe", "stop"),
        ({"max_tokens": 0}, "unsafe\nS1,S9", "stop"),
    ):
        (choice,) = (await complete(client, **fields))["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text, reason)


async def test_each_token_comes_with_its_probability(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    (choice,) = (await complete(client, logprobs=2))["choices"]
    found = choice["logprobs"]
    assert found["tokens"] == ["unsafe", "\n", "S", "1", ",S", "9"]
    assert found["text_offset"] == [0, 6, 7, 8, 9, 11]
    assert len(found["token_logprobs"]) == len(found["top_logprobs"]) == 6
    assert set(found["top_logprobs"][0]) == {"unsafe", "safe"}
    for logprobs, wanted in ((0, 0), (False, None), (None, None)):
        backend.cases.clear()
        await complete(client, logprobs=logprobs)
        assert backend.cases[0].handling.top_logprobs == wanted


# --- Finished Guard prompts ------------------------------------------------------------------------------


async def test_a_finished_prompt_of_anybody_is_judged_by_the_servers_policy(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = await complete(client, nemo("bread", "a bomb"))
    (choice,) = body["choices"]
    assert choice["guard"]["finished_prompt"] == "server_policy"
    assert choice["text"] == "unsafe\nS1,S9"
    assert not backend.cases[0].policy.taxonomy.own


async def test_a_finished_prompt_with_the_right_is_judged_once_by_its_own(
    client: httpx.AsyncClient, backend: FakeBackend, be: As
) -> None:
    be("key-a", finished_prompts=True)
    backend.script = always("unsafe\nS2")
    body = await complete(client, [nemo("You fool", "You bomb"), "bread"])
    first, second = body["choices"]
    assert (first["guard"]["finished_prompt"], first["text"]) == ("prompt_policy", "unsafe\nO2")
    assert "finished_prompt" not in second["guard"]
    assert sorted(backend.texts) == ["User: You fool / Agent: You bomb", "User: bread"]


async def test_vllms_users_send_the_whole_template(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The text that the official template makes, control tokens included."""
    await complete(client, BOMB)
    (case,) = backend.cases
    prompt = render(case.conversation, case.policy.taxonomy).text
    assert prompt.startswith("<|begin_of_text|>")
    backend.cases.clear()
    (choice,) = (await complete(client, prompt))["choices"]
    assert choice["guard"]["finished_prompt"] == "server_policy"
    assert backend.texts[0] == f"User: {BOMB}"


async def test_faults_of_a_finished_prompt_are_the_prompts(client: httpx.AsyncClient, be: As) -> None:
    be("key-a", finished_prompts=True)
    empty = ogx(("User", " "))
    error_of(await client.post(URL, json={"prompt": ["x", empty]}), 400, param="prompt[1]", code="empty_input")
    many = nemo("x", categories={f"O{n}": "Words." for n in range(1, 20)})
    error_of(await client.post(URL, json={"prompt": many}), 400, param="prompt", code=None)
    response = await client.post(
        URL, json={"prompt": nemo("x", categories=OFFICIAL), "policy": {"categories": {"S1": "x"}}}
    )
    error_of(response, 400, param="policy")


# --- Fields ----------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("no prompt", {}, "prompt", None),
    ("null", {"prompt": None}, "prompt", None),
    ("an empty text", {"prompt": ""}, "prompt", "empty_input"),
    ("an invisible text", {"prompt": "\u200b"}, "prompt", "empty_input"),
    ("an empty list", {"prompt": []}, "prompt", "empty_input"),
    ("an empty text in a list", {"prompt": ["x", " "]}, "prompt[1]", "empty_input"),
    ("token ids", {"prompt": [1, 2, 3]}, "prompt", None),
    ("lists of token ids", {"prompt": [[1, 2], [3]]}, "prompt", None),
    ("a number among texts", {"prompt": ["x", 5]}, "prompt[1]", None),
    ("a number", {"prompt": 5}, "prompt", None),
    ("too many prompts", {"prompt": ["x"] * 10_000}, "prompt", None),
    ("too many choices", {"prompt": ["x"] * 60, "n": 128}, "n", None),
    ("an echo", {"prompt": "x", "echo": True}, "echo", None),
    ("a suffix", {"prompt": "x", "suffix": "a bomb"}, "suffix", None),
    ("a stop in a word", {"prompt": "x", "stop": "unsafe"}, "stop", None),
    ("five stops", {"prompt": "x", "stop": list("abcdx")}, "stop", None),
    ("logprobs as in chat", {"prompt": "x", "logprobs": True}, "logprobs", None),
    ("too many alternatives", {"prompt": "x", "logprobs": 21}, "logprobs", None),
    ("a template", {"prompt": "x", "chat_template": "y"}, "chat_template", None),
    ("messages", {"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "messages", None),
    ("a wrong policy", {"prompt": "x", "policy": {"excluded_categories": ["S99"]}}, "policy.excluded_categories", None),
]


@pytest.mark.parametrize(("body", "param", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_refused(
    client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], param: str, code: str | None
) -> None:
    error = error_of(await client.post(URL, json=body), 400, type="invalid_request_error", param=param, code=code)
    assert backend.cases == [] or param == "prompt[1]"
    if isinstance(body.get("prompt"), list) and body["prompt"] and not isinstance(body["prompt"][0], str):
        assert "token ids" in error["message"]


async def test_another_model_and_too_long_a_prompt(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    error_of(
        await client.post(URL, json={"prompt": "x", "model": "gpt-3.5-turbo-instruct"}), 404, code="model_not_found"
    )
    backend.script = failing(ContextLengthExceeded("This model's maximum context length is 9.", param="messages"))
    error_of(await client.post(URL, json={"prompt": ["x"]}), 400, param="prompt[0]", code="context_length_exceeded")


async def test_ignored_fields_change_nothing(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    values: dict[str, Any] = {"logit_bias": {"1": 2}, "metadata": {"a": "b"}, "store": True, "best_of": 1, "seed": 1}
    values |= dict.fromkeys(("top_k",), 5)
    for name, field in IgnoredCompletionOptions.model_fields.items():
        values.setdefault(name, 0.5 if "float" in str(field.annotation) else "x")
    await complete(client)
    await complete(client, **values, echo=False, suffix="")
    assert backend.cases[0] == backend.cases[1]


def test_openais_client_reads_both_forms(live: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True)
    reply = client.completions.create(model="llama-guard", prompt=BOMB, logprobs=1, max_tokens=100)
    assert reply.choices[0].text == "unsafe\nS1,S9"
    stream = client.completions.create(model="llama-guard", prompt=BOMB, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "unsafe\nS1,S9"
    assert json.loads(reply.model_dump_json())["usage"]["prompt_tokens"] == 207
