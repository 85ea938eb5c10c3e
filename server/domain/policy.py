"""What an operator, or one request, chose: the categories, from which score on it is unsafe, and what is scored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from server.domain.errors import InvalidRequest
from server.domain.taxonomy import Taxonomy

MAX_OWN_CATEGORY_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Policy:
    """`threshold` and `scores_from` are compared with P(unsafe), by server.domain.verdict.decide and by nobody else.

    At or above `threshold` the verdict is unsafe. At or above `scores_from` a safe verdict has a score of its own for
    every category; below it P(unsafe) itself is a bound that is small enough to be shown for all of them. An answer
    whose verdict words hold less than `minimum_mass` of the probability is no verdict. `own_codes` are those that
    categories of a request's own may have; none where the model knows only its own.
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
        """This policy with the options of one request. Raises InvalidRequest for what no prompt can hold."""
        taxonomy = self.taxonomy
        if categories is not None:
            if not self.own_codes:
                raise InvalidRequest(
                    "The served model knows its own categories only. Leave out policy.categories.",
                    param="policy.categories",
                )
            for code, words in categories.items():
                if code not in self.own_codes:
                    raise InvalidRequest(
                        f"Own categories are keyed {self.own_codes[0]} to {self.own_codes[-1]}.",
                        param="policy.categories",
                    )
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
