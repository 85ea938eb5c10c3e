"""What the engine itself counted, read from /metrics, which this server and vLLM's own answer alike."""

from dataclasses import dataclass, fields

import httpx
from prometheus_client.parser import text_string_to_metric_families

NAMES = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "cached_tokens": "vllm:prompt_tokens_cached_total",
    "generated_tokens": "vllm:generation_tokens_total",
    "steps": "vllm:iteration_tokens_total_count",
    "finished": "vllm:request_success_total",
}


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Sums since the engine started. Each generated token is one forward pass of its request.

    `steps` are those that brought a token to anyone; one step carries many requests.
    """

    prompt_tokens: float
    cached_tokens: float
    generated_tokens: float
    steps: float
    finished: float

    def __sub__(self, before: "EngineCounters") -> "EngineCounters":
        return EngineCounters(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))

    @property
    def computed_tokens(self) -> float:
        return self.prompt_tokens - self.cached_tokens


def parse_counters(exposition: str) -> EngineCounters:
    """The counters of a page of metrics, all engines and labels together. Raises ValueError when one is not there."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    missing = [name for name in NAMES.values() if name not in sums]
    if missing:
        raise ValueError(f"the engine does not count {', '.join(missing)}")
    return EngineCounters(**{field: sums[name] for field, name in NAMES.items()})


def read_counters(url: str) -> EngineCounters:
    return parse_counters(httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text)


def parse_block_size(exposition: str) -> int | None:
    """Tokens of a block of the prefix cache, None when the engine does not say."""
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "vllm:cache_config_info":
                return int(sample.labels["block_size"])
    return None


def read_block_size(url: str) -> int | None:
    return parse_block_size(httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text)
