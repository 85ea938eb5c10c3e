"""The heart: a conversation in, a verdict out."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from server.backends.base import Backend, Case
from server.backends.fallback import parts
from server.domain.aio import fresh, together
from server.domain.caller import ORDINARY, Handling
from server.domain.conversation import Conversation, TextPart
from server.domain.errors import SERVERS_CONDITION, DeadlineExceeded, EngineFailure, GuardError, InvalidRequest
from server.domain.events import publish
from server.domain.policy import Policy
from server.domain.verdict import CacheUse, Completion, Verdict, judge, strictest
from server.images import DecodedImage, ImageDecoder
from server.moderation.admission import Admission
from server.moderation.in_flight import InFlight
from server.moderation.passes import Pass, passes_of
from server.moderation.question import Key, Question, Questions
from server.moderation.verdict_cache import VerdictCache

Result = TypeVar("Result")

CHARACTERS_PER_TOKEN = 4
"""Of ordinary English: a prompt's tokens are estimated until they are known."""

PROBE = Conversation.from_user(TextPart("hello"))
"""The server judges this on its own to check that verdicts still come through."""


class Moderator:
    """Judges conversations with one backend, within a bounded queue and a deadline."""

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
        most_marks: float = math.inf,
        served: str = "",
        cache: VerdictCache | None = None,
    ) -> None:
        """A conversation of more than `max_characters`, or with more than `most_marks` marks in a text, is refused.

        `served` identifies everything but the request that could change a verdict: the model, and how it is asked.
        """
        self.backend = backend
        self.policy = policy
        self.admission = Admission(max_queue)
        self.last_verdict_at = -float("inf")
        """time.monotonic() of the last verdict that came through the backend."""
        self._decoder = decoder
        self._list_concurrency = list_concurrency
        self._deadline_s = deadline_s
        self._questions = Questions(served, policy, max_characters, most_marks)
        self._probe = self._questions.question(PROBE, policy, ORDINARY, passes_of(PROBE))
        self._in_flight: InFlight[Verdict] = InFlight()
        self._cache = cache or VerdictCache(0, 1.0)
        self._primary = parts(backend)[0].name

    async def moderate(
        self, conversation: Conversation, policy: Policy | None = None, handling: Handling = ORDINARY
    ) -> Verdict:
        """Judge the last turn of `conversation`.

        Raises the errors of server.domain.errors. Every verdict that it returns has been checked.
        """
        return (await self.moderate_all([conversation], policy, handling))[0]

    async def moderate_all(
        self,
        conversations: Sequence[Conversation],
        policy: Policy | None = None,
        handling: Handling = ORDINARY,
    ) -> list[Verdict]:
        """Judge several conversations concurrently and return the verdicts in order. The first error ends them all.

        Equal questions are judged once. A verdict from the cache needs no place in the queue.
        """
        questions = await self._questions.read(conversations, policy or self.policy, handling)
        return list(_verdicts(await self._answers(questions, apart=False)))

    async def moderate_each(
        self, conversations: Sequence[Conversation], policy: Policy | None = None, handling: Handling = ORDINARY
    ) -> list[Verdict | GuardError]:
        """The same, but an error about one conversation stands in its place and costs no other.

        Raises errors about the state of the server (SERVERS_CONDITION), which would meet every conversation.
        """
        too_long = [self._too_long(conversation) for conversation in conversations]
        fitting = [one for one, error in zip(conversations, too_long, strict=True) if error is None]
        questions = await self._questions.read(fitting, policy or self.policy, handling)
        answers = iter(await self._answers(questions, apart=True))
        return [next(answers) if error is None else error for error in too_long]

    def _too_long(self, conversation: Conversation) -> GuardError | None:
        try:
            self._questions.check_length(conversation)
        except GuardError as error:
            return fresh(error)
        return None

    async def _answers(self, questions: Sequence[Question], *, apart: bool) -> list[Verdict | GuardError]:
        """A verdict for each question, or with `apart` its error. Without `apart` the first error ends them all."""
        asked = {question.key: question for question in questions}
        known: dict[Key, Verdict | GuardError] = {
            key: verdict for key in asked if (verdict := self._cache.get(key)) is not None
        }
        new = [question for key, question in asked.items() if key not in known]
        outcomes = await self._admitted(new, apart)
        known.update((question.key, outcome) for question, outcome in zip(new, outcomes, strict=True))
        return list(_tell(questions, known))

    async def probe(self) -> None:
        """Ask the backend, without the queue, to show that verdicts come through it. Readiness depends on this."""
        (asked,) = self._probe.passes.passes
        completion = await self._in_time(lambda deadline: self.backend.probe(self._probe.case(asked, {}, deadline)))
        if completion is not None:
            judge(completion, self.policy)
        self.last_verdict_at = time.monotonic()

    def close(self) -> None:
        self._decoder.close()

    async def _admitted(self, questions: Sequence[Question], apart: bool) -> Sequence[Verdict | GuardError]:
        at_once = min(sum(len(question.passes.passes) for question in questions), self._list_concurrency)
        if any(question.handling.background for question in questions):
            async with self.admission.admit_behind(at_once):
                return await self._asked(questions, at_once, apart)
        with self.admission.admit(at_once):
            return await self._asked(questions, at_once, apart)

    async def _asked(self, questions: Sequence[Question], at_once: int, apart: bool) -> Sequence[Verdict | GuardError]:
        if len(questions) == 1 and not apart:  # most requests: no need for tasks
            return [await self._shared(questions[0], at_once)]
        places = asyncio.Semaphore(at_once)

        async def in_turn(question: Question) -> Verdict | GuardError:
            async with places:
                try:
                    return await self._shared(question, 1)
                except GuardError as error:
                    if not apart or isinstance(error, SERVERS_CONDITION):
                        raise
                    return fresh(error)

        return await together(in_turn(question) for question in questions)

    async def _shared(self, question: Question, at_once: int) -> Verdict:
        """The verdict on `question`, computed now unless the same question is in flight already."""
        started = time.monotonic()
        verdict, own = await self._in_time(
            lambda deadline: self._in_flight.share(
                # A live request must not wait for background work, which waits for live requests.
                (question.key, question.handling.background),
                lambda: self._judge(question, deadline, at_once),
            )
        )
        if not own:
            return verdict.uncomputed(CacheUse.JOINED)
        seconds = time.monotonic() - started
        self.admission.observe(seconds)
        publish(question.judged(verdict, seconds))
        return verdict

    async def _judge(self, question: Question, deadline: float, at_once: int) -> Verdict:
        """The strictest verdict of all passes. They run together if `at_once` allows as many."""
        images, passes = question.conversation.images, question.passes.passes
        decoded = await self._decoder.decode(images, question.handling.reading.holder) if images else []
        pictures = dict(zip(images, decoded, strict=True))

        async def judged(asked: Pass) -> Verdict:
            case = question.case(asked, pictures, deadline)
            completion = await _metered(case, self.backend.complete)
            if pictures:
                completion = _with_frames(completion, [pictures[image] for image in asked.conversation.images])
            return judge(completion, question.policy)

        if len(passes) == 1:
            verdicts = [await judged(passes[0])]
        elif images or len(passes) > at_once or question.is_long:
            verdicts = [await judged(one) for one in passes]
        else:
            verdicts = await together(judged(one) for one in passes)
        verdict = strictest(verdicts)
        if question.passes.lookalikes:
            verdict = replace(verdict, lookalikes=question.passes.lookalikes)
        self.last_verdict_at = time.monotonic()
        if all(each.completion.backend == self._primary for each in verdicts):
            # A fallback's verdict has no scores. It must not be served once the engine can judge again.
            self._cache.keep(question.key, verdict)
        return verdict

    async def _in_time(self, work: Callable[[float], Awaitable[Result]]) -> Result:
        """Do `work`, which gets its deadline in time.monotonic(). It is a failure if the work itself is cancelled."""
        try:
            async with asyncio.timeout(self._deadline_s):
                return await work(time.monotonic() + self._deadline_s)
        except TimeoutError:
            pass  # it holds the task that may end with the error raised below, which must not have it as its context
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            # Nobody here cancelled this, so the backend did, and the caller still waits for an answer.
            raise EngineFailure("The engine dropped the work on this request. Send it again.") from None
        raise DeadlineExceeded(
            f"No verdict within {self._deadline_s:g} seconds. The operator sets the limit with GUARD_DEADLINE."
        )


