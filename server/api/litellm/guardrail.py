"""POST /beta/litellm_basic_guardrail_api: a LiteLLM proxy asks here about a request or a response.

LiteLLM takes the reply NONE for "all that I sent was checked". So all of it is judged: each turn of the conversation
with the turns before it as context, and every text, image and tool call that is in no turn. If they are too many for
one request they are joined, never left out. A request that cannot be judged gets an HTTP error. LiteLLM then blocks,
unless its operator configured it to go on.
"""

from collections.abc import Sequence
from typing import Literal, NotRequired

from fastapi import APIRouter, Request

from server.api.detail import Guard, verdict_detail
from server.api.endpoint import Endpoint
from server.api.http.description import ERRORS, json_body, reply
from server.api.http.dialect import Dialect
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.shapes import Closed
from server.api.litellm import examples
from server.api.litellm.body import AdditionalParameters, GuardrailRequest
from server.api.litellm.conversations import conversations_of
from server.api.service import Reply, Service
from server.domain.aio import done
from server.domain.caller import Handling, Scope
from server.domain.verdict import Verdict

router = APIRouter(tags=["LiteLLM"], route_class=DirectRoute)


class Guardrail(Closed):
    """`NONE`: all of it is safe. There is a verdict for each turn and for each text in no turn."""

    action: Literal["NONE", "BLOCKED"]
    blocked_reason: NotRequired[str]
    guard: list[Guard]


async def guard(service: Service, body: GuardrailRequest, handling: Handling) -> Reply[Guardrail]:
    most = service.settings.max_list
    conversations = await done(lambda: conversations_of(body, most), large=handling.large)
    own = body.additional_provider_specific_params or AdditionalParameters()
    verdicts = await service.judge(
        conversations, model=None, policy=own.policy, scores=own.category_scores, handling=handling
    )
    unsafe = [verdict for verdict in verdicts if verdict.unsafe]
    details = [verdict_detail(verdict) for verdict in verdicts]
    document: Guardrail = {"action": "NONE", "guard": details}
    if unsafe:
        document = {"action": "BLOCKED", "blocked_reason": _reason(unsafe), "guard": details}
    return Reply(document, verdicts)


ENDPOINT = Endpoint("/beta/litellm_basic_guardrail_api", GuardrailRequest, guard)


@router.post(
    ENDPOINT.path,
    summary="Judge a request or a response for a LiteLLM proxy",
    openapi_extra=json_body(GuardrailRequest, examples.BODIES),
    responses={
        200: reply(Guardrail, "`NONE`: all of it is safe; `BLOCKED`: something is not", examples.BLOCKED),
        **ERRORS,
    },
)
async def guard_litellm(request: Request) -> JSONReply:
    return await ENDPOINT.reply(request)


def _reason(unsafe: Sequence[Verdict]) -> str:
    """All listed categories by code and name, in the order of the policy; a request's own ones by their code only."""
    listed = {code for verdict in unsafe for code in verdict.categories}
    taxonomies = [verdict.completion.taxonomy for verdict in unsafe]
    asked = dict.fromkeys(category for taxonomy in taxonomies for category in taxonomy.categories)
    bare = taxonomies[0].own
    named = [
        category.code if bare or category.name == category.code else f"{category.code} {category.name}"
        for category in asked
        if category.code in listed
    ]
    return f"Unsafe content: {', '.join(named)}." if named else "Unsafe content."


DIALECT = Dialect([router], scopes={ENDPOINT.path: Scope.MODERATE})
