"""The fallback: which failures of the local engine move, which stay, and what is told when both fail."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from server.backends.base import Case
from server.backends.fallback import FallbackBackend, parts
from server.backends.openrouter.backend import OpenRouterBackend
from server.backends.openrouter.breaker import Breaker, State
from server.domain.caller import Handling
from server.domain.conversation import Conversation, ImagePart
from server.domain.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    GuardError,
    InvalidRequest,
    Overloaded,
    UnparseableVerdict,
)
from server.domain.policy import Policy
from server.domain.verdict import Completion, judge
from server.moderation.moderator import PROBE
from tests.backends.conftest import TAXONOMY, case
from tests.backends.test_openrouter import sample
from tests.fakes import (
    FakeBackend,
    Gate,
    Script,
    always,
    by_word,
    failing,
    hanging,
    held_at,
    lasting,
    parts_in_memory,
    until,
)
from tests.openrouter import MODEL, Call, Line, ScriptedOpenRouter, answer, endpoint, failure, http, offer, says
from tests.readings import FAMILY

DEAD = failing(EngineUnavailable("The engine is not running."))
TOO_LONG = failing(ContextLengthExceeded("This model's maximum context length is 32768 tokens.", param="messages"))
PROBING = Case(PROBE, (), Policy(TAXONOMY))


@pytest.fixture
def local() -> FakeBackend:
    return FakeBackend()


@pytest_asyncio.fixture
async def fallback(
    local: FakeBackend, remote: ScriptedOpenRouter, request: pytest.FixtureRequest
) -> AsyncIterator[FallbackBackend]:
    """Started; a test changes its arguments with @pytest.mark.parametrize("fallback", [{...}], indirect=True)."""
    settings = remote.settings(backend="vllm", fallback="openrouter", openrouter_retries=0)
    arguments = {"after_s": 0.2, "places": 4, "context_tokens": 32_768} | getattr(request, "param", {})
    remote.script = says("unsafe\nS3")
    fallback = FallbackBackend(local, OpenRouterBackend(settings, TAXONOMY, FAMILY), **arguments)
    await fallback.start()
    yield fallback
    await fallback.close()
    assert local.closed
    assert local.running == 0


def moves(reason: str) -> float:
    return sample("guard_fallback_moves_total", reason=reason)


# --- What moves -------------------------------------------------------------------------------------------


async def test_what_the_local_engine_judges_stays(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    done = await fallback.complete(case("a bomb"))
    assert (done.backend, done.text) == ("fake", "unsafe\nS1,S9")
    assert remote.calls == []


async def test_a_dead_engine_moves(fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter) -> None:
    before = moves("engine_down")
    local.script, local.alive = DEAD, False
    done = await fallback.complete(case("x"))
    assert (done.backend, done.text, len(remote.calls)) == ("openrouter", "unsafe\nS3", 1)
    assert moves("engine_down") - before == 1


async def test_a_slow_engine_is_aborted_and_moves(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    before = moves("slow")
    local.script = hanging
    started = time.monotonic()
    done = await fallback.complete(case("x"))
    assert (done.backend, local.cancelled, local.running) == ("openrouter", 1, 0)
    assert 0.2 <= time.monotonic() - started < 1.5
    assert moves("slow") - before == 1


async def test_an_engine_that_is_just_in_time_stays(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    local.script = lasting(lambda words: 0.05)
    assert (await fallback.complete(case("x"))).backend == "fake"
    assert remote.calls == []


async def test_an_engine_that_answers_while_it_is_aborted_is_believed(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    async def stubborn(case: Case) -> Completion:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return by_word(case)
        raise AssertionError("unreachable")

    local.script = stubborn
    assert (await fallback.complete(case("x"))).backend == "fake"
    assert remote.calls == []


async def test_what_is_too_long_for_local_memory_moves(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    before = moves("context")
    local.script = TOO_LONG
    assert (await fallback.complete(case("x"))).backend == "openrouter"
    assert moves("context") - before == 1


@pytest.mark.parametrize("fallback", [{"context_tokens": 163_840}, {"context_tokens": 200_000}], indirect=True)
async def test_what_is_too_long_for_both_is_the_callers_mistake(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    local.script = TOO_LONG
    with pytest.raises(ContextLengthExceeded, match="32768"):
        await fallback.complete(case("x"))
    assert remote.calls == []


async def test_a_full_queue_moves(fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter) -> None:
    before = moves("queue_full")
    fallback._after_s = 30
    gate = Gate()
    local.script = held_at(gate)
    tasks = [asyncio.create_task(fallback.complete(case("x"))) for _ in range(4)]
    await local.busy_with(4)
    assert (await fallback.complete(case("y"))).backend == "openrouter"
    with pytest.raises(Overloaded) as refused:
        await fallback.complete(case("y", handling=Handling(never_remote=True)))
    assert refused.value.retry_after == 1
    gate.open()
    assert {done.backend for done in await asyncio.gather(*tasks)} == {"fake"}
    assert (await fallback.complete(case("y"))).backend == "fake"
    assert moves("queue_full") - before == 1


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("script", [DEAD, failing(InvalidRequest("The policy leaves no category.")), hanging, None])
async def test_nothing_of_what_both_failed_at_is_left(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter, script: Script | None
) -> None:
    """tests/api/http/test_garbage.py says why."""
    remote.script = answer(500, failure(500))
    if script is None:
        fallback._places = 0
    else:
        local.script = script
    before = parts_in_memory()
    with contextlib.suppress(GuardError):
        await fallback.complete(case("x"))
    local.cases.clear()
    await until(lambda: parts_in_memory() <= before)


# --- What stays -------------------------------------------------------------------------------------------

STAYS: dict[str, Any] = {
    "a mistake": failing(InvalidRequest("The policy leaves no category.")),
    "a failure of this one request": failing(EngineFailure("The engine failed on this request.")),
    "a defect": failing(ValueError("canary")),
    "no verdict": failing(UnparseableVerdict("The model's answer is none.")),
}


@pytest.mark.parametrize("script", STAYS.values(), ids=STAYS)
async def test_what_another_backend_could_not_cure_stays(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter, script: Any
) -> None:
    local.script = script
    with pytest.raises((GuardError, ValueError)) as caught:
        await fallback.complete(case("x"))
    with pytest.raises(type(caught.value)):
        await script(case("x"))
    assert remote.calls == []


@pytest.mark.parametrize(
    "fields",
    [{"text": "Sure!"}, {"text": "safe", "finish_reason": "length"}, {"text": "safe", "finish_reason": "abort"}],
)
async def test_an_answer_that_is_no_verdict_stays(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter, fields: Any
) -> None:
    local.script = always(**fields)
    with pytest.raises((UnparseableVerdict, EngineFailure)):
        judge(await fallback.complete(case("x")), Policy(TAXONOMY))
    assert remote.calls == []


MAY_NOT: dict[str, Case] = {
    "the caller says so": case("x", handling=Handling(never_remote=True)),
    "batch work": case("x", handling=Handling(background=True)),
    "log-probabilities": case("x", handling=Handling(top_logprobs=3)),
    "a control token": case("x <|eot|>"),
    "a control token long ago": case("<|header_start|>", "fine", "x"),
    "own categories": case(
        "x", policy=Policy(TAXONOMY, own_codes=FAMILY.own_codes).narrowed(categories={"S1": "Spoilers."})
    ),
    "excluded categories": case("x", policy=Policy(TAXONOMY).narrowed(excluded=["S1"])),
    "a threshold": case("x", policy=Policy(TAXONOMY).narrowed(threshold=0.9)),
}


@pytest.mark.parametrize("asked", MAY_NOT.values(), ids=MAY_NOT)
@pytest.mark.parametrize("script", [DEAD, TOO_LONG], ids=["dead", "too long"])
async def test_what_may_not_leave_gets_the_local_error(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter, asked: Case, script: Any
) -> None:
    local.script = script
    with pytest.raises((EngineUnavailable, ContextLengthExceeded)):
        await fallback.complete(asked)
    assert remote.calls == []


@pytest.mark.parametrize("asked", MAY_NOT.values(), ids=MAY_NOT)
async def test_what_may_not_leave_has_all_the_time_there_is(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter, asked: Case
) -> None:
    fallback._after_s = 0.01
    local.script = lasting(lambda words: 0.1)
    assert (await fallback.complete(asked)).backend == "fake"
    assert remote.calls == []


# --- When both fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "error"), [(DEAD, EngineUnavailable), (TOO_LONG, ContextLengthExceeded), (hanging, DeadlineExceeded)]
)
@pytest.mark.parametrize("status", [401, 429, 500])
async def test_the_local_error_stands(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter, script: Any, error: Any, status: int
) -> None:
    local.script = script
    remote.script = answer(status, failure(status))
    with pytest.raises(error):
        await fallback.complete(case("x"))
    assert len(remote.calls) == 1


async def test_an_answer_of_the_remote_that_is_no_verdict_is_told_as_one(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    local.script = DEAD
    remote.script = says("safe", message={"refusal": "I'm sorry."})
    with pytest.raises(UnparseableVerdict):
        await fallback.complete(case("x"))


async def test_an_engine_keeps_its_work_while_the_remote_is_left_alone(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    breaker = fallback.remote._breaker = Breaker(failures=1, rest_s=60)
    breaker.failed(breaker.enter())
    local.script = lasting(lambda words: 0.4)
    assert (await fallback.complete(case("x"))).backend == "fake"
    local.script = DEAD
    with pytest.raises(EngineUnavailable, match="not running"):
        await fallback.complete(case("x"))
    assert (remote.calls, local.cancelled) == ([], 0)


async def test_all_but_the_one_that_tries_the_remote_go_back_to_the_engine(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaker = fallback.remote._breaker = Breaker(failures=1, rest_s=0)
    breaker.failed(breaker.enter())
    complete, herd = fallback.remote.complete, asyncio.Barrier(4)

    async def together(case: Case) -> Completion:
        await herd.wait()
        return await complete(case)

    async def held(call: Call, line: Line) -> None:
        await back.passed()
        await says("unsafe\nS3")(call, line)

    monkeypatch.setattr(fallback.remote, "complete", together)
    back, engine = Gate(), Gate()
    remote.script, local.script = held, held_at(engine)
    tasks = [asyncio.create_task(fallback.complete(case("x"))) for _ in range(4)]
    await until(lambda: local.cancelled == 4)
    await local.busy_with(3)
    engine.open()
    back.open()
    done = await asyncio.gather(*tasks)
    assert sorted(one.backend for one in done) == ["fake", "fake", "fake", "openrouter"]
    assert (len(remote.calls), breaker.state) == (1, State.CLOSED)


async def test_a_caller_that_leaves_ends_the_work(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    fallback._after_s = 30
    local.script = hanging
    task = asyncio.create_task(fallback.complete(case("x")))
    await local.busy_with(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (local.cancelled, local.running, fallback._held) == (1, 0, 0)
    assert remote.calls == []


async def test_images_move_too(fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter) -> None:
    local.script = DEAD
    asked = Case(Conversation.from_user(ImagePart("x")), [Image.new("RGB", (8, 8))], Policy(TAXONOMY))
    assert (await fallback.complete(asked)).images == 1
    assert remote.calls[0].json["messages"][0]["content"][0]["type"] == "image_url"


# --- Alive and probed -------------------------------------------------------------------------------------


async def test_a_probe_asks_the_local_engine(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter
) -> None:
    looked = len(remote.looks)
    probed = await fallback.probe(PROBING)
    assert probed is not None
    assert (probed.backend, local.probes, len(remote.looks)) == ("fake", 1, looked)


@pytest.mark.parametrize("script", [DEAD, failing(EngineFailure("It failed."))])
async def test_a_probe_is_never_sent_to_the_remote(
    fallback: FallbackBackend, local: FakeBackend, remote: ScriptedOpenRouter, script: Any, caplog: Any
) -> None:
    caplog.set_level(logging.WARNING)
    local.script, local.alive = script, False
    for _ in range(3):
        assert await fallback.probe(PROBING) is None
    assert remote.calls == []
    assert fallback.alive
    assert caplog.text.count("THE LOCAL ENGINE IS dead") == 1
    local.script, local.alive = by_word, True
    await fallback.probe(PROBING)
    await fallback.probe(PROBING)
    assert caplog.text.count("answers again") == 1


async def test_a_hung_engine_is_not_waited_for(
    fallback: FallbackBackend, local: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.backends.fallback.PROBE_S", 0.05)
    local.script = hanging
    assert await fallback.probe(PROBING) is None
    assert (local.cancelled, local.running) == (1, 0)


async def test_dead_without_a_remote_is_dead(fallback: FallbackBackend, local: FakeBackend) -> None:
    local.script, local.alive = DEAD, False
    breaker = fallback.remote._breaker = Breaker(failures=1, rest_s=60)
    breaker.failed(breaker.enter())
    assert not fallback.alive
    with pytest.raises(EngineUnavailable):
        await fallback.probe(PROBING)
    local.alive = True
    assert fallback.alive


# --- Started ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "documents",
    [
        {"/api/v1/key": http(401, failure(401))},
        {f"/api/v1/models/{MODEL}/endpoints": http(404, failure(404))},
        {f"/api/v1/models/{MODEL}/endpoints": http(200, offer(endpoint("Novita", "novita"), inputs=("text",)))},
    ],
)
async def test_a_start_goes_on_without_the_remote_and_says_so(
    remote: ScriptedOpenRouter, local: FakeBackend, documents: Any, caplog: Any
) -> None:
    caplog.set_level(logging.ERROR)
    remote.documents |= documents
    settings = remote.settings(backend="vllm", fallback="openrouter", openrouter_only="deepinfra")
    fallback = FallbackBackend(
        local, OpenRouterBackend(settings, TAXONOMY, FAMILY), after_s=1, places=4, context_tokens=32_768
    )
    await fallback.start()
    assert local.started
    assert "THE REMOTE BACKEND CANNOT BE USED AS A FALLBACK NOW" in caplog.text
    await fallback.close()


async def test_a_start_without_the_local_engine_fails(remote: ScriptedOpenRouter) -> None:
    class Broken(FakeBackend):
        async def start(self) -> None:
            raise EngineUnavailable("It does not load.")

    settings = remote.settings(backend="vllm", fallback="openrouter")
    fallback = FallbackBackend(
        Broken(), OpenRouterBackend(settings, TAXONOMY, FAMILY), after_s=1, places=4, context_tokens=32_768
    )
    with pytest.raises(EngineUnavailable):
        await fallback.start()
    await fallback.close()


def test_both_parts_are_known(remote: ScriptedOpenRouter, local: FakeBackend) -> None:
    other = OpenRouterBackend(remote.settings(), TAXONOMY, FAMILY)
    fallback = FallbackBackend(local, other, after_s=1, places=4, context_tokens=1)
    assert parts(fallback) == (local, other)
    assert parts(local) == (local,)
    assert fallback.name == "fake+openrouter"
