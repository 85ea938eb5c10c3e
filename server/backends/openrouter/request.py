"""What is sent, and what never is: a case as a chat request, and the reasons for which a case stays here.

The provider wraps the moderation prompt around plain messages by itself. So it asks about its own categories with its
own threshold, and its tokenizer may take a control token in a text for a real one.
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
"""Where the model's own word changes from safe to unsafe: the only threshold that needs no probability."""

ROLES = {Role.USER: "user", Role.AGENT: "assistant"}


def refusal(case: Case, taxonomy: Taxonomy, family: Family) -> RemoteRefused | None:
    """Why `case` must not go to a remote that asks about `taxonomy`; None when it may."""
    if case.handling.never_remote:
        return RemoteRefused("This request may not leave the machine, and no local engine is there to judge it.")
    if case.policy.taxonomy != taxonomy:
        return RemoteRefused("A remote backend asks about the model's own categories, all of them.", param="policy")
    if case.policy.threshold != THRESHOLD:
        return RemoteRefused("A remote backend reports no probability to hold a threshold against.", param="policy")
    if case.handling.top_logprobs is not None:
        return RemoteRefused("A remote backend reports no log-probabilities.", param="logprobs")
    # A turn's texts also as one: nobody knows how a provider joins them.
    if any(family.spells_control("".join(turn.texts)) for turn in case.conversation.turns) or any(
        family.spells_control(text) for turn in case.conversation.turns for text in turn.texts
    ):
        return RemoteRefused("A text spells a control token, which a remote backend may take for a real one.")
    return None


def body_of(case: Case, settings: Settings, max_tokens: int) -> bytes:
    """The JSON of a chat request."""
    pictures = iter(case.images)

    def content(turns: Iterable[Turn]) -> str | list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for turn in turns:
            # Images first, as in the prompt of the local engine.
            parts += [{"type": "image_url", "image_url": {"url": _image_url(next(pictures))}} for _ in turn.images]
            parts += [{"type": "text", "text": text} for text in turn.texts]
        if len(parts) == 1 and "text" in parts[0]:
            text: str = parts[0]["text"]
            return text
        return parts or ""

    # The provider's template takes speakers in turns, and asks about the last text of the last one, as ours does.
    speakers = groupby(case.conversation.turns, key=lambda turn: turn.role)
    request = {
        "model": settings.openrouter_model,
        "messages": [{"role": ROLES[role], "content": content(turns)} for role, turns in speakers],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": False,
        "provider": preferences(settings),
        # An account may have these on by default: one cuts long conversations in the middle, the other searches for
        # them on the web.
        "plugins": [{"id": "context-compression", "enabled": False}, {"id": "web", "enabled": False}],
    }
    return json.dumps(request, separators=(",", ":")).encode()


def preferences(settings: Settings) -> dict[str, Any]:
    """OpenRouter's `provider` object: only what the operator said, and what keeps content from being kept."""
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
    """The very pixels that a local engine is shown: PNG loses none, and none is larger than images.shown_size."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
