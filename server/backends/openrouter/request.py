"""A case as a chat request, and the reasons why a case is never sent.

The provider itself puts the moderation prompt around plain messages. So it asks about its own categories with its own
threshold, and its tokenizer may take a control token in a text for a real one.
"""

import base64
import io
import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from server.backends.base import Case
from server.domain.conversation import Role, Turn
from server.domain.errors import RemoteRefused
from server.domain.taxonomy import Taxonomy
from server.families.base import Family
from server.settings import Settings

THRESHOLD = 0.5
"""The threshold of the model's own word, safe or unsafe: the only one that needs no probability."""

ROLES = {Role.USER: "user", Role.AGENT: "assistant"}


def refusal(case: Case, taxonomy: Taxonomy, family: Family) -> RemoteRefused | None:
    """The reason why `case` must not go to a remote that asks about `taxonomy`, or None if it may."""
    if case.handling.never_remote:
        return RemoteRefused("This request must not leave the machine, and there is no local engine to judge it.")
    if case.policy.taxonomy != taxonomy:
        return RemoteRefused(
            "The remote backend can only ask about all of the model's own categories. Leave out `categories` and"
            " `excluded_categories`.",
            param="policy",
        )
    if case.policy.threshold != THRESHOLD:
        return RemoteRefused(
            "The remote backend reports no probabilities, so it cannot apply a threshold. Leave out `threshold`.",
            param="policy",
        )
    if case.handling.top_logprobs is not None:
        return RemoteRefused("The remote backend reports no log-probabilities. Leave out `logprobs`.", param="logprobs")
    # The texts of a turn are also checked as one, since we do not know how a provider joins them.
    if any(family.spells_control("".join(turn.texts)) for turn in case.conversation.turns) or any(
        family.spells_control(text) for turn in case.conversation.turns for text in turn.texts
    ):
        return RemoteRefused("A text spells a control token, which the remote backend may take for a real one.")
    return None


def body_of(case: Case, settings: Settings, max_tokens: int) -> bytes:
    """The JSON of a chat request."""
    pictures = iter(case.images)

    def content(turns: Iterable[Turn]) -> str | list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for turn in turns:
            # Images come first, as in the prompt of the local engine.
            parts += [{"type": "image_url", "image_url": {"url": _image_url(next(pictures))}} for _ in turn.images]
            parts += [{"type": "text", "text": text} for text in turn.texts]
        if len(parts) == 1 and "text" in parts[0]:
            text: str = parts[0]["text"]
            return text
        return parts or ""

    # The provider's template has alternating speakers and asks about the last text of the last one, as ours does.
    speakers = groupby(case.conversation.turns, key=lambda turn: turn.role)
    request = {
        "model": settings.openrouter_model,
        "messages": [{"role": ROLES[role], "content": content(turns)} for role, turns in speakers],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": False,
        "provider": preferences(settings),
        # An account may have these plugins on by default. One cuts long conversations in the middle, the other searches
        # the web for them.
        "plugins": [{"id": "context-compression", "enabled": False}, {"id": "web", "enabled": False}],
    }
    return json.dumps(request, separators=(",", ":")).encode()


def preferences(settings: Settings) -> dict[str, Any]:
    """OpenRouter's `provider` object: the operator's choices, and the options that forbid providers to keep content."""
    price = f"{settings.openrouter_max_price:g}"
    said: dict[str, Any] = {
        "only": list(settings.openrouter_only),
        "order": list(settings.openrouter_order),
        "ignore": list(settings.openrouter_ignore),
        "sort": settings.openrouter_sort,
        "max_price": {"prompt": price, "completion": price} if settings.openrouter_max_price else None,
    }
    return {
        "zdr": settings.openrouter_zdr,
        "data_collection": settings.openrouter_data_collection,
        "allow_fallbacks": settings.openrouter_allow_fallbacks,
        **{name: value for name, value in said.items() if value},
    }


def _image_url(picture: Any) -> str:
    """The same pixels that a local engine gets: PNG is lossless, and none is larger than images.shown_size."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
