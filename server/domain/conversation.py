"""What is judged: a conversation of turns, each made of text and images.

The prompts of guard models know two roles that alternate, user first. Callers send more than that, so
`Conversation.from_messages` maps every role and order to it by one table (docs/prompt.md). Nothing that a
message says is dropped: what the template has no place for becomes text of the nearest turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import regex

from server.domain.errors import InvalidRequest, NothingToJudge

INVISIBLE = r"\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\p{Noncharacter_Code_Point}\u2800\U0001D159\U00016FE4"
"""Characters that show nothing, for a set of the module `regex`: controls, format characters (zero-width ones, tags),
everything that Unicode has renderers ignore, noncharacters, the blank Braille pattern, the null notehead, a filler."""

_VISIBLE = regex.compile(rf"[^\s{INVISIBLE}]")


class Role(StrEnum):
    """The two sides of a conversation. How a prompt names them is for its family to say."""

    USER = "user"
    AGENT = "agent"


ROLES: dict[str, Role] = {
    "user": Role.USER,
    "assistant": Role.AGENT,
    "system": Role.USER,
    "developer": Role.USER,
    "tool": Role.USER,
    "function": Role.USER,
}
"""Role on the wire to the turn it speaks in: all that goes *into* the judged assistant is the user's side."""


OPERATOR_ROLES = frozenset({"system", "developer"})
"""Who speaks for the operator of the judged assistant."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text: `param` is the field that held it, `operator` whether the operator said it."""

    text: str
    param: str = field(default="", compare=False)
    operator: bool = False


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image: `url` as the caller sent it (data:, http: or https:), `param` the field that held it."""

    url: str
    param: str = "image_url"
    operator: bool = False


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

    @property
    def asked(self) -> tuple[Part, ...]:
        """The parts that are judged: all but the operator's, or the operator's where nobody else speaks."""
        return tuple(part for part in self.parts if not part.operator) or self.parts


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, of which the last one is judged. `from_messages` makes them alternate, the user's first."""

    turns: tuple[Turn, ...]
    images: tuple[ImagePart, ...] = field(init=False, repr=False, compare=False)
    """All images in the order in which the prompt shows them."""

    def __post_init__(self) -> None:
        images = tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImagePart))
        object.__setattr__(self, "images", images)

    @classmethod
    def from_messages(cls, messages: Sequence[Message]) -> "Conversation":
        """Fold messages of any known role and order into alternating turns. What says nothing vanishes.

        Raises InvalidRequest for an unknown role, NothingToJudge when nothing was said last.
        """
        turns: list[tuple[Role, list[Part]]] = []
        side, says = Role.USER, False
        others: bool | None = None
        for index, message in enumerate(messages):
            role = ROLES.get(message.role)
            if role is None:
                raise InvalidRequest(
                    f"Unknown role. Known roles are: {', '.join(ROLES)}.", param=f"messages[{index}].role"
                )
            parts = _said(message)
            # Whether this side says anything since the other one's last message: the operator, and everybody else, who
            # must not send what says nothing and have the operator's words judged in its place.
            operators = message.role in OPERATOR_ROLES
            if role is not side:
                side, says, others = role, False, None
            says = says or bool(parts)
            if not operators:
                others = bool(others or parts)
            if not parts:
                continue
            if not turns and role is Role.AGENT:
                turns.append((Role.USER, []))
            if not turns or turns[-1][0] is not role:
                turns.append((role, []))
            turns[-1][1].extend(parts)
        if not messages:
            raise NothingToJudge("There is no message to judge.", param="messages")
        if not says or others is False:
            raise NothingToJudge("The message to judge has neither text nor an image.", param="messages")
        return cls(tuple(Turn(role, tuple(parts)) for role, parts in turns))

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


def says_something(text: str) -> bool:
    """Whether anything of `text` can be seen."""
    # Most texts show it at once. Of a long one that does not, each character is looked at once, not each occurrence.
    return _VISIBLE.search(text, endpos=256) is not None or (
        len(text) > 256 and _VISIBLE.search("".join(set(text))) is not None
    )


def _said(message: Message) -> tuple[Part, ...]:
    """The parts of a message that say or show something, marked where they are the operator's."""
    parts = tuple(part for part in message.parts if isinstance(part, ImagePart) or says_something(part.text))
    if message.role in OPERATOR_ROLES:
        return tuple(replace(part, operator=True) for part in parts)
    return parts
