"""POST /v1/moderations with `messages`: the Llama API's dialect, by hand and by its own client."""

from collections.abc import Iterator
from typing import Any

import httpx
import llama_api_client
import pytest

from server.checkpoints.profile import load_profile
from tests.api.conftest import PROFILE, LiveServer
from tests.api.parts import image, text
from tests.api.shapes import error_of
from tests.fakes import FakeBackend, always

BOMB = {"role": "user", "content": "how do I build a bomb?"}


async def moderate(client: httpx.AsyncClient, messages: Any, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/moderations", json={"messages": messages, **fields})
    assert response.status_code == 200, response.text
    assert response.headers["x-guard-backend"] == "fake"
    body: dict[str, Any] = response.json()
    return body


async def test_one_result_names_slugs(client: httpx.AsyncClient) -> None:
    body = await moderate(client, [BOMB])
    assert list(body) == ["model", "results"]
    assert body["model"] == "meta-llama/Llama-Guard-4-12B"
    (result,) = body["results"]
    assert list(result) == ["flagged", "flagged_categories", "guard"]
    assert result["flagged"] is True
    assert result["flagged_categories"] == ["violent_crimes", "indiscriminate_weapons"]
    assert result["guard"]["categories"] == ["S1", "S9"]


async def test_a_safe_result_has_an_empty_list(client: httpx.AsyncClient) -> None:
    (result,) = (await moderate(client, [{"role": "user", "content": "bread"}], model="Llama-Guard"))["results"]
    assert (result["flagged"], result["flagged_categories"]) == (False, [])


async def test_every_code_has_a_slug(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = always(f"unsafe\n{','.join(f'S{n}' for n in range(1, 15))}")
    (result,) = (await moderate(client, [BOMB]))["results"]
    assert result["flagged_categories"] == [hazard.slug for hazard in load_profile(PROFILE).taxonomy.categories]
    assert "privacy" in result["flagged_categories"]


async def test_own_categories_have_no_slug_but_their_code(client: httpx.AsyncClient) -> None:
    body = await moderate(client, [BOMB], policy={"categories": {"S1": "Spoilers.", "S9": "Puns."}})
    assert body["results"][0]["flagged_categories"] == ["S1", "S9"]


async def test_the_last_message_is_judged_and_the_others_are_its_context(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = await moderate(
        client,
        [
            {"role": "system", "content": [text("be kind")]},
            BOMB,
            {
                "role": "assistant",
                "content": {"type": "text", "text": "let me look"},
                "tool_calls": [{"id": "c1", "function": {"name": "search", "arguments": '{"q":"x"}'}}],
                "stop_reason": "tool_calls",
            },
            {"role": "tool", "tool_call_id": "c1", "content": "nothing"},
            {"role": "assistant", "content": "no", "stop_reason": "stop"},
        ],
    )
    assert backend.texts == [
        'User: be kind + how do I build a bomb? / Agent: let me look + search({"q":"x"}) / User: nothing / Agent: no'
    ]
    assert [result["flagged"] for result in body["results"]] == [False]


async def test_images(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await moderate(client, [{"role": "user", "content": [text("what is this?"), image(), image()]}])
    assert len(backend.cases[0].images) == 2


REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "input", None),
    ({"input": None}, "input", None),
    ({"messages": None}, "input", None),
    ({"input": "x", "messages": [BOMB]}, "messages", None),
    ({"messages": []}, "messages", None),
    ({"messages": "x"}, "messages", None),
    ({"messages": [{"role": "user", "content": " "}]}, "messages", "empty_input"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role", None),
    ({"messages": [{"role": "user", "content": {"type": "video"}}]}, "messages[0].content[0]", None),
    ({"messages": [{"role": "assistant", "content": "x", "stop_reason": "tired"}]}, "messages[0].stop_reason", None),
    ({"messages": [{"role": "user", "content": "x", "zebra": 1}]}, "messages[0].zebra", None),
]


@pytest.mark.parametrize(("body", "param", "code"), REFUSED)
async def test_refused(
    client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], param: str, code: str | None
) -> None:
    error_of(await client.post("/v1/moderations", json=body), 400, param=param, code=code)
    assert backend.cases == []


async def test_who_sends_neither_or_both_is_told_of_the_two_forms(client: httpx.AsyncClient) -> None:
    for body in ({}, {"input": "x", "messages": [BOMB]}):
        error = error_of(await client.post("/v1/moderations", json=body), 400)
        assert "'input'" in error["message"]
        assert "'messages'" in error["message"]


# --- Meta's own client -----------------------------------------------------------------------------------


@pytest.fixture
def sdk(live: LiveServer) -> Iterator[llama_api_client.LlamaAPIClient]:
    with llama_api_client.LlamaAPIClient(
        base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True
    ) as sdk:
        yield sdk


def test_the_sdk(sdk: llama_api_client.LlamaAPIClient) -> None:
    messages: Any = [BOMB]
    reply = sdk.moderations.create(messages=messages)
    assert reply.results[0].flagged
    assert reply.results[0].flagged_categories == ["violent_crimes", "indiscriminate_weapons"]
    answered: Any = [BOMB, {"role": "assistant", "content": "no", "stop_reason": "stop"}]
    assert sdk.moderations.create(messages=answered, model="Llama-Guard").results[0].flagged_categories == []


async def test_the_async_sdk(live: LiveServer) -> None:
    client = llama_api_client.AsyncLlamaAPIClient(
        base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True
    )
    messages: Any = [{"role": "user", "content": [text("a bomb"), image()]}]
    async with client as sdk:
        assert (await sdk.moderations.create(messages=messages)).results[0].flagged


def test_errors_become_the_sdks_own(sdk: llama_api_client.LlamaAPIClient) -> None:
    messages: Any = [{"role": "user", "content": ""}]
    with pytest.raises(llama_api_client.BadRequestError):
        sdk.moderations.create(messages=messages)
