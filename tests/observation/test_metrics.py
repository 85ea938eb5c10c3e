"""Each event reaches its metrics, and names and labels stay what dashboards know."""

from collections.abc import Callable
from dataclasses import is_dataclass, replace

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from server.checkpoints.profile import load_profile
from server.domain import events
from server.domain.conversation import Conversation, Role, TextPart
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
    publish,
)
from server.domain.policy import Policy
from server.domain.verdict import CacheUse, Verdict
from server.families.llama_guard.pictures import SIZES
from server.images import ImageDecoder, ImageLimits
from server.moderation.moderator import Moderator
from server.observation import metrics
from tests.fakes import FakeBackend, always

TAXONOMY = load_profile("llama-guard-4-12b").taxonomy
WORK = {
    "backend": "tested",
    "prompt_tokens": 200,
    "completion_tokens": 5,
    "cached_tokens": 128,
    "images": 3,
    "queued_s": 0.25,
}


@pytest_asyncio.fixture
async def verdict() -> Verdict:
    """Unsafe, of four prompts, about a text that could be read as two messages."""
    moderator = Moderator(
        FakeBackend(always("unsafe\nS1,S9", **WORK)), ImageDecoder(ImageLimits(), SIZES), Policy(TAXONOMY)
    )
    try:
        verdict = await moderator.moderate(Conversation.from_user(TextPart("a bomb")))
    finally:
        moderator.close()
    return replace(verdict, passes=4, lookalikes=2)


def safe(verdict: Verdict) -> Verdict:
    return replace(verdict, unsafe=False, categories=(), lookalikes=0, completion=replace(verdict.completion, images=0))


def samples() -> dict[str, float]:
    return {
        " ".join([sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))]): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("guard_") and not sample.name.endswith(("_bucket", "_created"))
    }


def moved_by(event: object) -> dict[str, float]:
    before = samples()
    publish(event)
    after = samples()
    return {name: after[name] - before.get(name, 0.0) for name in after if after[name] != before.get(name, 0.0)}


JUDGED: dict[str, tuple[Callable[[Verdict], Judged], dict[str, float]]] = {
    "computed, unsafe": (
        lambda verdict: Judged(verdict, Role.AGENT, 0.5),
        {
            "guard_verdicts_total backend=tested judged=agent verdict=unsafe": 1,
            "guard_verdict_categories_total category=S1": 1,
            "guard_verdict_categories_total category=S9": 1,
            "guard_lookalikes_total": 1,
            "guard_verdict_seconds_count": 1,
            "guard_verdict_seconds_sum": 0.5,
            "guard_engine_queue_seconds_count": 1,
            "guard_engine_queue_seconds_sum": 0.25,
            "guard_passes_total": 4,
            "guard_tokens_total kind=prompt": 200,
            "guard_tokens_total kind=cached": 128,
            "guard_tokens_total kind=completion": 5,
            "guard_backend_tokens_total backend=tested": 205,
            "guard_images_total": 3,
        },
    ),
    "computed, safe": (
        lambda verdict: Judged(safe(verdict), Role.USER, 0.5),
        {
            "guard_verdicts_total backend=tested judged=user verdict=safe": 1,
            "guard_verdict_seconds_count": 1,
            "guard_verdict_seconds_sum": 0.5,
            "guard_engine_queue_seconds_count": 1,
            "guard_engine_queue_seconds_sum": 0.25,
            "guard_passes_total": 4,
            "guard_tokens_total kind=prompt": 200,
            "guard_tokens_total kind=cached": 128,
            "guard_tokens_total kind=completion": 5,
            "guard_backend_tokens_total backend=tested": 205,
        },
    ),
    "from the cache": (
        lambda verdict: Judged(verdict.uncomputed(CacheUse.HIT), Role.USER, 0.0),
        {
            "guard_verdicts_total backend=tested judged=user verdict=unsafe": 1,
            "guard_verdict_categories_total category=S1": 1,
            "guard_verdict_categories_total category=S9": 1,
            "guard_lookalikes_total": 1,
            "guard_cached_verdicts_total cache=hit": 1,
        },
    ),
    "joined": (
        lambda verdict: Judged(safe(verdict).uncomputed(CacheUse.JOINED), Role.USER, 0.0),
        {
            "guard_verdicts_total backend=tested judged=user verdict=safe": 1,
            "guard_cached_verdicts_total cache=joined": 1,
        },
    ),
}

