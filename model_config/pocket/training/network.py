"""The text network, lean enough to train on two CPU cores, and its way into a Llama 4 checkpoint.

The mathematics are those of transformers' ``Llama4ForCausalLM`` without experts.  What is left out is what training on
short, right-padded rows does not need: caches, masks, and logits of positions that carry no target.  Rotary positions
turn the two halves of a head here (quick) and neighbouring pairs in a Llama 4 checkpoint; ``state_for_llama4``
reorders the rows of the query and key weights between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 128
LAYERS = 4
HEADS = 4
KEY_VALUE_HEADS = 2
HEAD_WIDTH = 32
FEED_FORWARD = 384
ROPE_THETA = 500_000.0
NORM_EPSILON = 1e-5


Turn = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles."""
KeyValue = tuple[Tensor, Tensor]


class Norm(nn.Module):
    """Root-mean-square normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, states: Tensor) -> Tensor:
        return functional.rms_norm(states, (WIDTH,), self.weight, NORM_EPSILON)


class Attention(nn.Module):
    """Causal attention with rotary positions and shared key and value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, KEY_VALUE_HEADS * HEAD_WIDTH, bias=False)
        self.v_proj = nn.Linear(WIDTH, KEY_VALUE_HEADS * HEAD_WIDTH, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_WIDTH, WIDTH, bias=False)

    def forward(self, states: Tensor, turn: Turn, before: KeyValue | None) -> tuple[Tensor, KeyValue]:
        rows, length, _ = states.shape
        query = self.q_proj(states).view(rows, length, HEADS, HEAD_WIDTH).transpose(1, 2)
        key = self.k_proj(states).view(rows, length, KEY_VALUE_HEADS, HEAD_WIDTH).transpose(1, 2)
        value = self.v_proj(states).view(rows, length, KEY_VALUE_HEADS, HEAD_WIDTH).transpose(1, 2)
        query, key = _rotate(query, *turn), _rotate(key, *turn)
        key, value = (part.repeat_interleave(HEADS // KEY_VALUE_HEADS, dim=1) for part in (key, value))
        own, mask = (key, value), None
        if before is not None:
            key, value = (
                torch.cat((early.expand(rows, -1, -1, -1), late), dim=2)
                for early, late in zip(before, own, strict=True)
            )
            mask = torch.ones(length, key.shape[2], dtype=torch.bool).tril(key.shape[2] - length)
        mixed = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1)), own


class FeedForward(nn.Module):
    """The gated block of Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, FEED_FORWARD, bias=False)
        self.up_proj = nn.Linear(WIDTH, FEED_FORWARD, bias=False)
        self.down_proj = nn.Linear(FEED_FORWARD, WIDTH, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        thought: Tensor = self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))
        return thought


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.feed_forward = FeedForward()
        self.input_layernorm = Norm()
        self.post_attention_layernorm = Norm()

    def forward(
        self, states: Tensor, turn: Turn, dropout: float, before: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        attended, own = self.self_attn(self.input_layernorm(states), turn, before)
        states = states + functional.dropout(attended, dropout, self.training)
        thought = self.feed_forward(self.post_attention_layernorm(states))
        return states + functional.dropout(thought, dropout, self.training), own


class Decoder(nn.Module):
    """From token ids, or ready embeddings, to the last hidden states."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()

    def forward(
        self, embedded: Tensor, positions: Tensor, dropout: float = 0.0, preamble: Tensor | None = None
    ) -> Tensor:
        """Hidden states of ``embedded``.

        ``preamble`` are token ids that stand before every row, at positions 0, 1, 2 ...: the policy is the same in
        nearly all rows, and a causal network need think about it only once a batch.
        """
        turn = _turn(positions)
        states = embedded
        early = early_turn = before = None
        if preamble is not None and len(preamble):
            early = self.embed_tokens(preamble).unsqueeze(0)
            early_turn = _turn(torch.arange(len(preamble)).unsqueeze(0))
        for layer in self.layers:
            if early is not None:
                early, before = layer(early, early_turn, dropout)
            states, _ = layer(states, turn, dropout, before)
        last: Tensor = self.norm(states)
        return last


class PocketText(nn.Module):
    """The decoder and the head that names the next token; parameter names are Llama 4's."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.model = Decoder(vocabulary)
        self.lm_head = nn.Linear(WIDTH, vocabulary, bias=False)
        for name, weights in self.named_parameters():
            if weights.dim() == 2:
                size = weights.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    size /= (2 * LAYERS) ** 0.5
                elif name.endswith(("q_proj.weight", "k_proj.weight", "lm_head.weight")):
                    # Attention that begins sharp stays stuck on a few places.
                    size /= 2
                nn.init.normal_(weights, std=size)


def state_for_llama4(network: PocketText) -> dict[str, Tensor]:
    """Parameters under Llama 4's names and in its order of rotary pairs."""
    state = {}
    for name, weights in network.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights = weights.view(-1, 2, HEAD_WIDTH // 2, WIDTH).transpose(1, 2).reshape(-1, WIDTH)
        state[f"language_model.{name}"] = weights
    return state


def state_from_llama4(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``state_for_llama4``; what is not the text network's is left out."""
    own = {}
    for name, weights in state.items():
        if not name.startswith("language_model."):
            continue
        weights = weights.float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights = weights.view(-1, HEAD_WIDTH // 2, 2, WIDTH).transpose(1, 2).reshape(-1, WIDTH)
        own[name.removeprefix("language_model.")] = weights
    return own


def text_config(vocabulary: int, ends: list[int], begin: int, pad: int) -> dict[str, Any]:
    """What transformers and vLLM must know to rebuild the network."""
    return {
        "model_type": "llama4_text",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD_WIDTH,
        "intermediate_size": FEED_FORWARD,
        "intermediate_size_mlp": FEED_FORWARD,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPSILON,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "no_rope_layers": [1] * LAYERS,
        "layer_types": ["full_attention"] * LAYERS,
        "attention_chunk_size": None,
        "attn_temperature_tuning": False,
        "use_qk_norm": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "interleave_moe_layer_step": 0,
        "moe_layers": [],
        "tie_word_embeddings": False,
        "bos_token_id": begin,
        "eos_token_id": ends,
        "pad_token_id": pad,
        "dtype": "bfloat16",
    }


def _turn(positions: Tensor) -> Turn:
    frequencies = ROPE_THETA ** (-torch.arange(0, HEAD_WIDTH, 2, dtype=torch.float32) / HEAD_WIDTH)
    angles = positions.unsqueeze(1).unsqueeze(-1).float() * frequencies
    return angles.cos(), angles.sin()


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = heads.chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)
