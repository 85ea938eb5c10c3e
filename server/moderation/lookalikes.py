"""Texts that look like a conversation: one message was sent, but a reader of the prompt would see several.

The prompt marks a message by its speaker's name and by four literal characters, `\\n\\n`, and a caller's text may hold
both. No tokenizer can tell them apart: one text spelt like three turns gives exactly the token ids of three turns. So
this module reads a text as a lenient reader of the prompt would, and also looks for the marks of other templates.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import regex

from server.domain.conversation import INVISIBLE, Role, says_something

SPEAKERS: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "system", "developer", "tool", "function", "ipython"), Role.USER),
    **dict.fromkeys(("agent", "assistant", "ai", "bot", "chatbot"), Role.AGENT),
}
"""Names of speakers in the templates of guard and chat models, and the side that each speaks for."""

TOKEN_SPEAKERS = {**SPEAKERS, "model": Role.AGENT}
"""Names of speakers within a control token, or after one."""

HEADINGS = {"instruction": Role.USER, "input": Role.USER, "response": Role.AGENT}
"""Names that mark a message only in a heading, such as `### Response:`."""

QUALIFIERS = frozenset(
    (
        "user",
        "assistant",
        "message",
        "msg",
        "question",
        "query",
        "prompt",
        "input",
        "turn",
        "response",
        "reply",
        "answer",
    )
)
"""Words that may follow a speaker's name: `Human Question:`, `Assistant Message:`."""

CARRIERS = frozenset(("role", "from", "speaker", "prompt", "response", "input", "output", "message"))
"""Words that may stand before a speaker's name, with their own colon: `response: agent:`."""

_AS_ASCII = {
    ord(character): unicodedata.normalize("NFKC", character)
    for first, last in ((0x2100, 0x214F), (0x2460, 0x24FF), (0xFE30, 0xFE6F), (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF))
    for character in map(chr, range(first, last + 1))
    if len(unicodedata.normalize("NFKC", character)) == 1 and unicodedata.normalize("NFKC", character).isascii()
}
"""Letters and signs in other widths and styles, each mapped to one plain character."""
_AS_ASCII |= dict.fromkeys(map(ord, "∶꞉ː։˸׃᠃"), ":")
_AS_ASCII |= dict.fromkeys(map(ord, "〈《⟨⟪"), "<") | dict.fromkeys(map(ord, "〉》⟩⟫"), ">")
_AS_ASCII |= dict.fromkeys(map(ord, "¦│┃∣"), "|")

_NO_BRACKETS = dict.fromkeys(map(ord, "<>[]{}"))

_SPELT_BREAK = regex.compile(
    r"\\[nrvf]|\\x0[a-d]|\\x85|\\u000[a-d]|\\u0085|\\u202[89]|<br */?>|&#(?:10|13|x0?[ad]);|%0[ad]", regex.IGNORECASE
)
"""Line breaks as program strings, JSON, HTML and URLs spell them."""
_ENDS_IN_BREAK = regex.compile(rf"(?:{_SPELT_BREAK.pattern})\Z", regex.IGNORECASE)
_LONGEST_BREAK = 8

_EMPHASIS = " \t#*_>|()[]{}<-•–—+=~`“”„‘’'«»"
_LONGEST = 40
"""The most characters of a label."""

_SLICE = 65_536
"""Characters of a long text that one call reads."""

_FILLING = regex.compile(rf"[\s{INVISIBLE}]+")
_SEEN = regex.compile(rf"[^\s{INVISIBLE}]")
_WITHIN_WORD = regex.compile(rf"(?<=\w)[{INVISIBLE}]+(?=\w)")
_ASIDE = regex.compile(r"\([^()]*\)?|[0-9]+[.)]?")
_UNSEEN = rf"[\s{INVISIBLE}]*+"
_SEPARATOR = rf"[\s_{INVISIBLE}/|\-]*+"


