"""What things are called in OpenRouter's dialect: a model is `author/slug`, whoever runs it a provider."""

import re

from server.api.models import ModelNames
from server.errors import ModelNotFound

PROVIDER = "llama-guard-server"
"""This server among the providers, and the author of a model whose name tells of none."""

_ROUTING_SUFFIX = re.compile(r":(?:free|nitro|floor|exacto)$")
"""How to choose among providers; here is one."""


def slug_of(names: ModelNames) -> str:
    """The served model as OpenRouter spells it: `meta-llama/llama-guard-4-12b`."""
    name = names.id.casefold()
    return name if "/" in name else f"{PROVIDER}/{name}"


def check(names: ModelNames, name: str | None) -> None:
    """Raises ModelNotFound unless `name` is one of the served model's, or none at all."""
    if name is None:
        return
    plain = _ROUTING_SUFFIX.sub("", name.casefold())
    if plain != slug_of(names):
        names.check(plain)


def check_any(names: ModelNames, wanted: list[str]) -> None:
    """OpenRouter tries several models in turn: one of them must be served. Raises ModelNotFound."""
    for name in wanted:
        try:
            return check(names, name)
        except ModelNotFound:
            if name == wanted[-1]:
                raise
    return None
