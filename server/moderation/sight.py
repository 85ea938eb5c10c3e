"""What becomes of pictures that the served model does not see: they are refused, or the text beside them is judged."""

from dataclasses import dataclass, replace

from server.domain.conversation import Conversation, ImagePart, Role, TextPart
from server.domain.errors import ImagesUnseen
from server.domain.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Sight:
    """Whether `model` sees what is on pictures, and what is done where it does not.

    `judge_text` has the text beside them judged; else the request is refused. `takes` says whether pictures then go to
    the backend even so. They do where the model has a place for them: its prompt is the one that it was trained on, and
    whoever tries the server out, or measures it, goes the way of real pictures. `limit` is how many pictures a request
    may hold. `seeing` names the backends whose own model sees whatever `model` does: a remote one behind the engine.
    """

    model: str
    sees: bool
    takes: bool
    limit: int
    judge_text: bool = False
    seeing: frozenset[str] = frozenset()

    def admit(self, conversation: Conversation) -> Conversation:
        """`conversation` as it goes to the backend. Raises ImagesUnseen where it must not be judged."""
        images = conversation.images
        if self.sees or not images:
            return conversation
        if not self.judge_text:
            raise ImagesUnseen(
                f"The served model, {self.model}, does not see pictures. Send the text without them. With"
                " GUARD_UNSEEN_IMAGES=judge_text the server judges the text, and leaves the pictures unjudged.",
                param=images[0].param,
            )
        if self.takes and len(images) > self.limit:
            return conversation  # refused by the decoder, as too many
        if (picture := _asked_alone(conversation)) is not None:
            raise ImagesUnseen(
                f"The message to judge has pictures and no text, and the served model, {self.model}, does not see"
                " pictures: there is nothing that it could judge. GUARD_UNSEEN_IMAGES=judge_text needs a text.",
                param=picture.param,
            )
        return conversation if self.takes else conversation.without_images()

    def tell(self, verdict: Verdict, conversation: Conversation) -> Verdict:
        """`verdict` with the number of pictures of `conversation`, as it was sent, that nobody saw."""
        images = conversation.images
        if self.sees or not images or (self.takes and verdict.completion.backend in self.seeing):
            return verdict
        return replace(verdict, images_unseen=len(images))


def _asked_alone(conversation: Conversation) -> ImagePart | None:
    """A picture that is asked about and has no text beside it, or None."""
    *before, last = conversation.turns
    asked = [last.asked]
    if before and before[-1].role is Role.AGENT and all(part.operator for part in last.parts):
        asked.append(before[-1].asked)  # such a turn does not shield the model's (server.moderation.passes)
    for parts in asked:
        if not any(isinstance(part, TextPart) for part in parts):
            return next((part for part in parts if isinstance(part, ImagePart)), None)
    return None
