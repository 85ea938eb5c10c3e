"""The heart on its own: order, bounds, deadlines, and what it believes."""

import asyncio
import base64
import io
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from server.app import create_moderator
from server.backends.base import Case
from server.backends.fallback import FallbackBackend
from server.checkpoints.profile import load_profile
from server.domain import events
from server.domain.caller import ORDINARY, Handling
from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
    TooManyImages,
    UnparseableVerdict,
)
from server.domain.events import Judged
from server.domain.policy import Policy
from server.domain.verdict import About, CacheUse, Completion, Verdict
from server.families.llama_guard.pictures import SIZES
from server.images import DecodedImage, ImageDecoder, ImageLimits
from server.moderation.moderator import PROBE, Moderator
from server.moderation.question import LONG_TEXT
from server.moderation.verdict_cache import VerdictCache
from server.settings import Settings
from tests.fakes import FakeBackend, Gate, Script, always, by_word, failing, hanging, held_at, lasting, until

PROFILE = load_profile("llama-guard-4-12b")


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def moderator(backend: FakeBackend, request: pytest.FixtureRequest) -> Iterator[Moderator]:
    limits: dict[str, Any] = getattr(request, "param", {})
    moderator = Moderator(backend, ImageDecoder(ImageLimits(), SIZES), Policy(PROFILE.taxonomy), **limits)
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


# --- The same question, asked again or by several ---------------------------------------------------------

OLD = -float("inf")


@pytest.fixture
def cached(backend: FakeBackend, request: pytest.FixtureRequest) -> Iterator[Moderator]:
    """A moderator that keeps verdicts."""
    limits: dict[str, Any] = getattr(request, "param", {})
    cache = VerdictCache(100, 60.0)
    moderator = Moderator(backend, ImageDecoder(ImageLimits(), SIZES), Policy(PROFILE.taxonomy), cache=cache, **limits)
    yield moderator
    moderator.close()


BOMB = Conversation.from_user(TextPart("a bomb"))
OWN = Policy(PROFILE.taxonomy).narrowed(threshold=0.25)


async def test_what_was_judged_is_not_judged_again(cached: Moderator, backend: FakeBackend) -> None:
    first, second = await cached.moderate(BOMB), await cached.moderate(BOMB)
    assert (first.cache, second.cache) == (None, CacheUse.HIT)
    assert second == first.uncomputed(CacheUse.HIT)
    assert len(backend.cases) == 1


async def test_nothing_is_kept_unless_the_operator_says_so(moderator: Moderator, backend: FakeBackend) -> None:
    verdicts = [await moderator.moderate(BOMB) for _ in range(2)]
    assert [verdict.cache for verdict in verdicts] == [None, None]
    assert len(backend.cases) == 2


@pytest.mark.parametrize(
    ("policy", "handling"),
    [
        (OWN, ORDINARY),
        (None, Handling(tenant="key_1")),
        (None, Handling(never_remote=True)),
        (None, Handling(top_logprobs=0)),
    ],
)
async def test_another_policy_tenant_or_wish_is_another_question(
    cached: Moderator, backend: FakeBackend, policy: Policy | None, handling: Handling
) -> None:
    await cached.moderate(BOMB)
    assert (await cached.moderate(BOMB, policy, handling)).cache is None
    assert (await cached.moderate(BOMB, policy, handling)).cache is CacheUse.HIT
    assert len(backend.cases) == 2


