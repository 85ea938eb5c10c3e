"""Where a chunked body ends. The parser reads it too, but does not say where, and takes extensions of any length."""

import re

from server.api.http.head import BadHead
from server.domain.errors import InvalidHttp

MAX_LINE = 256
"""Bytes of the line before a chunk: its size and its extensions, which nobody reads."""

MAX_TRAILERS = 8 * 1024

_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(;[^\n]*)?\r\n")


class Chunks:
    """Follows a chunked body through the pieces in which it comes."""

    def __init__(self) -> None:
        self.ended = False
        self._left = 0
        """Bytes of the current chunk that are still to come, and of the line end after it."""
        self._trailers = False
        self._line = b""
        """The start of a line whose end has not come. In the trailers: of all lines."""

    def take(self, data: bytes) -> int:
        """The number of bytes of `data` that belong to the body. Raises BadHead."""
        at = 0
        while at < len(data) and not self.ended:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            elif self._trailers:
                at = self._take_trailers(data, at)
            else:
                at = self._take_line(data, at)
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
        else:
            self._trailers = True
        return end

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
