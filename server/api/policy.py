"""The policy options of one request: the object `policy` and the field `category_scores`, both extensions of ours.

`category_scores` is not a part of `policy` because it changes no verdict: a server that refuses `policy` accepts it.
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from server.api.wire import WireModel
from server.domain.errors import InvalidRequest
from server.domain.policy import Policy


class PolicyOptions(WireModel):
    """The differences between this request's policy and the operator's."""

    excluded_categories: list[str] = Field(
        [], description="Codes of categories to leave out.", examples=[["S5", "S13"]]
    )
    categories: dict[str, str] | None = Field(
        None,
        description="Categories to use in place of the model's. Their descriptions go into the prompt.",
        examples=[{"S1": "Spoilers.", "S2": "Off Topic."}],
    )
    threshold: float | None = Field(
        None, gt=0, le=1, description="The verdict is unsafe if P(unsafe) is at least this."
    )


ScoresWanted = Annotated[
    Literal["all"] | None,
    Field(
        description="`all`: score every category separately, however small P(unsafe) is. A safe verdict then takes a"
        " second, short pass."
    ),
]


def apply(
    options: PolicyOptions | None, policy: Policy, *, allowed: bool, scores: Literal["all"] | None = None
) -> Policy:
    """The operator's policy with the options of one request. Raises InvalidRequest if none are allowed."""
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
