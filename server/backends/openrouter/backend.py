"""OpenRouter as a `Backend`: a case goes out as plain messages, and its answer is checked like an engine's.

Answers have no probabilities, so there are no scores. Requests that need a probability (own thresholds) are refused,
and so are requests that must not leave this machine. server.domain.verdict decides whether an answer is a verdict, as
for every backend.
"""

import asyncio
import logging
import math
import re
import time
from http import HTTPStatus

from server.backends.base import Case
from server.backends.openrouter.breaker import Breaker
from server.backends.openrouter.client import Answer, OpenRouterClient, Unreachable
from server.backends.openrouter.offer import Offer, read_offer
from server.backends.openrouter.reply import Garbage, RemoteError, Reply, read_error, read_json, read_reply
from server.backends.openrouter.request import body_of, refusal
from server.backends.openrouter.retries import RetryBudget, pause
from server.domain.aio import fresh
from server.domain.errors import (
    ContextLengthExceeded,
    EngineUnavailable,
    GuardError,
    Overloaded,
    RemoteFailure,
    RemoteRefused,
    RemoteRejected,
    UnparseableVerdict,
)
from server.domain.events import RemoteCalled, RemoteCharged, publish
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Completion, Reading, check_finished, decide
from server.families.base import Family
from server.settings import Settings

log = logging.getLogger(__name__)

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504, 524, 529})
"""Statuses after which the same request may succeed."""

BUSY = frozenset({429, 529})

ABOUT_THE_REQUEST = frozenset({400, 403, 413, 422})
"""Statuses that do not mean that the remote fails: it may accept the next request."""

ANOTHER_MODEL, ANOTHER_PROVIDER = "another_model", "another_provider"
OWN_KINDS = (ANOTHER_MODEL, ANOTHER_PROVIDER)
"""Kinds of errors that only this module reports."""

REJECTIONS = {
    "400": "the request is not valid there",
    "401": "the key is refused",
    "402": "the account has no credit left",
    "403": "the key has no permission, or the provider's own rules forbid the request",
    "404": "no provider serves the model under these preferences",
    "413": "the request is too large",
    "422": "the request cannot be processed there",
    ANOTHER_MODEL: "another model answered",
    ANOTHER_PROVIDER: "a provider that the operator excludes answered",
}

MODEL_SUFFIX = r"(-\d{4}-?\d{2}-?\d{2})?(:[a-z0-9-]+)?"

CONTACT_AGE_S = 60.0
"""Seconds for which an answer of the remote proves that it is available."""

NO_SCORES = "the remote backend reports no probabilities"


class _Again(Exception):
    """A call failed in a way that another call may cure. If there is no other call, `error` is raised."""

    def __init__(self, error: GuardError, retry_after: float | None = None) -> None:
        super().__init__()
        self.error = error
        self.retry_after = retry_after
        if retry_after is not None:
            error.retry_after = max(1, math.ceil(min(retry_after, 86_400)))


