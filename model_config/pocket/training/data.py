"""The rows that the pocket weights learn from, and those they are measured on."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation; its last message is the one judged."""

    key: str
    source: str
    messages: tuple[str, ...]
    unsafe: bool
    categories: tuple[int, ...]
    dev: bool = False


def read_rows(path: Path) -> list[Row]:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file of labelled conversations."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [_row(json.loads(line)) for line in lines if line.strip()]


def without_lookalikes(rows: Iterable[Row], kept_apart: Iterable[Row], limit: float = 0.7) -> Iterator[Row]:
    """Leave out rows whose judged words are nearly those of a row that is kept for measuring."""
    apart = [words for row in kept_apart if (words := _words(row.messages[-1]))]
    for row in rows:
        words = _words(row.messages[-1])
        if not any(_overlap(words, other) >= limit for other in apart):
            yield row


def _row(raw: dict[str, Any]) -> Row:
    return Row(
        key=raw["id"],
        source=raw.get("source", ""),
        messages=tuple(message["content"] for message in raw["messages"]),
        unsafe=raw["label"] == "unsafe",
        categories=tuple(sorted(int(code[1:]) for code in raw["categories"])),
        dev=raw.get("split") == "dev",
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()[:400]))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)
