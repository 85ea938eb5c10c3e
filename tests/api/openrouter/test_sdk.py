"""OpenRouter's own client against a real socket."""

from collections.abc import Iterator
from typing import Any

import openrouter
import pytest
from openrouter import errors

from server.domain.errors import GuardError
from tests.api.conftest import LiveServer
from tests.api.http.test_errors import kinds_of
from tests.api.openrouter.shapes import SLUG
from tests.api.parts import image, text
from tests.fakes import FakeBackend, failing

BOMB: list[Any] = [{"role": "user", "content": "how do I build a bomb?"}]


@pytest.fixture
def sdk(live: LiveServer) -> Iterator[openrouter.OpenRouter]:
    with openrouter.OpenRouter(api_key="none", server_url=f"{live.url}/api/v1", retry_config=None) as sdk:
        yield sdk


def test_a_verdict(sdk: openrouter.OpenRouter) -> None:
    reply = sdk.chat.send(model=SLUG, messages=BOMB)
    assert reply.choices[0].message.content == "unsafe\nS1,S9"
    assert reply.id.startswith("gen-")
    assert reply.usage is not None
    assert reply.usage.cost == 0
    assert reply.usage.total_tokens == 212


def test_text_and_image_together(sdk: openrouter.OpenRouter, backend: FakeBackend) -> None:
    content = [text("a bomb"), image()]
    messages: list[Any] = [{"role": "user", "content": content}]
    reply = sdk.chat.send(messages=messages, provider={"zdr": True})
    assert reply.choices[0].message.content == "unsafe\nS1,S9"
    assert len(backend.cases[0].images) == 1


def test_a_stream(sdk: openrouter.OpenRouter) -> None:
    with sdk.chat.send(model=SLUG, messages=BOMB, stream=True) as stream:
        chunks = list(stream)
    said = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(said) == "unsafe\nS1,S9"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


async def test_the_async_client(live: LiveServer) -> None:
    async with openrouter.OpenRouter(api_key="none", server_url=f"{live.url}/api/v1") as sdk:
        reply = await sdk.chat.send_async(model=SLUG, messages=BOMB)
        assert reply.choices[0].message.content == "unsafe\nS1,S9"


def test_a_generation(sdk: openrouter.OpenRouter) -> None:
    reply = sdk.chat.send(messages=BOMB)
    data = sdk.generations.get_generation(id=reply.id).data
    assert (data.id, data.native_tokens_prompt, data.total_cost) == (reply.id, 207, 0)


def test_models_endpoints_and_providers(sdk: openrouter.OpenRouter) -> None:
    listed = sdk.models.list()
    assert listed is not None
    assert [model.id for model in listed.result.data] == [SLUG]
    assert sdk.models.count().data.count == 1
    author, _, slug = SLUG.partition("/")
    assert sdk.models.get(author=author, slug=slug).data.id == SLUG
    (endpoint,) = sdk.endpoints.list(author=author, slug=slug).data.endpoints
    assert endpoint.provider_name == "llama-guard-server"
    assert [known.model_id for known in sdk.endpoints.list_zdr_endpoints().data] == [SLUG]
    assert [provider.slug for provider in sdk.providers.list().data] == ["llama-guard-server"]


def test_the_key_and_its_credits(sdk: openrouter.OpenRouter) -> None:
    assert sdk.api_keys.get_current_key_metadata().data.limit is None
    assert sdk.credits.get_credits().data.total_credits == 0


@pytest.mark.parametrize("error", kinds_of(GuardError))
def test_every_error_is_one_that_the_sdk_reads(
    sdk: openrouter.OpenRouter, backend: FakeBackend, error: type[GuardError]
) -> None:
    backend.script = failing(error("Told.", param="a.b"))
    with pytest.raises(errors.OpenRouterError) as raised:
        sdk.chat.send(messages=BOMB, retries=None)
    assert not isinstance(raised.value, errors.ResponseValidationError)
    assert raised.value.status_code == error.status
    if not isinstance(raised.value, errors.OpenRouterDefaultError):
        assert str(raised.value) == "Told."
