"""The prompts for one conversation, which together ask about everything in its last turn.

The official prompt asks only about the last message, and the official template makes each text of a turn a message. So
a turn of several texts is asked about more than once: first as a whole, with all texts in one message, so that nothing
hides by being split; then text by text, so that nothing hides behind the texts around it. A text that could be read as
several messages is split the same way. The strictest verdict wins (docs/prompt.md).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from server.domain.conversation import Conversation, ImagePart, Part, Role, TextPart, Turn
from server.domain.verdict import About
from server.moderation.lookalikes import messages_in, spelt_plainly

Plain = Callable[[str], str]
"""`spelt_plainly`, or the same for the texts of one request (`spelt_once`)."""

MAX_PASSES = 32
"""The most prompts for one verdict."""

MAX_MESSAGES = 16
"""A turn of more messages than this is asked about only as a whole, and not also message by message."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One prompt. It asks about the last message of `conversation`: one text, and the images of its turn.

    `about` is None if that is the whole last turn. `whole` passes ask about all of a turn, the others about a part.
    """

    conversation: Conversation
    about: About | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Passes:
    """The prompts for one verdict, at least one and at most MAX_PASSES. The first one asks about the whole last turn.

    `lookalikes` counts the messages that texts of the turn could be read as. It is 0 if no text holds a mark.
    """

    passes: tuple[Pass, ...]
    lookalikes: int = 0

    @property
    def joined(self) -> "Passes":
        """Only the passes that ask about whole turns: as few prompts as possible that still ask about everything."""
        return replace(self, passes=tuple(one for one in self.passes if one.whole))


def spelt_once(most_marks: float = math.inf) -> Plain:
    """`spelt_plainly` for the texts of one request, each of which is read once, however many conversations hold it.

    It raises TooManyMarks for a text with more than `most_marks`.
    """
    return cache(partial(spelt_plainly, most=most_marks))


def passes_of(conversation: Conversation, plain: Plain = spelt_plainly) -> Passes:
    """The passes for the last turn of `conversation`.

    The operator's texts are context for the other texts of their turn. If a turn is only the operator's and follows the
    model's, it is judged, and so is the model's turn before it, so that it cannot shield the model.
    """
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


def passes_of_all(conversations: Iterable[Conversation], plain: Plain | None = None) -> list[Passes]:
    """The same for conversations that may share texts, in time linear in the length of all distinct texts."""
    plain = plain or spelt_once()
    return [passes_of(conversation, plain) for conversation in conversations]


def _is_one_message(turn: Turn) -> bool:
    """Whether `turn` is one text or image that is not the operator's."""
    return len(turn.parts) == 1 and not turn.parts[0].operator


def _about(before: Sequence[Turn], turn: Turn, plain: Plain) -> Passes:
    """The passes for `turn`, which follows `before`."""
    told, said = _told_and_said(turn)
    context = [_spelt_plainly(one, plain) for one in (*before, *told)]
    whole = Pass(Conversation((*context, Turn(turn.role, (*turn.images, *_joined(said, plain))))))
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
            # Once its marks are removed, a message may begin with words that are a mark at the start of a text.
            turns = [*turns, Turn(speaker, (*images, TextPart(plain(words), part.param)))]
            images = ()
            about = About(part.param, number if has_marks else None)
            passes.append(Pass(Conversation(tuple(turns)), about, whole=False))
    return Passes(tuple(passes), lookalikes)


def _told_and_said(turn: Turn) -> tuple[list[Turn], list[TextPart]]:
    """The operator's texts as a separate turn, if they are context, and the texts to ask about."""
    said = [part for part in turn.asked if isinstance(part, TextPart)]
    if _only_operator(turn.parts):
        return [], said
    told = tuple(part for part in turn.parts if isinstance(part, TextPart) and part.operator)
    return [Turn(turn.role, told)] if told else [], said


def _only_operator(parts: Iterable[Part]) -> bool:
    return all(part.operator for part in parts)


def _joined(said: Sequence[TextPart], plain: Plain) -> tuple[TextPart, ...]:
    """Texts joined into one by blank lines, spelt so that they read as one message."""
    if not said:
        return ()
    text = said[0].text if len(said) == 1 else "\n\n".join(part.text.strip() for part in said)
    return (TextPart(plain(text), said[0].param),)


def _spelt_plainly(turn: Turn, plain: Plain) -> Turn:
    return Turn(
        turn.role,
        tuple(part if isinstance(part, ImagePart) else replace(part, text=plain(part.text)) for part in turn.parts),
    )


def _beginning(turn: Turn) -> About:
    return About(next((part.param for part in turn.parts), ""))
