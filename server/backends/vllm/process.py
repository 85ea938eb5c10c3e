"""What every process of the engine starts with. vLLM runs `prepare` first in each of them, as a general plugin."""

import copy
import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PLUGIN = "guard_engine_process"
"""Name of `prepare` among vLLM's plugins, as pyproject.toml gives it."""

SERVER_PID = "GUARD_SERVER_PID"
"""Environment variable that tells the engine's processes which process they belong to."""

THREADS_ON_THEIR_CORES = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
"""What OpenMP reads as a process starts. vLLM says as much only where the model has a process of its own."""

STEP_ON_A_CPU = 4096
"""Tokens. Twice what vLLM's server takes, and as many as its offline engine does: it pays where steps that are not full
cost no more for it (step_sizes.py)."""

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def prepare() -> None:
    """Tie this process to the server's life, spare copies of the vocabulary, and on CPUs mend and spare the model."""
    server_pid = int(os.environ.get(SERVER_PID, "0"))
    if server_pid and server_pid != os.getpid():
        _die_with_parent(server_pid)
        _hasten_on_cpu()
    _share_tokenizers()
    _mend_vision_tower()


@contextmanager
def threads_on_their_cores() -> Iterator[None]:
    """On CPUs, engines that start meanwhile have each thread of their arithmetic stay on a core of its own.

    One thread for each core is what they have, unless the environment says anything of OpenMP: then it is left alone.
    This process read its environment long before, and stays where the system puts it.
    """
    if not is_cpu() or any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ):
        yield
        return
    os.environ.update(THREADS_ON_THEIR_CORES)
    try:
        yield
    finally:
        for name in THREADS_ON_THEIR_CORES:
            del os.environ[name]


def _hasten_on_cpu() -> None:
    # In this server's engine alone, where nobody asks for what it then lacks.
    if is_cpu():
        from server.backends.vllm.mends import asked_logprobs, cpu_norm, last_positions, step_sizes

        _keep_freed_memory()
        cpu_norm.install()
        last_positions.install()
        step_sizes.install()
        asked_logprobs.install()


def _keep_freed_memory() -> None:
    # Each operator writes its result into new memory, megabytes a time. glibc hands such memory back to the system as
    # soon as it is free, and takes it anew, to be filled with zeros page by page: some hundred page faults a verdict.
    # This much of it stays with the process instead.
    libc = ctypes.CDLL(None)
    for threshold in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        libc.mallopt(threshold, 1 << 30)


def is_cpu() -> bool:
    """Whether the engine computes on CPUs."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def arguments_here() -> dict[str, Any]:
    """Engine arguments that suit where the engine computes; a profile may say otherwise."""
    if not is_cpu():
        return {}
    from server.backends.vllm.mends.cpu_norm import PRIORITY

    return {"ir_op_priority": PRIORITY, "max_num_batched_tokens": STEP_ON_A_CPU}


def _share_tokenizers() -> None:
    # Loading Llama 4's processor, vLLM and transformers copy its tokenizer about five times in each of two processes,
    # and a copy of 202,048 tokens takes seconds. Copies are for callers who change theirs, or tokenize in several
    # threads: here vLLM is given token ids, and one thread alone expands images.
    from tokenizers import Tokenizer

    def shared(tokenizer: Any, _: Any) -> Any:
        return tokenizer

    # The class is not Python's and takes no __deepcopy__; pickling it must go on as before, so copyreg is no way.
    copy._deepcopy_dispatch[Tokenizer] = shared  # type: ignore[attr-defined]


def _die_with_parent(server_pid: int) -> None:
    # vLLM's processes outlive a server that was killed with SIGKILL, and go on holding the GPU's memory.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(server_pid, 0)
    except ProcessLookupError:
        os._exit(1)  # the server was killed before the line above took effect
    # Ctrl-C goes to a terminal's whole process group; the engine must live until the server has drained.
    os.setpgid(0, 0)


def numbers_of(pixels: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """What Llama 4's image processor makes of pixels in bytes, tile by tile, rounded as it rounds."""
    import torch

    numbers = torch.empty(pixels.shape, dtype=torch.bfloat16)
    for bytes_of_tile, tile in zip(pixels, numbers, strict=True):  # one at a time stays in a core's cache
        # The processor multiplies by 1/255, subtracts 0.5 and divides by 0.5; rounding does not mind a factor of two.
        tile.copy_(bytes_of_tile).mul_(2 / 255).sub_(1)
    return numbers.to(dtype)


def patches_of(tiles: "torch.Tensor", side: int) -> "torch.Tensor":
    """Tiles (tiles, channels, height, width) cut as torch.nn.Unfold cuts: (tiles, patches, channels x side x side)."""
    count, channels, height, width = tiles.shape
    rows, columns = height // side, width // side
    cut = tiles.view(count, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(count, rows * columns, channels * side * side)


def takes_bytes() -> bool:
    """Whether the engine's vision tower takes pictures as bytes: where `prepare` has mended it."""
    return is_cpu()


def _mend_vision_tower() -> None:
    # vLLM's CPU linear layer rejects the permuted tensor that Llama 4's patch embedding hands it ("Expected
    # a.stride(-1) == 1"), so that every image would fail. tests/engine/test_mends.py tells when this can go.
    # While at it, have it take bytes, a quarter of what its numbers take here: they pass from process to process up
    # to three times on their way, tens of megabytes each time. Elsewhere the tower stays as vLLM wrote it.
    if not takes_bytes():
        return
    import torch
    from vllm.model_executor.models.mllama4 import Llama4UnfoldConvolution

    def forward(self: Llama4UnfoldConvolution, tiles: torch.Tensor) -> torch.Tensor:
        if tiles.dtype == torch.uint8:
            # Bytes are cut before they are numbers: a quarter as much to move, at twice the speed.
            patches = numbers_of(patches_of(tiles, self.unfold.kernel_size[0]), self.linear.weight.dtype)
        else:
            patches = self.unfold(tiles).permute(0, 2, 1).contiguous()
        embedded, _ = self.linear(patches)
        return embedded

    Llama4UnfoldConvolution.forward = forward
