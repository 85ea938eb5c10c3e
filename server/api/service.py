"""What every dialect asks with, between a body that was read and a reply that is rendered.

A dialect is a model of bodies and an `Answer`: from such a body to a `Reply`. Routes answer one request with it and
batches their lines, so a line gets the words that a request would get.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel

from server.api.http.body import read_body
from server.api.http.direct import JSONReply
from server.api.http.disconnect import until_disconnect
from server.api.openai.models import ModelNames
from server.api.policy import PolicyOptions, ScoresWanted, apply
from server.domain.caller import Caller, Handling
from server.domain.conversation import Conversation
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Verdict
from server.families.base import Family
from server.moderation.moderator import Moderator
from server.moderation.sight import Sight
from server.settings import Settings

NEVER_REMOTE_HEADER = b"x-guard-never-remote"


@dataclass(frozen=True, slots=True)
class Service:
    """The served model, under its names and with the operator's choices. `taxonomy` is the model's own and whole."""

    moderator: Moderator
    names: ModelNames
    sight: Sight
    family: Family
    taxonomy: Taxonomy
    settings: Settings
    fingerprint: str

    async def judge(
        self,
        conversations: Sequence[Conversation],
        *,
        model: str | None,
        policy: PolicyOptions | None,
        handling: Handling,
        scores: ScoresWanted = None,
    ) -> list[Verdict]:
        """One verdict for each conversation, in order. Raises the errors of server.domain.errors."""
        self.names.check(model)
        admitted = [self.sight.admit(conversation) for conversation in conversations]
        chosen = apply(policy, self.moderator.policy, allowed=self.settings.request_policy, scores=scores)
        verdicts = await self.moderator.moderate_all(admitted, chosen, handling)
        return [self.sight.tell(verdict, sent) for verdict, sent in zip(verdicts, conversations, strict=True)]


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back: the JSON document, and the verdicts that it tells of."""

    document: dict[str, Any]
    verdicts: Sequence[Verdict]


Body = TypeVar("Body", bound=BaseModel)
Answer = Callable[[Service, Body, Handling], Coroutine[Any, Any, Reply]]


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Body]):
    """A route that judges: where it is, what its bodies look like and how they are answered."""

    path: str
    body: type[Body]
    answer: Answer[Body]

    async def reply(self, request: Request) -> JSONReply:
        body = await read_body(request, self.body)
        return JSONReply((await answered(request, body, self.answer)).document)


async def answered(request: Request, body: Body, answer: Answer[Body]) -> Reply:
    """Answer `body` for as long as its client listens.

    The verdicts are left in the request's state, where the middleware finds what its headers and limits need.
    """
    service: Service = request.app.state.service
    reply = await until_disconnect(request, answer(service, body, handling_of(request)))
    request.scope["state"]["verdicts"] = reply.verdicts
    return reply


def handling_of(request: Request) -> Handling:
    caller: Caller = request.scope["state"]["caller"]
    # Whoever says anything but no means to stay here.
    said = [value for name, value in request.scope["headers"] if name == NEVER_REMOTE_HEADER]
    stays = any(value.strip().lower() not in (b"", b"0", b"false", b"no") for value in said)
    return Handling(
        tenant=caller.id,
        never_remote=caller.never_remote or stays,
        finished_prompts=caller.finished_prompts,
        request_id=request.scope["state"]["request_id"],
    )