def _spaced(words: str) -> str:
    """A pattern for `words` with invisible characters between letters, and with any separator between words."""
    return _SEPARATOR.join(rf"[{INVISIBLE}]*+".join(word) for word in words.split())


_SECTIONS = "|".join(
    map(
        _spaced,
        (
            *(
                "conversation",
                "unsafe content categories",
                "content categories",
                "categories",
                "safety policy",
                "policy",
            ),
            *("chat", "dialog", "dialogue", "messages", "message", "prompt", "user prompt", "turn", "response"),
        ),
    )
)
_NAMES = "|".join(map(_spaced, TOKEN_SPEAKERS))
_MARKER = regex.compile(
    rf"[<\[{{]{_SEPARATOR}(?:{_spaced('begin')}|{_spaced('end')}){_SEPARATOR}(?:{_SECTIONS}){_SEPARATOR}[>\]}}]"
    rf"|(?:<\|(?P<token>[^|<>‹›\n]{{1,60}})\|>|\[\|(?P<bar>[^|\[\]‹›\n]{{1,60}})\|\]|<(?:start|end)_of_turn>|<\|turn>)"
    rf"(?:{_UNSEEN}(?P<name>{_NAMES})\b(?:{_UNSEEN}:)?)?"
    r"|\[/?(?:INST|SYSTEM_PROMPT|TOOL_RESULTS|TOOL_CALLS|AVAILABLE_TOOLS)\]|<</?SYS>>|</?s>|<(?:bos|eos)>",
    regex.IGNORECASE,
)
"""Section markers of guard prompts, and control tokens of chat templates with the speaker that they name."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A mark from `start` up to `end`. After it `speaker` speaks, or the speaker from before if that is None."""

    start: int
    end: int
    speaker: Role | None


class TooManyMarks(Exception):
    """A text holds more marks than a prompt has room for."""


def is_lookalike(text: str) -> bool:
    """Whether `text` holds a mark of a conversation."""
    return next(_marks(text), None) is not None


def messages_in(text: str, speaker: Role) -> list[tuple[Role, str]]:
    """The messages that `text`, sent by `speaker`, could be read as. Without a mark that is only the text itself.

    Empty messages and the marks are left out.
    """
    messages, start = list[tuple[Role, str]](), 0
    for mark in _marks(text):
        messages.append((speaker, _without_end(text[start : mark.start])))
        start, speaker = mark.end, mark.speaker or speaker
    messages.append((speaker, _without_end(text[start:]) if start else text))
    return [(role, words) for role, words in messages if says_something(words)]


def spelt_plainly(text: str, most: float = math.inf) -> str:
    """`text` without any mark: each is put in ‹angular› quotation marks, on one line and without its brackets.

    Raises TooManyMarks for more than `most`.
    """
    pieces, start = list[str](), 0
    for number, mark in enumerate(_marks(text), 1):
        if number > most:
            raise TooManyMarks
        pieces += (text[start : mark.start], _quoted(text[mark.start : mark.end]))
        start = mark.end
    return "".join((*pieces, text[start:])) if start else text


def _quoted(mark: str) -> str:
    # All brackets and line breaks are removed, since a mark may hold another one.
    words = _SPELT_BREAK.sub(" ", mark.translate(_AS_ASCII)).translate(_NO_BRACKETS)
    return f"‹{' '.join(words.split())}›"


def _marks(text: str) -> Iterator[_Mark]:
    """All marks in order, in time linear in the length of `text`."""
    if text.isascii() and not (":" in text or "<" in text or "[" in text or "{" in text):
        return  # most texts
    # Every change keeps the positions of characters, so that the marks' positions are those in the text.
    # A long text is read in a thread. `concurrent` and slices let other threads run meanwhile.
    lines = text if text.isascii() else _translated(text)
    if "\\" in lines or "<" in lines or "&#" in lines or "%0" in lines:
        lines = _SPELT_BREAK.sub(lambda spelt: " " * (len(spelt[0]) - 1) + "\n", lines, concurrent=True)
    markers = _MARKER.finditer(lines, concurrent=True) if "<" in lines or "[" in lines or "{" in lines else ()
    start = 0
    for marker in markers:
        yield from _labels(lines, start, marker.start())
        yield _Mark(marker.start(), marker.end(), _token_speaker(marker))
        start = marker.end()
    yield from _labels(lines, start, len(lines))


