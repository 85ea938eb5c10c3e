"""The heart: a conversation in, a verdict out."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from server import metrics
from server.admission import Admission
from server.backends.base import Backend, Case
from server.backends.fallback import parts
from server.caller import ORDINARY, Handling
from server.conversation import Conversation, TextPart
from server.errors import DeadlineExceeded, EngineFailure
from server.images import ImageDecoder
from server.in_flight import InFlight
from server.policy import Policy
from server.question import Key, Questions
from server.verdict import CacheUse, Verdict, judge
from server.verdict_cache import VerdictCache

Result = TypeVar("Result")

PROBE = Conversation.from_user(TextPart("hello"))


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
        minimum_mass: float = 0.9,
        served: str = "",
        cache: VerdictCache | None = None,
    ) -> None:
        """`served` says which model judges, and how it is asked: all that could change a verdict beside a request."""
        self.backend = backend
        self.policy = policy
        self.admission = Admission(max_queue)
        self.last_verdict_at = -float("inf")
        """time.monotonic() of the last verdict that came through the backend."""
        self._decoder = decoder
        self._list_concurrency = list_concurrency
        self._deadline_s = deadline_s
        self._minimum_mass = minimum_mass
        self._questions = Questions(served, policy)
        self._in_flight: InFlight[Verdict] = InFlight()
        self._cache = cache or VerdictCache(0, 1.0)
        self._primary = parts(backend)[0].name

    async def moderate(
        self, conversation: Conversation, policy: Policy | None = None, handling: Handling = ORDINARY
    ) -> Verdict:
        """Judge the last turn of `conversation`.

        Raises the errors of server.errors; nothing else than a checked verdict is ever returned.
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
        keys = [self._questions.key(conversation, policy, handling) for conversation in conversations]
        asked = dict(zip(keys, conversations, strict=True))
        known = {key: verdict for key in asked if (verdict := self._cache.get(key)) is not None}
        new = [(key, conversation) for key, conversation in asked.items() if key not in known]
        verdicts = await self._admitted(new, policy, handling)
        if len(new) < len(conversations):
            known.update((key, verdict) for (key, _), verdict in zip(new, verdicts, strict=True))
            verdicts = list(_told(keys, known))
        for verdict, conversation in zip(verdicts, conversations, strict=True):
            if verdict.cache is not None:
                metrics.observe_cached_verdict(verdict, conversation.judged)
        return verdicts

    async def probe(self) -> None:
        """Have the backend show, past the queue, that verdicts come through it; readiness rests on this."""
        completion = await self._in_time(
            lambda deadline: self.backend.probe(Case(PROBE, (), self.policy, ORDINARY, deadline))
        )
        if completion is not None:
            judge(completion, self.policy, self._minimum_mass)
        self.last_verdict_at = time.monotonic()

    def close(self) -> None:
        self._decoder.close()

    async def _admitted(
        self, questions: Sequence[tuple[Key, Conversation]], policy: Policy, handling: Handling
    ) -> list[Verdict]:
        at_once = min(len(questions), self._list_concurrency)
        if handling.background and questions:
            async with self.admission.admit_behind(at_once):
                return await self._together(questions, policy, handling, at_once)
        with self.admission.admit(at_once):
            return await self._together(questions, policy, handling, at_once)

    async def _together(
        self, questions: Sequence[tuple[Key, Conversation]], policy: Policy, handling: Handling, at_once: int
    ) -> list[Verdict]:
        if len(questions) == 1:  # most requests: no need for tasks
            return [await self._counted(*questions[0], policy, handling)]
        places = asyncio.Semaphore(at_once)

        async def in_turn(key: Key, conversation: Conversation) -> Verdict:
            async with places:
                return await self._counted(key, conversation, policy, handling)

        # Not a TaskGroup, whose errors hold themselves and with them all that the caller sent.
        tasks = [asyncio.create_task(in_turn(key, conversation)) for key, conversation in questions]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            await _end(tasks)
            raise

    async def _counted(self, key: Key, conversation: Conversation, policy: Policy, handling: Handling) -> Verdict:
        started = time.monotonic()
        verdict, own = await self._in_time(
            lambda deadline: self._in_flight.share(
                # A live request must not wait for what is worked on behind live requests.
                (key, handling.background),
                lambda: self._judge(key, conversation, policy, handling, deadline),
            )
        )
        if not own:
            return verdict.uncomputed(CacheUse.JOINED)
        seconds = time.monotonic() - started
        self.admission.observe(seconds)
        metrics.observe_verdict(verdict, conversation.judged, seconds)
        return verdict

    async def _judge(
        self, key: Key, conversation: Conversation, policy: Policy, handling: Handling, deadline: float
    ) -> Verdict:
        if images := conversation.images:
            pictures = await self._decoder.decode(images)
            seen = conversation.with_frames([len(picture.frames) for picture in pictures])
            frames = [frame for picture in pictures for frame in picture.frames]
            completion = await self.backend.complete(Case(seen, frames, policy, handling, deadline))
            completion = replace(
                completion,
                frames=sum(picture.total_frames for picture in pictures),
                frames_unseen=sum(picture.unseen_frames for picture in pictures),
            )
        else:
            completion = await self.backend.complete(Case(conversation, (), policy, handling, deadline))
        verdict = judge(completion, policy, self._minimum_mass)
        self.last_verdict_at = time.monotonic()
        if completion.backend == self._primary:
            # What a fallback judged, without scores, answers for the engine while that cannot, and no longer.
            self._cache.keep(key, verdict)
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


async def _end(tasks: list[asyncio.Task[Verdict]]) -> None:
    """Cancel all, wait until they have ended, and forget them: errors hold the frame that has `tasks`."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()


def _told(keys: Sequence[Key], verdicts: dict[Key, Verdict]) -> Iterator[Verdict]:
    """One verdict for each key; the first of equal keys is the one that it was computed for."""
    for key in keys:
        yield verdicts[key]
        if verdicts[key].cache is None:
            verdicts[key] = verdicts[key].uncomputed(CacheUse.JOINED)
