"""On CPUs: of the last layer only what is read is computed, the last position of each request.

Every layer needs keys and values of all positions, for those that come after them. But what the last layer makes of a
position is read at one place alone, where the next token is sampled; its attention, and all that follows on it, is
computed there and nowhere else. That spares the larger part of one layer, whatever the number of layers.

It takes a model that runs as it is written. Where vLLM compiles the model, as it does on GPUs, the layer stays whole.
Probabilities of a prompt's own tokens would need all positions: this server never asks for them.
"""

from dataclasses import replace
from typing import Any

import torch
from vllm import _custom_ops, envs
from vllm.forward_context import get_forward_context
from vllm.model_executor.models import llama4
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

WholeLayer = llama4.Llama4DecoderLayer


def install() -> None:
    """For every Llama 4 that is built from now on in this process."""
    llama4.Llama4DecoderLayer = Layer


class LastPositionAttention(torch.nn.Module):  # type: ignore[misc]
    """Attention of each request's last position to all of its keys and values; of all, where that cannot be told."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def last_positions(self) -> torch.Tensor | None:
        """Their places among the tokens of this step."""
        metadata = self._metadata()
        return None if metadata is None else _last(metadata)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """All of shape (tokens, heads x head size); as many tokens come back as there are last positions."""
        metadata = self._metadata()
        if metadata is None:
            return self.attention(query, key, value)
        of_layer = get_forward_context().attn_metadata
        of_layer[self.attention.layer_name] = self._one_query_each(metadata, query.dtype)
        try:
            return self.attention(query[_last(metadata)], key, value)
        finally:
            of_layer[self.attention.layer_name] = metadata

    def _metadata(self) -> CPUAttentionMetadata | None:
        """What vLLM says about this step; None where the layer must stay whole, or has nothing to spare."""
        if torch.compiler.is_compiling():
            return None
        of_layer = get_forward_context().attn_metadata
        if not isinstance(of_layer, dict):
            return None  # a step to try out how much memory one takes
        metadata = of_layer[self.attention.layer_name]
        requests = len(metadata.query_start_loc) - 1
        return metadata if metadata.causal and requests < metadata.num_actual_tokens else None

    def _one_query_each(self, metadata: CPUAttentionMetadata, dtype: torch.dtype) -> CPUAttentionMetadata:
        """The same requests, as if all but their last position had been computed in earlier steps."""
        requests = len(metadata.query_start_loc) - 1
        start = torch.arange(requests + 1, dtype=metadata.query_start_loc.dtype)
        implementation = self.attention.impl
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
            isa=self.attention.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            kv_cache_dtype=implementation.kv_cache_dtype,
        )
        return replace(
            metadata, num_actual_tokens=requests, max_query_len=1, query_start_loc=start, scheduler_metadata=plan
        )


def _last(metadata: CPUAttentionMetadata) -> torch.Tensor:
    return (metadata.query_start_loc[1:] - 1).long()


class Layer(WholeLayer):  # type: ignore[misc, valid-type]
    """A layer of the decoder; the last of them drops what is not read."""

    def __init__(self, vllm_config: Any, prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config)
        last = (config or vllm_config.model_config.hf_config).num_hidden_layers - 1
        if self.layer_idx == last:
            self.self_attn.attn = LastPositionAttention(self.self_attn.attn)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What came in and what goes out has the shape (tokens, hidden size), with zeros where nothing is read."""
        attention = self.self_attn.attn
        last = attention.last_positions() if isinstance(attention, LastPositionAttention) else None
        if last is None:
            whole: tuple[torch.Tensor, torch.Tensor] = super().forward(positions, hidden_states, residual)
            return whole
        if residual is None:  # the last layer is the first one too
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        attended = self.self_attn(positions=positions, hidden_states=hidden_states)
        attended, rest = self.post_attention_layernorm(attended, residual[last])
        read = torch.zeros_like(hidden_states), torch.zeros_like(hidden_states)
        read[0][last], read[1][last] = self.feed_forward(attended), rest
        return read
