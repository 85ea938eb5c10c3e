"""POST /v1/completions, OpenAI's legacy form: a prompt in, the verdict as its completion out.

A finished Guard prompt is read back as in chat completions. Any other prompt is judged as a user's message. What could
be taken for a part of the verdict is refused: an echo of the prompt before it, and a text after it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, field_validator

from server.api.chat.completion import ChatUsage, total, usage
from server.api.chat.judging import Judged, check_stops, judge_conversation, judge_prompt
from server.api.chat.logprobs import MAX_ALTERNATIVES, least
from server.api.chat.request import MAX_CHOICES, StreamOptions, bounded_stops
from server.api.chat.structured import Wanted
from server.api.detail import Guard
from server.api.endpoint import Endpoint, answered
from server.api.http.body import read_body
from server.api.http.description import ERRORS, json_body, reply
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.ids import new_id
from server.api.http.shapes import Closed, Count, Moment
from server.api.http.sse import DONE, event, stream
from server.api.messages import StringOrStrings
from server.api.names import ModelNames
from server.api.openai import examples
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.service import Reply, Service
from server.api.wire import Object, WireModel
from server.domain.aio import done, together
from server.domain.caller import Handling
from server.domain.conversation import Conversation, TextPart
from server.domain.errors import ContextLengthExceeded, InvalidRequest, NothingToJudge
from server.domain.verdict import Token

router = APIRouter(prefix="/v1", tags=["completions"], route_class=DirectRoute)


# --- The request -----------------------------------------------------------------------------------------


class IgnoredCompletionOptions(WireModel):
    """They affect how text is generated or stored. A verdict is decoded greedily, and nothing is stored."""

    best_of: int | None = None
    frequency_penalty: float | None = None
    logit_bias: Object | None = None
    metadata: Object | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    prompt_cache_key: str | None = None
    repetition_penalty: float | None = None
    safety_identifier: str | None = None
    seed: int | None = None
    service_tier: str | None = None
    store: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    user: str | None = None


class CompletionRequest(IgnoredCompletionOptions):
    prompt: StringOrStrings = Field(description="A text, or a list of texts that are judged one by one.")
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Number of choices for each prompt, all the same.")
    max_tokens: int | None = Field(None, ge=0, description="Cuts the list of codes, never the verdict; 0 is no limit.")
    stop: StringOrStrings | None = Field(None, description="Up to 4 texts. None may split a word or code of a verdict.")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_ALTERNATIVES, description="Log-probabilities with so many alternatives."
    )
    echo: bool | None = Field(None, description="Only false: a prompt in the reply could be read as the verdict.")
    suffix: str | None = Field(None, description="Only empty: the verdict has no place in a text.")
    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _refuse_token_ids(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int | list):
            raise ValueError("token ids cannot be judged. Send the prompt as text")
        return prompt

    @field_validator("logprobs", mode="before")
    @classmethod
    def _take_false_for_none(cls, logprobs: Any) -> Any:
        return None if logprobs is False else logprobs

    @field_validator("echo", "suffix")
    @classmethod
    def _refuse_texts_around_the_verdict(cls, value: bool | str | None) -> bool | str | None:
        if value:
            raise ValueError("the completion is the verdict, and no other text can stand beside it. Leave it out")
        return value

    @field_validator("stop")
    @classmethod
    def _bound_the_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        return bounded_stops(stop)

    @property
    def prompts(self) -> Sequence[tuple[str, str]]:
        """Each prompt, and the field that holds it."""
        if isinstance(self.prompt, str):
            return [(self.prompt, "prompt")]
        return [(prompt, f"prompt[{index}]") for index, prompt in enumerate(self.prompt)]

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or ()

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or None

    def wanted(self) -> Sequence[Wanted]:
        """Completions are plain text."""
        return ()

    def model_in(self, names: ModelNames) -> str | None:
        return self.model


# --- The reply -------------------------------------------------------------------------------------------


class CompletionLogprobs(Closed):
    """A value of each list for each token. `text_offset` counts characters from the start of the completion."""

    tokens: list[str]
    token_logprobs: list[Annotated[float, Field(le=0)]]
    top_logprobs: list[dict[str, Annotated[float, Field(le=0)]]]
    text_offset: list[Count]


class CompletionChoice(Closed):
    """`finish_reason` is `length` if the token limit left codes out. The verdict itself is never cut."""

    text: str
    index: Count
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    guard: Guard


class TextCompletion(Closed):
    id: str
    object: Literal["text_completion"]
    created: Moment
    model: str
    system_fingerprint: str
    choices: Annotated[list[CompletionChoice], Field(min_length=1)]
    usage: ChatUsage


async def complete(service: Service, body: CompletionRequest, handling: Handling) -> Reply[TextCompletion]:
    prompts, most = body.prompts, service.settings.max_list
    if not prompts:
        raise NothingToJudge("There is no prompt to judge. Send at least one.", param="prompt")
    if len(prompts) > most:
        raise InvalidRequest(
            f"The list has more than {most} prompts. Send fewer. The operator sets the limit with GUARD_MAX_LIST.",
            param="prompt",
        )
    if len(prompts) * (body.n or 1) > max(most, MAX_CHOICES):
        raise InvalidRequest(f"Invalid value for 'n': ask for at most {MAX_CHOICES} choices in all.", param="n")
    check_stops(service, body)
    if body.logprobs is not None:
        handling = replace(handling, top_logprobs=body.logprobs)
    if len(prompts) == 1:
        judged = [await _judge(*prompts[0], service, body, handling)]
    else:
        places = asyncio.Semaphore(service.settings.list_concurrency)

        async def in_turn(prompt: str, param: str) -> Judged:
            async with places:
                return await _judge(prompt, param, service, body, handling)

        judged = await together(in_turn(*each) for each in prompts)
    return Reply(_document(service, body, judged), [each.verdict for each in judged])


async def _judge(prompt: str, param: str, service: Service, body: CompletionRequest, handling: Handling) -> Judged:
    try:
        finished = await done(lambda: service.family.finished_prompt(prompt), large=handling.large)
        if finished is not None:
            return await judge_prompt(finished, param, service, body, handling)
        conversation = Conversation.from_user(TextPart(prompt, param))
        return await judge_conversation(conversation, service, body, handling)
    except (NothingToJudge, ContextLengthExceeded) as error:
        raise error.at(param) from None
    except InvalidRequest as error:
        if error.param is not None:
            raise
        raise error.at(param) from None  # a fault of a finished prompt


def _document(service: Service, body: CompletionRequest, judged: Sequence[Judged]) -> TextCompletion:
    number = body.n or 1
    return {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.names.id,
        "system_fingerprint": service.fingerprint,
        "choices": [
            _choice(each, place * number + copy) for place, each in enumerate(judged) for copy in range(number)
        ],
        "usage": total([usage(each.verdict, body.token_limit) for each in judged]),
    }


def _choice(judged: Judged, index: int) -> CompletionChoice:
    answer = judged.answer
    return {
        "text": answer.text,
        "index": index,
        "logprobs": None if answer.tokens is None else _spelt(answer.tokens),
        "finish_reason": "length" if answer.cut else "stop",
        "guard": judged.detail,
    }


def _spelt(tokens: Sequence[Token]) -> CompletionLogprobs:
    texts = [token.text for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [least(token.logprob) for token in tokens],
        "top_logprobs": [{other.text: least(other.logprob) for other in token.alternatives} for token in tokens],
        "text_offset": [len("".join(texts[:place])) for place in range(len(texts))],
    }


ENDPOINT = Endpoint("/v1/completions", CompletionRequest, complete)


@router.post(
    "/completions",
    summary="Judge a prompt",
    openapi_extra=json_body(CompletionRequest, examples.COMPLETIONS_BODIES),
    responses={
        200: reply(
            TextCompletion, "The verdict as the completion", examples.TEXT_COMPLETION, events=examples.TEXT_CHUNK
        ),
        **ERRORS,
    },
)
async def create_completion(request: Request) -> Response:
    body = await read_body(request, CompletionRequest)
    document = (await answered(request, body, complete)).document
    if not body.stream:
        return JSONReply(document)
    return stream(_chunks(document, body.stream_options or StreamOptions()))


async def _chunks(document: TextCompletion, options: StreamOptions) -> AsyncIterator[str]:
    """The same reply in chunks: each choice whole, and the usage if it was requested.

    A choice is one chunk, because OpenAI's own type of a chunk has no null for `finish_reason`.
    """
    head = {key: value for key, value in document.items() if key not in ("choices", "usage")}
    so_far = document["usage"] if options.continuous_usage_stats else None
    usage_ = {"usage": so_far} if options.include_usage else {}
    for choice in document["choices"]:
        yield event({**head, "choices": [choice], **usage_})
    if options.include_usage:
        yield event({**head, "choices": [], "usage": document["usage"]})
    yield DONE
