"""What things are called in OpenRouter's dialect: a model is `author/slug`, whoever runs it a provider."""

from server.api.openai.models import ModelNames

PROVIDER = "llama-guard-server"
"""This server among the providers, and the author of a model whose name tells of none."""


def slug_of(names: ModelNames) -> str:
    """The served model as OpenRouter spells it: `meta-llama/llama-guard-4-12b`."""
    name = names.id.casefold()
    return name if "/" in name else f"{PROVIDER}/{name}"
