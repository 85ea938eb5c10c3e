"""Ids that go over the wire."""

import os


def new_id(prefix: str) -> str:
    """`prefix` and 32 random hexadecimal digits."""
    return prefix + os.urandom(16).hex()
