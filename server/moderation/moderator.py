"""The heart: a conversation in, a verdict out."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from server.backends.base import Backend, Case
from server.backends.fallback import parts
from server.domain.caller import ORDINARY, Handling
from server.domain.conversation import Conversation, TextPart
from server.domain.errors import ContextLengthExceeded, DeadlineExceeded, EngineFailure
from server.domain.policy import Policy
from server.domain.verdict import CacheUse, Verdict, judge, strictest
from server.images import ImageDecoder
from server.moderation.admission import Admission
from server.moderation.in_flight import InFlight
from server.moderation.passes import MAX_PASSES, Passes, passes_of_all
from server.moderation.question import Key, Questions
from server.moderation.verdict_cache import VerdictCache
from server.observation import metrics

Result = TypeVar("Result")

PROBE = Conversation.from_user(TextPart("hello"))

LONG_TEXT = 16_384
"""Characters of a request that is read for look-alikes on the event loop, and whose passes are asked together.

The passes of a longer one come one after another: each finds what they share in the engine's prefix cache."""


@dataclass(frozen=True, slots=True)
class _Question:
    """A conversation and the prompts that are asked about it."""

    key: Key
    conversation: Conversation
    passes: Passes


class Moderator:
    """Judges conversations through one backend, within a bounded queue and a deadline."""

    def __init__(
        self,
        backend: Backend,
        decoder: ImageDecoder,
        policy: Policy,
        *,
        max_queue: int = 256,
        list_concurrency: int = 32,
        deadline_s: float = 60.0,
        max_characters: float = math.inf,
        served: str = "",
        cache: VerdictCache | None = None,
    ) -> None:
        """A conversation of more than `max_characters` is refused before it is read.

        `served` says which model judges, and how it is asked: all that could change a verdict beside a request.
        """
        self.backend = backend
        self.policy = policy
        self.admission = Admission(max_queue)
        self.last_verdict_at = -float("inf")
        """time.monotonic() of the last verdict that came through the backend."""
        self._decoder = decoder
        self._list_concurrency = list_concurrency
        self._deadline_s = deadline_s
        self._max_characters = max_characters
        self._questions = Questions(served, policy)
        self._in_flight: InFlight[Verdict] = InFlight()
        self._cache = cache or VerdictCache(0, 1.0)
        self._primary = parts(backend)[0].name

    async def moderate(
        self, conversation: Conversation, policy: Policy | None = None, handling: Handling = ORDINARY
    ) -> Verdict:
        """Judge the last turn of `conversation`.

        Raises the errors of server.domain.errors; nothing else than a checked verdict is ever returned.
        """
        return (await self.moderate_all([conversation], policy, handling))[0]

    async def moderate_all(
        self,
        conversations: Sequence[Conversation],
        policy: Policy | None = None,
        handling: Handling = ORDINARY,
    ) -> list[Verdict]:
        """Judge several conversations concurrently; verdicts come back in order. The first error ends them all.

        What was asked before, or is asked several times over, is judged once. What is known needs no place.
        """
        policy = policy or self.policy
        read = await self._read(conversations)
        too_many = len(read) > 1 and sum(len(each.passes) for each in read) > MAX_PASSES
        joined = [too_many and not all(one.whole for one in each.passes) for each in read]
        read = [each.joined if is_joined else each for each, is_joined in zip(read, joined, strict=True)]
        keys = [
            self._questions.key(conversation, policy, handling, joined=is_joined)
            for conversation, is_joined in zip(conversations, joined, strict=True)
        ]
        asked = {
            key: _Question(key, conversation, passes)
            for key, conversation, passes in zip(keys, conversations, read, strict=True)
        }
        known = {key: verdict for key in asked if (verdict := self._cache.get(key)) is not None}
        new = [question for key, question in asked.items() if key not in known]
        verdicts = await self._admitted(new, policy, handling)
        if len(new) < len(conversations):
            known.update((question.key, verdict) for question, verdict in zip(new, verdicts, strict=True))
            verdicts = list(_told(keys, known))
        for verdict, conversation in zip(verdicts, conversations, strict=True):
            if verdict.cache is not None:
                metrics.observe_cached_verdict(verdict, conversation.judged)
        # Which text decided, by the names that this request has for its fields.
        return [
            verdict if verdict.passes == 1 else replace(verdict, about=passes.passes[verdict.decided].about)
            for verdict, passes in zip(verdicts, read, strict=True)
        ]

    async def probe(self) -> None:
        """Have the backend show, past the queue, that verdicts come through it; readiness rests on this."""
        completion = await self._in_time(
            lambda deadline: self.backend.probe(Case(PROBE, (), self.policy, ORDINARY, deadline))
        )
        if completion is not None:
            judge(completion, self.policy)
        self.last_verdict_at = time.monotonic()

    def close(self) -> None:
        self._decoder.close()

    async def _read(self, conversations: Sequence[Conversation]) -> list[Passes]:
        """The passes of each. Raises ContextLengthExceeded for what no context could hold, before it is read."""
        characters = 0
        for conversation in conversations:
            length = _characters(conversation)
            if length > self._max_characters:
                raise ContextLengthExceeded(
                    f"The messages have {length} characters, and this model's context holds {self._max_characters} at"
                    " most, whatever they are. Please reduce the length of the messages.",
                    param="messages",
                )
            characters += length
        if characters <= LONG_TEXT:
            return passes_of_all(conversations)
        return await asyncio.to_thread(passes_of_all, conversations)

    async def _admitted(self, questions: Sequence[_Question], policy: Policy, handling: Handling) -> list[Verdict]:
        at_once = min(sum(len(question.passes.passes) for question in questions), self._list_concurrency)
        if handling.background and questions:
            async with self.admission.admit_behind(at_once):
                return await self._together(questions, policy, handling, at_once)
        with self.admission.admit(at_once):
            return await self._together(questions, policy, handling, at_once)

    async def _together(
        self, questions: Sequence[_Question], policy: Policy, handling: Handling, at_once: int
    ) -> list[Verdict]:
        if len(questions) == 1:  # most requests: no need for tasks
            return [await self._counted(questions[0], policy, handling, at_once)]
        places = asyncio.Semaphore(at_once)

        async def in_turn(question: _Question) -> Verdict:
            async with places:
                return await self._counted(question, policy, handling, 1)

        return await _all(in_turn(question) for question in questions)

    async def _counted(self, question: _Question, policy: Policy, handling: Handling, at_once: int) -> Verdict:
        started = time.monotonic()
        verdict, own = await self._in_time(
            lambda deadline: self._in_flight.share(
                # A live request must not wait for what is worked on behind live requests.
                (question.key, handling.background),
                lambda: self._judge(question, policy, handling, deadline, at_once),
            )
        )
        if not own:
            return verdict.uncomputed(CacheUse.JOINED)
        seconds = time.monotonic() - started
        self.admission.observe(seconds)
        metrics.observe_verdict(verdict, question.conversation.judged, seconds)
        return verdict

    async def _judge(
        self, question: _Question, policy: Policy, handling: Handling, deadline: float, at_once: int
    ) -> Verdict:
        """The strictest verdict of all passes, which come together where there are `at_once` places for them."""
        images, passes = question.conversation.images, question.passes.passes
        decoded = dict(zip(images, await self._decoder.decode(images), strict=True)) if images else {}

        async def judged(conversation: Conversation) -> Verdict:
            if not images:
                return judge(
                    await self.backend.complete(Case(conversation, (), policy, handling, deadline)),
                    policy,
                )
            # A pass may show its images in another order than they were sent in.
            pictures = [decoded[image] for image in conversation.images]
            frames = [frame for picture in pictures for frame in picture.frames]
            seen = conversation.with_frames([len(picture.frames) for picture in pictures])
            completion = await self.backend.complete(Case(seen, frames, policy, handling, deadline))
            completion = replace(
                completion,
                frames=sum(picture.total_frames for picture in pictures),
                frames_unseen=sum(picture.unseen_frames for picture in pictures),
            )
            return judge(completion, policy)

        if len(passes) == 1:
            verdicts = [await judged(passes[0].conversation)]
        elif images or len(passes) > at_once or _characters(question.conversation) > LONG_TEXT:
            verdicts = [await judged(one.conversation) for one in passes]
        else:
            verdicts = await _all(judged(one.conversation) for one in passes)
        verdict = strictest(verdicts)
        if question.passes.lookalikes:
            verdict = replace(verdict, lookalikes=question.passes.lookalikes)
        self.last_verdict_at = time.monotonic()
        if all(each.completion.backend == self._primary for each in verdicts):
            # What a fallback judged, without scores, answers for the engine while that cannot, and no longer.
            self._cache.keep(question.key, verdict)
        return verdict

    async def _in_time(self, work: Callable[[float], Awaitable[Result]]) -> Result:
        """Do `work`, which is told its deadline, by time.monotonic(); being dropped below is a failure."""
        try:
            async with asyncio.timeout(self._deadline_s):
                return await work(time.monotonic() + self._deadline_s)
        except TimeoutError:
            pass  # It holds the task that may end with what is raised below, which must not hold it as its context.
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            # Nobody here cancelled this: the work below was dropped, and a caller waits for an answer.
            raise EngineFailure("The work on this request was dropped.") from None
        raise DeadlineExceeded(f"No verdict within {self._deadline_s:g} seconds.")


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _all(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of works that are done at the same time, in order. The first error ends all of them."""
    # Not a TaskGroup, whose errors hold themselves and with them all that the caller sent.
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()  # Errors hold this frame, and it holds the tasks that ended with them.
        raise


def _characters(conversation: Conversation) -> int:
    return sum(len(text) for turn in conversation.turns for text in turn.texts)


def _told(keys: Sequence[Key], verdicts: dict[Key, Verdict]) -> Iterator[Verdict]:
    """One verdict for each key; the first of equal keys is the one that it was computed for."""
    for key in keys:
        yield verdicts[key]
        if verdicts[key].cache is None:
            verdicts[key] = verdicts[key].uncomputed(CacheUse.JOINED)
