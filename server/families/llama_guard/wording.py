"""A verdict as words: in the caller's codes, as far as the caller wants them, and the tokens that spell them.

An answer may be shorter than its verdict, since callers bound it, but it never says something else: it is cut behind
its first word or behind a whole code, nowhere else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, takewhile

from server.domain.verdict import Severity, Token, Verdict
from server.families.base import Wording

_CODE = r"[A-Z][0-9]+"
_WORDS = ("safe", "unsafe")
_LIST_BEGUN = rf"\n(?:{_CODE},)*(?:[A-Z][0-9]*)?"
_LONGEST_ANSWER = 256
"""Characters: more than `unsafe` and all codes, the model's or a caller's."""

_SPLITTING_STOP = re.compile(
    # All that can stand in an answer from inside of a word, or from the digits of a code on.
    "|".join(
        [
            *sorted({word[at:end] for word in _WORDS for end in range(len(word) + 1) for at in range(end)}),
            *("unsafe"[at:] + _LIST_BEGUN for at in range(len("unsafe"))),
            rf"[0-9]+(?:,{_CODE})*(?:,(?:[A-Z][0-9]*)?)?",
        ]
    )
)


def splits_an_answer(stop: str) -> bool:
    """Whether stopping at `stop` could leave half a word or half a code of some answer."""
    # No answer is as long, and the expression would take much memory for a long text.
    return len(stop) <= _LONGEST_ANSWER and _SPLITTING_STOP.fullmatch(stop) is not None


def write(
    verdict: Verdict,
    *,
    codes: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
) -> Wording:
    """Write `verdict` down.

    `codes` maps the model's codes to the caller's. `max_tokens` counts as the model does: one for the word and for the
    line break, two for each code. `stop` are texts before which the answer ends, none of which splits one.
    """
    if (
        not verdict.unsafe and verdict.completion.reading.tokens is None
    ):  # nearly all: a single word, which nothing cuts
        return Wording(_text(verdict))
    codes = codes or {}
    pieces = _pieces(_text(verdict))
    shown = [_renamed(piece, codes) for piece in pieces]
    wanted = kept = _pieces_before(stop, shown)
    if max_tokens is not None:
        kept = min(kept, sum(1 for cost in accumulate(map(_cost, pieces)) if cost <= max_tokens))
    if kept == 2:
        kept = 1  # a line break without a code behind it says nothing
    kept = max(kept, 1)
    return Wording("".join(shown[:kept]), _tokens(verdict, pieces[:kept], codes), cut=kept < wanted and wanted > 2)


def _text(verdict: Verdict) -> str:
    """`safe`, or `unsafe` and the line of codes."""
    if not verdict.unsafe:
        return "safe"
    return "\n".join(["unsafe", ",".join(verdict.categories)] if verdict.categories else ["unsafe"])


def _written(verdict: Verdict) -> str:
    """The answer of the model that stands behind `_text`: the list that it gave, for all it repeats itself."""
    if not verdict.unsafe:
        return "safe"
    reading = verdict.completion.reading
    if reading.said.severity is Severity.SAFE and reading.listed is not None:
        return reading.listed.text
    return reading.said.text


def _pieces(text: str) -> list[str]:
    """`unsafe`, the line break, `S1`, `,S9`: what an answer can be cut behind."""
    word, line_break, codes = text.partition("\n")
    if not line_break:
        return [word]
    first, *others = codes.split(",")
    return [word, line_break, first, *(f",{code}" for code in others)]


def _cost(piece: str) -> int:
    return 1 if piece in (*_WORDS, "\n") else 2


def _renamed(piece: str, codes: Mapping[str, str]) -> str:
    code = piece.removeprefix(",")
    return piece.removesuffix(code) + codes.get(code, code)


def _pieces_before(stop: Sequence[str], shown: Sequence[str]) -> int:
    """How many whole pieces stand before the first of the stops."""
    text = "".join(shown)
    end = min((at for at in map(text.find, filter(None, stop)) if at >= 0), default=len(text))
    return len(list(takewhile(lambda length: length <= end, accumulate(map(len, shown)))))


# --- Tokens ----------------------------------------------------------------------------------------------


def _tokens(verdict: Verdict, pieces: Sequence[str], codes: Mapping[str, str]) -> tuple[Token, ...] | None:
    """The tokens of `pieces`, which are the verdict's first ones, in the caller's codes."""
    tokens = verdict.completion.reading.tokens
    if tokens is None:
        return None
    rest, found = iter(tokens), dict[str, list[Token]]()
    for piece in _pieces(_written(verdict)):
        group: list[Token] = []
        while (spelt := b"".join(token.content for token in group)) != piece.encode():
            token = next(rest, None)
            if token is None or len(spelt) > len(piece):
                return None
            group.append(token)
        # A model may list a code twice; its verdict does not.
        found.setdefault(piece.removeprefix(","), group)
    try:
        groups = [found[piece.removeprefix(",")] for piece in pieces]
    except KeyError:  # A code that another pass listed.
        return None
    if codes:
        groups = [_in_codes(group, codes) for group in groups]
    return tuple(token for group in groups for token in group)


def _in_codes(group: list[Token], codes: Mapping[str, str]) -> list[Token]:
    """The tokens of one code under the caller's name for it, alternatives included."""
    if len(group) != 2:
        return group
    letter, number = group
    code = letter.content.decode()[-1:] + number.content.decode()
    letters = {b"S": codes[code][:1].encode(), b",S": b"," + codes[code][:1].encode()}
    numbers = {model[1:].encode(): caller[1:].encode() for model, caller in codes.items()}
    return [_respelt(letter, letters), _respelt(number, numbers)]


def _respelt(token: Token, spellings: Mapping[bytes, bytes]) -> Token:
    return replace(
        token,
        content=spellings.get(token.content, token.content),
        alternatives=tuple(_respelt(alternative, spellings) for alternative in token.alternatives),
    )
