"""The verdict, and the contract by which a model's answer becomes one.

A family reads its model's answer (server.families). This module decides whether it is a verdict, for every family and
every backend: the engine finished on a known end, the family understood all of the answer, the verdict words hold
nearly all of the probability at their position, and the written word agrees with the probabilities. Everything else
raises an error: an unknown answer never becomes "safe".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from server.domain.errors import EngineFailure, UnparseableVerdict
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy

ROUNDING = 1e-4
"""How far rounding may move a probability, or a sum of them, past 1. Anything further off is not a probability."""


class Severity(StrEnum):
    """The levels of a model's judgement. A model with two levels never says CONTROVERSIAL."""

    SAFE = "safe"
    CONTROVERSIAL = "controversial"
    UNSAFE = "unsafe"


class ScoreMethod(StrEnum):
    """How category scores are found.

    WRITTEN_LIST: P(unsafe) times the highest probability that the category had at any place of the list that the model
    wrote. FIRST_CODE: P(unsafe) times the probability that the category comes first in a list, for an answer without a
    list. These scores add up to at most P(unsafe), and take a second, short pass. For the same text, no category has a
    lower score by WRITTEN_LIST than by FIRST_CODE, since the first place is one of the places. UPPER_BOUND: the model
    was not asked about the categories because P(unsafe) is below the policy's `scores_from`. Every category shows
    P(unsafe), and none can be more probable.
    """

    WRITTEN_LIST = "written_list"
    FIRST_CODE = "first_code"
    UPPER_BOUND = "upper_bound"


class CacheUse(StrEnum):
    """The source of a verdict that was not computed: HIT, from the cache; JOINED, shared with a request in flight."""

    HIT = "hit"
    JOINED = "joined"


@dataclass(frozen=True, slots=True)
class Levels:
    """Probabilities of the verdict words at their position, over the whole vocabulary."""

    safe: float
    unsafe: float
    controversial: float = 0.0

    @property
    def mass(self) -> float:
        return self.safe + self.unsafe + self.controversial

    @property
    def p_unsafe(self) -> float:
        """P(unsafe), renormalised over the verdict words. Controversial counts as unsafe."""
        return (self.unsafe + self.controversial) / self.mass

    def of(self, severity: Severity) -> float:
        match severity:
            case Severity.SAFE:
                return self.safe
            case Severity.UNSAFE:
                return self.unsafe
            case Severity.CONTROVERSIAL:
                return self.controversial

    @property
    def are_probabilities(self) -> bool:
        return all(map(_is_probability, (self.safe, self.unsafe, self.controversial, self.mass)))


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer and its natural log-probability.

    `alternatives` are the likeliest tokens at its position, likeliest first. They have no alternatives themselves.
    """

    content: bytes
    logprob: float
    alternatives: tuple["Token", ...] = ()

    @property
    def text(self) -> str:
        """The token as text. It may end in the middle of a character."""
        return self.content.decode("utf-8", "replace")


# --- An answer as a family reads it ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """The model's answer: `text`, and how it is read. `levels` is None if the backend has no probabilities."""

    text: str
    severity: Severity
    categories: tuple[str, ...] = ()
    levels: Levels | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy's decision on the model's answer. Only `decide` makes one.

    `p_unsafe` is None without probabilities. `wants_scores` says that P(unsafe) is too high to be shown as the upper
    bound of every category: a backend that can ask about the categories does so.
    """

    unsafe: bool
    p_unsafe: float | None = None
    wants_scores: bool = False


def decide(said: Said, policy: Policy) -> Decision:
    """Decide by the policy on the model's answer. The threshold is compared only here.

    Raises UnparseableVerdict if the probabilities do not confirm the answer.
    """
    levels = said.levels
    if levels is None:
        return Decision(said.severity is not Severity.SAFE)
    if not (levels.are_probabilities and levels.mass >= policy.minimum_mass):
        raise UnparseableVerdict("The model's answer is neither clearly 'safe' nor clearly 'unsafe'.")
    if levels.of(said.severity) < max(levels.safe, levels.unsafe, levels.controversial):
        raise UnparseableVerdict("The model's answer contradicts its own probabilities.")
    p_unsafe = levels.p_unsafe
    return Decision(p_unsafe >= policy.threshold, p_unsafe, p_unsafe >= policy.scores_from)


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer as its family reads it, before it is checked.

    `said` is the model's own answer, `decision` the policy's decision on it. `listed` is the answer that the model gave
    when it was made to continue from its word for unsafe, because P(unsafe) passed a threshold below the model's own.
    `shares` are P(category), given unsafe. They are None if the model was not asked about the categories. `no_scores`
    is the reason in words if there can never be any. `tokens` spell the answer after the policy's decision (the other
    word if the threshold changed the model's), if they were requested and are known.
    """

    said: Said
    decision: Decision
    listed: Said | None = None
    shares: Mapping[str, float] | None = None
    score_method: ScoreMethod | None = None
    no_scores: str | None = None
    tokens: tuple[Token, ...] | None = None


