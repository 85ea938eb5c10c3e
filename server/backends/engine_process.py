"""What every process of the engine does first. vLLM runs `prepare` in each of them, as a general plugin."""

import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PLUGIN = "guard_engine_process"
"""Name of `prepare` among vLLM's plugins, as pyproject.toml gives it."""

SERVER_PID = "GUARD_SERVER_PID"
"""Environment variable that tells the engine's processes which process they belong to."""

_PR_SET_PDEATHSIG = 1


def prepare() -> None:
    """Tie this process to the server's life, and have the vision tower take bytes."""
    server_pid = int(os.environ.get(SERVER_PID, "0"))
    if server_pid and server_pid != os.getpid():
        _die_with_parent(server_pid)
    _accept_bytes()


def _die_with_parent(server_pid: int) -> None:
    # vLLM's processes outlive a server that was killed with SIGKILL, and go on holding the GPU's memory.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(server_pid, 0)
    except ProcessLookupError:
        os._exit(1)  # the server was killed before the line above took effect
    # Ctrl-C goes to a terminal's whole process group; the engine must live until the server has drained.
    os.setpgid(0, 0)


def brightness() -> "torch.Tensor":
    """What Llama 4's image processor makes of each of the 256 levels of a sample: [256], rounded as it rounds."""
    import torch

    return (torch.arange(256).to(torch.bfloat16) * (1 / 255) - 0.5) / 0.5


def _accept_bytes() -> None:
    """Have the vision tower take pictures as bytes too, a quarter or half of what its own numbers take.

    They pass from process to process up to three times on their way to the tower, tens of megabytes each time.
    """
    import torch
    from vllm.model_executor.models.mllama4 import Llama4UnfoldConvolution
    from vllm.platforms import current_platform

    levels = brightness()
    # vLLM's CPU linear layer rejects the permuted tensor that Llama 4's patch embedding hands it ("Expected
    # a.stride(-1) == 1"), so that every image would fail. tests/engine/test_mends.py tells when this can go.
    contiguous = current_platform.is_cpu()

    def forward(self: Llama4UnfoldConvolution, tiles: torch.Tensor) -> torch.Tensor:
        if tiles.dtype == torch.uint8:
            numbers = levels.to(tiles.device, self.linear.weight.dtype)
            tiles = torch.index_select(numbers, 0, tiles.to(torch.int32).flatten()).view(tiles.shape)
        patches = self.unfold(tiles).permute(0, 2, 1)
        embedded, _ = self.linear(patches.contiguous() if contiguous else patches)
        return embedded

    Llama4UnfoldConvolution.forward = forward
