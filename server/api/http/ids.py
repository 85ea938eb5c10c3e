"""Ids that go over the wire."""

import os
import re
from collections.abc import Iterable

TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(-.*)?")
"""W3C Trace Context. A later version may add fields."""


def new_id(prefix: str) -> str:
    """`prefix` and 32 random hexadecimal digits."""
    return prefix + os.urandom(16).hex()


def traceparent_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The caller's `traceparent` in the form of version 00. None without a valid one."""
    for name, value in headers:
        if name == b"traceparent":
            found = TRACEPARENT.fullmatch(value.strip())
            if (
                found is None
                or value.startswith(b"ff")
                or not (found["trace"].strip(b"0") and found["span"].strip(b"0"))
            ):
                return None
            return f"00-{found['trace'].decode()}-{found['span'].decode()}-{found['flags'].decode()}"
    return None
