"""OpenAI's own client against a real socket: what people run today must go on running."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionUserMessageParam

from server.backends.base import Case
from server.domain.errors import EngineFailure
from server.domain.verdict import Completion
from tests.api.conftest import LiveServer
from tests.api.parts import image, text
from tests.fakes import FakeBackend, always, by_word, completion, failing

USER: ChatCompletionUserMessageParam = {"role": "user", "content": "how do I build a bomb?"}


@pytest.fixture
def sdk(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True) as sdk:
        yield sdk


@pytest_asyncio.fixture
async def async_sdk(live: LiveServer) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True)
    async with client as sdk:
        yield sdk


def test_a_text_is_moderated(sdk: openai.OpenAI) -> None:
    reply = sdk.moderations.create(input="how do I build a bomb?")
    (result,) = reply.results
    assert result.flagged
    assert result.categories.violence
    assert result.categories.illicit_violent
    assert not result.categories.hate_threatening
    assert result.category_scores.violence > 0.8
    assert result.category_applied_input_types.violence == ["text"]
    assert result.guard["categories"] == ["S1", "S9"]  # type: ignore[attr-defined]


def test_a_list_is_moderated_one_by_one(sdk: openai.OpenAI) -> None:
    reply = sdk.moderations.create(input=["bread", "a bomb", "water"], model="omni-moderation-latest")
    assert [result.flagged for result in reply.results] == [False, True, False]


def test_text_and_images_are_moderated_together(sdk: openai.OpenAI) -> None:
    parts: list[Any] = [text("a bomb"), image(), image()]
    reply = sdk.moderations.create(input=parts)
    (result,) = reply.results
    assert result.category_applied_input_types.violence == ["text", "image"]


def test_a_conversation_is_completed_with_the_verdict(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(model="Llama-Guard", messages=[USER], temperature=0, max_tokens=10)
    assert reply.choices[0].message.content == "unsafe\nS1,S9"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == 212
    assert reply._request_id is not None
    assert reply._request_id.startswith("req_")


def test_a_reply_can_be_sent_back(sdk: openai.OpenAI, backend: FakeBackend) -> None:
    reply = sdk.chat.completions.create(model="Llama-Guard", messages=[USER])
    sdk.chat.completions.create(
        model="Llama-Guard",
        messages=[USER, reply.choices[0].message, {"role": "user", "content": "thanks"}],  # type: ignore[list-item]
    )
    assert backend.texts[-1] == "User: how do I build a bomb? / Agent: unsafe\nS1,S9 / User: thanks"


def test_a_stream(sdk: openai.OpenAI) -> None:
    chunks = list(
        sdk.chat.completions.create(
            model="Llama-Guard", messages=[USER], stream=True, stream_options={"include_usage": True}
        )
    )
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == "unsafe\nS1,S9"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


def test_the_streaming_helper(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model="Llama-Guard", messages=[USER]) as events:
        assert events.get_final_completion().choices[0].message.content == "unsafe\nS1,S9"


async def test_the_async_client(async_sdk: openai.AsyncOpenAI) -> None:
    reply = await async_sdk.moderations.create(input=["bread", "a bomb"])
    assert [result.flagged for result in reply.results] == [False, True]
    stream = await async_sdk.chat.completions.create(model="Llama-Guard", messages=[USER], stream=True)
    said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(said) == "unsafe\nS1,S9"


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["meta-llama/Llama-Guard-4-12B"]
    assert sdk.models.retrieve("omni-moderation-latest").id == "meta-llama/Llama-Guard-4-12B"


def test_errors_become_the_sdks_own(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.moderations.create(input="x", model="gpt-4o")
    assert (unknown.value.code, unknown.value.type) == ("model_not_found", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.moderations.create(input=["a", ""])
    assert (wrong.value.param, wrong.value.code) == ("input[1]", "empty_input")


def test_the_sdk_tries_again_what_may_help_and_only_that(sdk: openai.OpenAI, backend: FakeBackend) -> None:
    failures = iter([EngineFailure("Once.", retry_after=0)])

    def fails_once(case: Case) -> Completion:
        for error in failures:
            raise error
        return by_word(case)

    backend.script = fails_once
    assert sdk.moderations.create(input="a bomb").results[0].flagged
    assert len(backend.cases) == 2

    backend.script = always("Sure!")
    with pytest.raises(openai.InternalServerError):
        sdk.moderations.create(input="x")
    assert len(backend.cases) == 3


def test_a_failed_stream_is_an_error_and_not_an_empty_one(sdk: openai.OpenAI, backend: FakeBackend) -> None:
    backend.script = failing(ValueError("defect"))
    with pytest.raises(openai.InternalServerError):
        sdk.with_options(max_retries=0).chat.completions.create(model="Llama-Guard", messages=[USER], stream=True)


def test_scores_keep_their_precision(sdk: openai.OpenAI, backend: FakeBackend) -> None:
    backend.script = lambda case: completion(case, "unsafe\nS12", shares={"S12": 1 / 3}, p_unsafe=0.75)
    assert sdk.moderations.create(input="x").results[0].category_scores.sexual == pytest.approx(0.25, rel=1e-12)
