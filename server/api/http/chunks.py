"""Where a chunked body ends. The parser reads it too, but does not say where, and takes extensions of any length."""

import re

from server.api.http.head import BadHead
from server.domain.errors import InvalidHttp

MAX_LINE = 256
"""Bytes of the line before a chunk: its size and its extensions, which nobody reads."""

MAX_TRAILERS = 8 * 1024

MOST_LINES = 200
"""Lines that are taken at once, in about 0.4 ms. The event loop may read 32 times before others have their turn."""

TINY = 64
MOST_TINY = 65_536
"""Chunks of less than TINY bytes that one body may have. Real clients send kilobytes in each."""

_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(;[^\n]*)?\r\n")


class Chunks:
    """Follows a chunked body through the pieces in which it comes."""

    def __init__(self) -> None:
        self.ended = False
        self._tiny = 0
        """The number of tiny chunks so far."""
        self._left = 0
        """Bytes of the current chunk that are still to come, and of the line end after it."""
        self._trailers = False
        self._line = b""
        """The start of a line whose end has not come. In the trailers: of all lines."""

    def take(self, data: bytes) -> int:
        """The number of bytes of `data` that belong to the body. The caller asks again for the rest. Raises BadHead."""
        at = lines = 0
        while at < len(data) and not self.ended and lines < MOST_LINES:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            elif self._trailers:
                at = self._take_trailers(data, at)
            else:
                at = self._take_line(data, at)
                lines += 1
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at, at + MAX_LINE) + 1
        line = self._line + data[at : end or at + MAX_LINE]
        if len(line) > MAX_LINE or (not end and len(data) - at >= MAX_LINE):
            raise BadHead(InvalidHttp("A chunk of the request's body has extensions that are too long."))
        if not end:
            self._line = line
            return len(data)
        size = _SIZE.fullmatch(line)
        if size is None:
            raise BadHead(InvalidHttp("The chunks of the request's body are not valid HTTP/1.1."))
        self._line = b""
        if length := int(size[1], 16):
            self._left = length + len(b"\r\n")
            self._count(length)
        else:
            self._trailers = True
        return end

    def _count(self, length: int) -> None:
        if length < TINY:
            self._tiny += 1
            if self._tiny > MOST_TINY:
                raise BadHead(InvalidHttp(f"The request's body has too many chunks of less than {TINY} bytes."))

    def _take_trailers(self, data: bytes, at: int) -> int:
        """Trailers end with an empty line. Without trailers, that is all."""
        held = self._line + data[at : at + MAX_TRAILERS]
        end = len(b"\r\n") if held.startswith(b"\r\n") else held.find(b"\r\n\r\n") + len(b"\r\n\r\n")
        if end >= len(b"\r\n\r\n") or held.startswith(b"\r\n"):
            self.ended = True
            return at + end - len(self._line)
        if len(held) > MAX_TRAILERS:
            raise BadHead(InvalidHttp("The request has too many trailers. Send headers instead."))
        self._line = held
        return min(len(data), at + MAX_TRAILERS)
