"""The form of log lines: UTC time, level, logger, request id and message, as text or as one JSON object each.

All loggers write this form, those of uvicorn and of other packages too.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

REQUEST = re.compile(r"\b(?:req|batch)_[0-9a-f]{32}\b")


class Lines(logging.Formatter):
    """Text, or JSON. What a record carries beside its message is an event's: see `said`."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        time = (
            datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
        )
        message = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            # The text of an exception may hold content of a request; its type does not.
            message = f"{message} ({record.exc_info[0].__name__})"
        fields: dict[str, Any] = getattr(record, "guard", {})
        if "request_id" not in fields and (found := REQUEST.search(message)):
            fields = {**fields, "request_id": found[0]}
        if self._as_json:
            head = {"time": time, "level": record.levelname.lower(), "logger": record.name}
            return json.dumps({**head, **fields, "message": message}, default=str)
        # One line for each record, so that nothing in a message can look like another record.
        first, *more = message.splitlines() or [""]
        rest = "".join(f"\n  {line}" for line in more)
        told = "".join(f" {name}={value}" for name, value in fields.items() if str(value) not in message)
        return f"{time} {record.levelname.lower()} {record.name}: {first}{told}{rest}"


def said(**fields: Any) -> dict[str, Any]:
    """`extra` of a logging call: the fields of an event. They hold identifiers and counts, never content."""
    return {"guard": fields}


class _Console(logging.Handler):
    """Standard error, whatever that is at the time of the line."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def set_up(level: str, form: str) -> None:
    """Have every logger write to standard error in this form, in place of plain streams and of an earlier call's."""
    console = _Console()
    console.setFormatter(Lines(as_json=form == "json"))
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if type(each) not in (logging.StreamHandler, _Console)] + [
        console
    ]
    root.setLevel(logging.ERROR if level == "error" else logging.WARNING)
    logging.getLogger("server").setLevel(level.upper())
    # The text of a defect in logging itself would hold the arguments of the call.
    logging.raiseExceptions = False


def adopt(*names: str) -> None:
    """Take the handlers of these loggers away, so that their lines have this form too."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
