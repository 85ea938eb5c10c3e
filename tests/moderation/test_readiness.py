"""Readiness believes verdicts only, and the application's life around them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from server.app import create_app
from server.checkpoints.profile import load_profile
from server.domain.errors import EngineUnavailable, GuardError, UnparseableVerdict
from server.domain.policy import Policy
from server.families.llama_guard.pictures import SIZES
from server.images import ImageDecoder, ImageLimits
from server.moderation.moderator import Moderator
from server.moderation.readiness import Readiness
from server.settings import Settings
from tests.fakes import FakeBackend, Script, always, by_word, failing, hanging, until

PROFILE = load_profile("llama-guard-4-12b")


@contextlib.asynccontextmanager
async def watched(backend: FakeBackend) -> AsyncIterator[Readiness]:
    moderator = Moderator(backend, ImageDecoder(ImageLimits(), SIZES), Policy(PROFILE.taxonomy))
    readiness = Readiness(moderator, probe_interval_s=0.05, max_age_s=0.15)
    watch = asyncio.create_task(readiness.watch())
    try:
        yield readiness
    finally:
        assert not watch.done(), "the watch ended by itself"
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        moderator.close()


async def test_not_ready_before_the_first_verdict() -> None:
    moderator = Moderator(FakeBackend(), ImageDecoder(ImageLimits(), SIZES), Policy(PROFILE.taxonomy))
    readiness = Readiness(moderator, probe_interval_s=5, max_age_s=12)
    assert readiness.reason_not_ready() == "no recent verdict from the engine"
    await moderator.probe()
    assert readiness.reason_not_ready() is None
    moderator.close()


@pytest.mark.parametrize(
    "fault",
    [
        hanging,
        always("Sure!"),
        always("safe", finish_reason="abort"),
        failing(EngineUnavailable("It is dead.")),
        failing(TimeoutError()),
        failing(ValueError("a defect")),
        failing(asyncio.CancelledError()),
    ],
    ids=["hangs", "nonsense", "aborts", "unavailable", "times out", "defect", "dropped"],
)
async def test_every_fault_ends_readiness_and_its_end_restores_it(fault: Script) -> None:
    backend = FakeBackend()
    async with watched(backend) as readiness:
        await until(lambda: readiness.reason_not_ready() is None)
        backend.script = fault
        await until(lambda: readiness.reason_not_ready() is not None)
        backend.script = by_word
        await until(lambda: readiness.reason_not_ready() is None)
    assert backend.running == 0


async def test_callers_verdicts_make_probes_needless() -> None:
    backend = FakeBackend()
    moderator = Moderator(backend, ImageDecoder(ImageLimits(), SIZES), Policy(PROFILE.taxonomy))
    readiness = Readiness(moderator, probe_interval_s=0.1, max_age_s=0.3)
    await moderator.probe()
    watch = asyncio.create_task(readiness.watch())
    for _ in range(30):
        await moderator.probe()
        await asyncio.sleep(0.01)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    moderator.close()
    assert backend.probes == 31


async def test_death_is_seen_without_waiting() -> None:
    backend = FakeBackend()
    async with watched(backend) as readiness:
        await until(lambda: readiness.reason_not_ready() is None)
        backend.alive = False
        assert not readiness.alive
        assert readiness.reason_not_ready() == "the engine is dead"


# --- A hang ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listened(backend: FakeBackend, hung_after_s: float) -> AsyncIterator[tuple[Moderator, Readiness]]:
    moderator = Moderator(backend, ImageDecoder(ImageLimits(), SIZES), Policy(PROFILE.taxonomy))
    readiness = Readiness(moderator, probe_interval_s=0.05, max_age_s=0.1, hung_after_s=hung_after_s)
    watch = asyncio.create_task(readiness.watch())
    try:
        yield moderator, readiness
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        moderator.close()


@pytest.mark.parametrize("fault", [hanging, always("Sure!")], ids=["hangs", "nonsense"])
async def test_an_engine_that_gives_no_verdict_for_too_long_is_for_a_supervisor(fault: Script) -> None:
    backend = FakeBackend()
    async with listened(backend, 0.5) as (_, readiness):
        await until(lambda: readiness.reason_not_ready() is None)
        backend.script = fault
        await until(lambda: not readiness.alive)
        assert readiness.reason_not_ready() == "the engine hangs"
        backend.script = by_word
        await until(lambda: readiness.alive)
        assert readiness.reason_not_ready() is None


async def test_before_that_it_is_alive() -> None:
    backend = FakeBackend(hanging)
    async with listened(backend, 1000) as (_, readiness):
        await until(lambda: backend.probes >= 2)
        assert readiness.alive


async def test_an_engine_that_works_on_what_callers_sent_does_not_hang() -> None:
    """Long prompts may all pass their deadline. Whoever sends them cannot have the server restarted."""
    backend = FakeBackend(hanging)
    async with listened(backend, 0.3) as (moderator, readiness):

        async def steps() -> None:
            while True:
                backend.heard_at = time.monotonic()
                await asyncio.sleep(0.01)

        stepping = asyncio.create_task(steps())
        with moderator.admission.admit(1):
            await asyncio.sleep(0.8)
            assert readiness.alive
        # Without callers' work the same steps only show that it is busy with itself.
        await until(lambda: not readiness.alive)
        stepping.cancel()


async def test_a_server_that_was_stopped_itself_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its container slept for an hour: the engine had no chance to answer."""
    backend, slept = FakeBackend(), 0.0
    real = time.monotonic
    monkeypatch.setattr("server.moderation.readiness.time.monotonic", lambda: real() + slept)
    async with listened(backend, 0.5) as (_, readiness):
        await until(lambda: readiness.reason_not_ready() is None)
        backend.script = hanging
        slept = 3600.0
        await asyncio.sleep(0.2)
        assert readiness.alive
        await until(lambda: not readiness.alive)


