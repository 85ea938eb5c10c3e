"""The lines of a batch's files: what a caller's may look like, and what goes back."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.http.body import parse
from server.api.http.ids import new_id
from server.api.names import ModelNames
from server.domain.errors import InvalidRequest, ModelNotFound

MAX_LINES = 50_000
MAX_FAULTS = 100
"""So many are told; a file that is wrong throughout need not be listed."""

MAX_CUSTOM_ID = 512


@dataclass(frozen=True, slots=True)
class Line:
    """One line, counted from 1; `content` is None where it is longer than anything that is read."""

    number: int
    content: bytes | None


async def read_lines(pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[Line]]:
    """All lines that are not blank, a piece's worth of them at a time. No more than `limit` bytes of one are kept."""
    number, rest, too_long = 1, bytearray(), False
    async for piece in pieces:
        head, *tails = piece.split(b"\n")
        rest += head
        found: list[Line] = []
        if tails:
            found += _line(number, rest, limit, too_long)
            *whole, tail = tails
            # All at once: a piece may hold a million blank lines, and a call for each would stop the event loop.
            found += [
                Line(at, line if len(line) <= limit else None)
                for at, line in enumerate(whole, number + 1)
                if line and not line.isspace()
            ]
            number, rest, too_long = number + len(tails), bytearray(tail), False
        if len(rest) > limit:
            rest, too_long = bytearray(), True
        yield found
    yield list(_line(number, rest, limit, too_long))


def _line(number: int, content: bytearray, limit: int, too_long: bool) -> Iterator[Line]:
    if too_long or len(content) > limit:
        yield Line(number, None)
    elif content.strip():
        yield Line(number, bytes(content))


class LineCheck:
    """Holds the lines of a file to what a batch asks of them. `faults` are entries of a batch's `errors`."""

    def __init__(self, endpoint: str, names: ModelNames) -> None:
        self.total = 0
        self.faults: list[dict[str, Any]] = []
        self._endpoint = endpoint
        self._names = names
        self._custom_ids: set[str] = set()

    @property
    def hopeless(self) -> bool:
        """Whether reading on would tell nothing new."""
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
        """After the last line: what is wrong with the file as a whole."""
        if self.total == 0:
            self.faults.append(_Fault("empty_file", "The file holds no line.").entry(None))
        elif self.total > MAX_LINES:
            self.faults = [_Fault("too_many_tasks", f"The file holds more than {MAX_LINES} lines.").entry(None)]

    def _check(self, line: Line) -> None:
        document = _parse(line)
        for name in ("custom_id", "method", "url", "body"):
            if document.get(name) in (None, ""):
                raise _Fault("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
        custom_id, body = document["custom_id"], document["body"]
        if not isinstance(custom_id, str) or len(custom_id) > MAX_CUSTOM_ID:
            raise _Fault("invalid_value", f"It must be a string of at most {MAX_CUSTOM_ID} characters.", "custom_id")
        if custom_id in self._custom_ids:
            raise _Fault("duplicate_custom_id", "An earlier line has the same custom_id.", "custom_id")
        self._custom_ids.add(custom_id)
        if document["method"] != "POST":
            raise _Fault("invalid_method", "It must be POST.", "method")
        if document["url"] != self._endpoint:
            raise _Fault("url_mismatch", f"It must be the endpoint of the batch, {self._endpoint}.", "url")
        if not isinstance(body, dict):
            raise _Fault("invalid_value", "It must be an object.", "body")
        model = body.get("model")
        if isinstance(model, str):
            try:
                self._names.check(model)
            except ModelNotFound:
                message = f"Every line is judged by the one model that is served, {self._names.id}."
                raise _Fault("model_mismatch", message, "body.model") from None


class _Fault(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code)
        self._entry = {"code": code, "message": message, "param": param}

    def entry(self, line: int | None) -> dict[str, Any]:
        return {**self._entry, "line": line}


def _parse(line: Line) -> dict[str, Any]:
    if line.content is None:
        raise _Fault("invalid_json_line", "The line is longer than the body of a request may be.")
    try:
        return parse(line.content)
    except InvalidRequest:
        message = "The line is no JSON object in UTF-8, or one that could be read in more than one way."
        raise _Fault("invalid_json_line", message) from None


def request_of(line: Line) -> tuple[str, dict[str, Any]]:
    """The custom_id and the body of a line that passed the check."""
    document = _parse(line)
    return document["custom_id"], document["body"]


# --- What goes back --------------------------------------------------------------------------------------


def answered_line(custom_id: str, status: int, body: Mapping[str, object]) -> str:
    response = {"status_code": status, "request_id": new_id("req_"), "body": body}
    return _render(custom_id, response, None)


def expired_line(custom_id: str) -> str:
    message = "The completion window ended before this line was judged."
    return _render(custom_id, None, {"code": "batch_expired", "message": message})


def _render(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> str:
    line = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line, separators=(",", ":"))
