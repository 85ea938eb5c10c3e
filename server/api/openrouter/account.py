"""OpenRouter's routes for a key and for credits. Nothing is sold here, so they report only the key's own limits."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from server.api.http.description import reply
from server.api.http.direct import JSONReply
from server.api.http.shapes import Closed, Count, EmptyList
from server.api.http.state import caller_of, served
from server.api.openrouter.generations import Generations
from server.api.openrouter.money import Dollars, Nothing
from server.domain.caller import Caller, Scope

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"])

NO_LIMIT = -1
"""OpenRouter's number for no limit on requests."""


class FreeRequests(Closed):
    limit: Literal[0]
    remaining: Literal[0]
    used: Literal[0]


class KeyRateLimit(Closed):
    """-1 means no limit."""

    requests: Annotated[int, Field(ge=-1)]
    interval: Literal["1m"]
    note: str


class KeyGuard(Closed):
    """The key's rights and limits in this server's own terms."""

    scopes: list[Scope]
    never_remote: bool
    finished_prompts: bool
    requests_per_minute: Count | None
    tokens_per_minute: Count | None


class Key(Closed):
    label: str
    creator_user_id: None
    organization_id: None
    workspace_id: None
    allowed_data_regions: list[Literal["global"]]
    limit: None
    limit_remaining: None
    limit_reset: None
    include_byok_in_limit: Literal[False]
    usage: Dollars
    usage_daily: Dollars
    usage_weekly: Dollars
    usage_monthly: Dollars
    byok_usage: Nothing
    byok_usage_daily: Nothing
    byok_usage_weekly: Nothing
    byok_usage_monthly: Nothing
    budgets: EmptyList
    effective_budget: None
    free_model_daily_requests: FreeRequests
    is_free_tier: Literal[False]
    is_management_key: Literal[False]
    is_provisioning_key: Literal[False]
    rate_limit: KeyRateLimit
    guard: KeyGuard


class KeyData(Closed):
    data: Key


class Credits(Closed):
    total_credits: Nothing
    total_usage: Dollars


class CreditsData(Closed):
    data: Credits


@router.get(
    "/auth/key",
    summary="The older path of /api/v1/key",
    responses={200: reply(KeyData, "The key and its limits")},
)
@router.get("/key", summary="What the caller's key may do", responses={200: reply(KeyData, "The key and its limits")})
async def get_key(request: Request) -> JSONReply:
    """Usage is in US dollars, over the generations that are remembered. Only a remote backend costs anything."""
    document: KeyData = {"data": _key(caller_of(request), served(request).kept(Generations))}
    return JSONReply(document)


def _key(caller: Caller, generations: Generations) -> Key:
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "label": caller.id or "no key",
        "creator_user_id": None,
        "organization_id": None,
        "workspace_id": None,
        "allowed_data_regions": ["global"],
        "limit": None,
        "limit_remaining": None,
        "limit_reset": None,
        "include_byok_in_limit": False,
        "usage": generations.cost_of(caller.owner),
        "usage_daily": generations.cost_of(caller.owner, day.timestamp()),
        "usage_weekly": generations.cost_of(caller.owner, (day - timedelta(days=day.weekday())).timestamp()),
        "usage_monthly": generations.cost_of(caller.owner, day.replace(day=1).timestamp()),
        "byok_usage": 0.0,
        "byok_usage_daily": 0.0,
        "byok_usage_weekly": 0.0,
        "byok_usage_monthly": 0.0,
        "budgets": [],
        "effective_budget": None,
        # There are no free variants, so none was used.
        "free_model_daily_requests": {"limit": 0, "remaining": 0, "used": 0},
        "is_free_tier": False,
        "is_management_key": False,
        "is_provisioning_key": False,
        "rate_limit": {
            "requests": caller.requests_per_minute or NO_LIMIT,
            "interval": "1m",
            "note": "Requests per minute for this key; -1 means no limit.",
        },
        "guard": {
            "scopes": sorted(caller.scopes),
            "never_remote": caller.never_remote,
            "finished_prompts": caller.finished_prompts,
            "requests_per_minute": caller.requests_per_minute,
            "tokens_per_minute": caller.tokens_per_minute,
        },
    }


@router.get(
    "/credits", summary="Credits: none are needed", responses={200: reply(CreditsData, "The usage, and no credits")}
)
async def get_credits(request: Request) -> JSONReply:
    used = served(request).kept(Generations).cost_of(caller_of(request).owner)
    document: CreditsData = {"data": {"total_credits": 0.0, "total_usage": used}}
    return JSONReply(document)
