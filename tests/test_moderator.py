"""The heart on its own: order, bounds, deadlines, and what it believes."""

import asyncio
import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from server.app import create_moderator
from server.backends.base import Case
from server.caller import Handling
from server.conversation import Conversation, ImagePart, TextPart
from server.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
    TooManyImages,
    UnparseableVerdict,
)
from server.images import ImageDecoder, ImageLimits
from server.moderator import Moderator
from server.policy import Policy
from server.profile import load_profile
from server.settings import Settings
from server.verdict import Completion
from tests.fakes import FakeBackend, Gate, always, by_word, failing, hanging, held_at, lasting

PROFILE = load_profile("llama-guard-4-12b")


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def moderator(backend: FakeBackend, request: pytest.FixtureRequest) -> Iterator[Moderator]:
    limits: dict[str, Any] = getattr(request, "param", {})
    moderator = Moderator(backend, ImageDecoder(ImageLimits()), Policy(PROFILE.taxonomy), **limits)
    yield moderator
    moderator.close()


def says(*words: str) -> list[Conversation]:
    return [Conversation.from_user(TextPart(word)) for word in words]


def picture(colour: str) -> ImagePart:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return ImagePart(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")


async def test_verdicts_come_back_in_order_whatever_the_order_of_their_making(
    moderator: Moderator, backend: FakeBackend
) -> None:
    finished: list[str] = []

    def script(case: Case) -> Completion:
        finished.append(case.conversation.turns[0].texts[0])
        return by_word(case)

    backend.script = lasting(lambda words: 0.03 if "first" in words else 0.0, script)
    verdicts = await moderator.moderate_all(says("first bomb", "second", "third bomb"))
    assert finished[-1] == "first bomb"
    assert [verdict.unsafe for verdict in verdicts] == [True, False, True]


@pytest.mark.parametrize("moderator", [{"list_concurrency": 4}], indirect=True)
async def test_only_so_many_of_a_list_run_at_once(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = lasting(lambda _: 0.002)
    assert len(await moderator.moderate_all(says(*"abcdefghij"))) == 10
    assert backend.most_running == 4


async def test_an_error_ends_the_others_before_it_is_told(moderator: Moderator, backend: FakeBackend) -> None:
    async def script(case: Case) -> Completion:
        if "fails" in case.conversation.turns[0].texts:
            raise EngineFailure("The engine failed.")
        return await hanging(case)

    backend.script = script
    with pytest.raises(EngineFailure):
        await moderator.moderate_all(says("hangs", "hangs too", "fails"))
    assert (backend.running, backend.cancelled) == (0, 2)
    assert moderator.admission.admitted == 0


async def test_cancelling_the_caller_cancels_the_work(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = hanging
    task = asyncio.create_task(moderator.moderate_all(says(*"abc")))
    await backend.busy_with(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (backend.running, backend.cancelled, moderator.admission.admitted) == (0, 3, 0)


@pytest.mark.parametrize("moderator", [{"deadline_s": 0.02}], indirect=True)
async def test_a_deadline_passes_and_the_work_is_aborted(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = hanging
    with pytest.raises(DeadlineExceeded):
        await moderator.moderate(says("x")[0])
    assert (backend.running, backend.cancelled, moderator.admission.admitted) == (0, 1, 0)


async def test_work_that_is_dropped_below_is_told_as_a_failure(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = failing(asyncio.CancelledError())
    with pytest.raises(EngineFailure):
        await moderator.moderate(says("x")[0])
    with pytest.raises(EngineFailure):
        await moderator.moderate_all(says("x", "y"))


@pytest.mark.parametrize("moderator", [{"max_queue": 2, "list_concurrency": 2}], indirect=True)
async def test_the_queue_is_bounded_and_comes_free_again(moderator: Moderator, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    tasks = [asyncio.create_task(moderator.moderate(conversation)) for conversation in says("a", "b")]
    await backend.busy_with(2)
    with pytest.raises(Overloaded) as refused:
        await moderator.moderate(says("c")[0])
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1
    gate.open()
    await asyncio.gather(*tasks)
    await moderator.moderate(says("c")[0])


@pytest.mark.parametrize("moderator", [{"max_queue": 1, "list_concurrency": 1}], indirect=True)
async def test_nothing_is_decoded_before_it_is_admitted(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = hanging
    task = asyncio.create_task(moderator.moderate(says("x")[0]))
    await backend.busy_with(1)
    with pytest.raises(Overloaded):
        await moderator.moderate(Conversation.from_user(ImagePart("data:broken")))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_draining_takes_nothing_new_and_keeps_what_it_has(moderator: Moderator, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    task = asyncio.create_task(moderator.moderate_all(says(*"abc")))
    await backend.busy_with(3)
    moderator.admission.draining = True
    with pytest.raises(ShuttingDown):
        await moderator.moderate(says("x")[0])
    gate.open()
    assert len(await task) == 3


async def test_images_reach_the_backend_in_the_order_of_the_conversation(
    moderator: Moderator, backend: FakeBackend
) -> None:
    await moderator.moderate(Conversation.from_user(picture("red"), TextPart("x"), picture("blue")))
    (case,) = backend.cases
    assert [image.getpixel((0, 0)) for image in case.images] == [(255, 0, 0), (0, 0, 255)]


async def test_a_broken_image_fails_the_request_before_the_backend(moderator: Moderator, backend: FakeBackend) -> None:
    with pytest.raises(InvalidImage):
        await moderator.moderate(Conversation.from_user(picture("red"), ImagePart("data:image/png;base64,AAAA")))
    assert backend.cases == []
    assert moderator.admission.admitted == 0


# --- The last verdict, on which readiness rests ----------------------------------------------------------


@pytest.mark.parametrize("script", [always("Sure!"), always("safe", finish_reason="abort"), failing(ValueError())])
async def test_only_a_checked_verdict_counts_as_one(moderator: Moderator, backend: FakeBackend, script: Any) -> None:
    backend.script = script
    with pytest.raises((UnparseableVerdict, EngineFailure, ValueError)):
        await moderator.probe()
    assert moderator.last_verdict_at == -float("inf")
    backend.script = by_word
    await moderator.probe()
    assert moderator.last_verdict_at > 0


@pytest.mark.parametrize("moderator", [{"max_queue": 1, "list_concurrency": 1}], indirect=True)
async def test_a_probe_passes_a_full_queue(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = held_at(Gate())
    task = asyncio.create_task(moderator.moderate(says("x")[0]))
    await backend.busy_with(1)
    await moderator.probe()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- Built from settings and a profile -------------------------------------------------------------------


async def test_a_profile_without_images_takes_none(backend: FakeBackend) -> None:
    moderator = create_moderator(Settings(), load_profile("llama-guard-4-12b:text-only"), backend)
    with pytest.raises(TooManyImages):
        await moderator.moderate(Conversation.from_user(picture("red"), TextPart("x")))
    assert backend.cases == []
    moderator.close()


async def test_settings_do_not_allow_more_images_than_the_profile(backend: FakeBackend) -> None:
    moderator = create_moderator(Settings(max_images=50), PROFILE, backend)
    with pytest.raises(TooManyImages):
        await moderator.moderate(Conversation.from_user(*[picture("red")] * (PROFILE.image_limit + 1)))
    moderator.close()


def test_an_operators_policy_that_leaves_nothing_is_refused(backend: FakeBackend) -> None:
    with pytest.raises(InvalidRequest):
        create_moderator(Settings(excluded_categories=",".join(PROFILE.taxonomy.codes)), PROFILE, backend)


# --- Handling --------------------------------------------------------------------------------------------


async def test_the_backend_hears_how_a_case_is_to_be_handled(moderator: Moderator, backend: FakeBackend) -> None:
    handling = Handling(tenant="key_1", never_remote=True, background=True, top_logprobs=3)
    await moderator.moderate(says("bread")[0], handling=handling)
    assert backend.cases[0].handling == handling


@pytest.mark.parametrize("moderator", [{"max_queue": 4, "list_concurrency": 1}], indirect=True)
async def test_live_requests_find_room_beside_any_amount_of_background_work(
    moderator: Moderator, backend: FakeBackend
) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    background = Handling(background=True)
    work = [asyncio.create_task(moderator.moderate(words, handling=background)) for words in says(*"abcdefgh")]
    await backend.busy_with(2)
    live = [asyncio.create_task(moderator.moderate(words)) for words in says("bread", "a bomb")]
    await backend.busy_with(4)
    gate.open()
    assert [verdict.unsafe for verdict in await asyncio.gather(*live)] == [False, True]
    assert len(await asyncio.gather(*work)) == 8
