"""The lines of a batch's files: checks of the caller's lines, and the lines that go back."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.http.body import parse
from server.api.http.encoding import BYTE_ORDER_MARK
from server.api.http.ids import new_id
from server.api.names import ModelNames
from server.domain.errors import InvalidRequest, ModelNotFound

MAX_LINES = 50_000
MAX_FAULTS = 100
"""So many faults are reported. A file that is wrong throughout need not be listed in full."""

MAX_CUSTOM_ID = 512


@dataclass(frozen=True, slots=True)
class Line:
    """One line, counted from 1. `content` is None if the line is too long to be read."""

    number: int
    content: bytes | None


async def read_lines(pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[Line]]:
    """All lines that are not blank, in one list for each piece. At most `limit` bytes of a line are kept.

    A byte order mark at the start is no part of the first line.
    """
    number, rest, too_long = 1, bytearray(), False
    async for piece in pieces:
        head, *tails = piece.split(b"\n")
        rest += head
        found: list[Line] = []
        if tails:
            found += _line(number, _unmarked(number, rest), limit, too_long)
            *whole, tail = tails
            # All at once: a piece may hold a million blank lines, and a call for each would block the event loop.
            found += [
                Line(at, line if len(line) <= limit else None)
                for at, line in enumerate(whole, number + 1)
                if line and not line.isspace()
            ]
            number, rest, too_long = number + len(tails), bytearray(tail), False
        if len(rest) > limit:
            rest, too_long = bytearray(), True
        yield found
    yield list(_line(number, _unmarked(number, rest), limit, too_long))


def _unmarked(number: int, content: bytearray) -> bytearray:
    return content.removeprefix(BYTE_ORDER_MARK) if number == 1 else content


def _line(number: int, content: bytearray, limit: int, too_long: bool) -> Iterator[Line]:
    if too_long or len(content) > limit:
        yield Line(number, None)
    elif content and not content.isspace():
        yield Line(number, bytes(content))


class LineCheck:
    """Checks the lines of a file against the rules of a batch. `faults` are entries of a batch's `errors`."""

    def __init__(self, endpoint: str, names: ModelNames) -> None:
        self.total = 0
        self.faults: list[dict[str, Any]] = []
        self._endpoint = endpoint
        self._names = names
        self._custom_ids: set[str] = set()

    @property
    def hopeless(self) -> bool:
        """Whether the rest of the file need not be read."""
        return self.total > MAX_LINES or len(self.faults) >= MAX_FAULTS

    def read(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self.total += 1
            if self.hopeless:
                break
            try:
                self._check(line)
            except _Fault as fault:
                self.faults.append(fault.entry(line.number))

    def end(self) -> None:
        """Check the file as a whole, after the last line."""
        if self.total == 0:
            self.faults.append(_Fault("empty_file", "The file has no lines. Send at least one.").entry(None))
        elif self.total > MAX_LINES:
            self.faults = [_Fault("too_many_tasks", f"The file has more than {MAX_LINES} lines. Split it.").entry(None)]

    def _check(self, line: Line) -> None:
        document = _parse(line)
        for name in ("custom_id", "method", "url", "body"):
            if document.get(name) in (None, ""):
                raise _Fault("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
        custom_id, body = document["custom_id"], document["body"]
        if not isinstance(custom_id, str) or len(custom_id) > MAX_CUSTOM_ID:
            raise _Fault(
                "invalid_value", f"'custom_id' must be a string of at most {MAX_CUSTOM_ID} characters.", "custom_id"
            )
        if custom_id in self._custom_ids:
            raise _Fault("duplicate_custom_id", "An earlier line has the same 'custom_id'.", "custom_id")
        self._custom_ids.add(custom_id)
        if document["method"] != "POST":
            raise _Fault("invalid_method", "'method' must be POST.", "method")
        if document["url"] != self._endpoint:
            raise _Fault("url_mismatch", f"'url' must be the endpoint of the batch, {self._endpoint}.", "url")
        if not isinstance(body, dict):
            raise _Fault("invalid_value", "'body' must be an object.", "body")
        model = body.get("model")
        if isinstance(model, str):
            try:
                self._names.check(model)
            except ModelNotFound:
                message = f"This server serves only {self._names.id}. Ask for that, or leave 'model' out."
                raise _Fault("model_mismatch", message, "body.model") from None


class _Fault(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code)
        self.message = message
        self._entry = {"code": code, "message": message, "param": param}

    def entry(self, line: int | None) -> dict[str, Any]:
        return {**self._entry, "line": line}


def _parse(line: Line) -> dict[str, Any]:
    if line.content is None:
        raise _Fault("invalid_json_line", "The line is longer than the limit for the body of a request.")
    try:
        return parse(line.content)
    except InvalidRequest:
        message = (
            "The line is not a JSON object in UTF-8, or parsers could read it in different ways, or it holds too much."
        )
        raise _Fault("invalid_json_line", message) from None


def request_of(line: Line) -> tuple[str, dict[str, Any] | InvalidRequest]:
    """The custom_id and the body of a line that passed the check, or an error in place of the body.

    What may be read may differ between versions and settings of the server. A line that cannot be read any more is that
    line's error, and never the error of those around it. Its custom_id is then unknown, and empty.
    """
    try:
        document = _parse(line)
        custom_id, body = document.get("custom_id"), document.get("body")
    except _Fault as fault:
        return "", InvalidRequest(fault.message)
    if not isinstance(custom_id, str) or not isinstance(body, dict):
        return "", InvalidRequest("The line has no 'custom_id' or no 'body'.")
    return custom_id, body


# --- Lines that go back ----------------------------------------------------------------------------------


def answered_line(custom_id: str, status: int, body: Mapping[str, object]) -> str:
    response = {"status_code": status, "request_id": new_id("req_"), "body": body}
    return _render(custom_id, response, None)


def expired_line(custom_id: str) -> str:
    message = "The completion window ended before this line was judged."
    return _render(custom_id, None, {"code": "batch_expired", "message": message})


def _render(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> str:
    line = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line, separators=(",", ":"))