async def _metered(case: Case, complete: Callable[[Case], Awaitable[Completion]]) -> Completion:
    """Complete `case` and count its tokens: an estimate at once, and what is missing or too much of it at the end.

    Work that is cancelled or fails was computed all the same, as far as anybody knows, so its estimate stays.
    """
    if (meter := case.handling.meter) is None:
        return await complete(case)
    estimate = sum(len(text) for turn in case.conversation.turns for text in turn.texts) // CHARACTERS_PER_TOKEN
    meter.spend(estimate)
    try:
        completion = await complete(case)
    except (InvalidRequest, *SERVERS_CONDITION):
        meter.spend(-estimate)  # nothing was computed
        raise
    meter.spend(completion.prompt_tokens + completion.completion_tokens - estimate)
    return completion


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _with_frames(completion: Completion, pictures: Sequence[DecodedImage]) -> Completion:
    return replace(
        completion,
        frames=sum(picture.total_frames for picture in pictures),
        frames_unseen=sum(picture.unseen_frames for picture in pictures),
    )


def _tell(
    questions: Sequence[Question], outcomes: Mapping[Key, Verdict | GuardError]
) -> Iterator[Verdict | GuardError]:
    """The outcome of each question. Of equal questions, the first one counts as computed."""
    told: set[Key] = set()
    for question in questions:
        verdict = outcomes[question.key]
        if isinstance(verdict, GuardError):
            yield verdict
            continue
        if verdict.cache is None and question.key in told:
            verdict = verdict.uncomputed(CacheUse.JOINED)
        told.add(question.key)
        if verdict.cache is not None:
            publish(question.judged(verdict))
        yield question.told(verdict)


def _verdicts(outcomes: Iterable[Verdict | GuardError]) -> Iterator[Verdict]:
    """The outcomes, which are all verdicts. Raises the first error among them."""
    for outcome in outcomes:
        if isinstance(outcome, GuardError):
            raise fresh(outcome)
        yield outcome
