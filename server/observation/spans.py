"""OpenTelemetry: a span for each request, one for each verdict in it, and the event `gen_ai.evaluation.result`.

Spans are made after the fact, from the same events as the metrics, with the times that the events tell. So a request
does no work for them but to publish what it publishes anyway, and an export that fails, in a thread of the SDK, reaches
no request. Attributes hold identifiers, numbers and codes, never content.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from server.domain.events import Answered, Judged, forget, listen

NAME = "llama-guard-server"
EVALUATION = "llama_guard.unsafe"

EXPORT_TIMEOUT_S = 5
CLOSING_S = 2.0

MOST_PENDING = 4096
"""Requests whose verdicts wait for the request's own end. The oldest are given up first."""

POLLED = frozenset({"/health", "/ready", "/metrics"})


@dataclass(slots=True)
class _Pending:
    """Verdicts of a request that has not ended, and when they were published, in nanoseconds since 1970."""

    verdicts: list[tuple[int, Judged]] = field(default_factory=list)


class Spans:
    """Makes spans of events. `listen()` once, `close()` at the end."""

    def __init__(
        self,
        spans: SpanExporter,
        records: LogRecordExporter,
        version: str,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        # Not from the environment: OpenTelemetry's own variables turn nothing on here.
        resource = Resource({"service.name": NAME, "service.version": version})
        sampler = ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_OFF)
        self._tracers = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        self._tracers.add_span_processor(BatchSpanProcessor(spans))
        self._loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self._loggers.add_log_record_processor(BatchLogRecordProcessor(records))
        self._tracer = self._tracers.get_tracer(NAME, version)
        self._logger = self._loggers.get_logger(NAME, version)
        self._now = now
        self._pending: OrderedDict[str, _Pending] = OrderedDict()

    @classmethod
    def to(cls, endpoint: str, version: str) -> "Spans":
        """Spans for the collector at `endpoint`."""
        base = endpoint.rstrip("/")
        for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it logs replies of the collector, and tracebacks
        return cls(
            OTLPSpanExporter(endpoint=f"{base}/v1/traces", timeout=EXPORT_TIMEOUT_S),
            OTLPLogExporter(endpoint=f"{base}/v1/logs", timeout=EXPORT_TIMEOUT_S),
            version,
        )

    def judged(self, event: Judged) -> None:
        now = self._now()
        if event.request_id is None or event.request_id.startswith("batch_"):
            self._verdict(event, now, None)
            return
        self._pending.setdefault(event.request_id, _Pending()).verdicts.append((now, event))
        while len(self._pending) > MOST_PENDING:
            self._pending.popitem(last=False)

    def answered(self, event: Answered) -> None:
        pending = self._pending.pop(event.request_id, None)
        if event.route in POLLED:
            return
        end = self._now()
        span = self._tracer.start_span(
            f"{event.method} {event.route}",
            context=_context_of(event.traceparent),
            kind=SpanKind.SERVER,
            start_time=end - int(event.seconds * 1e9),
            attributes={
                "http.request.method": event.method,
                "http.route": event.route,
                "http.response.status_code": event.status,
                "llama_guard.request.id": event.request_id,
                **({"llama_guard.key.id": event.caller} if event.caller else {}),
            },
        )
        for at, judged in pending.verdicts if pending else ():
            self._verdict(judged, at, span)
        if event.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def listen(self) -> None:
        listen(Judged, self.judged)
        listen(Answered, self.answered)

    def close(self) -> None:
        """Blocks until what is left is sent, for at most `CLOSING_S`: the process must not wait for a collector."""
        forget(Judged, self.judged)
        forget(Answered, self.answered)
        closing = [
            threading.Thread(target=provider.shutdown, daemon=True) for provider in (self._tracers, self._loggers)
        ]
        for thread in closing:
            thread.start()
        deadline = time.monotonic() + CLOSING_S
        for thread in closing:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _verdict(self, event: Judged, at: int, parent: Span | None) -> None:
        verdict, completion = event.verdict, event.verdict.completion
        context = None if parent is None else trace.set_span_in_context(parent)
        seconds = max(event.seconds, completion.computed_s)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": completion.model,
            "gen_ai.usage.input_tokens": completion.prompt_tokens,
            "gen_ai.usage.output_tokens": completion.completion_tokens,
            "llama_guard.backend": completion.backend,
            "llama_guard.judged": event.judged.value,
            "llama_guard.queued_s": completion.queued_s,
            "llama_guard.computed_s": completion.computed_s,
            "llama_guard.threshold": verdict.threshold,
            **_result(event),
        }
        if verdict.cache is not None:
            attributes["llama_guard.cache"] = verdict.cache.value
        span = self._tracer.start_span(
            "judge", context=context, kind=SpanKind.INTERNAL, start_time=at - int(seconds * 1e9), attributes=attributes
        )
        span.end(at)
        if span.is_recording() or span.get_span_context().trace_flags.sampled:
            self._logger.emit(
                LogRecord(
                    timestamp=at,
                    context=trace.set_span_in_context(span),
                    severity_number=SeverityNumber.INFO,
                    event_name="gen_ai.evaluation.result",
                    attributes=_result(event),
                )
            )


def _result(event: Judged) -> dict[str, Any]:
    verdict = event.verdict
    found: dict[str, Any] = {
        "gen_ai.evaluation.name": EVALUATION,
        "gen_ai.evaluation.score.label": "unsafe" if verdict.unsafe else "safe",
        "gen_ai.evaluation.explanation": ",".join(verdict.categories),
    }
    if verdict.p_unsafe is not None:
        found["gen_ai.evaluation.score.value"] = verdict.p_unsafe
    if event.request_id is not None:
        found["gen_ai.response.id"] = event.request_id
    return found


def _context_of(traceparent: str | None) -> Any:
    """The caller's span as a parent. An empty context without one: nothing of this process is its parent."""
    empty = trace.set_span_in_context(NonRecordingSpan(trace.INVALID_SPAN_CONTEXT))
    if traceparent is None:
        return empty
    _, trace_id, span_id, flags = traceparent.split("-")
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(NonRecordingSpan(context), empty)
