"""POST /v1/safety/run-shield: Llama Stack's safety API. A conversation in, a violation or none out."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from server.api.detail import EXAMPLE, Guard, verdict_detail
from server.api.endpoint import Endpoint
from server.api.http.description import ERRORS, json_body, reply
from server.api.http.dialect import Dialect
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.shapes import Closed
from server.api.llama.moderations import LlamaMessage, conversation
from server.api.messages import StringOrParts, to_parts
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.service import Reply, Service
from server.api.wire import Label, Object, Token, WireModel
from server.domain.aio import done
from server.domain.caller import Handling, Scope
from server.domain.conversation import Part
from server.domain.verdict import Verdict

router = APIRouter(prefix="/v1/safety", tags=["Llama Stack"], route_class=DirectRoute)


class ShieldMessage(LlamaMessage):
    """With the fields that only Llama Stack's own messages have."""

    stop_reason: Label = Field(None, description="Ignored, unless it holds words.")  # type: ignore[assignment]
    call_id: Token = Field(None, description="Llama Stack's `tool_call_id`.")
    context: StringOrParts | None = Field(None, description="Judged with the content.")

    def parts(self, index: int) -> tuple[Part, ...]:
        context = () if self.context is None else to_parts(self.context, f"messages[{index}].context")
        return (*context, *super().parts(index))


class ShieldRequest(WireModel):
    shield_id: str | None = Field(None, description="A name of the served model.")
    messages: list[ShieldMessage] = Field(
        min_length=1, fail_fast=True, description="A conversation. Its last message is judged."
    )
    params: Object | None = Field(None, description="Accepted and ignored.")
    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None


class ViolationMetadata(Closed):
    """`violation_type` is the first listed code, null if none is listed."""

    violation_type: str | None
    categories: list[str]


class Violation(Closed):
    violation_level: Literal["error"]
    user_message: str
    metadata: ViolationMetadata


class ShieldReply(Closed):
    """`violation` is null if the verdict is safe."""

    violation: Violation | None
    guard: Guard


async def run(service: Service, body: ShieldRequest, handling: Handling) -> Reply[ShieldReply]:
    verdicts = await service.judge(
        [await done(lambda: conversation(body.messages), large=handling.large)],
        model=body.shield_id,
        policy=body.policy,
        scores=body.category_scores,
        handling=handling,
    )
    (verdict,) = verdicts
    return Reply({"violation": _violation(verdict), "guard": verdict_detail(verdict)}, verdicts)


def _violation(verdict: Verdict) -> Violation | None:
    if not verdict.unsafe:
        return None
    codes = list(verdict.categories)
    return {
        "violation_level": "error",
        "user_message": f"Unsafe content: {', '.join(codes)}." if codes else "Unsafe content.",
        "metadata": {"violation_type": codes[0] if codes else None, "categories": codes},
    }


BODIES: dict[str, tuple[str, Any]] = {
    "user": (
        "Judge what a user wrote",
        {"shield_id": "llama-guard", "messages": [{"role": "user", "content": "How do I build a pipe bomb?"}]},
    ),
}
VIOLATED: ShieldReply = {
    "violation": {
        "violation_level": "error",
        "user_message": "Unsafe content: S9.",
        "metadata": {"violation_type": "S9", "categories": ["S9"]},
    },
    "guard": EXAMPLE,
}

ENDPOINT = Endpoint("/v1/safety/run-shield", ShieldRequest, run)


@router.post(
    "/run-shield",
    summary="Judge the last message of a conversation",
    openapi_extra=json_body(ShieldRequest, BODIES),
    responses={200: reply(ShieldReply, "A violation, or null", VIOLATED), **ERRORS},
)
async def run_shield(request: Request) -> JSONReply:
    return await ENDPOINT.reply(request)


DIALECT = Dialect([router], scopes={ENDPOINT.path: Scope.MODERATE})
