"""Lines in a chain: the MAC of each covers its own bytes and the MAC of the line before it.

A line is a JSON object in UTF-8 that begins with its number, `n`, and ends with its `mac`. Whoever has no key can
neither alter a line, nor leave one out, nor put one in.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAC_FIELD = b',"mac":"'
_HEX = 2 * hashlib.sha256().digest_size
_END = b'"}'


@dataclass(frozen=True, slots=True)
class Head:
    """The last line of a chain: its number, from 0, and its MAC in hexadecimal digits. `n` is -1 before any line."""

    chain: str
    n: int
    mac: str


class BadLine(Exception):
    """A line has not the form of one, or its MAC does not fit. The message says which."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Keys for one purpose each, all derived from the server's pepper."""

    records: bytes
    seals: bytes
    content: bytes
    facts: bytes

    @classmethod
    def of(cls, pepper: bytes) -> "Secrets":
        def derived(purpose: str) -> bytes:
            return hmac.digest(pepper, b"llama-guard-server audit " + purpose.encode(), "sha256")

        return cls(derived("records"), derived("seals"), derived("content"), derived("facts"))


def before_all(key: bytes, chain: str) -> Head:
    """The head of a chain that has no line yet. It depends on the chain's id, so no line fits into another chain."""
    return Head(chain, -1, hmac.digest(key, b"chain " + chain.encode(), "sha256").hex())


def chained(key: bytes, head: Head, body: Mapping[str, Any]) -> tuple[bytes, Head]:
    """The next line of the chain, without its line break, and the new head."""
    n = head.n + 1
    # With ensure_ascii no line has a break in it, whatever a name holds.
    content = json.dumps({"n": n, **body}, separators=(",", ":"), allow_nan=False).encode("ascii")[:-1]
    mac = _mac(key, head.mac, content)
    return content + _MAC_FIELD + mac.encode() + _END, Head(head.chain, n, mac)


def parsed(line: bytes) -> tuple[dict[str, Any], str]:
    """The body and the MAC of a line, whose MAC is not checked. Raises BadLine."""
    _, mac = _split(line)
    try:
        body = json.loads(line)
        int(body["n"])
    except (ValueError, KeyError, TypeError):
        raise BadLine("it is no record") from None
    return body, mac


def checked(key: bytes, head: Head, line: bytes) -> tuple[dict[str, Any], Head]:
    """The body of a line that follows on `head`, and the new head. Raises BadLine."""
    content, mac = _split(line)
    if not hmac.compare_digest(mac.encode(), _mac(key, head.mac, content).encode()):
        try:
            n = parsed(line)[0]["n"]
        except BadLine:
            n = None
        if n is not None and n != head.n + 1:
            raise BadLine(f"record {head.n + 1} should be here, not {n}: records were removed or reordered")
        raise BadLine(f"record {head.n + 1} was altered, or does not belong here")
    body, _ = parsed(line)
    return body, Head(head.chain, head.n + 1, mac)


def _split(line: bytes) -> tuple[bytes, str]:
    content, mac = line[: -len(_MAC_FIELD) - _HEX - len(_END)], line[-_HEX - len(_END) : -len(_END)]
    if line != content + _MAC_FIELD + mac + _END or not mac.isascii() or len(mac) != _HEX:
        raise BadLine("it is no record")
    return content, mac.decode("ascii")


def _mac(key: bytes, before: str, content: bytes) -> str:
    return hmac.digest(key, before.encode() + b"\n" + content, "sha256").hex()
