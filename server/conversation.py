"""What is judged: a conversation of turns, each made of text and images.

Llama Guard's template knows two roles that alternate, user first. Callers send more than that, so
`Conversation.from_messages` maps every role and order to it by one table (docs/prompt.md). Nothing that a
message says is dropped: what the template has no place for becomes text of the nearest turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from server.errors import InvalidRequest, NothingToJudge


class Role(StrEnum):
    """The speakers that the model was trained on; the values are the prompt's own words."""

    USER = "User"
    AGENT = "Agent"


ROLES: dict[str, Role] = {
    "user": Role.USER,
    "assistant": Role.AGENT,
    "system": Role.USER,
    "developer": Role.USER,
    "tool": Role.USER,
    "function": Role.USER,
}
"""Role on the wire to the turn it speaks in: all that goes *into* the judged assistant is the user's side."""


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image: `url` as the caller sent it (data:, http: or https:), `param` the field that held it."""

    url: str
    param: str = "image_url"


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a dialect read it: a role of the wire and its parts, in the caller's order."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says before the other one speaks."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Alternating turns, the user's first. The last one is judged."""

    turns: tuple[Turn, ...]
    images: tuple[ImagePart, ...] = field(init=False, repr=False, compare=False)
    """All images in the order in which the prompt shows them."""

    def __post_init__(self) -> None:
        images = tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImagePart))
        object.__setattr__(self, "images", images)

    @classmethod
    def from_messages(cls, messages: Sequence[Message]) -> "Conversation":
        """Fold messages of any known role and order into alternating turns.

        Raises InvalidRequest for an unknown role, NothingToJudge when the last turn is empty.
        """
        turns: list[tuple[Role, list[Part]]] = []
        for index, message in enumerate(messages):
            role = ROLES.get(message.role)
            if role is None:
                raise InvalidRequest(
                    f"Unknown role. Known roles are: {', '.join(ROLES)}.", param=f"messages[{index}].role"
                )
            if not turns and role is Role.AGENT:
                turns.append((Role.USER, []))
            if not turns or turns[-1][0] is not role:
                turns.append((role, []))
            turns[-1][1].extend(message.parts)
        if not turns:
            raise NothingToJudge("There is no message to judge.", param="messages")
        folded = tuple(Turn(role, tuple(parts)) for role, parts in turns)
        if not folded[-1].images and not any(text.strip() for text in folded[-1].texts):
            raise NothingToJudge("The message to judge has neither text nor an image.", param="messages")
        return cls(folded)

    @classmethod
    def from_user(cls, *parts: Part) -> "Conversation":
        """A conversation of one user turn."""
        return cls.from_messages([Message("user", parts)])

    @property
    def judged(self) -> Role:
        """Whose last message is judged: User is prompt classification, Agent response classification."""
        return self.turns[-1].role

    def without_images(self) -> "Conversation":
        """The same words. A turn of images alone stays as an empty one, so that the speakers still alternate."""
        return Conversation(
            tuple(
                replace(turn, parts=tuple(part for part in turn.parts if isinstance(part, TextPart)))
                for turn in self.turns
            )
        )

    def with_frames(self, counts: Sequence[int]) -> "Conversation":
        """Repeat each image as often as it was decoded into frames, in the order of `images`.

        Raises ValueError unless every image has at least one frame: none may go unseen.
        """
        if len(counts) != len(self.images) or not all(count >= 1 for count in counts):
            raise ValueError("every image of the conversation needs at least one frame")
        remaining = iter(counts)

        def expand(parts: tuple[Part, ...]) -> Iterator[Part]:
            for part in parts:
                yield from [part] * (next(remaining) if isinstance(part, ImagePart) else 1)

        return Conversation(tuple(replace(turn, parts=tuple(expand(turn.parts))) for turn in self.turns))
