"""The one way from every dialect to a verdict. It knows nothing of HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.api.names import ModelNames
from server.api.policy import PolicyOptions, ScoresWanted, apply
from server.domain.aio import fresh
from server.domain.caller import Handling
from server.domain.conversation import Conversation
from server.domain.errors import GuardError
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Verdict
from server.families.base import Family
from server.moderation.moderator import Moderator
from server.moderation.sight import Sight
from server.settings import Settings

Document = TypeVar("Document", bound=Mapping[str, object])


@dataclass(frozen=True, slots=True)
class Service:
    """The served model, its names and the operator's choices. `taxonomy` holds all of the model's own categories."""

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
        self.names.check(model)
        chosen = apply(policy, self.moderator.policy, allowed=self.settings.request_policy, scores=scores)
        admitted = [self._admitted(one) for one in conversations]
        asked = [one for one in admitted if isinstance(one, Conversation)]
        judged = iter(await self.moderator.moderate_each(asked, chosen, handling))
        outcomes = [next(judged) if isinstance(one, Conversation) else one for one in admitted]
        return [
            self.sight.tell(outcome, sent)
            if isinstance(outcome, Verdict) and isinstance(sent, Conversation)
            else outcome
            for outcome, sent in zip(outcomes, conversations, strict=True)
        ]

    def _admitted(self, conversation: Conversation | GuardError) -> Conversation | GuardError:
        if isinstance(conversation, GuardError):
            return conversation
        try:
            return self.sight.admit(conversation)
        except GuardError as error:
            return fresh(error)

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
