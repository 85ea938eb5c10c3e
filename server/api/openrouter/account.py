"""What OpenRouter tells of a key and of credits. Here nothing is sold: what stays are the key's own limits."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request

from server.api.openrouter.generations import Generations
from server.domain.caller import Caller

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"])

NO_LIMIT = -1
"""OpenRouter's word for no limit of requests."""


@router.get("/key", summary="What the caller's key may do")
async def get_key(request: Request) -> dict[str, Any]:
    """Usage is in US dollars, as far as generations are remembered; only a remote backend costs any."""
    caller: Caller = request.state.caller
    generations: Generations = request.app.state.generations
    now = datetime.now(UTC)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "data": {
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
                "note": "Requests of this key in a minute; -1 is no limit.",
            },
            "guard": {
                "scopes": sorted(caller.scopes),
                "never_remote": caller.never_remote,
                "finished_prompts": caller.finished_prompts,
                "requests_per_minute": caller.requests_per_minute,
                "tokens_per_minute": caller.tokens_per_minute,
            },
        }
    }


@router.get("/credits", summary="Credits: none are needed")
async def get_credits(request: Request) -> dict[str, Any]:
    caller: Caller = request.state.caller
    generations: Generations = request.app.state.generations
    return {"data": {"total_credits": 0.0, "total_usage": generations.cost_of(caller.owner)}}
