"""The extension field `guard`: the whole verdict, in addition to the part that fits the dialect's own fields."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field

from server.api.http.shapes import Closed, Count, Probability, Seconds
from server.api.names import MODEL
from server.domain.verdict import CacheUse, ScoreMethod, Verdict


class GuardUsage(Closed):
    prompt_tokens: Count
    cached_tokens: Count
    completion_tokens: Count
    images: Count
    frames: Count
    frames_unseen: Count
    tiles: Count


class GuardTiming(Closed):
    queued: Seconds
    computed: Seconds


class GuardAbout(Closed):
    text: Annotated[str, Field(description="The request's field that held the text.")]
    message: Annotated[int, Field(ge=1)] | None


class Guard(Closed):
    """The native verdict. If the scores are null, `no_scores` says why."""

    verdict: Literal["safe", "unsafe"]
    p_unsafe: Probability | None
    threshold: Probability
    verdict_mass: float | None
    categories: list[str]
    category_scores: dict[str, Probability] | None
    category_score_method: Annotated[
        ScoreMethod | None,
        Field(
            description="How the scores were found: from the list that the model wrote, from the first code that it"
            " would write after unsafe, or from P(unsafe), which no category's score exceeds."
        ),
    ]
    no_scores: str | None
    images_unseen: Count
    raw_text: str
    finish_reason: Literal["stop"]
    passes: Annotated[int, Field(ge=1, description="Prompts sent to the model. The strictest verdict is reported.")]
    about: Annotated[
        GuardAbout | None, Field(description="The text that decided the verdict; null if it was the whole message.")
    ]
    lookalikes: Annotated[
        int,
        Field(ge=0, description="Messages that the texts could be read as; 0 if no text looks like a conversation."),
    ]
    model: str
    backend: str
    cache: CacheUse | None
    provider: str | None
    cost: float | None
    usage: GuardUsage
    timing: GuardTiming
    finished_prompt: NotRequired[Literal["prompt_policy", "server_policy"]]


def verdict_detail(verdict: Verdict) -> Guard:
    """Scores and provenance of one verdict. Probabilities are 0 to 1, durations seconds."""
    completion, about = verdict.completion, verdict.about
    return {
        "verdict": "unsafe" if verdict.unsafe else "safe",
        "p_unsafe": verdict.p_unsafe,
        "threshold": verdict.threshold,
        "verdict_mass": verdict.verdict_mass,
        "categories": list(verdict.categories),
        "category_scores": None if verdict.category_scores is None else dict(verdict.category_scores),
        "category_score_method": verdict.score_method,
        "no_scores": verdict.no_scores,
        "images_unseen": verdict.images_unseen,
        "raw_text": completion.text,
        "finish_reason": "stop",  # no other end makes a verdict
        "passes": verdict.passes,
        "about": None if about is None else {"text": about.param, "message": about.message},
        "lookalikes": verdict.lookalikes,
        "model": completion.model,
        "backend": completion.backend,
        "cache": verdict.cache,
        "provider": completion.provider,
        "cost": completion.cost,
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "cached_tokens": completion.cached_tokens,
            "completion_tokens": completion.completion_tokens,
            "images": completion.images,
            "frames": completion.frames,
            "frames_unseen": completion.frames_unseen,
            "tiles": completion.tiles,
        },
        "timing": {"queued": completion.queued_s, "computed": completion.computed_s},
    }


EXAMPLE: Guard = {
    "verdict": "unsafe",
    "p_unsafe": 0.98,
    "threshold": 0.5,
    "verdict_mass": 0.999,
    "categories": ["S9"],
    "category_scores": {f"S{number}": 0.91 if number == 9 else 0.0 for number in range(1, 15)},
    "category_score_method": ScoreMethod.WRITTEN_LIST,
    "no_scores": None,
    "images_unseen": 0,
    "raw_text": "unsafe\nS9",
    "finish_reason": "stop",
    "passes": 1,
    "about": None,
    "lookalikes": 0,
    "model": MODEL,
    "backend": "vllm",
    "cache": None,
    "provider": None,
    "cost": None,
    "usage": {
        "prompt_tokens": 214,
        "cached_tokens": 128,
        "completion_tokens": 5,
        "images": 0,
        "frames": 0,
        "frames_unseen": 0,
        "tiles": 0,
    },
    "timing": {"queued": 0.001, "computed": 0.04},
}
"""The verdict in the examples of replies: a request about S9."""
