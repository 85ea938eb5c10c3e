"""OpenRouter's offer of the model: its /endpoints document, read for people and for routing decisions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.backends.openrouter.reply import Garbage
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class ProviderOffer:
    """One provider of the model. Prices are US dollars per million tokens, latency is the median in seconds to the
    first token, uptime the percentage of the last 30 minutes. None if OpenRouter does not say."""

    name: str
    tag: str
    context_tokens: int
    prompt_price: float | None
    completion_price: float | None
    uptime: float | None
    latency_s: float | None

    @property
    def words(self) -> str:
        """For people: its context, prices and performance."""
        return ", ".join(
            [
                f"{self.name} ({self.tag}): {self.context_tokens:,} tokens",
                f"{_dollars(self.prompt_price)} in and {_dollars(self.completion_price)} out per million",
                f"uptime {'unknown' if self.uptime is None else f'{self.uptime:g} %'}",
                f"latency {'unknown' if self.latency_s is None else f'{self.latency_s:.2f} s'}",
            ]
        )

    def allowed(self, settings: Settings) -> bool:
        """Whether the operator's `only`, `ignore` and `max_price` allow this provider. The document does not say
        whether it keeps data."""
        only, ignore = _slugs(settings.openrouter_only), _slugs(settings.openrouter_ignore)
        names = {_slug(self.name), self.tag.lower(), self.tag.lower().partition("/")[0]}
        if (only and names.isdisjoint(only)) or not names.isdisjoint(ignore):
            return False
        limit = settings.openrouter_max_price
        return not limit or all(price is None or price <= limit for price in (self.prompt_price, self.completion_price))


@dataclass(frozen=True, slots=True)
class Offer:
    """The current offer of the model. `models` are its ids, in lower case."""

    models: frozenset[str]
    images: bool
    providers: tuple[ProviderOffer, ...]

    def allowed(self, settings: Settings) -> tuple[ProviderOffer, ...]:
        return tuple(provider for provider in self.providers if provider.allowed(settings))


def read_offer(document: Mapping[str, Any]) -> Offer:
    """Raises Garbage if it is not OpenRouter's document."""
    data = document.get("data")
    endpoints = data.get("endpoints") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(endpoints, list):
        raise Garbage("no endpoints")
    rows = [endpoint for endpoint in endpoints if isinstance(endpoint, dict)]
    ids = [data.get("id"), *(row.get("model_id") for row in rows)]
    architecture = data.get("architecture")
    inputs = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    return Offer(
        models=frozenset(id_.lower() for id_ in ids if isinstance(id_, str)),
        images=isinstance(inputs, list) and "image" in inputs,
        providers=tuple(_provider(row) for row in rows),
    )


def _provider(row: Mapping[str, Any]) -> ProviderOffer:
    pricing = row.get("pricing")
    pricing = pricing if isinstance(pricing, dict) else {}
    latency = row.get("latency_last_30m")
    milliseconds = _number(latency.get("p50")) if isinstance(latency, dict) else None
    context = row.get("context_length")
    return ProviderOffer(
        name=str(row.get("provider_name", "")),
        tag=str(row.get("tag", "")),
        context_tokens=context if type(context) is int else 0,
        prompt_price=_per_million(pricing.get("prompt")),
        completion_price=_per_million(pricing.get("completion")),
        uptime=_number(row.get("uptime_last_30m")),
        latency_s=None if milliseconds is None else milliseconds / 1000,
    )


def _per_million(price: Any) -> float | None:
    number = _number(price)
    return None if number is None else round(number * 1e6, 6)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _dollars(price: float | None) -> str:
    return "unknown" if price is None else f"${price:g}"


def _slug(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum() or character in "-/")


def _slugs(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)
