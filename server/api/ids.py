"""Ids of what goes over the wire."""

import secrets


def new_id(prefix: str) -> str:
    """`prefix` and 32 random hexadecimal digits."""
    return prefix + secrets.token_hex(16)
