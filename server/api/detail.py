"""The extension field `guard`: the whole verdict, beside what the dialect has room for."""

from typing import Any

from server.domain.verdict import Verdict


def verdict_detail(verdict: Verdict) -> dict[str, Any]:
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
        "finish_reason": completion.finish_reason,
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
