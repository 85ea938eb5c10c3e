"""The scripted OpenRouter, and backends that speak to it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from server.backends.base import Case
from server.backends.openrouter.backend import OpenRouterBackend
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, Message, TextPart
from server.domain.policy import Policy
from tests.openrouter import ScriptedOpenRouter, scripted_openrouter
from tests.readings import FAMILY

TAXONOMY = load_profile("llama-guard-4-12b").taxonomy


@pytest.fixture
def remote() -> Iterator[ScriptedOpenRouter]:
    with scripted_openrouter() as remote:
        yield remote


@pytest_asyncio.fixture
async def backend(remote: ScriptedOpenRouter, request: pytest.FixtureRequest) -> AsyncIterator[OpenRouterBackend]:
    """A started backend; a test changes settings with @pytest.mark.parametrize("backend", [{...}], indirect=True)."""
    backend = OpenRouterBackend(remote.settings(**getattr(request, "param", {})), TAXONOMY, FAMILY)
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.backends.openrouter.backend.pause", lambda attempt: 0.0)


def case(*texts: str, **fields: Any) -> Case:
    """What a user, and then in turn an assistant and a user, said."""
    roles = ["user", "assistant"] * len(texts)
    messages = [Message(role, (TextPart(text),)) for role, text in zip(roles, texts, strict=False)]
    policy = fields.pop("policy", Policy(TAXONOMY))
    return Case(Conversation.from_messages(messages), fields.pop("images", ()), policy, **fields)