OTHERS: dict[str, tuple[object, dict[str, float]]] = {
    "request": (
        Answered("req_1", None, "/tested", "POST", 200, 0.5),
        {
            "guard_requests_total method=POST route=/tested status=200": 1,
            "guard_request_seconds_count route=/tested": 1,
            "guard_request_seconds_sum route=/tested": 0.5,
        },
    ),
    "connection": (ConnectionRefused("tested"), {"guard_connections_refused_total reason=tested": 1}),
    "error": (ErrorAnswered("tested", 400), {"guard_errors_total kind=tested": 1}),
    "prompt that is trusted": (FinishedPromptJudged(trusted=True), {"guard_finished_prompts_total policy=prompt": 1}),
    "prompt that is not": (FinishedPromptJudged(trusted=False), {"guard_finished_prompts_total policy=server": 1}),
    "batch": (BatchChanged("batch_1", "completed"), {"guard_batches_total status=completed": 1}),
    "lines": (
        LinesDone("batch_1", completed=3, failed=2),
        {"guard_batch_lines_total outcome=completed": 3, "guard_batch_lines_total outcome=failed": 2},
    ),
    "lines out of time": (LinesDone("batch_1", expired=4), {"guard_batch_lines_total outcome=expired": 4}),
    "move": (Moved("tested"), {"guard_fallback_moves_total reason=tested": 1}),
    "call": (RemoteCalled("tested"), {"guard_remote_calls_total outcome=tested": 1}),
    "records": (AuditWritten(3), {"guard_audit_records_total": 3}),
    "records that failed": (
        AuditFailed(2, "disk", refused=True),
        {"guard_audit_failures_total reason=disk verdict=refused": 2},
    ),
    "charge": (RemoteCharged("tested", 0.125), {"guard_cost_dollars_total backend=tested": 0.125}),
}


@pytest.mark.parametrize("case", JUDGED)
async def test_a_verdict_moves_its_metrics_and_no_others(case: str, verdict: Verdict) -> None:
    event, expected = JUDGED[case]
    assert moved_by(event(verdict)) == pytest.approx(expected)


@pytest.mark.parametrize("case", OTHERS)
def test_any_other_event_moves_its_metrics_and_no_others(case: str) -> None:
    event, expected = OTHERS[case]
    assert moved_by(event) == pytest.approx(expected)


@pytest.mark.parametrize("state", ["open", "half_open", "closed"])
def test_the_breaker_is_shown_in_its_state_only(state: str) -> None:
    publish(BreakerChanged(state))
    shown = {name: value for name, value in samples().items() if name.startswith("guard_remote_breaker")}
    assert [name for name, value in shown.items() if value] == [f"guard_remote_breaker guard_remote_breaker={state}"]


def test_every_event_is_counted() -> None:
    kinds = {kind for kind in vars(events).values() if is_dataclass(kind) and kind.__module__ == events.__name__}
    assert {type(event) for event, _ in OTHERS.values()} | {Judged, BreakerChanged} == kinds


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64), st.integers(0, 64)), max_size=8))
def test_no_line_is_lost(groups: list[tuple[int, int, int]]) -> None:
    before = samples()
    for completed, failed, expired in groups:
        publish(LinesDone("batch_1", completed, failed, expired))
    after = samples()
    for place, outcome in enumerate(("completed", "failed", "expired")):
        name = f"guard_batch_lines_total outcome={outcome}"
        assert after.get(name, 0.0) - before.get(name, 0.0) == sum(group[place] for group in groups)


DECLARED = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]


def test_names_and_labels_are_what_dashboards_know() -> None:
    assert {metric._name: tuple(metric._labelnames) for metric in DECLARED} == {
        "guard_requests": ("route", "method", "status"),
        "guard_request_seconds": ("route",),
        "guard_errors": ("kind",),
        "guard_connections_refused": ("reason",),
        "guard_verdicts": ("verdict", "judged", "backend"),
        "guard_verdict_categories": ("category",),
        "guard_verdict_seconds": (),
        "guard_engine_queue_seconds": (),
        "guard_tokens": ("kind",),
        "guard_images": (),
        "guard_passes": (),
        "guard_lookalikes": (),
        "guard_cached_verdicts": ("cache",),
        "guard_finished_prompts": ("policy",),
        "guard_batches": ("status",),
        "guard_batch_lines": ("outcome",),
        "guard_admitted_verdicts": (),
        "guard_ready": (),
        "guard_model_info": ("model", "backend", "profile", "stand_in"),
        "guard_backend_alive": ("backend",),
        "guard_fallback_moves": ("reason",),
        "guard_remote_calls": ("outcome",),
        "guard_remote_breaker": (),
        "guard_backend_tokens": ("backend",),
        "guard_audit_records": (),
        "guard_audit_failures": ("reason", "verdict"),
        "guard_cost_dollars": ("backend",),
        "guard_cost_dollars_per_million_tokens": ("backend",),
    }


@pytest.mark.parametrize("metric", DECLARED, ids=lambda metric: metric._name)
def test_help_is_a_sentence_that_stands_alone(metric: MetricWrapperBase) -> None:
    assert metric._documentation[0].isupper() or metric._documentation[0].isdigit()
    assert metric._documentation.endswith(".")
