"""Chat completions of every dialect are judged here, by the server's policy or by that of a finished prompt."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

from server.api.chat.request import ChatRequest
from server.api.chat.structured import Layout, Structured, Wanted, layout_of
from server.api.detail import Guard, verdict_detail
from server.api.names import ModelNames
from server.api.policy import PolicyOptions, ScoresWanted, apply
from server.api.service import Service
from server.domain.aio import done
from server.domain.caller import Handling
from server.domain.conversation import Conversation
from server.domain.errors import InvalidRequest
from server.domain.events import FinishedPromptJudged, publish
from server.domain.verdict import Verdict
from server.families.base import FinishedPrompt, Wording

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, its answer in the form that the request asked for, and the extension field `guard`.

    `structured` is the answer as JSON, if the request asked for that.
    """

    verdict: Verdict
    answer: Wording
    detail: Guard
    structured: Structured | None = None


class Asked(Protocol):
    """What a request of any kind asks of an answer."""

    @property
    def policy(self) -> PolicyOptions | None: ...

    @property
    def category_scores(self) -> ScoresWanted: ...

    @property
    def stops(self) -> Sequence[str]: ...

    @property
    def token_limit(self) -> int | None: ...

    def wanted(self) -> Sequence[Wanted]: ...

    def model_in(self, names: ModelNames) -> str | None: ...


async def judge(service: Service, body: ChatRequest, handling: Handling) -> Judged:
    """Judge the last message. Raises the errors of server.domain.errors."""
    check_stops(service, body)
    handling = _handling_of(body, service, handling)
    prompt = await done(lambda: body.finished_prompt(service.family), large=handling.large)
    if prompt is not None:
        return await judge_prompt(prompt, "messages[0].content", service, body, handling)
    conversation = await done(body.conversation, large=handling.large)
    return await judge_conversation(conversation, service, body, handling)


def check_stops(service: Service, body: Asked) -> None:
    """Raises InvalidRequest for a stop that could split an answer."""
    if any(map(service.family.splits_an_answer, body.stops)):
        message = "it would split the words or codes of a verdict"
        raise InvalidRequest(f"Invalid value for 'stop': {message}.", param="stop")


async def judge_conversation(conversation: Conversation, service: Service, body: Asked, handling: Handling) -> Judged:
    """Judge the last turn by the server's policy. Raises the errors of server.domain.errors."""
    layout = await done(lambda: layout_for(body.wanted(), service, body.policy), large=handling.large)
    verdict = await _verdict_on(conversation, body.policy, service, body, handling)
    answer = service.family.write(verdict, max_tokens=body.token_limit, stop=body.stops)
    return Judged(verdict, answer, verdict_detail(verdict), laid_out(layout, verdict))


def layout_for(
    wanted: Sequence[Wanted], service: Service, policy: PolicyOptions | None, codes: Mapping[str, str] | None = None
) -> Layout | None:
    """How the answer is laid out as JSON, None if it is text. `codes` maps the model's codes to the caller's.

    Raises InvalidRequest if no verdict by this policy fits a schema that is wanted.
    """
    if not wanted:
        return None
    chosen = apply(policy, service.moderator.policy, allowed=service.settings.request_policy)
    return layout_of(wanted, chosen.taxonomy, codes or {})


def laid_out(layout: Layout | None, verdict: Verdict) -> Structured | None:
    return None if layout is None else layout.laid_out(verdict)


def _handling_of(body: ChatRequest, service: Service, handling: Handling) -> Handling:
    """`handling` with the wishes of the body."""
    if body.logprobs:
        handling = replace(handling, top_logprobs=body.top_logprobs or 0)
    if body.provider is not None and body.provider.stricter_than(service.settings):
        handling = replace(handling, never_remote=True)
    return handling


async def _verdict_on(
    conversation: Conversation, policy: PolicyOptions | None, service: Service, body: Asked, handling: Handling
) -> Verdict:
    (verdict,) = await service.judge(
        [conversation],
        model=body.model_in(service.names),
        policy=policy,
        scores=body.category_scores,
        handling=handling,
    )
    return verdict


async def judge_prompt(prompt: FinishedPrompt, param: str, service: Service, body: Asked, handling: Handling) -> Judged:
    """Judge a finished prompt by its own policy if the caller has the right to that, otherwise all of it by ours.

    `param` is the field that held it. Raises the errors of server.domain.errors.
    """
    trusted = handling.finished_prompts or service.settings.finished_prompts
    options, codes = _options_of(prompt, body.policy, service) if trusted else (body.policy, {})
    conversation = await done(
        prompt.conversation if trusted else lambda: prompt.everything(service.taxonomy), large=handling.large
    )
    try:
        layout = await done(lambda: layout_for(body.wanted(), service, options, codes), large=handling.large)
        verdict = await _verdict_on(conversation, options, service, body, handling)
    except InvalidRequest as error:
        if error.param is not None and error.param.startswith("policy") and body.policy is None:
            # The policy was read from the prompt, so its faults are the prompt's.
            raise error.at(param) from None
        raise
    publish(FinishedPromptJudged(trusted))
    if not trusted:
        _warn_once()
    answer = service.family.write(verdict, codes=codes, max_tokens=body.token_limit, stop=body.stops)
    detail = verdict_detail(verdict.under(codes))
    detail["finished_prompt"] = "prompt_policy" if trusted else "server_policy"
    return Judged(verdict, answer, detail, laid_out(layout, verdict))


@cache
def _warn_once() -> None:
    log.warning(
        "A caller without the right to bring a policy sent a finished Guard prompt: its categories are ignored, and"
        " each of its messages is judged by this server's policy. To change that, give the caller a key made with"
        " `keys create --finished-prompts`, or set GUARD_FINISHED_PROMPTS=true (docs/migrate.md)."
    )


def _options_of(
    prompt: FinishedPrompt, asked: PolicyOptions | None, service: Service
) -> tuple[PolicyOptions | None, Mapping[str, str]]:
    """The policy that a finished prompt asks for, and a map of the model's codes to the prompt's where they differ."""
    if asked is not None and (asked.categories is not None or asked.excluded_categories):
        raise InvalidRequest(
            "A finished Guard prompt contains its own categories. Leave `categories` and `excluded_categories` out of"
            " `policy`.",
            param="policy",
        )
    options = asked or PolicyOptions.model_validate({})
    if not prompt.asks_for(service.taxonomy):
        return options.model_copy(update={"categories": dict(prompt.words)}), prompt.codes
    if not service.settings.request_policy:
        return asked, {}  # the server's own policy asks about no fewer categories
    unasked = [code for code in service.moderator.policy.taxonomy.codes if code not in prompt.categories]
    return options.model_copy(update={"excluded_categories": unasked}), {}
