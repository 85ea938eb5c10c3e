"""Readiness believes verdicts only, and the application's life around them."""

import asyncio
import contextlib
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