# --- The result of a backend -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completion:
    """A reading, and its costs.

    `taxonomy` holds the categories that were asked about. `images` counts the pictures that the model saw, `frames`
    those in the image files, which are more if an animation was sampled. `finish_reason` is the engine's; only "stop"
    makes a verdict. `model` is the backend's name for the model that answered. `provider` ran a remote model, for
    `cost` US dollars. Durations are seconds.
    """

    reading: Reading
    finish_reason: str | None
    backend: str
    taxonomy: Taxonomy
    provider: str | None = None
    cost: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    images: int = 0
    frames: int = 0
    frames_unseen: int = 0
    tiles: int = 0
    model: str = ""
    queued_s: float = 0.0
    computed_s: float = 0.0

    @property
    def text(self) -> str:
        """The model's answer without leading white space."""
        return self.reading.said.text


def check_finished(reason: str | None) -> None:
    """Raises UnparseableVerdict or EngineFailure unless the engine reached the end of an answer."""
    if reason == "length":
        # There was room for every category: another try would give the same endless answer.
        raise UnparseableVerdict("The model's answer did not come to an end.")
    if reason != "stop":
        raise EngineFailure("The engine ended the request without a complete answer.")


# --- The verdict -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class About:
    """A text that a pass asks about.

    `param` is the field that held it. `message` is the number, from 1, of one of the messages that the text could be
    read as. It is None if the text can only be read as one.
    """

    param: str
    message: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The parsed and checked result.

    `unsafe` is P(unsafe) compared with the policy's threshold, or the model's word if there is no probability.
    `categories` are the codes that the model listed, empty if safe. `category_scores` holds one score for each category
    that was asked about. It is None without probabilities, and if the only known bound is a P(unsafe) that is not
    small. `cache` is None for the caller whose request computed the verdict.
    `passes` counts the prompts (server.moderation.passes). Prompt number `decided`, from 0, gave this verdict, and
    `about` is the text that it asked about, None for the whole last turn. `lookalikes` counts the messages that texts
    with marks of a conversation could be read as.
    `images_unseen` counts pictures of the request that were not judged because the model does not see.
    """

    unsafe: bool
    p_unsafe: float | None
    verdict_mass: float | None
    categories: tuple[str, ...]
    category_scores: Mapping[str, float] | None
    score_method: ScoreMethod | None
    threshold: float
    completion: Completion
    cache: CacheUse | None = None
    passes: int = 1
    decided: int = 0
    about: About | None = None
    lookalikes: int = 0
    images_unseen: int = 0

    @property
    def no_scores(self) -> str | None:
        """The reason why categories have no separate scores. None if they have some, or could have."""
        missing = "the backend did not score the categories" if self.category_scores is None else None
        return self.completion.reading.no_scores or missing

    def uncomputed(self, use: CacheUse) -> "Verdict":
        """The same verdict for a caller for whom it was not computed: all tokens were cached, and it cost nothing."""
        completion = self.completion
        cost = None if completion.cost is None else 0.0
        cached = replace(completion, cached_tokens=completion.prompt_tokens, cost=cost, queued_s=0.0, computed_s=0.0)
        return replace(self, completion=cached, cache=use)

    def under(self, codes: Mapping[str, str]) -> "Verdict":
        """The same verdict with categories and scores under a caller's codes."""
        scores = self.category_scores
        return replace(
            self,
            categories=tuple(codes.get(code, code) for code in self.categories),
            category_scores=None if scores is None else {codes.get(code, code): scores[code] for code in scores},
        )


