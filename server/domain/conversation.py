"""A conversation of turns, each made of text and images. Its last turn is judged.

The prompts of guard models have two roles that alternate, user first. Callers send other roles and orders too, so
`Conversation.from_messages` maps all of them to these two by one table (docs/prompt.md). It drops no content: text that
the template has no place for is added to the nearest turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import regex

from server.domain.errors import InvalidRequest, NothingToJudge

INVISIBLE = r"\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\p{Noncharacter_Code_Point}\u2800\U0001D159\U00016FE4"
"""Invisible characters, for a set of the module `regex`: controls, format characters (zero-width ones, tags), all that
renderers ignore by Unicode's rules, noncharacters, the blank Braille pattern, the null notehead, a filler."""

_VISIBLE = regex.compile(rf"[^\s{INVISIBLE}]")
_SLICE = 65_536
"""Characters that one call looks at: it keeps other threads waiting."""


class Role(StrEnum):
    """The two sides of a conversation. A family decides how its prompt names them."""

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
"""Maps a role on the wire to a side. Everything that goes *into* the guarded assistant is on the user's side."""


OPERATOR_ROLES = frozenset({"system", "developer"})
"""The roles of the guarded assistant's operator."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text. `param` is the field that held it, `operator` whether it is the operator's."""

    text: str
    param: str = field(default="", compare=False)
    operator: bool = False


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One image. `url` is as the caller sent it (data:, http: or https:), `param` is the field that held it."""

    url: str
    param: str = "image_url"
    operator: bool = False


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a dialect read it: a role on the wire and its parts, in the caller's order."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """Everything that one speaker says before the other one speaks."""

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
        """The parts to judge: all except the operator's, or the operator's if there are no others."""
        return tuple(part for part in self.parts if not part.operator) or self.parts


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order. The last one is judged. `from_messages` makes them alternate, with the user's first."""

    turns: tuple[Turn, ...]
    images: tuple[ImagePart, ...] = field(init=False, repr=False, compare=False)
    """All images in the order in which the prompt shows them."""

    def __post_init__(self) -> None:
        images = tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImagePart))
        object.__setattr__(self, "images", images)

    @classmethod
    def from_messages(cls, messages: Sequence[Message]) -> "Conversation":
        """Fold messages of any known role and order into alternating turns, without empty messages.

        Raises InvalidRequest for an unknown role, and NothingToJudge if the last message is empty.
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
            # Whether the operator, and anybody else, said anything on this side since the other side's last message. A
            # caller must not send an empty message to have the operator's words judged in its place.
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
            raise NothingToJudge("There is no message to judge. Send at least one.", param="messages")
        if not says or others is False:
            raise NothingToJudge("The last message, which is judged, has neither text nor an image.", param="messages")
        return cls(tuple(Turn(role, tuple(parts)) for role, parts in turns))

    @classmethod
    def from_user(cls, *parts: Part) -> "Conversation":
        """A conversation of one user turn."""
        return cls.from_messages([Message("user", parts)])

    @property
    def judged(self) -> Role:
        """The speaker whose last message is judged: USER for prompt classification, AGENT for responses."""
        return self.turns[-1].role

    def without_images(self) -> "Conversation":
        """The same texts. A turn of only images stays as an empty turn, so that the speakers still alternate."""
        return Conversation(
            tuple(
                replace(turn, parts=tuple(part for part in turn.parts if isinstance(part, TextPart)))
                for turn in self.turns
            )
        )

    def with_frames(self, counts: Sequence[int]) -> "Conversation":
        """Repeat each image once for each of its decoded frames, whose `counts` are in the order of `images`.

        Raises ValueError unless every image has at least one frame, since no image may go unseen.
        """
        if len(counts) != len(self.images) or not all(count >= 1 for count in counts):
            raise ValueError("every image of the conversation needs at least one frame")
        remaining = iter(counts)

        def expand(parts: tuple[Part, ...]) -> Iterator[Part]:
            for part in parts:
                yield from [part] * (next(remaining) if isinstance(part, ImagePart) else 1)

        return Conversation(tuple(replace(turn, parts=tuple(expand(turn.parts))) for turn in self.turns))


def says_something(text: str) -> bool:
    """Whether `text` has any visible character."""
    # Most texts begin with one. For a long text that does not, each distinct character of a slice is checked once.
    return _VISIBLE.search(text, endpos=256) is not None or any(
        _VISIBLE.search("".join(set(text[start : start + _SLICE]))) is not None
        for start in range(256, len(text), _SLICE)
    )


def _said(message: Message) -> tuple[Part, ...]:
    """The parts of a message that are not empty. The operator's are marked as his."""
    parts = tuple(part for part in message.parts if isinstance(part, ImagePart) or says_something(part.text))
    if message.role in OPERATOR_ROLES:
        return tuple(replace(part, operator=True) for part in parts)
    return parts
