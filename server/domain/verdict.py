"""The verdict, and the contract under which an answer of the model becomes one.

A verdict exists only when the engine finished on a known end, the text is exactly `safe` or `unsafe` with an optional
line of known codes, and, where the backend reports probabilities, the two verdict words together hold nearly all of the
probability at their position. Everything else raises: an unknown answer never becomes "safe".
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from server.domain.errors import EngineFailure, UnparseableVerdict
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy

ROUNDING = 1e-4
"""How far floating point may carry a probability, or a sum of them, past 1. What is further off is no probability."""

ANSWER = re.compile(r"(?P<word>safe|unsafe(?:\n(?P<codes>S[0-9]+(?:,S[0-9]+)*))?)")


class ScoreMethod(StrEnum):
    """Where category scores come from.

    WRITTEN_LIST: P(unsafe) times the highest probability that the code had at any place of the list that the model
    wrote. FIRST_CODE: P(unsafe) times the probability that the code comes first in a list, where the model wrote none;
    these scores add up to P(unsafe) at most, and cost a second, short pass. No code has a lower score by WRITTEN_LIST
    than it has by FIRST_CODE for the same text, as the first place is one of the places. UPPER_BOUND: nothing was asked
    about the codes because P(unsafe) is below the policy's `scores_from`. No code is more probable than P(unsafe),
    which is what every category shows.
    """

    WRITTEN_LIST = "written_list"
    FIRST_CODE = "first_code"
    UPPER_BOUND = "upper_bound"


class CacheUse(StrEnum):
    """How a verdict was had without computing it: HIT, kept from before; JOINED, it was in work for somebody else."""

    HIT = "hit"
    JOINED = "joined"


@dataclass(frozen=True, slots=True)
class WordProbabilities:
    """Probabilities of the two verdict words at the verdict position, over the whole vocabulary."""

    safe: float
    unsafe: float

    @property
    def mass(self) -> float:
        return self.safe + self.unsafe

    @property
    def p_unsafe(self) -> float:
        """P(unsafe), renormalised over the two words."""
        return self.unsafe / self.mass


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer and its natural log-probability.

    `alternatives` are the likeliest tokens at its place, likeliest first and without alternatives of their own.
    """

    content: bytes
    logprob: float
    alternatives: tuple["Token", ...] = ()

    @property
    def text(self) -> str:
        """A token may end in the middle of a character."""
        return self.content.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a backend brings back, before anybody believes it.

    `text` is what the model wrote, without the newlines that lead it. `listed_text` is the answer it gave when it was
    made to go on from `unsafe`, because P(unsafe) passed a threshold below the model's own. `words` are None where a
    backend has no probabilities. `code_probabilities` (P(code), given unsafe) are None there too, and where nothing was
    asked about the codes. `no_scores` says in words why this backend has none of the latter, whatever it is asked.
    `tokens` spell the answer that the policy makes of it (the other word, where its threshold turned the model's),
    where they were asked for and the backend knows them. `images` are the pictures that the model saw, `frames` those
    that the image files hold: more, where an animation was sampled. `finish_reason` is the engine's; only "stop" makes
    a verdict. `model` is the name of the model that wrote it, as its own backend calls it. `provider` is who ran a
    remote model, `cost` what that took in US dollars. Durations are seconds.
    """

    text: str
    finish_reason: str | None
    backend: str
    taxonomy: Taxonomy
    words: WordProbabilities | None = None
    listed_text: str | None = None
    code_probabilities: Mapping[str, float] | None = None
    score_method: ScoreMethod | None = None
    no_scores: str | None = None
    tokens: tuple[Token, ...] | None = None
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


@dataclass(frozen=True, slots=True)
class About:
    """A text that a pass asks about.

    `param` is the field that held it. `message` counts from 1 the messages that the text could be read as; it is None
    where the text is one.
    """

    param: str
    message: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The parsed and checked result.

    `unsafe` is P(unsafe) held against the policy's threshold, or the model's word where there is no probability.
    `categories` are the codes that the model listed, empty when safe. `category_scores` holds one score for each
    category asked about. It is None without probabilities, and where the only thing known of the categories is that
    none exceeds a P(unsafe) that is not small. `cache` is None for the caller whose request computed it.
    `passes` prompts were asked (server.moderation.passes); the one numbered `decided` from 0 gave this verdict, and
    `about` is the text that it asked about, None for the whole last turn. `lookalikes` counts the messages that texts
    which hold marks of a conversation could be read as.
    `images_unseen` are pictures of the request that had no part in it, because the model does not see.
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
    def text(self) -> str:
        """The answer on the wire: `safe`, or `unsafe` and the line of codes."""
        if not self.unsafe:
            return "safe"
        return "\n".join(["unsafe", ",".join(self.categories)] if self.categories else ["unsafe"])

    @property
    def no_scores(self) -> str | None:
        """Why categories have no scores of their own, None where they have or where nothing hinders them."""
        missing = "the backend did not score the categories" if self.category_scores is None else None
        return self.completion.no_scores or missing

    @property
    def written(self) -> str:
        """The answer of the model that stands behind `text`: the list that it gave, for all it repeats itself."""
        if not self.unsafe:
            return "safe"
        listed = self.completion.listed_text
        return listed if self.completion.text == "safe" and listed is not None else self.completion.text

    def uncomputed(self, use: CacheUse) -> "Verdict":
        """The same verdict for whom it was not computed: every token was cached, and it took nothing."""
        completion = self.completion
        cost = None if completion.cost is None else 0.0
        cached = replace(completion, cached_tokens=completion.prompt_tokens, cost=cost, queued_s=0.0, computed_s=0.0)
        return replace(self, completion=cached, cache=use)

    def under(self, codes: Mapping[str, str]) -> "Verdict":
        """The same verdict, its categories and their scores under a caller's codes."""
        scores = self.category_scores
        return replace(
            self,
            categories=tuple(codes.get(code, code) for code in self.categories),
            category_scores=None if scores is None else {codes.get(code, code): scores[code] for code in scores},
        )


def judge(completion: Completion, policy: Policy, minimum_mass: float) -> Verdict:
    """Hold a completion to the verdict contract.

    Raises EngineFailure when the engine did not finish, UnparseableVerdict when the answer is none.
    """
    if completion.finish_reason == "length":
        # There was room for every code: whoever asks again gets the same endless answer.
        raise UnparseableVerdict("The model's answer did not come to an end.")
    if completion.finish_reason != "stop":
        raise EngineFailure("The engine ended the request without a complete answer.")
    word, codes = _parse(completion.text, completion.taxonomy)
    unsafe, p_unsafe = word == "unsafe", None
    words = completion.words
    if words is not None:
        if not (
            _is_probability(words.safe)
            and _is_probability(words.unsafe)
            and _is_probability(words.mass)
            and words.mass >= minimum_mass
        ):
            raise UnparseableVerdict("The model's answer is neither clearly 'safe' nor clearly 'unsafe'.")
        if unsafe != (words.unsafe > words.safe) and words.unsafe != words.safe:
            raise UnparseableVerdict("The model's answer contradicts its own probabilities.")
        p_unsafe = words.p_unsafe
        unsafe = policy.is_unsafe(p_unsafe)
    if unsafe and word == "safe":
        if completion.listed_text is None:
            raise EngineFailure("The backend brought no categories for a verdict past the threshold.")
        word, codes = _parse(completion.listed_text, completion.taxonomy)
        if word != "unsafe":
            raise UnparseableVerdict("The model was asked for categories and gave none.")
    scores, method = _category_scores(completion, policy, p_unsafe)
    return Verdict(
        unsafe=unsafe,
        p_unsafe=p_unsafe,
        verdict_mass=None if words is None else words.mass,
        categories=codes if unsafe else (),
        category_scores=scores,
        score_method=method,
        threshold=policy.threshold,
        completion=completion,
    )


def strictest(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of several passes: unsafe when one of them is, and else the one with the highest P(unsafe).

    Categories of every unsafe pass are listed. Each category has its highest score of all passes, without the bounds of
    other passes than the one that decided. Tokens, costs and times are added up.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    # Without probabilities all that are unsafe are alike, and so are all that are safe.
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
    """The scores of a verdict that `strict` decided. What bounds it bounds the passes below it too."""
    if strict.category_scores is None or strict.score_method is ScoreMethod.UPPER_BOUND:
        return strict.category_scores
    scored = [verdict.category_scores or {} for verdict in verdicts if verdict.score_method != ScoreMethod.UPPER_BOUND]
    return {code: max(each.get(code, 0.0) for each in scored) for code in strict.category_scores}


def _parse(text: str, taxonomy: Taxonomy) -> tuple[str, tuple[str, ...]]:
    match = ANSWER.fullmatch(text)
    if match is None:
        raise UnparseableVerdict("The model's answer is not of the form that it was asked for.")
    codes = tuple(dict.fromkeys(match["codes"].split(","))) if match["codes"] else ()
    if not all(code in taxonomy.codes for code in codes):
        raise UnparseableVerdict("The model listed a category that it was not asked about.")
    return match["word"].partition("\n")[0], codes


def _is_probability(value: float) -> bool:
    return math.isfinite(value) and 0.0 <= value <= 1.0 + ROUNDING


def _category_scores(
    completion: Completion, policy: Policy, p_unsafe: float | None
) -> tuple[Mapping[str, float] | None, ScoreMethod | None]:
    if p_unsafe is None:
        return None, None
    given = completion.code_probabilities
    if given is None:
        if policy.wants_scores(p_unsafe):
            return None, None
        return dict.fromkeys(completion.taxonomy.codes, p_unsafe), ScoreMethod.UPPER_BOUND
    if not all(_is_probability(value) for value in given.values()):
        raise UnparseableVerdict("The model's category scores are not probabilities.")
    return {code: p_unsafe * min(given.get(code, 0.0), 1.0) for code in completion.taxonomy.codes}, (
        completion.score_method
    )
