"""The one way from every dialect to a verdict. It knows nothing of HTTP."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.api.names import ModelNames
from server.api.policy import PolicyOptions, ScoresWanted, apply
from server.audit.ledger import Ledger
from server.domain.aio import fresh
from server.domain.caller import Handling
from server.domain.conversation import Conversation
from server.domain.errors import GuardError
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Verdict
from server.families.base import Family
from server.moderation.moderator import Moderator
from server.moderation.sight import Sight
from server.settings import Settings

Document = TypeVar("Document", bound=Mapping[str, object])


@dataclass(frozen=True, slots=True)
class Service:
    """The served model, its names and the operator's choices. `taxonomy` holds all of the model's own categories.

    `ledger` is None without an audit trail.
    """

    moderator: Moderator
    names: ModelNames
    sight: Sight
    family: Family
    taxonomy: Taxonomy
    settings: Settings
    fingerprint: str
    ledger: Ledger | None = None

    async def judge(
        self,
        conversations: Sequence[Conversation],
        *,
        model: str | None,
        policy: PolicyOptions | None,
        handling: Handling,
        scores: ScoresWanted = None,
    ) -> list[Verdict]:
        """One verdict for each conversation, in order. Raises the errors of server.domain.errors.

        With an audit trail, the verdicts are recorded first. That is a call and no event: a listener cannot keep a
        verdict from leaving, and a record that could not be written must.
        """
        started = time.monotonic()
        self.names.check(model)
        admitted = [self.sight.admit(conversation) for conversation in conversations]
        chosen = apply(policy, self.moderator.policy, allowed=self.settings.request_policy, scores=scores)
        verdicts = await self.moderator.moderate_all(admitted, chosen, handling)
        told = [self.sight.tell(verdict, sent) for verdict, sent in zip(verdicts, conversations, strict=True)]
        await self._record(told, conversations, chosen, handling, started)
        return told

    async def judge_each(
        self,
        conversations: Sequence[Conversation | GuardError],
        *,
        model: str | None,
        policy: PolicyOptions | None,
        handling: Handling,
        scores: ScoresWanted = None,
    ) -> list[Verdict | GuardError]:
        """The same, but an error about one conversation stands in its place. So does one that is given in its place.

        Raises errors about the whole request, and about the state of the server.
        """
        started = time.monotonic()
        self.names.check(model)
        chosen = apply(policy, self.moderator.policy, allowed=self.settings.request_policy, scores=scores)
        admitted = [self._admitted(one) for one in conversations]
        asked = [one for one in admitted if isinstance(one, Conversation)]
        judged = iter(await self.moderator.moderate_each(asked, chosen, handling))
        outcomes = [next(judged) if isinstance(one, Conversation) else one for one in admitted]
        told = [
            self.sight.tell(outcome, sent)
            if isinstance(outcome, Verdict) and isinstance(sent, Conversation)
            else outcome
            for outcome, sent in zip(outcomes, conversations, strict=True)
        ]
        await self._record(told, conversations, chosen, handling, started)
        return told

    def _admitted(self, conversation: Conversation | GuardError) -> Conversation | GuardError:
        if isinstance(conversation, GuardError):
            return conversation
        try:
            return self.sight.admit(conversation)
        except GuardError as error:
            return fresh(error)

    async def _record(
        self,
        outcomes: Sequence[Verdict | GuardError],
        conversations: Sequence[Conversation | GuardError],
        policy: Policy,
        handling: Handling,
        started: float,
    ) -> None:
        if self.ledger is None:
            return
        pairs = [
            (outcome, sent)
            for outcome, sent in zip(outcomes, conversations, strict=True)
            if isinstance(outcome, Verdict) and isinstance(sent, Conversation)
        ]
        if pairs:
            await self.ledger.verdicts(pairs, policy, handling, started)

    @property
    def draining(self) -> bool:
        return self.moderator.admission.draining

    def drain(self) -> None:
        """Admit nothing new from now on. Requests that are already admitted are still answered."""
        self.moderator.admission.draining = True


@dataclass(frozen=True, slots=True)
class Reply(Generic[Document]):
    """A reply: the JSON document, and the verdicts that it was made from."""

    document: Document
    verdicts: Sequence[Verdict]
