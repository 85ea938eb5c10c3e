"""What the headers say about the form of a body: its charset and its compression."""

import zlib
from collections.abc import Iterable

from server.domain.errors import RequestTooLarge, UnsupportedEncoding

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

STEP = 256 * 1024
"""Bytes that go into or come out of one step of decompression. Each gives up the interpreter's lock, so other requests
go on."""

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_READ = ("gzip", "x-gzip", "deflate")


def check_charset(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises UnsupportedEncoding if the headers name another charset than UTF-8."""
    for name, value in headers:
        if name == b"content-type" and _charset(value.decode("latin-1")) not in (None, "utf-8", "utf8"):
            raise UnsupportedEncoding("The body must be in UTF-8. Leave `charset` out of the header Content-Type.")


def encoding_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The compression of a body, None without one. Raises UnsupportedEncoding if this server does not read it."""
    values = [value.decode("latin-1") for name, value in headers if name == b"content-encoding"]
    codings = [coding.strip().lower() for value in values for coding in value.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _READ:
        raise UnsupportedEncoding(
            f"This server does not read bodies with the Content-Encoding {_named(codings)}. Send gzip, deflate, or the"
            " body as it is."
        )
    return codings[0]


def unpacked(body: bytes | bytearray, limit: int) -> bytearray:
    """The content of a body compressed with gzip or deflate, at most `limit` bytes of it.

    Raises RequestTooLarge, and UnsupportedEncoding if the body is not compressed so, is cut off, or goes on after its
    end.
    """
    unpacker, content, taken = zlib.decompressobj(_GZIP_OR_ZLIB), bytearray(), 0
    try:
        while not unpacker.eof and (unpacker.unconsumed_tail or taken < len(body)):
            # Not all of the body at once: each step copies what is left of what it got.
            piece = unpacker.unconsumed_tail or body[taken : taken + STEP]
            taken += 0 if unpacker.unconsumed_tail else len(piece)
            content += unpacker.decompress(piece, STEP)
            if len(content) > limit:
                raise RequestTooLarge(
                    f"The request body is larger than {limit} bytes when it is unpacked. Send a smaller one. The"
                    " operator sets the limit with GUARD_MAX_BODY_BYTES."
                )
    except zlib.error:
        raise _not_packed() from None
    if not unpacker.eof or unpacker.unused_data or taken < len(body):
        raise _not_packed()
    return content


def _not_packed() -> UnsupportedEncoding:
    return UnsupportedEncoding(
        "The body is not compressed as the header Content-Encoding says, or it is cut off. Send it again, whole."
    )


def _named(codings: list[str]) -> str:
    """The names, as far as they are names of codings: a header may hold anything."""
    known = [coding for coding in codings if coding in ("br", "compress", "dcb", "dcz", "zstd", *_READ)]
    return ", ".join(f"`{coding}`" for coding in known) if len(known) == len(codings) else "it has"


def _charset(content_type: str) -> str | None:
    for parameter in content_type.lower().split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            return value.strip().strip('"')
    return None
