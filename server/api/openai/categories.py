"""OpenAI's thirteen categories of a verdict, with their scores.

Some clients read nothing else and never look at `flagged`. So a flagged verdict sets at least one of the thirteen,
whatever the model listed, unless the operator chose otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from server.domain.taxonomy import OPENAI_CATEGORIES, Taxonomy
from server.domain.verdict import Verdict

CATEGORIES = tuple(sorted(OPENAI_CATEGORIES))


@dataclass(frozen=True, slots=True)
class OpenAICategories:
    """`flags` and `scores` have all thirteen categories as keys; scores are 0 to 1."""

    flags: Mapping[str, bool]
    scores: Mapping[str, float]

    @classmethod
    def of(cls, verdict: Verdict, unmapped: str | None) -> "OpenAICategories":
        """A listed code sets its categories. A category's score is the highest score of its codes.

        `unmapped` is the category that a flagged verdict sets if its codes set none. None: it then sets no category.
        """
        flags, scores = dict.fromkeys(CATEGORIES, False), dict.fromkeys(CATEGORIES, 0.0)
        listed = frozenset(verdict.categories)
        given = _scores_of_codes(verdict)
        for category, code, other in _codes_of(verdict.completion.taxonomy):
            scores[category] = max(scores[category], min(given.get(code, 0.0), given.get(other, 0.0)))
            flags[category] = flags[category] or (code in listed and other in listed)
        if verdict.unsafe and unmapped is not None and not any(flags.values()):
            flags[unmapped], scores[unmapped] = True, _score_of_unsafe(verdict)
        return cls(flags, scores)


def _scores_of_codes(verdict: Verdict) -> Mapping[str, float]:
    """If there are no scores, each listed code gets P(unsafe): the field cannot be null on the wire."""
    if verdict.category_scores is not None:
        return verdict.category_scores
    return dict.fromkeys(verdict.categories, _score_of_unsafe(verdict))


def _score_of_unsafe(verdict: Verdict) -> float:
    """P(unsafe) of a flagged verdict, or 1 if the backend reports no probabilities."""
    return 1.0 if verdict.p_unsafe is None else verdict.p_unsafe


def _codes_of(taxonomy: Taxonomy) -> tuple[tuple[str, str, str], ...]:
    """OpenAI's categories, each with a code that sets it and the code that must accompany it, mostly the same one.

    The caller defines the meaning of own codes, so they set none.
    """
    return () if taxonomy.own else _mapping(taxonomy)


@lru_cache(256)
def _mapping(taxonomy: Taxonomy) -> tuple[tuple[str, str, str], ...]:
    # Only the model's own categories reach this cache: nothing that callers send is kept.
    return tuple(
        (category, hazard.code, other)
        for hazard in taxonomy.categories
        for other, category in (*((hazard.code, category) for category in hazard.openai), *hazard.openai_with)
    )
