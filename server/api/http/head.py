"""The head of a request, before a parser sees it: bounded, and without an offer to leave HTTP/1.1."""

import re

from server.domain.errors import GuardError, HeadTooLarge, InvalidHttp

MAX_HEAD = 64 * 1024
MAX_HEADERS = 100

_END = b"\r\n\r\n"
_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)
_VERSIONS = (b" HTTP/1.1", b" HTTP/1.0")
_HOST = re.compile(rb"(\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")


class BadHead(Exception):
    """`error` is for the client. The connection ends after it."""

    def __init__(self, error: GuardError) -> None:
        super().__init__(error.message)
        self.error = error


def end_of(held: bytes, seen: int) -> int | None:
    """Where the head at the start of `held` ends. None if it is not complete. Raises BadHead.

    The first `seen` bytes have been searched before.
    """
    at = held.find(_END, max(0, seen - len(_END) + 1))
    end = None if at < 0 else at + len(_END)
    if (len(held) if end is None else end) > MAX_HEAD:
        raise BadHead(HeadTooLarge(f"The head of the request is larger than {MAX_HEAD} bytes. Send smaller headers."))
    if end is None and held and not held[:1].isupper():
        raise BadHead(InvalidHttp("The request is not HTTP/1.1. For TLS, put a proxy in front of this server."))
    if end is None and held.count(b"\n", seen) != held.count(b"\r\n", max(0, seen - 1)):
        raise BadHead(InvalidHttp("A line of the request's head does not end with CR LF."))
    return end


def checked(head: bytes) -> bytes:
    """A complete head for the parser. Raises BadHead.

    An offer to upgrade (h2c, TLS, websocket) may be ignored (RFC 9110, 7.8), and is: its header gets another name. The
    parser would hand the rest of the connection over, body included.
    """
    if head.count(b"\r\n") - 2 > MAX_HEADERS:
        raise BadHead(HeadTooLarge(f"The request has more than {MAX_HEADERS} headers. Send fewer."))
    if head.count(b"\n") != head.count(b"\r\n"):
        raise BadHead(InvalidHttp("A line of the request's head does not end with CR LF."))
    if not head.partition(b"\r\n")[0].endswith(_VERSIONS):
        raise BadHead(InvalidHttp("The request is not HTTP/1.1 or HTTP/1.0."))
    return _UPGRADE.sub(b"\r\nx-ignored-upgrade", head)


def body_of(headers: list[tuple[bytes, bytes]], version: str) -> int | None:
    """Bytes of the body that the headers announce. None if it is chunked. Raises BadHead.

    The parser has refused several lengths, a length beside chunks, and lengths that are no number.
    """
    length, chunked, host = 0, False, None
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
        elif name == b"host":
            if host is not None:
                raise BadHead(InvalidHttp("The request must have one Host header."))
            host = value.strip()
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked" or version != "1.1":
                raise BadHead(InvalidHttp("The only transfer encoding that this server reads is `chunked`."))
            chunked = True
    if host is None and version == "1.1":
        raise BadHead(InvalidHttp("The request must have one Host header."))
    if host is not None and _HOST.fullmatch(host) is None:
        raise BadHead(InvalidHttp("The Host header is not the name of a host."))
    return None if chunked else length


def check_target(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Check what the request asks for. Raises BadHead.

    A target with a host (`GET http://host/path`) goes before the Host header (RFC 9112, 3.2.2), which is what is
    checked later, so the two must not differ.
    """
    if b"#" in target:
        raise BadHead(InvalidHttp("The request's target has a fragment (`#`). Leave it out."))
    if target.startswith(b"/") or target == b"*":
        return
    authority = re.split(rb"[/?]", target.partition(b"://")[2], maxsplit=1)[0].lower()
    if any(name == b"host" and value.strip().lower() != authority for name, value in headers):
        raise BadHead(InvalidHttp("The request's target and its Host header name two hosts."))
