"""The heart: a conversation in, a verdict out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from server import metrics
from server.admission import Admission
from server.backends.base import Backend, Case
from server.caller import ORDINARY, Handling
from server.conversation import Conversation, TextPart
from server.errors import DeadlineExceeded, EngineFailure
from server.images import ImageDecoder
from server.policy import Policy
from server.verdict import Verdict, judge

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
    ) -> None:
        self.backend = backend
        self.policy = policy
        self.admission = Admission(max_queue)
        self.last_verdict_at = -float("inf")
        """time.monotonic() of the last verdict that came through the backend."""
        self._decoder = decoder
        self._list_concurrency = list_concurrency
        self._deadline_s = deadline_s
        self._minimum_mass = minimum_mass

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
        """Judge several conversations concurrently; verdicts come back in order. The first error ends them all."""
        policy = policy or self.policy
        at_once = min(len(conversations), self._list_concurrency)
        if handling.background:
            async with self.admission.admit_behind(at_once):
                return await self._together(conversations, policy, handling, at_once)
        with self.admission.admit(at_once):
            return await self._together(conversations, policy, handling, at_once)

    async def probe(self) -> None:
        """Have the backend show, past the queue, that verdicts come through it; readiness rests on this."""
        async with self._deadline() as deadline:
            completion = await self.backend.probe(Case(PROBE, (), self.policy, ORDINARY, deadline))
        if completion is not None:
            judge(completion, self.policy, self._minimum_mass)
        self.last_verdict_at = time.monotonic()

    def close(self) -> None:
        self._decoder.close()

    async def _together(
        self, conversations: Sequence[Conversation], policy: Policy, handling: Handling, at_once: int
    ) -> list[Verdict]:
        if len(conversations) == 1:  # most requests: no need for tasks
            return [await self._counted(conversations[0], policy, handling)]
        places = asyncio.Semaphore(at_once)

        async def in_turn(conversation: Conversation) -> Verdict:
            async with places:
                return await self._counted(conversation, policy, handling)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(in_turn(conversation)) for conversation in conversations]
        except ExceptionGroup as group_of_errors:
            raise group_of_errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _counted(self, conversation: Conversation, policy: Policy, handling: Handling) -> Verdict:
        started = time.monotonic()
        verdict = await self._judge(conversation, policy, handling)
        seconds = time.monotonic() - started
        self.admission.observe(seconds)
        metrics.observe_verdict(verdict, conversation.judged, seconds)
        return verdict

    async def _judge(self, conversation: Conversation, policy: Policy, handling: Handling) -> Verdict:
        async with self._deadline() as deadline:
            if images := conversation.images:
                pictures = await self._decoder.decode(images)
                seen = conversation.with_frames([len(picture.frames) for picture in pictures])
                frames = [frame for picture in pictures for frame in picture.frames]
                completion = await self.backend.complete(Case(seen, frames, policy, handling, deadline))
                completion = replace(completion, frames=sum(picture.total_frames for picture in pictures))
            else:
                completion = await self.backend.complete(Case(conversation, (), policy, handling, deadline))
        verdict = judge(completion, policy, self._minimum_mass)
        self.last_verdict_at = time.monotonic()
        return verdict

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncIterator[float]:
        """The one deadline of all that a verdict takes, by time.monotonic(); what is dropped below is a failure."""
        try:
            async with asyncio.timeout(self._deadline_s):
                yield time.monotonic() + self._deadline_s
        except TimeoutError:
            raise DeadlineExceeded(f"No verdict within {self._deadline_s:g} seconds.") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody here cancelled this: the work below was dropped, and a caller waits for an answer.
            raise EngineFailure("The work on this request was dropped.") from None
