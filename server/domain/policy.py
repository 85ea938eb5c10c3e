"""The choices of an operator or one request: the categories, the threshold for unsafe, and which scores to find."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from server.domain.errors import InvalidRequest
from server.domain.taxonomy import Taxonomy

MAX_OWN_CATEGORY_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Policy:
    """`threshold` and `scores_from` are compared with P(unsafe), only in server.domain.verdict.decide.

    At or above `threshold` the verdict is unsafe. At or above `scores_from` a safe verdict has a separate score for
    every category. Below it every category shows P(unsafe), which is a small upper bound. An answer whose verdict words
    hold less than `minimum_mass` of the probability is not a verdict. `own_codes` are the codes that a request's own
    categories may have, empty if the model knows only its own categories.
    """

    taxonomy: Taxonomy
    threshold: float = 0.5
    scores_from: float = 0.05
    minimum_mass: float = 0.9
    own_codes: tuple[str, ...] = ()

    def narrowed(
        self,
        *,
        excluded: Iterable[str] = (),
        categories: Mapping[str, str] | None = None,
        threshold: float | None = None,
    ) -> "Policy":
        """This policy with the options of one request. Raises InvalidRequest if no prompt can hold them."""
        taxonomy = self.taxonomy
        if categories is not None:
            if not self.own_codes:
                raise InvalidRequest(
                    "The served model knows only its own categories. Leave out policy.categories.",
                    param="policy.categories",
                )
            for code, words in categories.items():
                if code not in self.own_codes:
                    raise InvalidRequest(
                        f"The codes of your own categories must be {self.own_codes[0]} to {self.own_codes[-1]}.",
                        param="policy.categories",
                    )
                if not words.strip() or len(words) > MAX_OWN_CATEGORY_CHARACTERS:
                    raise InvalidRequest(
                        f"The description of a category must have 1 to {MAX_OWN_CATEGORY_CHARACTERS} characters.",
                        param="policy.categories",
                    )
            taxonomy = Taxonomy.from_mapping(categories)
        excluded = tuple(excluded)
        if not frozenset(excluded) <= frozenset(taxonomy.codes):
            raise InvalidRequest(
                f"An excluded category is not in the policy. Its categories are {', '.join(taxonomy.codes)}.",
                param="policy.excluded_categories",
            )
        taxonomy = taxonomy.without(excluded)
        if not taxonomy.categories:
            raise InvalidRequest("The policy excludes every category. Leave at least one to judge.", param="policy")
        if threshold is not None and not 0.0 < threshold <= 1.0:
            raise InvalidRequest("The threshold must be above 0 and at most 1.", param="policy.threshold")
        return replace(self, taxonomy=taxonomy, threshold=self.threshold if threshold is None else threshold)
