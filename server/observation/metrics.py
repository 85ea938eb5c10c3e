"""The metrics, declared and counted here: each listens to the events that it counts.

To add a metric, declare it and write its listener below. vLLM's own metrics stand in the same registry. No label holds
content.
"""

import time
from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import REGISTRY, Counter, Enum, Gauge, Histogram

from server.domain.events import (
    Answered,
    AuditFailed,
    AuditWritten,
    BatchChanged,
    BreakerChanged,
    ConnectionRefused,
    ErrorAnswered,
    FinishedPromptJudged,
    Judged,
    LinesDone,
    Moved,
    RemoteCalled,
    RemoteCharged,
    on,
)

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

# --- Requests --------------------------------------------------------------------------------------------

REQUESTS = Counter("guard_requests", "HTTP requests, by route, method and status.", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "guard_request_seconds", "Seconds from an HTTP request to the end of its answer.", ["route"], buckets=_SECONDS
)
ERRORS = Counter("guard_errors", "Error responses, by the error's code, or its type if it has no code.", ["kind"])

CONNECTIONS_REFUSED = Counter(
    "guard_connections_refused",
    "Connections that ended before a request was read, by reason: an error's code, or idle or slow if room was needed.",
    ["reason"],
)

# Looking a series up costs more than counting in it.
_requests = lru_cache(REQUESTS.labels)
_request_seconds = lru_cache(REQUEST_SECONDS.labels)


@on(Answered)
def count_request(event: Answered) -> None:
    _requests(event.route, event.method, str(event.status)).inc()
    _request_seconds(event.route).observe(event.seconds)


@on(ErrorAnswered)
def count_error(event: ErrorAnswered) -> None:
    ERRORS.labels(event.kind).inc()


@on(ConnectionRefused)
def count_refused_connection(event: ConnectionRefused) -> None:
    CONNECTIONS_REFUSED.labels(event.reason).inc()


# --- The audit trail -------------------------------------------------------------------------------------

AUDIT_RECORDS = Counter("guard_audit_records", "Records written to the audit trail.")
AUDIT_FAILURES = Counter(
    "guard_audit_failures",
    "Audit records that could not be written, by reason (full: too many wait; disk: the place failed; late: it took too"
    " long) and by what happened to the verdict (refused or continued).",
    ["reason", "verdict"],
)


@on(AuditWritten)
def count_records(event: AuditWritten) -> None:
    AUDIT_RECORDS.inc(event.records)


@on(AuditFailed)
def count_lost_records(event: AuditFailed) -> None:
    AUDIT_FAILURES.labels(event.reason, "refused" if event.refused else "continued").inc(event.records)


# --- Verdicts --------------------------------------------------------------------------------------------

VERDICTS = Counter(
    "guard_verdicts",
    "Verdicts, by result, by whose message was judged (user or agent) and by backend. Includes cached verdicts.",
    ["verdict", "judged", "backend"],
)
CATEGORIES = Counter(
    "guard_verdict_categories", "Unsafe verdicts that list a hazard category, by category.", ["category"]
)
LOOKALIKES = Counter("guard_lookalikes", "Verdicts on a text that could be read as several messages.")
CACHED_VERDICTS = Counter(
    "guard_cached_verdicts",
    "Verdicts served from the cache (hit) or shared with an identical request in flight (joined).",
    ["cache"],
)
VERDICT_SECONDS = Histogram("guard_verdict_seconds", "Seconds from admission to a computed verdict.", buckets=_SECONDS)
QUEUE_SECONDS = Histogram(
    "guard_engine_queue_seconds", "Seconds that the work on a verdict waited in the engine's queue.", buckets=_SECONDS
)
PASSES = Counter("guard_passes", "Prompts sent to compute verdicts. A turn of several texts takes more than one.")
TOKENS = Counter(
    "guard_tokens",
    "Tokens of computed verdicts, by kind: prompt, cached (a part of prompt) and completion.",
    ["kind"],
)
BACKEND_TOKENS = Counter(
    "guard_backend_tokens", "Prompt and completion tokens of computed verdicts, by backend.", ["backend"]
)
IMAGES = Counter("guard_images", "Images judged. Each sampled frame of an animation counts as one.")
FINISHED_PROMPTS = Counter(
    "guard_finished_prompts",
    "Finished Guard prompts that callers sent, by the policy that judged them: the prompt's own or the server's.",
    ["policy"],
)

_verdicts = lru_cache(VERDICTS.labels)
_backend_tokens = lru_cache(BACKEND_TOKENS.labels)
_PROMPT_TOKENS, _CACHED_TOKENS, _COMPLETION_TOKENS = map(TOKENS.labels, ("prompt", "cached", "completion"))


