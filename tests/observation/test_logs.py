import logging

import pytest

from server.domain.events import Answered, ConnectionRefused, publish
from server.observation import logs


def said(caplog: pytest.LogCaptureFixture, event: Answered) -> list[str]:
    with caplog.at_level(logging.INFO, logger=logs.__name__):
        publish(event)
    return [record.getMessage() for record in caplog.records]


def test_a_request_that_failed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    event = Answered("req_1", "key_1", "/v1/moderations", "POST", 503, 0.25)
    assert said(caplog, event) == ["req_1: POST /v1/moderations answered 503 after 0.250 s"]


@pytest.mark.parametrize(
    "event",
    [
        Answered("req_1", None, "/ready", "GET", 503, 0.25),
        Answered("req_1", None, "/v1/moderations", "POST", 400, 0.25),
        Answered("req_1", None, "/v1/moderations", "POST", 200, 0.25),
    ],
    ids=["readiness, at every poll", "the caller's mistake", "success"],
)
def test_what_is_no_failure_of_a_request_is_not(caplog: pytest.LogCaptureFixture, event: Answered) -> None:
    assert said(caplog, event) == []


def test_a_flood_of_connections_is_told_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("server.observation.logs.time.monotonic", lambda: now)
    monkeypatch.setattr(logs, "_crowds", logs.Sparse(every_s=60.0))
    warn = logs.warn_of_too_many_connections
    for reason in ("invalid_http", "request_timeout"):
        warn(ConnectionRefused(reason))
    assert not caplog.records, "these are mistakes of one client"
    for reason in ("idle", "slow", "too_many_connections"):
        warn(ConnectionRefused(reason))
    assert len(caplog.records) == 1
    now += 60.0
    warn(ConnectionRefused("idle"))
    warn(ConnectionRefused("idle"))
    assert len(caplog.records) == 2
