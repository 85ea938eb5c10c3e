"""What the model is asked about one conversation: prompts among which all that was said last is asked about.

The official prompt asks about the last message only, and the official template makes a message of each text of a turn.
So a turn of several texts is asked about more than once: whole, with its texts in one message, so that nothing hides by
being split; then text by text, so that nothing hides behind what stands beside it. A text that could be read as several
messages is taken apart the same way. The strictest verdict wins (docs/prompt.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from server.conversation import Conversation, ImagePart, Part, Role, TextPart, Turn
from server.lookalikes import is_lookalike, messages_in, spelt_plainly
from server.verdict import About

MAX_PASSES = 32
"""Prompts of one verdict."""

MAX_MESSAGES = 16
"""Messages of one turn that are asked about one by one. A turn of more is asked about as a whole only."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One prompt. It asks about the last message of `conversation`: one text, and the images of its turn.

    `about` is None where that is the whole last turn.
    """

    conversation: Conversation
    about: About | None = None


@dataclass(frozen=True, slots=True)
class Passes:
    """The prompts of one verdict, at least one and at most MAX_PASSES. The first one asks about the whole last turn.

    `lookalikes` counts the messages that texts of the turn could be read as; it is 0 where no text holds a mark.
    """

    passes: tuple[Pass, ...]
    lookalikes: int = 0


def passes_of(conversation: Conversation) -> Passes:
    """What is asked about the last turn of `conversation`.

    What the operator says is context for what others say in the same turn. A turn of the operator's alone that follows
    the model's is judged, and so is the model's, with that turn as context: it must not shield the model.
    """
    *before, turn = conversation.turns
    if _is_one_message(turn) and not any(is_lookalike(text) for each in conversation.turns for text in each.texts):
        return Passes((Pass(conversation),))  # nearly all
    asked = _about(before, turn)
    if not (before and before[-1].role is Role.AGENT and _only_operator(turn.parts)):
        return asked
    shielded = _about([*before[:-1], turn], before[-1])
    passes = (*asked.passes, *(replace(one, about=one.about or _beginning(before[-1])) for one in shielded.passes))
    if len(passes) > MAX_PASSES:
        passes = (asked.passes[0], passes[len(asked.passes)])
    return Passes(passes, asked.lookalikes + shielded.lookalikes)


def in_one_message(conversation: Conversation) -> Conversation:
    """`conversation` with its last turn in one message that reads as one: a single pass asks about all of it."""
    return passes_of(conversation).passes[0].conversation


def _is_one_message(turn: Turn) -> bool:
    """Whether `turn` is one text or image of somebody else than the operator."""
    return len(turn.parts) == 1 and not turn.parts[0].operator


def _about(before: Sequence[Turn], turn: Turn) -> Passes:
    """What is asked about `turn`, which follows `before`."""
    told, said = _told_and_said(turn)
    context = [_spelt_plainly(one) for one in (*before, *told)]
    whole = Pass(Conversation((*context, Turn(turn.role, (*turn.images, *_joined(said))))))
    marked = [is_lookalike(part.text) for part in said]
    if len(said) <= 1 and not any(marked):
        return Passes((whole,))
    found = [messages_in(part.text, turn.role) for part in said]
    lookalikes = sum(len(messages) for messages, has_marks in zip(found, marked, strict=True) if has_marks)
    if sum(map(len, found)) > MAX_MESSAGES:
        return Passes((whole,), lookalikes)
    passes, turns, images = [whole], context, turn.images
    for part, has_marks, messages in zip(said, marked, found, strict=True):
        for number, (speaker, words) in enumerate(messages, 1):
            # The images stand in the first message, as in the official prompt of the same texts.
            turns = [*turns, Turn(speaker, (*images, TextPart(words, part.param)))]
            images = ()
            passes.append(Pass(Conversation(tuple(turns)), About(part.param, number if has_marks else None)))
    return Passes(tuple(passes), lookalikes)


def _told_and_said(turn: Turn) -> tuple[list[Turn], list[TextPart]]:
    """The operator's words as a turn of their own, if they are context, and the texts that are asked about."""
    asked = turn.asked
    told = tuple(part for part in turn.parts if isinstance(part, TextPart) and part not in asked)
    return [Turn(turn.role, told)] if told else [], [part for part in asked if isinstance(part, TextPart)]


def _only_operator(parts: Iterable[Part]) -> bool:
    return all(part.operator for part in parts)


def _joined(said: Sequence[TextPart]) -> tuple[TextPart, ...]:
    """Texts as one, with a blank line between two, in a spelling that reads as one message."""
    if not said:
        return ()
    text = said[0].text if len(said) == 1 else "\n\n".join(part.text.strip() for part in said)
    return (TextPart(spelt_plainly(text), said[0].param),)


def _spelt_plainly(turn: Turn) -> Turn:
    return Turn(
        turn.role,
        tuple(
            part if isinstance(part, ImagePart) else replace(part, text=spelt_plainly(part.text)) for part in turn.parts
        ),
    )


def _beginning(turn: Turn) -> About:
    return About(next((part.param for part in turn.parts), ""))
