"""The facts of a checkpoint on disk, read before the engine spends minutes on it.

Only headers and JSON are read, never weights, and neither torch nor vLLM is imported: this runs at every start.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.checkpoints.profile import Network
from server.domain.errors import OperatorError

LLAMA4_CHUNK = 8192
"""The length at which transformers, and so vLLM, cuts Llama 4's attention if the configuration has none."""

FLOATS = frozenset(("F32", "F16", "BF16"))
ALREADY_SCALED = frozenset(("longrope", "su", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"))
"""RoPE types whose `max_position_embeddings` already includes the factor, as in vLLM's rule."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """The facts of a checkpoint.

    `context_tokens` is the longest context that its positions allow, None if it does not say. `eos_token_ids` end an
    answer. `tokens_per_tile` of an image is None without a vision encoder. `chat_template` is the official prompt in
    Jinja, if the checkpoint has one. `attention_chunk` is the number of tokens at which attention is cut, None if it is
    not.
    """

    vocabulary_size: int
    context_tokens: int | None
    eos_token_ids: tuple[int, ...]
    tokens_per_tile: int | None
    network: Network
    chat_template: str | None
    attention_chunk: int | None = None


def read_facts(folder: Path) -> CheckpointFacts:
    """Read configuration and tensor headers of the checkpoint in `folder`.

    Raises OperatorError if files are missing, cut short or unreadable.
    """
    config = _json(folder / "config.json")
    text = config.get("text_config", config)
    try:
        heads = int(text["num_attention_heads"])
        network_shape = {
            "layers": int(text["num_hidden_layers"]),
            "kv_heads": int(text.get("num_key_value_heads") or heads),
            "head_dim": int(text.get("head_dim") or text["hidden_size"] // heads),
        }
        vocabulary_size = int(text["vocab_size"])
        tokens_per_tile = _tokens_per_tile(config)
        attention_chunk = _attention_chunk(text)
    except (KeyError, TypeError, ValueError) as error:
        raise OperatorError(
            f"{folder / 'config.json'}: a size of the network is missing or wrong ({type(error).__name__}: {error})."
        ) from error
    weights = _Weights.read(folder)
    return CheckpointFacts(
        vocabulary_size=vocabulary_size,
        context_tokens=_context_limit(text),
        eos_token_ids=_eos_token_ids(config, text, folder),
        tokens_per_tile=tokens_per_tile,
        network=Network(
            **network_shape,
            text_linear_parameters=weights.text_linear,
            text_other_parameters=weights.text_other,
            vision_parameters=weights.vision,
            text_linear_bytes=weights.text_linear_bytes if weights.quantized else None,
        ),
        chat_template=_chat_template(folder),
        attention_chunk=attention_chunk,
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}. Is the checkpoint complete?") from error
    except ValueError as error:
        raise OperatorError(f"{file}: is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise OperatorError(f"{file}: is not a JSON object.")
    return content


def _json_if_there(file: Path) -> dict[str, Any]:
    return _json(file) if file.is_file() else {}


def _context_limit(text: Mapping[str, Any]) -> int | None:
    positions = text.get("max_position_embeddings")
    if positions is None:
        return None
    # transformers 5 writes rope_parameters, older versions rope_scaling.
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    factor = 1.0 if rope_type in ALREADY_SCALED else rope.get("factor") or 1.0
    return int(positions * factor)


def _attention_chunk(text: Mapping[str, Any]) -> int | None:
    # Llama 4 is cut at 8192 tokens unless the configuration says otherwise; Llama Guard 4 says null.
    unsaid = LLAMA4_CHUNK if text.get("model_type") == "llama4_text" else None
    chunk = text.get("attention_chunk_size", unsaid)
    return int(chunk) if chunk else None


def _tokens_per_tile(config: Mapping[str, Any]) -> int | None:
    vision = config.get("vision_config")
    if not vision:
        return None
    patches_per_side = vision["image_size"] // vision["patch_size"]
    # The pixel shuffle folds neighbouring patches into one token: a ratio of 0.5 makes four of them one.
    tokens: int = round(patches_per_side**2 * vision["pixel_shuffle_ratio"] ** 2)
    return tokens


def _eos_token_ids(config: Mapping[str, Any], text: Mapping[str, Any], folder: Path) -> tuple[int, ...]:
    generation = _json_if_there(folder / "generation_config.json")
    for source in (generation, text, config):
        ids = source.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def _chat_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for older in ("chat_template.json", "tokenizer_config.json"):
        template = _json_if_there(folder / older).get("chat_template")
        if isinstance(template, str):
            return template
    return None


@dataclass(slots=True)
class _Weights:
    """Sums over the headers of all safetensors files: parameters by their place in the network, bytes as stored."""

    text_linear: int = 0
    text_other: int = 0
    vision: int = 0
    text_linear_bytes: int = 0
    quantized: bool = False

    @classmethod
    def read(cls, folder: Path) -> "_Weights":
        weights = cls()
        for file in _weight_files(folder):
            for name, tensor in _tensors(file):
                weights.add(name, tensor["dtype"], tensor["shape"], tensor["data_offsets"])
        return weights

    def add(self, name: str, dtype: str, shape: list[int], offsets: list[int]) -> None:
        parameters, size = math.prod(shape), offsets[1] - offsets[0]
        if "vision_model" in name or "multi_modal_projector" in name:
            self.vision += parameters
        elif ".layers." in name and "norm" not in name:
            self.text_linear += parameters
            self.text_linear_bytes += size
            self.quantized |= dtype not in FLOATS
        else:
            self.text_other += parameters


def _weight_files(folder: Path) -> list[Path]:
    index = _json_if_there(folder / "model.safetensors.index.json")
    files = sorted({folder / name for name in index.get("weight_map", {}).values()} or folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise OperatorError(f"{folder}: weights are missing: {', '.join(missing) or 'no *.safetensors file'}.")
    return files


def _tensors(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and descriptions of the tensors in a safetensors file: eight bytes of length, then JSON, then the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise OperatorError(f"{file}: is cut short, or is not a safetensors file. Download the checkpoint again.")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise OperatorError(
                f"{file}: the safetensors header cannot be read. Download the checkpoint again."
            ) from error
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    if max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0) != size - 8 - length:
        raise OperatorError(f"{file}: is cut short: its download did not finish. Download the checkpoint again.")
    yield from tensors.items()
