"""Ids of what goes over the wire."""

import uuid


def new_id(prefix: str) -> str:
    """`prefix` and 32 hexadecimal digits, random but for a few."""
    return prefix + uuid.uuid4().hex
