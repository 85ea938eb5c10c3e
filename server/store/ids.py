"""Ids of files and batches: made so that their order is the order of creation, which lists page by."""

import re
import secrets
import time
from enum import StrEnum

_TAIL = re.compile(r"[0-9a-f]{32}")


class Kind(StrEnum):
    """What an id begins with."""

    FILE = "file-"
    BATCH = "batch_"


def new_id(kind: Kind) -> str:
    return f"{kind}{time.time_ns():016x}{secrets.token_hex(8)}"


def is_id(kind: Kind, text: str) -> bool:
    """Whether `text` could be an id of ours. What is none is not worth a question to the database, nor fit for one."""
    return text.startswith(kind) and _TAIL.fullmatch(text, len(kind)) is not None