async def test_what_else_is_missing_is_told() -> None:
    moderator = Moderator(FakeBackend(), ImageDecoder(ImageLimits(), SIZES), Policy(PROFILE.taxonomy))
    missing: list[str | None] = [None]
    readiness = Readiness(moderator, probe_interval_s=5, max_age_s=12, conditions=[lambda: None, lambda: missing[0]])
    await moderator.probe()
    assert readiness.reason_not_ready() is None
    missing[0] = "the moon is down"
    assert readiness.reason_not_ready() == "the moon is down"
    assert readiness.alive
    moderator.close()


# --- The application's life ------------------------------------------------------------------------------


async def test_a_start_takes_a_verdict_and_an_end_closes_the_backend() -> None:
    backend = FakeBackend()
    app = create_app(Settings(), PROFILE, backend)
    async with app.router.lifespan_context(app):
        assert (backend.started, backend.probes, backend.closed) == (True, 1, False)
        assert app.state.served.readiness.reason_not_ready() is None
    assert backend.closed


@pytest.mark.parametrize(
    ("script", "error"),
    [(always("Sure!"), UnparseableVerdict), (failing(EngineUnavailable("It is dead.")), GuardError)],
)
async def test_a_start_without_a_verdict_fails_and_leaves_nothing_behind(
    script: Script, error: type[Exception]
) -> None:
    backend = FakeBackend(script)
    app = create_app(Settings(), PROFILE, backend)
    with pytest.raises(error):
        async with app.router.lifespan_context(app):
            pytest.fail("it served without a verdict")
    assert backend.closed


async def test_a_backend_that_starts_halfway_is_closed() -> None:
    class Halfway(FakeBackend):
        async def start(self) -> None:
            raise MemoryError

    backend = Halfway()
    app = create_app(Settings(), PROFILE, backend)
    with pytest.raises(MemoryError):
        async with app.router.lifespan_context(app):
            pytest.fail("it served without an engine")
    assert backend.closed