def judge(completion: Completion, policy: Policy) -> Verdict:
    """The verdict of a completion that keeps the verdict contract.

    Raises EngineFailure if the engine did not finish, UnparseableVerdict if the answer is not a verdict.
    """
    check_finished(completion.finish_reason)
    reading = completion.reading
    decision, named = reading.decision, reading.said
    _check_categories(named, completion.taxonomy)
    if decision.unsafe and named.severity is Severity.SAFE:
        if reading.listed is None:
            raise EngineFailure("The backend gave no categories for a verdict past the threshold.")
        named = reading.listed
        _check_categories(named, completion.taxonomy)
        if named.severity is Severity.SAFE:
            raise UnparseableVerdict("The model was asked for categories and gave none.")
    scores, method = _category_scores(completion)
    levels = reading.said.levels
    return Verdict(
        unsafe=decision.unsafe,
        p_unsafe=decision.p_unsafe,
        verdict_mass=None if levels is None else levels.mass,
        categories=tuple(dict.fromkeys(named.categories)) if decision.unsafe else (),
        category_scores=scores,
        score_method=method,
        threshold=policy.threshold,
        completion=completion,
    )


def strictest(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of several passes: unsafe if one of them is, otherwise the one with the highest P(unsafe).

    Categories of all unsafe passes are listed. Each category has its highest score of all passes, without upper bounds
    from any pass but the deciding one. Tokens, costs and times are added up.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    # Without probabilities all unsafe verdicts are equal, and so are all safe ones.
    decided = max(range(len(verdicts)), key=lambda n: (verdicts[n].unsafe, verdicts[n].p_unsafe or 0.0))
    strict = verdicts[decided]
    unsafe = [strict, *(verdict for verdict in verdicts if verdict.unsafe and verdict is not strict)]
    completions = [verdict.completion for verdict in verdicts]
    costs = [completion.cost for completion in completions if completion.cost is not None]
    return replace(
        strict,
        categories=tuple(dict.fromkeys(code for verdict in unsafe for code in verdict.categories)),
        category_scores=_highest_scores(strict, verdicts),
        completion=replace(
            strict.completion,
            cost=sum(costs) if costs else None,
            prompt_tokens=sum(completion.prompt_tokens for completion in completions),
            completion_tokens=sum(completion.completion_tokens for completion in completions),
            cached_tokens=sum(completion.cached_tokens for completion in completions),
            queued_s=sum(completion.queued_s for completion in completions),
            computed_s=sum(completion.computed_s for completion in completions),
        ),
        passes=len(verdicts),
        decided=decided,
    )


def _highest_scores(strict: Verdict, verdicts: Sequence[Verdict]) -> Mapping[str, float] | None:
    """The scores of a verdict that `strict` decided. Its upper bound also bounds the passes with a lower P(unsafe)."""
    if strict.category_scores is None or strict.score_method is ScoreMethod.UPPER_BOUND:
        return strict.category_scores
    scored = [verdict.category_scores or {} for verdict in verdicts if verdict.score_method != ScoreMethod.UPPER_BOUND]
    return {code: max(each.get(code, 0.0) for each in scored) for code in strict.category_scores}


def _check_categories(said: Said, taxonomy: Taxonomy) -> None:
    if not all(category in taxonomy.codes for category in said.categories):
        raise UnparseableVerdict("The model listed a category that it was not asked about.")


def _is_probability(value: float) -> bool:
    return math.isfinite(value) and 0.0 <= value <= 1.0 + ROUNDING


def _category_scores(completion: Completion) -> tuple[Mapping[str, float] | None, ScoreMethod | None]:
    reading, codes = completion.reading, completion.taxonomy.codes
    p_unsafe = reading.decision.p_unsafe
    if p_unsafe is None:
        return None, None
    shares = reading.shares
    if shares is None:
        if reading.decision.wants_scores:
            return None, None
        return dict.fromkeys(codes, p_unsafe), ScoreMethod.UPPER_BOUND
    if not all(_is_probability(share) for share in shares.values()):
        raise UnparseableVerdict("The model's category scores are not probabilities.")
    return {code: p_unsafe * min(shares.get(code, 0.0), 1.0) for code in codes}, reading.score_method
