"""The names under which the one model may be asked for, and those under which it answers."""

import re
from collections.abc import Sequence

from server.checkpoints.profile import Profile
from server.domain.errors import ModelNotFound

PROVIDER = "llama-guard-server"
"""This server among those who run models, and the author of a model whose name tells of none."""

MODEL, SLUG = "{served-model}", "{served-author/served-model}"
"""Stand for `ModelNames.id` and `ModelNames.slug` in the examples of the OpenAPI document, which are fixed before."""

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
    def slug(self) -> str:
        """The id as routers of several providers spell it: `meta-llama/llama-guard-4-12b`."""
        name = self.id.casefold()
        return name if "/" in name else f"{PROVIDER}/{name}"
