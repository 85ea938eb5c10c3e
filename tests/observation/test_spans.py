"""OpenTelemetry: off until it is configured, under the caller's trace, without content, and never in the way."""

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.app import create_app
from server.checkpoints.profile import load_profile
from server.settings import Settings
from tests.fakes import FakeBackend

CANARY = "CANARYWORDS"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(http.server.ThreadingHTTPServer):
    """Keeps what is sent to it, by path. It answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.received: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spans(self) -> dict[str, Any]:
        found = {}
        for path, content in self.received:
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                    for scope in resource.scope_spans:
                        found.update({span.name: span for span in scope.spans})
        return found

    def events(self) -> list[Any]:
        return [
            record
            for path, content in self.received
            if path == "/v1/logs"
            for resource in ExportLogsServiceRequest.FromString(content).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            content = gzip.decompress(content)
        self.server.received.append((self.path, content))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.shutdown()
    collector.server_close()


@asynccontextmanager
async def client_of(endpoint: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(profile="llama-guard-4-12b", otlp_endpoint=endpoint)
    app = create_app(settings, load_profile(settings.profile), FakeBackend())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


async def test_spans_and_the_event_stand_under_the_callers_span(collector: Collector) -> None:
    async with client_of(collector.url) as client:
        reply = await client.post(
            "/v1/moderations",
            json={"input": f"a bomb {CANARY}"},
            headers={"traceparent": f"00-{TRACE}-{SPAN}-01", "user-agent": CANARY},
        )
    spans = collector.spans()
    request, verdict = spans["POST /v1/moderations"], spans["judge"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, SPAN)
    assert (verdict.trace_id.hex(), verdict.parent_span_id) == (TRACE, request.span_id)
    assert request.start_time_unix_nano <= verdict.start_time_unix_nano <= verdict.end_time_unix_nano
    assert verdict.end_time_unix_nano <= request.end_time_unix_nano
    assert {"llama_guard.queued_s", "llama_guard.computed_s"} <= values(verdict.attributes).keys()
    (event,) = collector.events()
    guard = reply.json()["results"][0]["guard"]
    assert event.event_name == "gen_ai.evaluation.result"
    assert (event.trace_id.hex(), event.span_id) == (TRACE, verdict.span_id)
    assert values(event.attributes) == {
        "gen_ai.evaluation.name": "llama_guard.unsafe",
        "gen_ai.evaluation.score.label": "unsafe",
        "gen_ai.evaluation.score.value": guard["p_unsafe"],
        "gen_ai.evaluation.explanation": "S1,S9",
        "gen_ai.response.id": reply.headers["x-request-id"],
    }
    assert not [path for path, content in collector.received if CANARY.encode() in content]


async def test_a_caller_that_samples_nothing_gets_no_spans(collector: Collector) -> None:
    async with client_of(collector.url) as client:
        await client.post("/v1/moderations", json={"input": "x"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert collector.received == []


@pytest.mark.parametrize("header", ["", "00-0-0-01", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", CANARY])
async def test_a_traceparent_that_is_none_begins_a_new_trace(collector: Collector, header: str) -> None:
    async with client_of(collector.url) as client:
        assert (
            await client.post("/v1/moderations", json={"input": "x"}, headers={"traceparent": header})
        ).status_code == 200
    span = collector.spans()["POST /v1/moderations"]
    assert span.parent_span_id == b""
    assert span.trace_id.hex() not in (TRACE, "0" * 32)


async def test_a_collector_that_fails_touches_no_request(collector: Collector) -> None:
    collector.status = 503
    async with client_of(collector.url) as client:
        for _ in range(3):
            assert (await client.post("/v1/moderations", json={"input": "x"})).status_code == 200
        began = time.monotonic()
    assert time.monotonic() - began < 6


async def test_a_collector_that_is_not_there_touches_no_request() -> None:
    async with client_of("http://127.0.0.1:9") as client:
        assert (await client.post("/v1/moderations", json={"input": "x"})).status_code == 200


async def test_opentelemetrys_own_variables_turn_nothing_on(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.setenv(name, collector.url)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    async with client_of("") as client:
        assert (await client.post("/v1/moderations", json={"input": "x"})).status_code == 200
    assert collector.received == []


def test_a_server_without_a_collector_does_not_even_import_it() -> None:
    code = "import sys, server.app; sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
