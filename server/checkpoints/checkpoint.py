"""A checkpoint on disk: bringing it here, and reading what it says of itself before the engine spends minutes on it.

Only headers and JSON are read, never weights, and neither torch nor vLLM is imported: this runs at every start.
"""

import json
import logging
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from server.checkpoints.profile import Network, Profile
from server.domain.errors import OperatorError

log = logging.getLogger(__name__)

FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*")
"""What the engine needs of a repository. Meta's repositories hold the weights a second time, under original/."""

LONG_CONTEXT_VARIABLE = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""Set to "1" before the engine starts when `exceeds_checkpoint` holds, else vLLM (0.32, 0.33) refuses the context."""

LLAMA4_CHUNK = 8192
"""Where transformers, and with it vLLM, cuts the attention of a Llama 4 whose configuration is silent."""

FLOATS = frozenset(("F32", "F16", "BF16"))
ALREADY_SCALED = frozenset(("longrope", "su", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"))
"""RoPE types whose `max_position_embeddings` includes the factor already: the rule that vLLM follows."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint says of itself.

    `context_tokens` is the longest context that its positions allow, None when it does not say; `eos_token_ids` end an
    answer; `tokens_per_tile` of an image is None without a vision encoder; `chat_template` is the official prompt in
    Jinja, where the checkpoint brings one. `attention_chunk` is the number of tokens that attention is cut at, None
    where it is not.
    """

    vocabulary_size: int
    context_tokens: int | None
    eos_token_ids: tuple[int, ...]
    tokens_per_tile: int | None
    network: Network
    chat_template: str | None
    attention_chunk: int | None = None


# --- Bringing it here ------------------------------------------------------------------------------------


def locate(profile: Profile) -> Path:
    """The folder of the profile's checkpoint, downloaded from the hub when it is not yet in the cache.

    Reads HF_TOKEN from the environment (huggingface_hub does). Raises OperatorError when the folder does not exist or
    the hub does not hand the files out.
    """
    if profile.is_local:
        return _local_folder(profile)
    try:
        return Path(_snapshot(profile, local_files_only=False))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        # The hub answers "not found" for a gated repository too, when nobody is logged in.
        return _cached_despite(error, profile)
    except RevisionNotFoundError as error:
        raise OperatorError(f"{profile.model} has no revision {profile.revision!r}. Correct the profile.") from error
    except LocalEntryNotFoundError as error:
        raise OperatorError(
            f"{profile.model} is not in the local cache, and the hub cannot be reached (HF_HUB_OFFLINE may be set, or "
            "there is no network). Download it once on a machine with network and bring the cache along (HF_HOME), or "
            "let `model` in a profile name the checkpoint's folder."
        ) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            return _cached_despite(error, profile)
        raise OperatorError(f"The hub failed while handing out {profile.model}: {_first_line(error)}") from error
    except OSError as error:
        raise OperatorError(f"{profile.model} cannot be downloaded: {_first_line(error)}") from error


def cached(profile: Profile) -> Path | None:
    """The folder of the profile's checkpoint when it is on this machine already, else None. Uses no network."""
    if profile.is_local:
        return Path(profile.model) if Path(profile.model, "config.json").is_file() else None
    try:
        folder = Path(_snapshot(profile, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() else None


def _snapshot(profile: Profile, *, local_files_only: bool) -> str:
    folder: str = snapshot_download(
        profile.model,
        revision=profile.revision,
        allow_patterns=list(FILES),
        ignore_patterns=["original/*"],
        local_files_only=local_files_only,
    )
    return folder


def _local_folder(profile: Profile) -> Path:
    folder = Path(profile.model)
    if not folder.is_dir():
        raise OperatorError(f"{profile.name}: the model's folder {folder} does not exist.")
    return folder


def _cached_despite(refused: Exception, profile: Profile) -> Path:
    """A token that ran out must not keep a server down that has its weights already."""
    folder = cached(profile)
    if folder is None:
        raise OperatorError(_refusal(profile)) from refused
    log.warning("%s Serving the copy in the local cache.", _refusal(profile))
    return folder


def _refusal(profile: Profile) -> str:
    token = "is set, but may belong to another account" if os.environ.get("HF_TOKEN") else "is not set"
    return (
        f"The hub does not hand out {profile.model} (HF_TOKEN {token}). Accept the licence on the model's page at the "
        "hub, create a token that may read gated repositories, and set it as HF_TOKEN in the server's environment."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- Reading it ------------------------------------------------------------------------------------------


def read_facts(folder: Path) -> CheckpointFacts:
    """Read configuration and tensor headers of the checkpoint in `folder`.

    Raises OperatorError when files are missing, cut short or unreadable.
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
        raise OperatorError(f"{folder / 'config.json'}: {_first_line(error)} is missing or makes no sense.") from error
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
        raise OperatorError(f"{file}: must hold a JSON object.")
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
            raise OperatorError(f"{file}: is cut short or no safetensors file.")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise OperatorError(f"{file}: has no readable safetensors header.") from error
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    if max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0) != size - 8 - length:
        raise OperatorError(f"{file}: is cut short: a download may not have finished.")
    yield from tensors.items()


# --- Comparing it with the profile -----------------------------------------------------------------------


def verify(profile: Profile, facts: CheckpointFacts, token_id: Callable[[str], int | None]) -> None:
    """Refuse a checkpoint that is not the one the profile describes.

    `token_id` gives the id of a text that the checkpoint's tokenizer writes as a single token, else None. Raises
    OperatorError with every mismatch; logs a warning when the profile allows a longer context than the checkpoint does.
    """
    tokens = profile.tokens
    mismatches = []
    if tokens.vocabulary_size != facts.vocabulary_size:
        mismatches.append(
            f"the profile expects a vocabulary of {tokens.vocabulary_size}, the checkpoint has {facts.vocabulary_size}"
        )
    for key, word, expected in (
        ("blank_line", "\n\n", tokens.blank_line),
        ("safe", "safe", tokens.safe),
        ("unsafe", "unsafe", tokens.unsafe),
    ):
        found = token_id(word)
        if found != expected:
            actual = "writes it with several tokens" if found is None else f"gives it {found}"
            mismatches.append(
                f"the profile expects token {expected} for {word!r} (tokens.{key}), the tokenizer {actual}"
            )
    if profile.images and facts.tokens_per_tile is None:
        mismatches.append("the checkpoint has no vision encoder; set images = false")
    if exceeds_checkpoint(profile, facts):
        excess = (
            f"the profile asks for {profile.context_tokens} tokens of context, the checkpoint allows "
            f"{facts.context_tokens}"
        )
        if profile.context_beyond_checkpoint:
            log.warning("%s: %s: verdicts beyond it may be nonsense", profile.name, excess)
        else:
            mismatches.append(f"{excess}; set context_tokens to at most {facts.context_tokens}")
    if mismatches:
        lines = "".join(f"\n  - {mismatch}" for mismatch in mismatches)
        raise OperatorError(f"{profile.name}: profile and checkpoint do not agree:{lines}")


def exceeds_checkpoint(profile: Profile, facts: CheckpointFacts) -> bool:
    """Whether the profile's context is longer than the checkpoint's positions allow (see LONG_CONTEXT_VARIABLE)."""
    return facts.context_tokens is not None and profile.context_tokens > facts.context_tokens


def fits_one_chunk(profile: Profile, facts: CheckpointFacts) -> bool:
    """Whether the checkpoint cuts attention, but at a length that the profile's context never passes."""
    return facts.attention_chunk is not None and profile.context_tokens <= facts.attention_chunk
