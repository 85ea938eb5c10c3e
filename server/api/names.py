"""The names of the one served model: those that requests may use, and those in replies."""

import re
from collections.abc import Sequence

from server.checkpoints.profile import Profile
from server.domain.errors import ModelNotFound

PROVIDER = "llama-guard-server"
"""This server's name as a provider, and the author of a model whose name has none."""

MODEL, SLUG = "{served-model}", "{served-author/served-model}"
"""Placeholders for `ModelNames.id` and `ModelNames.slug` in the examples of the OpenAPI document. The examples are
written before the model is known."""

OPENAI_NAMES = (
    "omni-moderation-latest",
    "omni-moderation-2024-09-26",
    "text-moderation-latest",
    "text-moderation-stable",
    "text-moderation-007",
)
"""The names that clients of OpenAI's moderation endpoint send. Many cannot be changed to another name."""

GENERIC_NAME = "llama-guard"
"""The name for whichever guard model is served here."""

ROUTER_PREFIX = re.compile(r"^(?:openai|openrouter|llama-guard-server)/")
"""The prefix by which routers of several providers choose one, and which some of them pass on."""

VARIANT_SUFFIX = re.compile(r":(?:free|nitro|floor|exacto)$")
"""OpenRouter's clients append this to a name to say which of its providers they prefer."""

ANY_NAME = "*"


class ModelNames:
    """The served model's id on the wire, and the other names that callers already use for it."""

    def __init__(self, profile: Profile, created: int, aliases: Sequence[str] = ()) -> None:
        """`aliases` are more names from the operator. `*` among them accepts every name."""
        self.id = profile.served_as[0]
        self.created = created
        self._every = ANY_NAME in aliases
        self._accepted = {name.casefold() for name in (*profile.served_as, GENERIC_NAME, *OPENAI_NAMES, *aliases)}
        self._accepted.discard(ANY_NAME)

    def check(self, name: str | None) -> None:
        """Raises ModelNotFound for a name that is not one of the served model's. No name is accepted, and so is ""."""
        if name and not self.knows(name):
            raise ModelNotFound(
                f"The model does not exist here: this server serves {self.id}. Ask for that, or leave `model` out. To"
                " accept another name, the operator adds it to GUARD_MODEL_ALIASES."
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
