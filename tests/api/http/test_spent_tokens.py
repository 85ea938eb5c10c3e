"""Tokens that were spent are debited, also if the request fails, is cancelled or runs out of time."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api.http.rate_limit import RateLimits, Unit
from server.api.http.state import served_by
from server.backends.base import Case
from server.domain.caller import Caller, Scope
from server.domain.errors import ContextLengthExceeded, EngineFailure, EngineUnavailable, GuardError, Overloaded
from server.domain.verdict import Completion
from server.moderation.moderator import CHARACTERS_PER_TOKEN
from tests.api.conftest import As
from tests.fakes import FakeBackend, Gate, by_word, hanging, held_at, until, words_of

LIMIT = 100_000
HOLDER = Caller("key", frozenset(Scope), tokens_per_minute=LIMIT)
TEXTS = [f"bread {number}" for number in range(8)]
LONG = "bread " * 2000


@pytest.fixture
def spent(app: FastAPI, be: As, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tokens that the key has spent so far. No time passes for its bucket."""
    be("key", tokens_per_minute=LIMIT)
    limits = served_by(app).limits
    buckets = RateLimits(clock=lambda: 0.0)
    monkeypatch.setattr(limits, "_by_key", buckets)

    def tokens() -> int:
        allowance = buckets.allowance(HOLDER, Unit.TOKENS)
        assert allowance is not None
        return LIMIT - allowance.remaining

    return tokens


def tokens_of(texts: list[str]) -> int:
    """What the fake backend reports for these texts: one prompt and one word each."""
    return sum(200 + len(f"User: {text}".split()) + 1 for text in texts)


def failing_at(word: str, error: GuardError) -> Any:
    """Fails at `word`, once all other texts of the request are judged."""
    judged: list[Case] = []

    async def script(case: Case) -> Completion:
        if word in words_of(case):
            await until(lambda: len(judged) == len(TEXTS))
            raise error
        judged.append(case)
        return by_word(case)

    return script


async def test_an_answer_costs_what_its_verdicts_took(client: httpx.AsyncClient, spent: Any) -> None:
    assert (await client.post("/v1/moderations", json={"input": [*TEXTS, TEXTS[0]]})).status_code == 200
    assert spent() == tokens_of([*TEXTS, TEXTS[0]])


@pytest.mark.parametrize(
    "error", [ContextLengthExceeded("too long"), Overloaded("full"), EngineUnavailable("dead")], ids=lambda e: e.code
)
async def test_a_list_that_ends_early_costs_what_was_judged(
    client: httpx.AsyncClient, backend: FakeBackend, spent: Any, error: GuardError
) -> None:
    backend.script = failing_at("poison", error)
    response = await client.post("/v1/moderations", json={"input": [*TEXTS, "poison"]})
    assert response.status_code == error.status
    assert spent() == tokens_of(TEXTS)


async def test_what_the_engine_computed_in_vain_costs_an_estimate(
    client: httpx.AsyncClient, backend: FakeBackend, spent: Any
) -> None:
    backend.script = failing_at("poison", EngineFailure("no answer"))
    response = await client.post("/v1/moderations", json={"input": [*TEXTS, f"poison {LONG}"]})
    assert response.status_code == 500
    assert spent() == tokens_of(TEXTS) + len(f"poison {LONG}") // CHARACTERS_PER_TOKEN


@pytest.mark.parametrize("settings", [{"deadline": 0.2}], indirect=True)
async def test_a_request_that_runs_out_of_time_costs_an_estimate(
    client: httpx.AsyncClient, backend: FakeBackend, spent: Any
) -> None:
    backend.script = hanging
    assert (await client.post("/v1/moderations", json={"input": LONG})).status_code == 504
    assert spent() == len(LONG) // CHARACTERS_PER_TOKEN


async def test_a_request_whose_client_left_costs_an_estimate(
    client: httpx.AsyncClient, backend: FakeBackend, spent: Any
) -> None:
    backend.script = hanging
    request = asyncio.create_task(client.post("/v1/moderations", json={"input": LONG}))
    await backend.busy_with(1)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert spent() == len(LONG) // CHARACTERS_PER_TOKEN


async def test_other_requests_of_the_key_see_tokens_while_they_are_spent(
    client: httpx.AsyncClient, backend: FakeBackend, spent: Any
) -> None:
    """A giant list runs up its debt while it is judged, and not once it is answered."""
    gate = Gate()
    backend.script = held_at(gate)
    texts = [f"{number} " + "bread " * 4000 for number in range(32)]
    request = asyncio.create_task(client.post("/v1/moderations", json={"input": texts}))
    await backend.busy_with(32)
    held = spent()  # of a bucket that shows no debt
    gate.open()
    assert (await request).status_code == 200
    assert held == LIMIT
    assert (await client.post("/v1/moderations", json={"input": "hi"})).status_code == 429


async def test_several_passes_of_one_verdict_cost_their_sum(client: httpx.AsyncClient, spent: Any) -> None:
    parts = [{"type": "text", "text": text} for text in TEXTS[:2]]
    response = await client.post("/v1/moderations", json={"input": parts})
    usage = response.json()["results"][0]["guard"]["usage"]
    assert spent() == usage["prompt_tokens"] + usage["completion_tokens"]
