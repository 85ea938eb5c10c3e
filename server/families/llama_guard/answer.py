"""Llama Guard's answers: `safe`, or `unsafe` and a line of codes."""

import re

from server.domain.errors import UnparseableVerdict
from server.domain.verdict import Levels, Said, Severity

CODES = tuple(f"S{number}" for number in range(1, 15))
"""What the model answers with."""

_ANSWER = re.compile(r"(?P<word>safe|unsafe(?:\n(?P<codes>S[0-9]+(?:,S[0-9]+)*))?)")


def read(text: str, levels: Levels | None = None) -> Said:
    """`text` as a whole. Raises UnparseableVerdict for any other form."""
    match = _ANSWER.fullmatch(text)
    if match is None:
        raise UnparseableVerdict("The model's answer is not of the form that it was asked for.")
    codes = tuple(match["codes"].split(",")) if match["codes"] else ()
    return Said(text, Severity.SAFE if match["word"] == "safe" else Severity.UNSAFE, codes, levels)
