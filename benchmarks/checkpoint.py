"""A checkpoint with Llama Guard 4's architecture and vocabulary, in any size, with weights that are made up.

Speed and memory do not depend on what weights say, only on their shapes. So these are random, and taught nothing but
the form of an answer: a blank line, `safe` or `unsafe`, a category, the end.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Llama4Config, Llama4ForConditionalGeneration

from tests import reference_model

SHARD_BYTES = 4 << 30
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shape:
    """The choices that make the network large. Those of `full` are inferred (docs/models.md), not read."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vision_layers: int
    vision_hidden: int
    vision_heads: int
    vision_output: int
    dtype: str


SHAPES = {
    "full": Shape(48, 5120, 40, 8, 8192, 34, 1408, 16, 4096, "bfloat16"),
    "small": Shape(2, 64, 4, 2, 128, 2, 176, 2, 128, "float32"),
}


def ensure(folder: Path, shape: Shape, context: int) -> None:
    """Build the checkpoint, unless `folder` holds it already."""
    if not (folder / INDEX).exists():
        build(folder, shape, context)


def build(folder: Path, shape: Shape, context: int) -> None:
    """Write config, the Llama 4 tokenizer and random weights; one shard of them is in memory at once."""
    tokenizer = reference_model.llama4_tokenizer()
    config = reference_model.base_config(context, shape.layers, shape.hidden, shape.heads, shape.kv_heads)
    config["torch_dtype"] = shape.dtype
    config["text_config"] |= {
        "torch_dtype": shape.dtype,
        "intermediate_size": shape.mlp,
        "intermediate_size_mlp": shape.mlp,
    }
    config["vision_config"] |= {
        "torch_dtype": shape.dtype,
        "hidden_size": shape.vision_hidden,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "intermediate_size": 4 * shape.vision_hidden,
        "projector_input_dim": shape.vision_output,
        "projector_output_dim": shape.vision_output,
        "vision_output_dim": shape.vision_output,
    }
    reference_model.write_all_but_weights(folder, config, tokenizer)
    with torch.device("meta"):
        network = Llama4ForConditionalGeneration(Llama4Config.from_pretrained(folder))
    dtype = getattr(torch, shape.dtype)
    rest = {name: weight.shape for name, weight in network.state_dict().items()}
    # These two carry the form of an answer from one to the other.
    shard = {name: _noise(name, rest.pop(name), dtype) for name in (EMBEDDINGS, HEAD)}
    reference_model.teach_grammar(shard[EMBEDDINGS], shard[HEAD], tokenizer)
    places: dict[str, str] = {}
    shards = 0

    def write() -> None:
        nonlocal shard, shards
        file = f"model-{shards:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard, shards = {}, shards + 1

    for name, weight_shape in rest.items():
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            write()
        shard[name] = _noise(name, weight_shape, dtype)
    write()
    # Last: its being there says that the rest is.
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _noise(name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Too quiet to drown the form of an answer."""
    if "norm" in name:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(shape, dtype=dtype, device=device).normal_(std=0.002).cpu()
