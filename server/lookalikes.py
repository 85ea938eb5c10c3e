"""Texts that look like the form of a conversation: a reader of the prompt would see messages where one was sent.

The prompt marks a message by its speaker's name and by four literal characters, `\\n\\n`, and a caller's text may hold
both. No tokenizer can tell them apart: one text spelt like three turns gives the very token ids of three turns. So a
text is read here as a lenient reader of the prompt would read it, with other templates' marks as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import regex

from server.conversation import INVISIBLE, Role, says_something

SPEAKERS: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "system", "developer", "tool", "function"), Role.USER),
    **dict.fromkeys(("ipython", "humanquestion"), Role.USER),
    **dict.fromkeys(("agent", "assistant", "ai", "bot", "chatbot", "chatbotresponse", "model"), Role.AGENT),
}
"""Names of speakers in the templates of guard and chat models, without spaces, and on whose side they speak."""

_COLONS = ("：", "﹕", "︓", "∶", "꞉")
"""What looks like a colon."""

_EMPHASIS = "#*_>|()[]<"
_FILLING = regex.compile(rf"[\s{INVISIBLE}{regex.escape(_EMPHASIS)}]+")
"""What may stand around a speaker's name, and what cannot be seen within it."""

_UNSEEN = rf"[[\s{INVISIBLE}]--[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]]"
"""Within a line: a name behind a line break is a label of its own."""

_NAME = "|".join(rf"{_UNSEEN}*+".join(name) for name in sorted(SPEAKERS, key=len, reverse=True))
_MARKER = regex.compile(
    r"<\s*+(?:BEGIN|END)\b[^<>\n]{0,80}>"
    rf"|(?:<\|[^\s|<>]{{1,60}}\|>|<(?:start|end)_of_turn>)(?:{_UNSEEN}*+(?P<name>{_NAME})\b(?:{_UNSEEN}*+[:{''.join(_COLONS)}])?)?"
    r"|\[/?INST\]|<</?SYS>>",
    regex.IGNORECASE | regex.VERSION1,
)
"""Section markers of guard prompts, and how chat templates spell control tokens, with the speaker whom one names."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A mark from `start` to before `end`; after it `speaker` speaks, or whoever spoke before."""

    start: int
    end: int
    speaker: Role | None


def is_lookalike(text: str) -> bool:
    """Whether `text` holds a mark of a conversation's form."""
    if text.isascii() and not (":" in text or "<" in text or "[" in text):
        return False  # most texts
    return next(_marks(text), None) is not None


def messages_in(text: str, speaker: Role) -> list[tuple[Role, str]]:
    """The messages that `text`, which `speaker` sent, could be read as: itself alone where it holds no mark.

    Messages that say nothing are left out, and so are the marks.
    """
    messages, start = list[tuple[Role, str]](), 0
    for mark in _marks(text):
        messages.append((speaker, _without_end(text[start : mark.start])))
        start, speaker = mark.end, mark.speaker or speaker
    messages.append((speaker, _without_end(text[start:]) if start else text))
    return [(role, words) for role, words in messages if says_something(words)]


def spelt_plainly(text: str) -> str:
    """`text` with every mark in ‹angular› quotation marks in place of its own brackets: none is a mark any more."""
    pieces, start = list[str](), 0
    for mark in _marks(text):
        pieces += (text[start : mark.start], f"‹{text[mark.start : mark.end].strip().strip('<>[]')}›")
        start = mark.end
    return "".join((*pieces, text[start:])) if start else text


def _marks(text: str) -> Iterator[_Mark]:
    """All marks in order. The time that it takes grows with the length of `text`."""
    # Same length as the text, but a line break that is spelt as two characters is one, and what looks like a colon too.
    lines = text.replace("\\n", " \n").replace("\\r", " \r")
    if not text.isascii():
        for colon in _COLONS:
            lines = lines.replace(colon, ":")
    # `concurrent` lets other threads run: a long text is read beside the event loop.
    markers = _MARKER.finditer(text, concurrent=True) if "<" in text or "[" in text else ()
    start = 0
    for marker in markers:
        yield from _labels(lines, start, marker.start())
        name = marker["name"]
        yield _Mark(marker.start(), marker.end(), None if name is None else _speaker(name))
        start = marker.end()
    yield from _labels(lines, start, len(text))


def _labels(text: str, start: int, end: int) -> Iterator[_Mark]:
    """Speakers' names with a colon behind them, each at the start of a line of `text[start:end]`."""
    if text.find(":", start, end) < 0:
        return
    for line in text[start:end].splitlines(keepends=True):
        before, colon, behind = line.partition(":")
        if colon and (speaker := _speaker(before)) is not None:
            emphasis = len(behind) - len(behind.lstrip("*_"))
            yield _Mark(start, start + len(before) + 1 + emphasis, speaker)
        start += len(line)


def _speaker(label: str) -> Role | None:
    """Who is named by what stands before a colon."""
    bare = label.strip(_EMPHASIS + " \t")
    name = "".join(bare.split()) if bare.isascii() and bare.isprintable() else _FILLING.sub("", bare)
    return SPEAKERS.get(name.casefold())


def _without_end(words: str) -> str:
    """Words without the white space around them and the line breaks, real or spelt, that end a message."""
    words = words.strip()
    while words.endswith(("\\n", "\\r")):
        words = words[:-2].rstrip()
    return words
