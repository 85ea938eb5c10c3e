"""Verdicts that are kept for when the very same question is asked again."""

import math
import sys
import time
from collections.abc import Callable

from cachetools import TTLCache

from server.domain.verdict import CacheUse, Verdict
from server.moderation.question import Key

ENTRY_BYTES = 5120
"""Memory of an ordinary entry, with its key and its place in the order; rounded up."""

TOKEN_BYTES, CATEGORY_BYTES = 300, 500
"""Memory of one token of an answer or one alternative to it, and of one own category beside its words, rounded up."""


class VerdictCache:
    """Holds up to `entries` verdicts for `ttl_s` seconds each; the one that was not asked for longest goes first.

    An entry that needs more memory than ENTRY_BYTES counts as several. None at all are kept when `entries` is 0.
    """

    def __init__(self, entries: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries = entries
        self._kept: TTLCache[Key, Verdict] = TTLCache(entries, ttl_s, clock, _entries_of)

    def get(self, key: Key) -> Verdict | None:
        """The verdict on this question, marked as a hit."""
        return self._kept.get(key) if self._entries else None

    def keep(self, key: Key, verdict: Verdict) -> None:
        if isinstance(key, bytes) and _entries_of(verdict) <= self._entries:
            self._kept[key] = verdict.uncomputed(CacheUse.HIT)


def _entries_of(verdict: Verdict) -> int:
    """How many entries' worth of memory a verdict takes: a caller's own categories and its tokens may make it large."""
    completion, size = verdict.completion, 0
    if completion.taxonomy.own:
        size += sum(CATEGORY_BYTES + sys.getsizeof(each.prompt_name) for each in completion.taxonomy.categories)
    for token in completion.reading.tokens or ():
        size += TOKEN_BYTES * (1 + len(token.alternatives))
    return 1 + math.ceil(size / ENTRY_BYTES)
