"""GET /v1/models, and the names under which the one model may be asked for."""

import re
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from server.checkpoints.profile import Profile
from server.domain.errors import ModelNotFound

router = APIRouter(prefix="/v1", tags=["models"])

OPENAI_NAMES = (
    "omni-moderation-latest",
    "omni-moderation-2024-09-26",
    "text-moderation-latest",
    "text-moderation-stable",
    "text-moderation-007",
)
"""What clients of OpenAI's moderation endpoint ask for, often without a way to change it."""

GENERIC_NAME = "llama-guard"
"""What clients say that mean whichever guard model is served here."""

ROUTER_PREFIX = re.compile(r"^(?:openai|openrouter|llama-guard-server)/")
"""What routers of several providers put before a model's id, and some leave there; and this server's own name."""

VARIANT_SUFFIX = re.compile(r":(?:free|nitro|floor|exacto)$")
"""How OpenRouter's clients say which of its providers they prefer, as a part of the name."""

ANY_NAME = "*"


class ModelNames:
    """The served model's id on the wire, and the other names that callers already use for it."""

    def __init__(self, profile: Profile, created: int, aliases: Sequence[str] = ()) -> None:
        """`aliases` are the operator's further names; `*` among them stands for every name."""
        self.id = profile.served_as[0]
        self.created = created
        self._every = ANY_NAME in aliases
        self._accepted = {name.casefold() for name in (*profile.served_as, GENERIC_NAME, *OPENAI_NAMES, *aliases)}
        self._accepted.discard(ANY_NAME)
        self._context_tokens = profile.context_tokens

    def check(self, name: str | None) -> None:
        """Raises ModelNotFound for a name that is none of the served model's; no name at all is fine."""
        if name is not None and not self.knows(name):
            raise ModelNotFound(
                f"The model does not exist here: this server serves {self.id}. Ask for that, or leave `model` out. For"
                " the server to answer to another name, its operator adds the name to GUARD_MODEL_ALIASES."
            )

    def knows(self, name: str) -> bool:
        name = name.casefold()
        if name in self._accepted or self._every:
            return True
        return VARIANT_SUFFIX.sub("", ROUTER_PREFIX.sub("", name)) in self._accepted

    @property
    def entry(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "llama-guard-server",
            "context_length": self._context_tokens,
        }


@router.get("/models", summary="List the served model")
async def list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [request.app.state.model_names.entry]}


@router.get("/models/{name:path}", summary="Look the served model up by any of its names")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    names: ModelNames = request.app.state.model_names
    names.check(name)
    return names.entry