async def test_tenants_wait_apart(moderator: Moderator, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    handlings = [Handling(tenant="key_1"), Handling(tenant="key_2"), ORDINARY]
    tasks = [asyncio.create_task(moderator.moderate(BOMB, handling=handling)) for handling in handlings]
    await backend.busy_with(3)
    gate.open()
    assert [verdict.cache for verdict in await asyncio.gather(*tasks)] == [None, None, None]


async def test_a_hit_comes_from_a_full_server_and_a_dead_engine(cached: Moderator, backend: FakeBackend) -> None:
    await cached.moderate(BOMB)
    backend.alive, backend.script = False, failing(EngineUnavailable("The engine is not running."))
    cached.admission.admitted = cached.admission.limit
    assert (await cached.moderate(BOMB)).unsafe
    assert (await cached.moderate(BOMB, handling=Handling(background=True))).unsafe
    with pytest.raises(Overloaded):
        await cached.moderate(says("bread")[0])
    with pytest.raises(Overloaded):
        await cached.moderate_all([BOMB, *says("bread")])


async def test_a_draining_server_tells_no_hits_either(cached: Moderator) -> None:
    await cached.moderate(BOMB)
    cached.admission.draining = True
    with pytest.raises(ShuttingDown):
        await cached.moderate(BOMB)


async def test_a_hit_proves_nothing_of_the_engine(cached: Moderator, backend: FakeBackend) -> None:
    await cached.moderate(BOMB)
    cached.last_verdict_at = OLD
    reset = (cached.admission.admitted, cached.admission._seconds_each)
    for _ in range(10):
        await cached.moderate(BOMB)
    assert cached.last_verdict_at == OLD
    assert (cached.admission.admitted, cached.admission._seconds_each) == reset


async def test_probes_are_always_of_the_engine(cached: Moderator, backend: FakeBackend) -> None:
    for _ in range(2):
        await cached.moderate(PROBE)
        await cached.probe()
    assert backend.probes == 3


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (failing(EngineFailure("The engine failed.")), EngineFailure),
        (failing(ValueError()), ValueError),
        (always("Sure!"), UnparseableVerdict),
        (always("safe", finish_reason="abort"), EngineFailure),
    ],
)
async def test_an_error_is_not_kept(cached: Moderator, backend: FakeBackend, script: Any, error: Any) -> None:
    backend.script = script
    for _ in range(2):
        with pytest.raises(error):
            await cached.moderate(BOMB)
    assert len(backend.cases) == 2
    backend.script = by_word
    assert (await cached.moderate(BOMB)).cache is None


async def test_what_another_backend_judged_for_this_one_is_not_kept(cached: Moderator, backend: FakeBackend) -> None:
    backend.script = always(
        "unsafe\nS1", backend="other", levels=None, shares=None, tokens=None, no_scores="It has none."
    )
    for _ in range(2):
        verdict = await cached.moderate(BOMB)
        assert (verdict.completion.backend, verdict.cache) == ("other", None)
    backend.script = by_word
    assert (await cached.moderate(BOMB)).p_unsafe is not None


async def test_the_first_of_two_backends_is_the_one_whose_verdicts_are_kept() -> None:
    local, remote = FakeBackend(), FakeBackend(always("safe", backend="remote"))
    remote.name = "remote"
    both = FallbackBackend(local, remote, after_s=1.0, places=8, context_tokens=1000)  # type: ignore[arg-type]
    policy = Policy(PROFILE.taxonomy)
    moderator = Moderator(both, ImageDecoder(ImageLimits(), SIZES), policy, cache=VerdictCache(10, 60.0))
    remote.refusal = lambda case: "never"  # type: ignore[attr-defined]
    await moderator.moderate(BOMB)
    assert (await moderator.moderate(BOMB)).cache is CacheUse.HIT
    moderator.close()


async def test_a_picture_is_known_by_its_bytes(cached: Moderator, backend: FakeBackend) -> None:
    red, blue = (Conversation.from_user(picture(colour), TextPart("x")) for colour in ("red", "blue"))
    verdicts = [await cached.moderate(conversation) for conversation in (red, blue, red)]
    assert [verdict.cache for verdict in verdicts] == [None, None, CacheUse.HIT]
    assert [case.images[0].getpixel((0, 0)) for case in backend.cases] == [(255, 0, 0), (0, 0, 255)]


async def test_a_hit_is_not_decoded(cached: Moderator, monkeypatch: pytest.MonkeyPatch) -> None:
    red = Conversation.from_user(picture("red"))
    await cached.moderate(red)
    monkeypatch.setattr(cached, "_decoder", None)
    assert (await cached.moderate(red)).cache is CacheUse.HIT
    monkeypatch.undo()


