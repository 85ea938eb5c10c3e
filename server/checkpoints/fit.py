"""Does it fit? The arithmetic of weights, KV cache and the engine's other needs. Nothing here is measured.

vLLM takes a share of the card (`gpu_memory_utilization`), loads the weights, runs the largest step once and uses the
rest for the KV cache. A profile fits if the KV cache then holds at least one request of its whole context.
"""

import shutil
import subprocess
from dataclasses import dataclass

from server.checkpoints.profile import Network, Profile
from server.domain.errors import OperatorError

GIB = 1 << 30

RUNTIME_BYTES = 5 * GIB // 4
"""Allowance for the CUDA context, CUDA graphs, and the activations of a step of 2,048 tokens with images."""

LOGITS_COPIES = 3
"""Float32 copies of the logits that exist at once while sampling: raw, log-probabilities, sorted or masked."""

DEFAULT_UTILIZATION = 0.92  # vLLM 0.32 and 0.33
DEFAULT_MAX_NUM_SEQS = 256
KV_BLOCK_TOKENS = 16  # CUDA's; contexts are rounded down to it

FLOAT_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "auto": 2}
LINEAR_BYTES = {"fp8_per_tensor": 1.0, "fp8_per_channel": 1.0, "fp8_per_block": 1.0, "mxfp8": 1.04, "mxfp4": 0.54}
"""Bytes per parameter after quantisation while loading, scales included. Other methods count as not quantised."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Fit:
    """The fit of a profile on a card of `memory_bytes`. All sizes are bytes, contexts are tokens."""

    memory_bytes: int
    usable_bytes: int
    weights_bytes: int
    headroom_bytes: int
    kv_bytes_per_token: int
    context_tokens: int
    kv_space_bytes: int

    @property
    def kv_bytes(self) -> int:
        """KV cache of one request of the whole context."""
        return self.context_tokens * self.kv_bytes_per_token

    @property
    def largest_context(self) -> int:
        """The longest context that one request can have on this card."""
        blocks = max(self.kv_space_bytes, 0) // (self.kv_bytes_per_token * KV_BLOCK_TOKENS)
        return blocks * KV_BLOCK_TOKENS

    @property
    def fits(self) -> bool:
        engine_bytes = self.weights_bytes + self.headroom_bytes + self.kv_space_bytes
        return self.largest_context >= self.context_tokens and engine_bytes <= self.memory_bytes


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists; none where there is no nvidia-smi or no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        # A broken driver can hang the tool.
        listing = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    gpus = []
    for line in listing.splitlines():
        name, _, mebibytes = line.rpartition(",")
        # Cards that share the main memory answer "[N/A]".
        if mebibytes.strip().isdecimal():
            gpus.append(Gpu(name.strip(), int(mebibytes) << 20))
    return tuple(gpus)


def fit_of(profile: Profile, network: Network, memory_bytes: int) -> Fit:
    """Compute the fit of `profile` on a card, or in a main memory, of `memory_bytes`."""
    usable = int(memory_bytes * profile.engine.get("gpu_memory_utilization", DEFAULT_UTILIZATION))
    weights = weights_bytes(profile, network)
    headroom = headroom_bytes(profile)
    return Fit(
        memory_bytes=memory_bytes,
        usable_bytes=usable,
        weights_bytes=weights,
        headroom_bytes=headroom,
        kv_bytes_per_token=kv_bytes_per_token(profile, network),
        context_tokens=profile.context_tokens,
        # A KV cache of a given size takes the place of the share.
        kv_space_bytes=profile.engine.get("kv_cache_memory_bytes") or usable - weights - headroom,
    )


def weights_bytes(profile: Profile, network: Network) -> int:
    """Weights in the engine. Without images vLLM does not load the vision encoder."""
    float_bytes = _float_bytes(profile)
    if network.text_linear_bytes is not None:
        linear = network.text_linear_bytes
    else:
        quantization = str(profile.engine.get("quantization"))
        linear = int(network.text_linear_parameters * LINEAR_BYTES.get(quantization, float_bytes))
    vision = network.vision_parameters if profile.images else 0
    return linear + (network.text_other_parameters + vision) * float_bytes


def kv_bytes_per_token(profile: Profile, network: Network) -> int:
    """Keys and values of one token in all layers."""
    kv_dtype = str(profile.engine.get("kv_cache_dtype", "auto"))
    if kv_dtype == "auto":
        element = _float_bytes(profile)
    else:
        element = 1 if kv_dtype.startswith(("fp8", "int8")) else FLOAT_BYTES.get(kv_dtype, 2)
    return 2 * network.layers * network.kv_heads * network.head_dim * element


def headroom_bytes(profile: Profile) -> int:
    """The engine's needs beyond weights and KV cache: an allowance, and the least certain figure here."""
    rows = int(profile.engine.get("max_num_seqs", DEFAULT_MAX_NUM_SEQS))
    return RUNTIME_BYTES + LOGITS_COPIES * rows * profile.vocabulary_size * FLOAT_BYTES["float32"]


def check_fits(profile: Profile, network: Network, memory_bytes: int) -> None:
    """Refuse a profile that does not fit a card of `memory_bytes`, before minutes of loading show the same.

    Raises OperatorError, which says what would fit.
    """
    found = fit_of(profile, network, memory_bytes)
    if found.fits:
        return
    if found.largest_context:
        remedy = f"set context_tokens to at most {found.largest_context}"
    else:
        remedy = "its weights alone leave no room for a context"
    raise OperatorError(
        f"{profile.name} does not fit: weights {gib(found.weights_bytes)}, KV cache {gib(found.kv_bytes)} for "
        f"{found.context_tokens} tokens and about {gib(found.headroom_bytes)} for the rest, but the engine may use "
        f"only {gib(found.usable_bytes)} of {gib(found.memory_bytes)} (gpu_memory_utilization). With this profile "
        f"{remedy}. `llama-guard-server doctor` shows which variant fits. These figures are computed, not measured."
    )


def gib(size: int) -> str:
    """Bytes as a person reads them: "22.4 GiB"."""
    return f"{size / GIB:.1f} GiB"


def _float_bytes(profile: Profile) -> int:
    return FLOAT_BYTES.get(str(profile.engine.get("dtype", "auto")), 2)
