"""What an operator, or one request, chose: the categories, from which score on it is unsafe, and what is scored."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from server.domain.errors import InvalidRequest
from server.domain.taxonomy import Taxonomy

CODE = re.compile(r"S(?:[1-9]|1[0-4])")
"""Codes that the model can answer with a calibrated token: S1 to S14."""

MAX_OWN_CATEGORY_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Policy:
    """Both numbers are compared with P(unsafe).

    At or above `threshold` the verdict is unsafe. At or above `scores_from` a safe verdict has a score of its own for
    every category; below it P(unsafe) itself is a bound that is small enough to be shown for all of them.
    """

    taxonomy: Taxonomy
    threshold: float = 0.5
    scores_from: float = 0.05

    def is_unsafe(self, p_unsafe: float) -> bool:
        return p_unsafe >= self.threshold

    def wants_scores(self, p_unsafe: float) -> bool:
        """Whether P(unsafe) is too high to be shown as the bound of every category's score."""
        return p_unsafe >= self.scores_from

    def narrowed(
        self,
        *,
        excluded: Iterable[str] = (),
        categories: Mapping[str, str] | None = None,
        threshold: float | None = None,
    ) -> "Policy":
        """This policy with the options of one request. Raises InvalidRequest for what no prompt can hold."""
        taxonomy = self.taxonomy
        if categories is not None:
            for code, words in categories.items():
                if not CODE.fullmatch(code):
                    raise InvalidRequest("Own categories are keyed S1 to S14.", param="policy.categories")
                if not words.strip() or len(words) > MAX_OWN_CATEGORY_CHARACTERS:
                    raise InvalidRequest(
                        f"An own category needs 1 to {MAX_OWN_CATEGORY_CHARACTERS} characters of description.",
                        param="policy.categories",
                    )
            taxonomy = Taxonomy.from_mapping(categories)
        excluded = tuple(excluded)
        if not frozenset(excluded) <= frozenset(taxonomy.codes):
            raise InvalidRequest(
                f"An excluded category is not in the policy: {', '.join(taxonomy.codes)}.",
                param="policy.excluded_categories",
            )
        taxonomy = taxonomy.without(excluded)
        if not taxonomy.categories:
            raise InvalidRequest("The policy leaves no category to judge.", param="policy")
        if threshold is not None and not 0.0 < threshold <= 1.0:
            raise InvalidRequest("The threshold must be above 0 and at most 1.", param="policy.threshold")
        return replace(self, taxonomy=taxonomy, threshold=self.threshold if threshold is None else threshold)