# --- Lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moderator", [{"max_queue": 2, "list_concurrency": 2}], indirect=True)
async def test_a_list_that_repeats_itself_is_judged_once(moderator: Moderator, backend: FakeBackend) -> None:
    verdicts = await moderator.moderate_all(says("bread", "a bomb", "bread", "bread", "a bomb"))
    assert [verdict.unsafe for verdict in verdicts] == [False, True, False, False, True]
    assert [verdict.cache for verdict in verdicts] == [None, None, *[CacheUse.JOINED] * 3]
    assert sorted(backend.texts) == ["User: a bomb", "User: bread"]


async def test_a_list_asks_only_for_what_is_not_known(cached: Moderator, backend: FakeBackend) -> None:
    await cached.moderate_all(says("a bomb", "water"))
    verdicts = await cached.moderate_all(says("bread", "a bomb", "bread", "water", "a bomb"))
    assert [verdict.unsafe for verdict in verdicts] == [False, True, False, False, True]
    uses = [None, CacheUse.HIT, CacheUse.JOINED, CacheUse.HIT, CacheUse.HIT]
    assert [verdict.cache for verdict in verdicts] == uses
    assert len(backend.cases) == 3


async def test_an_address_is_asked_for_each_time(cached: Moderator, backend: FakeBackend, monkeypatch: Any) -> None:
    async def decode(images: Any, _: str) -> list[Any]:
        return [DecodedImage((Image.new("RGB", (8, 8)),), 1, "PNG") for _ in images]

    monkeypatch.setattr(cached._decoder, "decode", decode)
    remote = Conversation.from_user(ImagePart("https://host/picture.png"))
    verdicts = await cached.moderate_all([remote, remote]) + await cached.moderate_all([remote])
    assert [verdict.cache for verdict in verdicts] == [None, None, None]
    assert len(backend.cases) == 3


# --- At the same time -------------------------------------------------------------------------------------


async def asked(moderator: Moderator, count: int, handling: Handling = ORDINARY) -> list[asyncio.Task[Verdict]]:
    tasks = [asyncio.create_task(moderator.moderate(BOMB, handling=handling)) for _ in range(count)]
    await until(lambda: moderator.admission.admitted >= count)
    return tasks


@pytest.mark.parametrize("leaving", [(), (0,), (1,), (0, 1)])
async def test_what_several_ask_at_once_is_judged_once_whoever_hangs_up(
    moderator: Moderator, backend: FakeBackend, leaving: tuple[int, ...]
) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    tasks = await asked(moderator, 4)
    await backend.busy_with(1)
    for index in leaving:
        tasks[index].cancel()
    await asyncio.gather(*(tasks[index] for index in leaving), return_exceptions=True)
    gate.open()
    verdicts = await asyncio.gather(*(task for index, task in enumerate(tasks) if index not in leaving))
    assert [verdict.unsafe for verdict in verdicts] == [True] * len(verdicts)
    assert [verdict.cache for verdict in verdicts] == [None, *[CacheUse.JOINED] * (len(verdicts) - 1)]
    assert (len(backend.cases), backend.cancelled, moderator.admission.admitted) == (1, 0, 0)


