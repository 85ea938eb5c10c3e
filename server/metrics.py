"""What Prometheus is told. vLLM's own metrics stand beside these in the same registry. No label holds content."""

from prometheus_client import Counter, Gauge, Histogram

from server.verdict import Verdict

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
BATCHES = Counter("guard_batches", "Batches by the status that they came into", ["status"])
BATCH_LINES = Counter("guard_batch_lines", "Lines of batches by what became of them", ["outcome"])
ADMITTED = Gauge("guard_admitted_verdicts", "Verdicts being worked on or waiting")
READY = Gauge("guard_ready", "1 while /ready answers 200")


def observe_verdict(verdict: Verdict, judged: str, seconds: float) -> None:
    completion = verdict.completion
    VERDICTS.labels("unsafe" if verdict.unsafe else "safe", judged.lower(), completion.backend).inc()
    for code in verdict.categories:
        CATEGORIES.labels(code).inc()
    VERDICT_SECONDS.observe(seconds)
    QUEUE_SECONDS.observe(completion.queued_s)
    TOKENS.labels("prompt").inc(completion.prompt_tokens)
    TOKENS.labels("cached").inc(completion.cached_tokens)
    TOKENS.labels("completion").inc(completion.completion_tokens)
    IMAGES.inc(completion.images)
