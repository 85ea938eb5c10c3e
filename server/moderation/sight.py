"""Pictures that the served model does not see: the request is refused, or only its text is judged."""

from dataclasses import dataclass, replace

from server.domain.conversation import Conversation, ImagePart, Role, TextPart
from server.domain.errors import ImagesUnseen
from server.domain.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Sight:
    """Whether `model` sees pictures, and what happens if it does not.

    With `judge_text` the server judges the text around them; otherwise it refuses the request. `takes` says whether
    pictures then go to the backend all the same. They do if the model has a place for them: the prompt is then the one
    that the model was trained on, and trials and measurements use the same path as real pictures. `limit` is the most
    pictures of a request. `seeing` names the backends that have their own model, which sees pictures even if `model`
    does not: a remote one behind the engine.
    """

    model: str
    sees: bool
    takes: bool
    limit: int
    judge_text: bool = False
    seeing: frozenset[str] = frozenset()

    def admit(self, conversation: Conversation) -> Conversation:
        """`conversation` as it goes to the backend. Raises ImagesUnseen if it must not be judged."""
        images = conversation.images
        if self.sees or not images:
            return conversation
        if not self.judge_text:
            raise ImagesUnseen(
                f"The served model, {self.model}, does not see pictures. Send the text without them. If the operator"
                " sets GUARD_UNSEEN_IMAGES=judge_text, the server judges the text and leaves the pictures unjudged.",
                param=images[0].param,
            )
        if self.takes and len(images) > self.limit:
            return conversation  # the decoder refuses it for too many images
        if (picture := _asked_alone(conversation)) is not None:
            raise ImagesUnseen(
                f"The message to judge has pictures but no text, and the served model, {self.model}, does not see"
                " pictures. Send a text as well: with GUARD_UNSEEN_IMAGES=judge_text only the text is judged.",
                param=picture.param,
            )
        return conversation if self.takes else conversation.without_images()

    def tell(self, verdict: Verdict, conversation: Conversation) -> Verdict:
        """`verdict` with the number of pictures that the model did not see. `conversation` is the one that was sent."""
        images = conversation.images
        if self.sees or not images or (self.takes and verdict.completion.backend in self.seeing):
            return verdict
        return replace(verdict, images_unseen=len(images))


def _asked_alone(conversation: Conversation) -> ImagePart | None:
    """A picture in a turn to judge that has no text, or None."""
    *before, last = conversation.turns
    asked = [last.asked]
    if before and before[-1].role is Role.AGENT and all(part.operator for part in last.parts):
        asked.append(before[-1].asked)  # the model's turn is judged too (server.moderation.passes)
    for parts in asked:
        if not any(isinstance(part, TextPart) for part in parts):
            return next((part for part in parts if isinstance(part, ImagePart)), None)
    return None