async def test_once_all_have_hung_up_the_engine_stops(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = hanging
    tasks = await asked(moderator, 3)
    await backend.busy_with(1)
    for task in tasks:
        assert backend.cancelled == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (backend.running, backend.cancelled, moderator.admission.admitted) == (0, 1, 0)
    backend.script = by_word
    assert (await moderator.moderate(BOMB)).unsafe


@pytest.mark.parametrize("moderator", [{"max_queue": 3}], indirect=True)
async def test_whoever_waits_for_another_holds_a_place(moderator: Moderator, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    tasks = await asked(moderator, 3)
    with pytest.raises(Overloaded):
        await moderator.moderate(BOMB)
    gate.open()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("moderator", [{"deadline_s": 0.3}], indirect=True)
async def test_each_has_a_deadline_of_its_own(
    moderator: Moderator, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    early = asyncio.create_task(moderator.moderate(BOMB))
    await backend.busy_with(1)
    monkeypatch.setattr(moderator, "_deadline_s", 60.0)
    late = asyncio.create_task(moderator.moderate(BOMB))
    with pytest.raises(DeadlineExceeded):
        await early
    gate.open()
    assert (await late).cache is None  # nobody else is left for whom it was computed
    assert (len(backend.cases), backend.cancelled) == (1, 0)


@pytest.mark.parametrize("moderator", [{"deadline_s": 0.05}], indirect=True)
async def test_work_ends_with_the_last_deadline(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = hanging
    results = await asyncio.gather(*await asked(moderator, 3), return_exceptions=True)
    assert [type(result) for result in results] == [DeadlineExceeded] * 3
    assert (backend.running, backend.cancelled, moderator.admission.admitted) == (0, 1, 0)


async def test_a_backend_that_was_out_of_time_for_one_is_asked_again_for_the_others(
    moderator: Moderator, backend: FakeBackend
) -> None:
    deadlines: list[float] = []

    async def script(case: Case) -> Completion:
        deadlines.append(case.deadline)
        if len(deadlines) > 1:
            return by_word(case)
        await gate.passed()
        raise DeadlineExceeded("No verdict in time.")

    gate = Gate()
    backend.script = script
    tasks = await asked(moderator, 3)
    gate.open()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, DeadlineExceeded)
    assert [getattr(verdict, "cache", verdict) for verdict in others] == [None, CacheUse.JOINED]
    assert deadlines[1] > deadlines[0]


async def test_an_error_of_several_is_each_ones_own(moderator: Moderator, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate, failing(EngineFailure("The engine failed.")))
    tasks = await asked(moderator, 3)
    gate.open()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["The engine failed."] * 3
    assert len({id(error) for error in errors}) == 3


async def test_work_that_is_dropped_below_fails_all_who_wait(moderator: Moderator, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate, failing(asyncio.CancelledError()))
    tasks = await asked(moderator, 3)
    gate.open()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [EngineFailure] * 3


@pytest.mark.parametrize("first", [True, False])
async def test_a_live_request_does_not_wait_for_background_work(
    moderator: Moderator, backend: FakeBackend, first: bool
) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    tasks = [
        asyncio.create_task(moderator.moderate(BOMB, handling=Handling(background=background)))
        for background in (first, not first)
    ]
    await backend.busy_with(2)
    gate.open()
    assert [verdict.cache for verdict in await asyncio.gather(*tasks)] == [None, None]


async def test_verdicts_of_the_background_are_kept_for_all(cached: Moderator) -> None:
    await cached.moderate(BOMB, handling=Handling(background=True))
    assert (await cached.moderate(BOMB)).cache is CacheUse.HIT


async def test_a_broken_image_is_told_where_each_of_them_sent_it(moderator: Moderator, backend: FakeBackend) -> None:
    params = ("input[0].image_url", "messages[0].content[1].image_url.url")
    broken = [Conversation.from_user(ImagePart("data:image/png;base64,AAAA", param)) for param in params]
    errors = await asyncio.gather(*map(moderator.moderate, broken), return_exceptions=True)
    assert [getattr(error, "param", None) for error in errors] == list(params)


# --- Several passes for one verdict ------------------------------------------------------------------------


def turn(*words: str) -> Conversation:
    return Conversation.from_user(*(TextPart(word, f"field {number}") for number, word in enumerate(words)))


async def test_the_passes_of_a_short_conversation_run_together(moderator: Moderator, backend: FakeBackend) -> None:
    backend.script = lasting(lambda _: 0.005)
    verdict = await moderator.moderate(turn("a", "b", "a bomb"))
    assert (verdict.unsafe, verdict.passes, backend.most_running) == (True, 4, 4)
    assert verdict.about in (None, About("field 2"))


async def test_the_passes_of_a_long_one_follow_each_other(moderator: Moderator, backend: FakeBackend) -> None:
    """Each then finds what it shares with those before it in the prefix cache."""
    backend.script = lasting(lambda _: 0.001)
    verdict = await moderator.moderate(turn("a" * LONG_TEXT, "b"))
    assert (verdict.passes, backend.most_running) == (3, 1)
    assert [len(text) > LONG_TEXT for text in backend.asked] == [True, False, False]


@pytest.mark.parametrize("moderator", [{"max_queue": 4, "list_concurrency": 4}], indirect=True)
async def test_every_pass_takes_a_place(moderator: Moderator, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    task = asyncio.create_task(moderator.moderate(turn("a", "b")))
    await backend.busy_with(3)
    assert moderator.admission.admitted == 3
    with pytest.raises(Overloaded):
        await moderator.moderate(turn("c", "d"))
    gate.open()
    assert (await task).passes == 3
    assert moderator.admission.admitted == 0


@pytest.mark.parametrize("moderator", [{"list_concurrency": 4}], indirect=True)
async def test_items_of_a_list_with_several_passes_keep_to_its_places(
    moderator: Moderator, backend: FakeBackend
) -> None:
    backend.script = lasting(lambda _: 0.002)
    verdicts = await moderator.moderate_all([turn(f"a{n}", f"b{n}") for n in range(8)])
    assert [verdict.passes for verdict in verdicts] == [3] * 8
    assert backend.most_running == 4


async def test_a_list_that_would_take_too_many_passes_asks_about_each_item_whole(
    moderator: Moderator, backend: FakeBackend
) -> None:
    chats = [turn("\n".join(f"User: {word} {number}" for word in ("a", "b", "a bomb"))) for number in range(20)]
    verdicts = await moderator.moderate_all(chats)
    assert len(backend.cases) == len(chats)
    assert {(verdict.unsafe, verdict.passes, verdict.lookalikes) for verdict in verdicts} == {(True, 1, 3)}
    # Alone it is asked about message by message, and is another question.
    assert (await moderator.moderate(chats[0])).passes == 4


@pytest.mark.parametrize("moderator", [{"cache": VerdictCache(99, 60.0)}], indirect=True)
async def test_an_item_of_one_pass_is_the_same_question_in_any_list(moderator: Moderator) -> None:
    await moderator.moderate_all(says("bread"))
    chats = [turn(f"User: a\nAgent: {number}") for number in range(20)]
    *others, bread = await moderator.moderate_all([*chats, *says("bread")])
    assert {verdict.passes for verdict in others} == {1}
    assert bread.cache is CacheUse.HIT


@pytest.mark.parametrize("moderator", [{"max_characters": 1000}], indirect=True)
async def test_what_no_context_could_hold_is_not_even_read(moderator: Moderator, backend: FakeBackend) -> None:
    for words in (("a" * 1001,), ("a" * 500, "b" * 501)):
        with pytest.raises(ContextLengthExceeded):
            await moderator.moderate(turn(*words))
    assert backend.cases == []
    assert (await moderator.moderate(turn("a" * 1000))).passes == 1


@pytest.mark.parametrize("script", [always("Sure!"), failing(EngineFailure("The engine failed."))])
async def test_one_pass_without_a_verdict_is_no_verdict(
    moderator: Moderator, backend: FakeBackend, script: Script
) -> None:
    def faulty(case: Case) -> Completion | Awaitable[Completion]:
        return script(case) if case.conversation.turns[-1].texts[-1] == "b" else by_word(case)

    backend.script = faulty
    for words in (("a", "b"), ("a bomb", "b")):
        with pytest.raises((UnparseableVerdict, EngineFailure)):
            await moderator.moderate(turn(*words))
    assert (backend.running, moderator.admission.admitted) == (0, 0)


async def test_images_are_decoded_once_and_stand_where_each_pass_shows_them(
    moderator: Moderator, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = ImageDecoder.decode

    async def counted(decoder: ImageDecoder, images: Sequence[ImagePart], holder: str) -> list[DecodedImage]:
        decoded.append(len(images))
        return await decode(decoder, images, holder)

    monkeypatch.setattr(ImageDecoder, "decode", counted)
    said = [
        Message("user", (picture("red"), TextPart("a"))),
        Message("assistant", (picture("lime"), TextPart("b"))),
        Message("system", (picture("blue"), TextPart("c"))),
    ]
    await moderator.moderate(Conversation.from_messages(said))
    red, lime, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    shown = {
        case.conversation.turns[-1].texts[-1]: [image.getpixel((0, 0)) for image in case.images]
        for case in backend.cases
    }
    # The operator's turn stands behind the answer where it is judged itself, and before it as its context.
    assert shown == {"c": [red, lime, blue], "b": [red, blue, lime]}
    assert decoded == [3]


@pytest.mark.parametrize("moderator", [{"cache": VerdictCache(9, 60.0)}], indirect=True)
async def test_a_verdict_of_several_passes_is_kept_and_names_the_fields_of_each_request(
    moderator: Moderator, backend: FakeBackend
) -> None:
    first = await moderator.moderate(turn("a", "a bomb\nUser: b"))
    again = await moderator.moderate(
        Conversation.from_user(TextPart("a", "input[0]"), TextPart("a bomb\nUser: b", "input[1]"))
    )
    assert (again.cache, again.passes, again.lookalikes) == (CacheUse.HIT, first.passes, 2)
    assert first.about is None or first.about.param == "field 1"
    assert (again.about is None) == (first.about is None)
    assert again.about is None or again.about == About("input[1]", 1)
    assert len(backend.cases) == first.passes


async def test_the_operators_words_are_another_question_than_the_users(moderator: Moderator) -> None:
    operator, user = (
        Conversation.from_messages([Message(role, (TextPart("a bomb"),)), Message("user", (TextPart("hi"),))])
        for role in ("system", "user")
    )
    assert [verdict.unsafe for verdict in await moderator.moderate_all([operator, user])] == [False, True]


# --- Events ----------------------------------------------------------------------------------------------


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Judged]:
    """The verdicts that are published, to nobody else than this."""
    heard: list[Judged] = []
    monkeypatch.setattr(events, "_listeners", {Judged: (heard.append,)})
    return heard


async def test_every_verdict_is_published_once_and_says_how_it_was_had(
    cached: Moderator, backend: FakeBackend, heard: list[Judged]
) -> None:
    handling = Handling(tenant="key_1", request_id="req_1")
    await cached.moderate_all(says("bomb", "bread", "bread"), handling=handling)
    await cached.moderate_all(says("bread"), handling=replace(handling, request_id="req_2"))
    told = [(event.verdict.unsafe, event.verdict.cache, event.request_id, event.caller) for event in heard]
    assert told == [
        (True, None, "req_1", "key_1"),
        (False, None, "req_1", "key_1"),
        (False, CacheUse.JOINED, "req_1", "key_1"),
        (False, CacheUse.HIT, "req_2", "key_1"),
    ]
    assert [event.seconds > 0 for event in heard] == [True, True, False, False]


async def test_a_verdict_is_published_even_if_another_one_of_its_request_fails(
    moderator: Moderator, backend: FakeBackend, heard: list[Judged]
) -> None:
    """The work was done: its tokens are counted."""

    async def script(case: Case) -> Completion:
        if "fails" in case.conversation.turns[0].texts:
            await until(lambda: bool(heard))
            raise EngineFailure("The engine failed.")
        return by_word(case)

    backend.script = script
    with pytest.raises(EngineFailure):
        await moderator.moderate_all(says("bread", "fails"))
    assert [event.verdict.unsafe for event in heard] == [False]


async def test_a_probe_is_no_verdict_of_anybodys(moderator: Moderator, heard: list[Judged]) -> None:
    await moderator.probe()
    assert heard == []


async def test_a_listener_that_fails_costs_no_verdict(moderator: Moderator, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_listener(event: Judged) -> None:
        raise RuntimeError

    monkeypatch.setattr(events, "_listeners", {Judged: (failing_listener,)})
    assert (await moderator.moderate(BOMB)).unsafe
