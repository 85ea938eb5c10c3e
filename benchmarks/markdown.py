"""Tables and lists in Markdown."""

import textwrap
from collections.abc import Iterable

WIDTH = 120


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A line for the titles, one below it, and one for each row."""
    header = list(titles)
    return "\n".join([_row(header), f"|{'---|' * len(header)}", *map(_row, rows)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def bullets(*points: str) -> str:
    """A list whose lines are at most WIDTH characters long."""
    return "\n".join(paragraph(f"- {point}", "  ") for point in points)


def paragraph(words: str, indent: str = "") -> str:
    """The words in lines of at most WIDTH characters, all but the first one indented."""
    return textwrap.fill(words, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
