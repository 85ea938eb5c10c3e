"""Log lines: when, how bad, who says it, and which request it is about."""

import json
import logging
import re
import sys
from typing import Any

import pytest

from server.domain.events import Answered
from server.observation import logs
from server.observation.lines import Lines, said

REQUEST = f"req_{'0a' * 16}"


def record(message: str, *arguments: Any, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("uvicorn.error", logging.WARNING, __file__, 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_a_line_of_text_says_when_how_bad_and_who() -> None:
    line = Lines(as_json=False).format(record("%d things", 3))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning uvicorn\.error: 3 things", line)


def test_a_line_of_json_holds_the_fields_of_the_event() -> None:
    line = json.loads(Lines(as_json=True).format(record("refused", **said(event="request_refused", status=401))))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "uvicorn.error",
        "event": "request_refused",
        "status": 401,
        "message": "refused",
    }


def test_the_request_that_a_message_names_is_a_field() -> None:
    line = json.loads(Lines(as_json=True).format(record("%s: defect", REQUEST)))
    assert line["request_id"] == REQUEST


@pytest.mark.parametrize("as_json", [True, False])
def test_the_words_of_an_exception_stay_out(as_json: bool) -> None:
    try:
        raise ValueError("CANARY")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    line = Lines(as_json=as_json).format(made)
    assert "ValueError" in line
    assert "CANARY" not in line


@pytest.mark.parametrize("as_json", [True, False])
def test_no_message_can_look_like_two(as_json: bool) -> None:
    lines = Lines(as_json=as_json).format(record("one\n2026-12-01T00:00:00.000Z info server: forged")).splitlines()
    assert len([line for line in lines if re.match(r"\d{4}-|\{", line)]) == 1


def test_of_many_refusals_one_in_a_second_leaves_a_line_with_the_number_of_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("server.observation.logs.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(logs, "_refusals", logs.Sparse(every_s=1.0))
    with caplog.at_level(logging.INFO, logger=logs.__name__):
        for status in (401, 401, 401, 429, 200, 404):
            logs.tell_of_refused_request(Answered("req_1", None, "/v1/moderations", "POST", status, 0.1))
        clock[0] += 1.5
        logs.tell_of_refused_request(Answered("req_2", None, "/v1/moderations", "POST", 401, 0.1))
    told = [(each.guard["status"], each.guard["left_out"]) for each in caplog.records]  # type: ignore[attr-defined]
    assert told == [(401, 0), (429, 0), (401, 2)]
