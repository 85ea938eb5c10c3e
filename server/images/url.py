"""Image URLs: their scheme, and the bytes of a data: URL."""

import binascii
import re

from server.domain.errors import ImageTooLarge, InvalidImage

DATA_URL = re.compile(r"data:[^,]{0,256}?;[ ]*base64,", re.IGNORECASE)
WHITESPACE = b" \t\r\n\f"
SLICE = 2**20
"""Characters of base64 that are decoded at once: it keeps other threads waiting, and needs their number in memory."""

NOT_BASE64 = "The image's base64 is not valid."


def scheme_of(url: str) -> str:
    return url[:8].partition(":")[0].lower()


def too_many_bytes(limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"An image may have at most {limit} bytes.")


def read_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of a data: URL, hardly more than `max_bytes` of them. Its media type is not read: the bytes decide.

    Whitespace and missing padding are tolerated, as in browsers. Raises InvalidImage and ImageTooLarge.
    """
    header = DATA_URL.match(url)
    if header is None:
        raise InvalidImage("A data: URL of an image must be in base64: data:image/png;base64,...")
    # A sixteenth is room for line breaks; the exact bound is checked on the bytes.
    if (len(url) - header.end()) * 3 // 4 > max_bytes + max_bytes // 16 + 2:
        raise too_many_bytes(max_bytes)
    pieces: list[bytes] = []
    rest = b""
    try:
        for start in range(header.end(), len(url), SLICE):
            rest += url[start : start + SLICE].encode("ascii").translate(None, WHITESPACE)
            whole = len(rest) // 4 * 4
            pieces.append(binascii.a2b_base64(rest[:whole], strict_mode=True))
            rest = rest[whole:]
        pieces.append(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True))
    except ValueError:
        raise InvalidImage(NOT_BASE64) from None
    pieces = [piece for piece in pieces if piece]
    if any(len(piece) % 3 for piece in pieces[:-1]):  # There was padding before the end.
        raise InvalidImage(NOT_BASE64)
    return b"".join(pieces)
