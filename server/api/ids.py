"""Ids of what goes over the wire: 128 random bits behind a prefix, drawn from the system many at a time."""

import os
from collections.abc import Iterator

_AT_ONCE = 256


def _draw() -> Iterator[str]:
    # One system call for each id is among the costliest things that a short request does.
    while True:
        drawn = os.urandom(16 * _AT_ONCE).hex()
        yield from (drawn[start : start + 32] for start in range(0, len(drawn), 32))


_drawn = _draw()


def new_id(prefix: str) -> str:
    """`prefix` and 32 hexadecimal digits. For the event loop only."""
    return prefix + next(_drawn)