def _token_speaker(marker: "regex.Match[str]") -> Role | None:
    """The speaker that a control token names, after it or within it."""
    for named in (marker["name"], marker["token"], marker["bar"]):
        if named and (speaker := TOKEN_SPEAKERS.get(_FILLING.sub("", named).casefold())) is not None:
            return speaker
    return None


def _labels(text: str, start: int, end: int) -> Iterator[_Mark]:
    """Speakers' names followed by a colon, each at the start of a line of `text[start:end]`."""
    if text.find(":", start, end) < 0:
        return
    for line in _lines(text, start, end):
        at = 0
        while (colon := line.find(":", at)) >= 0:
            label, at = line[at:colon], colon + 1
            words = _words(label)
            if (speaker := _speaker(words, label)) is not None:
                emphasis = len(line) - at - len(line[at:].lstrip("*_”’»"))
                yield _Mark(start, start + at + emphasis, speaker)
                break
            if not (len(words) == 1 and words[0] in CARRIERS):
                break
        start += len(line)


def _translated(text: str) -> str:
    return "".join(text[start : start + _SLICE].translate(_AS_ASCII) for start in range(0, len(text), _SLICE))


def _lines(text: str, start: int, end: int) -> Iterator[str]:
    """The lines of `text[start:end]` with their ends, as `splitlines` finds them, in slices."""
    size = _SLICE
    while start < end:
        stop = min(end, start + size)
        lines = text[start:stop].splitlines(keepends=True)
        if stop < end:
            lines.pop()  # it may go on behind the slice
        yield from lines
        read = sum(map(len, lines))
        start, size = start + read, _SLICE if read else 2 * size


def _speaker(words: Sequence[str], label: str) -> Role | None:
    """The speaker that a label of these words names, if any. A label is the text before a colon."""
    if not 1 <= len(words) <= 3:
        return None
    if len(words) == 1 and "#" in label and words[0] in HEADINGS:
        return HEADINGS[words[0]]
    return SPEAKERS.get(words[0]) if all(word in QUALIFIERS for word in words[1:]) else None


def _words(label: str) -> list[str]:
    """The words of a label, without emphasis, numbers, asides and invisible characters. Empty for a long label."""
    bare = label.strip(_EMPHASIS)
    if (len(bare) > _LONGEST and bare.isascii()) or "‹" in bare:  # a quoted mark names nobody
        return []
    if not (bare.isascii() and bare.isprintable()):
        if len(list(islice(_SEEN.finditer(bare, concurrent=True), _LONGEST + 1))) > _LONGEST:
            return []
        bare = _WITHIN_WORD.sub("", bare, concurrent=True)
        bare = _FILLING.sub(" ", bare, concurrent=True).strip(_EMPHASIS)
    if len(bare) > _LONGEST:
        return []
    return [word.strip(_EMPHASIS) for word in _ASIDE.sub(" ", bare).casefold().split() if word.strip(_EMPHASIS)]


def _without_end(words: str) -> str:
    """Words without surrounding white space, and without line breaks at the end, real or spelt out."""
    words = words.strip()
    if _ENDS_IN_BREAK.search(words, max(0, len(words) - _LONGEST_BREAK)) is None:
        return words  # nearly all
    # One break after another from the end would take seconds for a million of them.
    blanked = _SPELT_BREAK.sub(lambda spelt: " " * len(spelt[0]), words, concurrent=True)
    return words[: len(blanked.rstrip())]
