"""Attention of each request's last position alone, for any network. mends/last_positions.py has the reason."""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from vllm import _custom_ops, envs
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata

if TYPE_CHECKING:
    from vllm.model_executor.layers.attention import Attention


class LastPositionAttention(torch.nn.Module):
    """Attention of each request's last position to all of its keys and values; of all, where that cannot be told."""

    def __init__(self, attention: "Attention") -> None:
        super().__init__()
        self.attention = attention

    def last_positions(self) -> torch.Tensor | None:
        """Their places among the tokens of this step."""
        metadata = self._metadata()
        return None if metadata is None else _last(metadata)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """All of shape (tokens, heads x head size); as many tokens come back as there are last positions."""
        of_layer, metadata = _metadata_of_layers(), self._metadata()
        if of_layer is None or metadata is None:
            whole: torch.Tensor = self.attention(query, key, value)
            return whole
        of_layer[self.attention.layer_name] = self._one_query_each(metadata, query.dtype)
        try:
            attended: torch.Tensor = self.attention(query[_last(metadata)], key, value)
            return attended
        finally:
            of_layer[self.attention.layer_name] = metadata

    def _metadata(self) -> CPUAttentionMetadata | None:
        """What vLLM says about this step; None where the layer must stay whole, or has nothing to spare."""
        if torch.compiler.is_compiling():
            return None
        of_layer = _metadata_of_layers()
        if of_layer is None:
            return None
        metadata = of_layer[self.attention.layer_name]
        requests = len(metadata.query_start_loc) - 1
        return metadata if metadata.causal and requests < metadata.num_actual_tokens else None

    def _one_query_each(self, metadata: CPUAttentionMetadata, dtype: torch.dtype) -> CPUAttentionMetadata:
        """The same requests, as if all but their last position had been computed in earlier steps."""
        requests = len(metadata.query_start_loc) - 1
        start = torch.arange(requests + 1, dtype=metadata.query_start_loc.dtype)
        implementation = cast("CPUAttentionBackendImpl", self.attention.impl)
        plan = _custom_ops.cpu_attn_get_scheduler_metadata(
            num_reqs=requests,
            num_heads=implementation.num_heads,
            num_kv_heads=implementation.num_kv_heads,
            head_dim=implementation.head_size,
            seq_lens=metadata.seq_lens,
            dtype=dtype,
            query_start_loc=start,
            causal=True,
            sliding_window_size=implementation.sliding_window,
            isa=str(self.attention.isa),
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            kv_cache_dtype=implementation.kv_cache_dtype,
        )
        return replace(
            metadata, num_actual_tokens=requests, max_query_len=1, query_start_loc=start, scheduler_metadata=plan
        )


def _metadata_of_layers() -> dict[str, CPUAttentionMetadata] | None:
    """By the names of layers; None while vLLM tries out how much memory a step takes."""
    of_layer = get_forward_context().attn_metadata
    return cast("dict[str, CPUAttentionMetadata]", of_layer) if isinstance(of_layer, dict) else None


def _last(metadata: CPUAttentionMetadata) -> torch.Tensor:
    start: torch.Tensor = metadata.query_start_loc
    return (start[1:] - 1).long()
