"""What one request may say about its policy: the object `policy` and the field `category_scores`, extensions of ours.

`category_scores` stands outside of `policy` because it changes no verdict: it is taken where `policy` is refused.
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from server.api.messages import WireModel
from server.domain.errors import InvalidRequest
from server.domain.policy import Policy


class PolicyOptions(WireModel):
    """How this one request differs from the operator's policy."""

    excluded_categories: list[str] = Field([], description="Codes that are not asked about.", examples=[["S5", "S13"]])
    categories: dict[str, str] | None = Field(
        None,
        description="Own categories instead of the model's; the words stand in the prompt.",
        examples=[{"S1": "Spoilers.", "S2": "Off Topic."}],
    )
    threshold: float | None = Field(None, gt=0, le=1, description="Unsafe from this P(unsafe) on.")


ScoresWanted = Annotated[
    Literal["all"] | None,
    Field(
        description="`all`: every category gets a score of its own, however small P(unsafe) is. A safe verdict then"
        " takes a second, short pass."
    ),
]


def apply(
    options: PolicyOptions | None, policy: Policy, *, allowed: bool, scores: Literal["all"] | None = None
) -> Policy:
    """The operator's policy with what one request says. Raises InvalidRequest when it may not bring any options."""
    if scores == "all":
        policy = replace(policy, scores_from=0.0)
    if options is None:
        return policy
    if not allowed:
        raise InvalidRequest(
            "This server does not accept a `policy` in requests (GUARD_REQUEST_POLICY=false). Leave it out.",
            param="policy",
        )
    return policy.narrowed(
        excluded=options.excluded_categories, categories=options.categories, threshold=options.threshold
    )