@on(Judged)
def count_verdict(event: Judged) -> None:
    verdict = event.verdict
    _verdicts("unsafe" if verdict.unsafe else "safe", event.judged.lower(), verdict.completion.backend).inc()
    for code in verdict.categories:
        CATEGORIES.labels(code).inc()
    if verdict.lookalikes:
        LOOKALIKES.inc()
    if verdict.cache is not None:
        CACHED_VERDICTS.labels(verdict.cache).inc()


@on(Judged)
def count_work(event: Judged) -> None:
    """What it took to compute the verdict, if that was done."""
    verdict, completion = event.verdict, event.verdict.completion
    if verdict.cache is not None:
        return
    VERDICT_SECONDS.observe(event.seconds)
    QUEUE_SECONDS.observe(completion.queued_s)
    PASSES.inc(verdict.passes)
    _PROMPT_TOKENS.inc(completion.prompt_tokens)
    _CACHED_TOKENS.inc(completion.cached_tokens)
    _COMPLETION_TOKENS.inc(completion.completion_tokens)
    _backend_tokens(completion.backend).inc(completion.prompt_tokens + completion.completion_tokens)
    if completion.images:
        IMAGES.inc(completion.images)


@on(FinishedPromptJudged)
def count_finished_prompt(event: FinishedPromptJudged) -> None:
    FINISHED_PROMPTS.labels("prompt" if event.trusted else "server").inc()


# --- Batches ---------------------------------------------------------------------------------------------

BATCHES = Counter("guard_batches", "Changes of a batch's status, by the new status.", ["status"])
BATCH_LINES = Counter(
    "guard_batch_lines", "Lines of batches with a result, by outcome: completed, failed or expired.", ["outcome"]
)


@on(BatchChanged)
def count_batch(event: BatchChanged) -> None:
    BATCHES.labels(event.status).inc()


@on(LinesDone)
def count_lines(event: LinesDone) -> None:
    BATCH_LINES.labels("completed").inc(event.completed)
    BATCH_LINES.labels("failed").inc(event.failed)
    BATCH_LINES.labels("expired").inc(event.expired)


# --- The remote backend ----------------------------------------------------------------------------------

MOVES = Counter(
    "guard_fallback_moves", "Cases that moved from the local engine to the remote backend, by reason.", ["reason"]
)
REMOTE_CALLS = Counter(
    "guard_remote_calls",
    "Calls to the remote backend, by outcome. Each retry counts as a call.",
    ["outcome"],
)
REMOTE_BREAKER = Enum(
    "guard_remote_breaker",
    "State of the remote backend's circuit breaker: 1 for the current state, 0 for the others.",
    states=["closed", "open", "half_open"],
)
COST = Counter(
    "guard_cost_dollars",
    "Cost in US dollars, by backend: what the remote backend charged, or the local machine's price for its uptime.",
    ["backend"],
)


@on(Moved)
def count_move(event: Moved) -> None:
    MOVES.labels(event.reason).inc()


@on(RemoteCalled)
def count_remote_call(event: RemoteCalled) -> None:
    REMOTE_CALLS.labels(event.outcome).inc()


@on(RemoteCharged)
def count_charge(event: RemoteCharged) -> None:
    COST.labels(event.backend).inc(event.dollars)


@on(BreakerChanged)
def show_breaker(event: BreakerChanged) -> None:
    REMOTE_BREAKER.state(event.state)


# --- Read whenever /metrics is asked for -----------------------------------------------------------------

ADMITTED = Gauge("guard_admitted_verdicts", "Verdicts that are waiting or being computed now.")
READY = Gauge("guard_ready", "1 if /ready answers 200 now, else 0.")
ALIVE = Gauge("guard_backend_alive", "1 unless only a restart can help this backend, else 0.", ["backend"])
MODEL = Gauge(
    "guard_model_info",
    "Always 1. One series for each model that judges here; stand_in is true for a model that is not a moderator.",
    ["model", "backend", "profile", "stand_in"],
)
COST_PER_MILLION = Gauge(
    "guard_cost_dollars_per_million_tokens",
    "Average cost in US dollars of a million tokens since the start, by backend.",
    ["backend"],
)


class LocalCost:
    """What the local backend costs: a price an hour, busy or not."""

    def __init__(self, backend: str, dollars_per_hour: float) -> None:
        self._cost = COST.labels(backend)
        self._dollars_per_second = dollars_per_hour / 3600
        self._counted_until = time.monotonic()

    def count(self) -> None:
        """Charge the time since the last count."""
        now = time.monotonic()
        self._cost.inc(self._dollars_per_second * (now - self._counted_until))
        self._counted_until = now


def compare_costs(backends: Iterable[str]) -> None:
    """Set each backend's cost per million tokens, once it has a cost and tokens."""
    for backend in backends:
        dollars = REGISTRY.get_sample_value("guard_cost_dollars_total", {"backend": backend})
        tokens = REGISTRY.get_sample_value("guard_backend_tokens_total", {"backend": backend})
        if dollars and tokens:
            COST_PER_MILLION.labels(backend).set(dollars / tokens * 1e6)
