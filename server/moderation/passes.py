"""What the model is asked about one conversation: prompts among which all that was said last is asked about.

The official prompt asks about the last message only, and the official template makes a message of each text of a turn.
So a turn of several texts is asked about more than once: whole, with its texts in one message, so that nothing hides by
being split; then text by text, so that nothing hides behind what stands beside it. A text that could be read as several
messages is taken apart the same way. The strictest verdict wins (docs/prompt.md).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from server.domain.conversation import Conversation, ImagePart, Part, Role, TextPart, Turn
from server.domain.verdict import About
from server.moderation.lookalikes import messages_in, spelt_plainly

Plain = Callable[[str], str]
"""spelt_plainly, which gives back a text that holds no marks. A request reads each of its texts once."""

MAX_PASSES = 32
"""Prompts of one verdict."""

MAX_MESSAGES = 16
"""Messages of one turn that are asked about one by one. A turn of more is asked about as a whole only."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One prompt. It asks about the last message of `conversation`: one text, and the images of its turn.

    `about` is None where that is the whole last turn. `whole` passes ask about all of a turn, the others about a part.
    """

    conversation: Conversation
    about: About | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Passes:
    """The prompts of one verdict, at least one and at most MAX_PASSES. The first one asks about the whole last turn.

    `lookalikes` counts the messages that texts of the turn could be read as; it is 0 where no text holds a mark.
    """

    passes: tuple[Pass, ...]
    lookalikes: int = 0

    @property
    def joined(self) -> "Passes":
        """Those that ask about whole turns: all that was said is asked about, by as few prompts as possible."""
        return replace(self, passes=tuple(one for one in self.passes if one.whole))


def passes_of(conversation: Conversation) -> Passes:
    """What is asked about the last turn of `conversation`.

    What the operator says is context for what others say in the same turn. A turn of the operator's alone that follows
    the model's is judged, and so is the model's, with that turn as context: it must not shield the model.
    """
    return _passes_of(conversation, spelt_plainly)


def passes_of_all(conversations: Iterable[Conversation]) -> list[Passes]:
    """The same for conversations that may share texts, in time that grows with the length of all different texts."""
    plain = cache(spelt_plainly)
    return [_passes_of(conversation, plain) for conversation in conversations]


def _passes_of(conversation: Conversation, plain: Plain) -> Passes:
    *before, turn = conversation.turns
    if _is_one_message(turn) and all(plain(text) == text for each in conversation.turns for text in each.texts):
        return Passes((Pass(conversation),))  # nearly all
    asked = _about(before, turn, plain)
    if not (before and before[-1].role is Role.AGENT and _only_operator(turn.parts)):
        return asked
    shielded = _about([*before[:-1], turn], before[-1], plain)
    beginning = _beginning(before[-1])
    passes = (*asked.passes, *(replace(one, about=one.about or beginning) for one in shielded.passes))
    both = Passes(passes, asked.lookalikes + shielded.lookalikes)
    return both if len(passes) <= MAX_PASSES else both.joined


def _is_one_message(turn: Turn) -> bool:
    """Whether `turn` is one text or image of somebody else than the operator."""
    return len(turn.parts) == 1 and not turn.parts[0].operator


def _about(before: Sequence[Turn], turn: Turn, plain: Plain) -> Passes:
    """What is asked about `turn`, which follows `before`."""
    told, said = _told_and_said(turn)
    context = [_spelt_plainly(one, plain) for one in (*before, *told)]
    whole = Pass(Conversation((*context, Turn(turn.role, (*turn.images, *_joined(said))))))
    marked = [plain(part.text) != part.text for part in said]
    if len(said) <= 1 and not any(marked):
        return Passes((whole,))
    found = [
        messages_in(part.text, turn.role) if has_marks else [(turn.role, part.text)]
        for part, has_marks in zip(said, marked, strict=True)
    ]
    lookalikes = sum(len(messages) for messages, has_marks in zip(found, marked, strict=True) if has_marks)
    if sum(map(len, found)) > MAX_MESSAGES:
        return Passes((whole,), lookalikes)
    passes, turns, images = [whole], context, turn.images
    for part, has_marks, messages in zip(said, marked, found, strict=True):
        for number, (speaker, words) in enumerate(messages, 1):
            # The images stand in the first message, as in the official prompt of the same texts.
            # Without its marks a message may begin with what is one at the start of a text.
            turns = [*turns, Turn(speaker, (*images, TextPart(plain(words), part.param)))]
            images = ()
            about = About(part.param, number if has_marks else None)
            passes.append(Pass(Conversation(tuple(turns)), about, whole=False))
    return Passes(tuple(passes), lookalikes)


def _told_and_said(turn: Turn) -> tuple[list[Turn], list[TextPart]]:
    """The operator's words as a turn of their own, if they are context, and the texts that are asked about."""
    said = [part for part in turn.asked if isinstance(part, TextPart)]
    if _only_operator(turn.parts):
        return [], said
    told = tuple(part for part in turn.parts if isinstance(part, TextPart) and part.operator)
    return [Turn(turn.role, told)] if told else [], said


def _only_operator(parts: Iterable[Part]) -> bool:
    return all(part.operator for part in parts)


def _joined(said: Sequence[TextPart]) -> tuple[TextPart, ...]:
    """Texts as one, with a blank line between two, in a spelling that reads as one message."""
    if not said:
        return ()
    text = said[0].text if len(said) == 1 else "\n\n".join(part.text.strip() for part in said)
    return (TextPart(spelt_plainly(text), said[0].param),)


def _spelt_plainly(turn: Turn, plain: Plain) -> Turn:
    return Turn(
        turn.role,
        tuple(part if isinstance(part, ImagePart) else replace(part, text=plain(part.text)) for part in turn.parts),
    )


def _beginning(turn: Turn) -> About:
    return About(next((part.param for part in turn.parts), ""))
