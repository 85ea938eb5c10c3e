"""What Prometheus is told. vLLM's own metrics stand beside these in the same registry. No label holds content."""

import time
from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import REGISTRY, Counter, Enum, Gauge, Histogram

from server.domain.verdict import Verdict

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

REQUESTS = Counter("guard_requests", "HTTP requests by route, method and status", ["route", "method", "status"])
REQUEST_SECONDS = Histogram("guard_request_seconds", "HTTP request latency", ["route"], buckets=_SECONDS)
ERRORS = Counter("guard_errors", "Errors answered to callers, by kind", ["kind"])

VERDICTS = Counter("guard_verdicts", "Verdicts by result and by what was judged", ["verdict", "judged", "backend"])
CATEGORIES = Counter("guard_verdict_categories", "Categories listed in unsafe verdicts", ["category"])
VERDICT_SECONDS = Histogram("guard_verdict_seconds", "Time from admission to verdict", buckets=_SECONDS)
QUEUE_SECONDS = Histogram("guard_engine_queue_seconds", "Time a verdict waited inside the engine", buckets=_SECONDS)
TOKENS = Counter("guard_tokens", "Tokens by kind: prompt, cached (part of prompt), completion", ["kind"])
IMAGES = Counter("guard_images", "Images judged, sampled frames counted one by one")
PASSES = Counter("guard_passes", "Prompts asked to reach verdicts; more than one where a turn has several texts")
LOOKALIKES = Counter("guard_lookalikes", "Verdicts about a text that could be read as several messages")
CACHED_VERDICTS = Counter("guard_cached_verdicts", "Those of the verdicts that nothing was computed for", ["cache"])
FINISHED_PROMPTS = Counter(
    "guard_finished_prompts",
    "Guard prompts that callers had finished, by whose policy they were judged: the prompt's or the server's",
    ["policy"],
)
BATCHES = Counter("guard_batches", "Batches by the status that they came into", ["status"])
BATCH_LINES = Counter("guard_batch_lines", "Lines of batches by what became of them", ["outcome"])
ADMITTED = Gauge("guard_admitted_verdicts", "Verdicts being worked on or waiting")
READY = Gauge("guard_ready", "1 while /ready answers 200")
MODEL = Gauge(
    "guard_model_info",
    "Always 1: a model that judges here, its backend, the profile, and whether it is a stand-in and no moderator",
    ["model", "backend", "profile", "stand_in"],
)

ALIVE = Gauge("guard_backend_alive", "1 until only a restart can help this backend", ["backend"])
MOVES = Counter("guard_fallback_moves", "Requests that the local engine left to the remote backend", ["reason"])
REMOTE_CALLS = Counter("guard_remote_calls", "Calls of the remote backend, retries included, by outcome", ["outcome"])
REMOTE_BREAKER = Enum(
    "guard_remote_breaker", "State of the remote backend's circuit breaker", states=["closed", "open", "half_open"]
)
BACKEND_TOKENS = Counter("guard_backend_tokens", "Prompt and completion tokens of verdicts, by backend", ["backend"])
COST = Counter(
    "guard_cost_dollars",
    "US dollars: what a remote backend charged, and of the local one its price an hour times its uptime",
    ["backend"],
)
COST_PER_MILLION = Gauge(
    "guard_cost_dollars_per_million_tokens", "guard_cost_dollars through a million guard_backend_tokens", ["backend"]
)


_verdicts = lru_cache(VERDICTS.labels)
_backend_tokens = lru_cache(BACKEND_TOKENS.labels)
_PROMPT_TOKENS, _CACHED_TOKENS, _COMPLETION_TOKENS = map(TOKENS.labels, ("prompt", "cached", "completion"))

requests = lru_cache(REQUESTS.labels)
request_seconds = lru_cache(REQUEST_SECONDS.labels)
"""Looking up the same series costs more than counting in it."""


def observe_verdict(verdict: Verdict, judged: str, seconds: float) -> None:
    _count(verdict, judged)
    completion = verdict.completion
    VERDICT_SECONDS.observe(seconds)
    PASSES.inc(verdict.passes)
    QUEUE_SECONDS.observe(completion.queued_s)
    _PROMPT_TOKENS.inc(completion.prompt_tokens)
    _CACHED_TOKENS.inc(completion.cached_tokens)
    _COMPLETION_TOKENS.inc(completion.completion_tokens)
    if completion.images:
        IMAGES.inc(completion.images)
    _backend_tokens(completion.backend).inc(completion.prompt_tokens + completion.completion_tokens)


def observe_cached_verdict(verdict: Verdict, judged: str) -> None:
    """A verdict, of which the engine knows nothing."""
    _count(verdict, judged)
    CACHED_VERDICTS.labels(verdict.cache).inc()


def _count(verdict: Verdict, judged: str) -> None:
    _verdicts("unsafe" if verdict.unsafe else "safe", judged.lower(), verdict.completion.backend).inc()
    for code in verdict.categories:
        CATEGORIES.labels(code).inc()
    if verdict.lookalikes:
        LOOKALIKES.inc()


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
