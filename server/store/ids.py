"""Ids of files and batches. Their order is the order of creation, which lists use for pages."""

import re
import secrets
import time
from enum import StrEnum

_TAIL = re.compile(r"[0-9a-f]{32}")


class Kind(StrEnum):
    """The prefix of an id."""

    FILE = "file-"
    BATCH = "batch_"


def new_id(kind: Kind) -> str:
    return f"{kind}{time.time_ns():016x}{secrets.token_hex(8)}"


def is_id(kind: Kind, text: str) -> bool:
    """Whether `text` could be one of our ids. Any other text must not reach the database."""
    return text.startswith(kind) and _TAIL.fullmatch(text, len(kind)) is not None
