"""The `policy` object of a request: this server's own extension, for one request's categories and threshold."""

from pydantic import Field

from server.api.content import WireModel
from server.errors import InvalidRequest
from server.policy import Policy


class PolicyOptions(WireModel):
    """How this one request differs from the operator's policy."""

    excluded_categories: list[str] = Field([], description="Codes that are not asked about.", examples=[["S5", "S13"]])
    categories: dict[str, str] | None = Field(
        None,
        description="Own categories, S1 to S14, instead of the model's; the words stand in the prompt.",
        examples=[{"S1": "Spoilers.", "S2": "Off Topic."}],
    )
    threshold: float | None = Field(None, gt=0, le=1, description="Unsafe from this P(unsafe) on.")


def apply(options: PolicyOptions | None, policy: Policy, *, allowed: bool) -> Policy:
    """The operator's policy with the options of one request. Raises InvalidRequest when it may not bring any."""
    if options is None:
        return policy
    if not allowed:
        raise InvalidRequest("This server's policy is not for requests to change.", param="policy")
    return policy.narrowed(
        excluded=options.excluded_categories, categories=options.categories, threshold=options.threshold
    )
