"""A layer of Llama 4's decoder whose last one drops what is not read. mends/last_positions.py has the reason."""

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.models.llama4 import Llama4DecoderLayer

from server.backends.vllm.last_position_attention import LastPositionAttention

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class Layer(Llama4DecoderLayer):  # type: ignore[misc]
    """A layer of the decoder; the last of them drops what is not read."""

    def __init__(self, vllm_config: "VllmConfig", prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config)
        last = (config or vllm_config.model_config.hf_config).num_hidden_layers - 1
        if self.layer_idx == last:
            self.self_attn.attn = LastPositionAttention(self.self_attn.attn)  # ty: ignore[invalid-assignment]

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