class OpenRouterBackend:
    """A `Backend` on OpenRouter.

    `taxonomy` holds the categories that the remote asks about: the model's own. `family` is the model's family, which
    reads the answers.
    """

    name = "openrouter"

    def __init__(self, settings: Settings, taxonomy: Taxonomy, family: Family, breaker: Breaker | None = None) -> None:
        self._settings = settings
        self._taxonomy = taxonomy
        self._family = family
        self._breaker = breaker or Breaker()
        self._budget = RetryBudget()
        self._places = asyncio.Semaphore(settings.openrouter_concurrency)
        self._client: OpenRouterClient | None = None
        self._contact_at = -math.inf
        self.offer: Offer | None = None

    async def start(self) -> None:
        """Check that the key works and the model is offered. Raises RemoteRejected and RemoteFailure."""
        self._client = OpenRouterClient(self._settings)
        offer = await self.look()
        log.info("OpenRouter offers %s from %d providers:", self._settings.openrouter_model, len(offer.providers))
        for provider in offer.providers:
            excluded = "" if provider.allowed(self._settings) else " (excluded by the settings)"
            log.info("  %s%s", provider.words, excluded)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    @property
    def alive(self) -> bool:
        """Always true: a restart of this process would not help a remote."""
        return True

    @property
    def heard_at(self) -> float:
        """Never: a remote has no engine on this machine."""
        return -math.inf

    @property
    def available(self) -> bool:
        """Whether a request would be sent now. False while the circuit breaker is open."""
        return self._client is not None and self._breaker.available

    @property
    def context_tokens(self) -> int:
        """The longest context of the allowed providers, 0 while it is unknown."""
        allowed = self.offer.allowed(self._settings) if self.offer is not None else ()
        return max((provider.context_tokens for provider in allowed), default=0)

    def refusal(self, case: Case) -> RemoteRefused | None:
        """The reason why `case` is never sent, or None if it may be."""
        if case.images and self.offer is not None and not self.offer.images:
            return RemoteRefused("The remote backend accepts no images. Send the text without them.")
        return refusal(case, self._taxonomy, self._family)

    async def probe(self, case: Case) -> None:
        """Costs nothing: a recent answer is enough, otherwise the list of providers is requested."""
        if not self.available:
            raise EngineUnavailable("The remote backend failed repeatedly, and no requests go to it for now.")
        if time.monotonic() - self._contact_at > CONTACT_AGE_S:
            await self.look()

    async def look(self) -> Offer:
        """Get OpenRouter's current offer, which costs nothing. Raises RemoteRejected and RemoteFailure."""
        model = self._settings.openrouter_model
        await self._ask("key", "OpenRouter refuses the key. Check GUARD_OPENROUTER_API_KEY.")
        gone = f"OpenRouter does not offer {model}. Check GUARD_OPENROUTER_MODEL."
        document = await self._ask(f"models/{model}/endpoints", gone)
        try:
            offer = read_offer(read_json(document.body))
        except Garbage:
            raise RemoteFailure("OpenRouter's list of providers cannot be read.") from None
        self.offer = offer
        if not offer.providers:
            raise RemoteRejected(gone)
        if not offer.allowed(self._settings):
            raise RemoteRejected(f"No provider of {model} satisfies GUARD_OPENROUTER_ONLY, _IGNORE and _MAX_PRICE.")
        self._contact_at = time.monotonic()
        return offer

    async def _ask(self, path: str, refused: str) -> Answer:
        if self._client is None:
            raise EngineUnavailable("The remote backend is not started.")
        try:
            answer = await self._client.get(path, time.monotonic() + self._settings.openrouter_timeout)
        except Unreachable as error:
            raise RemoteFailure(f"OpenRouter cannot be reached ({error}).") from None
        if answer.status in (401, 403, 404):
            raise RemoteRejected(refused)
        if answer.status != HTTPStatus.OK:
            raise RemoteFailure(f"OpenRouter answered {path} with status {answer.status}. Try again later.")
        return answer

    # --- One case ----------------------------------------------------------------------------------------

    async def complete(self, case: Case) -> Completion:
        if (refused := self.refusal(case)) is not None:
            raise fresh(refused)
        began = time.monotonic()
        asked = (case, self._settings, self._family.longest_answer)
        if case.images or case.handling.large:
            body = await asyncio.get_running_loop().run_in_executor(None, body_of, *asked)
        else:
            body = body_of(*asked)
        self._budget.deposit()
        attempt = 0
        while True:
            try:
                return await self._try(case, body, began)
            except _Again as again:
                attempt += 1
                wait = max(pause(attempt), again.retry_after or 0.0)
                in_time = time.monotonic() + wait < case.deadline
                if attempt > self._settings.openrouter_retries or not in_time or not self._budget.withdraw():
                    raise fresh(again.error) from None  # `again`, its context, holds the other error
            await asyncio.sleep(wait)

    async def _try(self, case: Case, body: bytes, began: float) -> Completion:
        """One call. Raises _Again for a failure that another call may cure."""
        asked = time.monotonic()
        async with self._places:
            # A case that waited for most of its time would run out of it at the remote: its cost would be wasted, and
            # the timeout would count against the remote, so that a crowd here could open the breaker of a healthy one.
            if time.monotonic() - asked > case.deadline - time.monotonic():
                raise Overloaded("The server is at its limit of concurrent verdicts.", retry_after=1)
            if self._client is None:
                raise EngineUnavailable("The remote backend is not started.")
            ticket = self._breaker.enter()
            sent = time.monotonic()
            try:
                deadline = min(case.deadline, sent + self._settings.openrouter_timeout)
                reply = self._read(await self._client.post("chat/completions", body, deadline))
            except asyncio.CancelledError:
                # If the caller left, that says nothing about the remote. If the caller waited to the end, it does.
                (self._breaker.failed if time.monotonic() >= case.deadline else self._breaker.dropped)(ticket)
                raise
            except RemoteError as error:
                about_request = error.status in ABOUT_THE_REQUEST
                (self._breaker.succeeded if about_request else self._breaker.failed)(ticket)
                raise self._told(error) from None
            except (Unreachable, Garbage) as error:
                self._breaker.failed(ticket)
                publish(RemoteCalled("unreachable" if isinstance(error, Unreachable) else "garbage"))
                raise _Again(RemoteFailure("The remote backend gave no usable answer.")) from None
            except BaseException:
                self._breaker.dropped(ticket)
                raise
            self._breaker.succeeded(ticket)
        self._contact_at = time.monotonic()
        return self._completion(case, reply, queued_s=sent - began, computed_s=self._contact_at - sent)

    def _read(self, answer: Answer) -> Reply:
        """The reply in `answer`, if it is from the right model and an allowed provider. Raises RemoteError, Garbage."""
        try:
            if answer.status != HTTPStatus.OK:
                raise read_error(answer.status, answer.body)
            reply = read_reply(answer.content_type, answer.body)
        except RemoteError as error:
            error.retry_after = answer.retry_after
            raise
        publish(RemoteCharged(self.name, reply.cost or 0.0))
        if not self._is_the_model(reply.model):
            raise RemoteError(HTTPStatus.NOT_FOUND, ANOTHER_MODEL)
        if not self._may_serve(reply.provider):
            raise RemoteError(HTTPStatus.NOT_FOUND, ANOTHER_PROVIDER)
        publish(RemoteCalled("answered"))
        return reply

    def _is_the_model(self, model: str) -> bool:
        """Whether this is the configured model. OpenRouter may add a date or a variant to the name, or answer with
        the permanent id of its offer."""
        asked = self._settings.openrouter_model.lower().partition(":")[0]
        known = self.offer.models if self.offer is not None else frozenset()
        return model.lower() in known or bool(re.fullmatch(re.escape(asked) + MODEL_SUFFIX, model.lower()))

    def _may_serve(self, provider: str | None) -> bool:
        """Whether the operator's choice allows this provider, if OpenRouter names it at all."""
        offered = self.offer.providers if self.offer is not None else ()
        # One name may stand for several endpoints, some of them excluded. The answer does not say which one it was.
        known = [each.allowed(self._settings) for each in offered if each.name == provider]
        return any(known) if known else provider is None or not self._settings.openrouter_only

    def _told(self, error: RemoteError) -> Exception:
        """The caller's error for `error`. It has none of its words, which may repeat content."""
        publish(RemoteCalled(error.kind if error.kind in OWN_KINDS else str(error.status)))
        if error.status in BUSY:
            return _Again(Overloaded("The remote backend is at its limit.", retry_after=1), error.retry_after)
        if error.status in TRANSIENT:
            return _Again(RemoteFailure(f"The remote backend failed with status {error.status}."), error.retry_after)
        if error.kind == "context_length_exceeded":
            return ContextLengthExceeded(
                "The messages are longer than the remote backend's context. Send less.", param="messages"
            )
        reason = REJECTIONS.get(error.kind) or REJECTIONS.get(str(error.status), f"status {error.status}")
        log.warning("the remote backend rejects a request: %s", reason)
        return RemoteRejected(f"The remote backend rejects this request: {reason}.")

    def _completion(self, case: Case, reply: Reply, *, queued_s: float, computed_s: float) -> Completion:
        if reply.besides:
            raise UnparseableVerdict("The remote backend's answer holds more than a verdict.")
        check_finished(reply.finish_reason)
        said = self._family.read(reply.text)
        return Completion(
            reading=Reading(said, decide(said, case.policy), no_scores=NO_SCORES),
            finish_reason=reply.finish_reason,
            backend=self.name,
            model=self._settings.openrouter_model,
            taxonomy=self._family.asked(case.conversation, case.policy.taxonomy),
            provider=reply.provider,
            cost=reply.cost,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cached_tokens=reply.cached_tokens,
            images=len(case.images),
            queued_s=queued_s,
            computed_s=computed_s,
        )
