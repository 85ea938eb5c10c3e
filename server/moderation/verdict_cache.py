"""A cache of verdicts for questions that are asked again in exactly the same form."""

import math
import sys
import time
from collections.abc import Callable

from cachetools import TTLCache

from server.domain.verdict import CacheUse, Verdict
from server.moderation.question import Key

ENTRY_BYTES = 5120
"""Memory of an ordinary entry, including its key and its place in the order, rounded up."""

TOKEN_BYTES, CATEGORY_BYTES = 300, 500
"""Memory of one token (of an answer, or an alternative), and of one own category without its words, rounded up."""


class VerdictCache:
    """Holds up to `entries` verdicts for `ttl_s` seconds each. The least recently used one is dropped first.

    A verdict that needs more memory than ENTRY_BYTES counts as several entries. With 0 `entries` none is kept.
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
    """How many entries a verdict counts as. A caller's own categories, and tokens, may make it large."""
    completion, size = verdict.completion, 0
    if completion.taxonomy.own:
        size += sum(CATEGORY_BYTES + sys.getsizeof(each.prompt_name) for each in completion.taxonomy.categories)
    for token in completion.reading.tokens or ():
        size += TOKEN_BYTES * (1 + len(token.alternatives))
    return 1 + math.ceil(size / ENTRY_BYTES)
