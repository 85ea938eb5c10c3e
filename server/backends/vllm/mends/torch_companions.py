"""torchvision and torchaudio that were built for CUDA can be imported, or are not there, where torch is a CPU build.

Why: that is what package indexes hand out beside a CPU torch. The compiled parts of both then cannot be loaded, and
    importing either of them fails, which takes transformers and vLLM down.
Where: every process that imports torch, before it can import either of them: torch runs `mend` through its
    `torch.backends` entry points.
Upstream: pytorch/vision#9085 and pytorch/pytorch#122494 (both closed; the latter advises torchvision from PyTorch's
    own index); huggingface/transformers#47422 (merged) has one of its imports do without a broken torchaudio.
Needed: tests/engine/test_mends.py::test_companions_built_for_cuda_still_break_a_cpu_torch
Until: every index hands out companions that fit the torch beside them.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any

from server.backends.vllm.mends import early_words

_KEPT: list[Any] = []


def install() -> None:
    """Make torchvision importable and torchaudio not installed, where their compiled parts cannot be loaded."""
    if not _KEPT and is_broken("torchvision", "_C.so"):
        import torch

        # The import dies on registering Python kernels for two operators that have no schema. Nothing here calls
        # them, so their schemas are enough. The library is kept: its schemas would go with it.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    if is_broken("torchaudio", "lib/_torchaudio.abi3.so", "lib/_torchaudio.so"):
        # transformers and vLLM both do without torchaudio, but only where it is not installed: this says so.
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # ty: ignore[invalid-assignment]


def mend() -> None:
    """What runs wherever torch is imported, under the name that installed environments know it by (pyproject.toml)."""
    early_words.install()  # nothing of this server's runs earlier in vLLM's own processes
    install()


def is_broken(package: str, *libraries: str) -> bool:
    """Whether the package is installed and one of its compiled libraries, where it has them, cannot be loaded."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    for library in libraries:
        path = Path(spec.origin).parent / library
        if path.is_file():
            try:
                ctypes.CDLL(str(path))
            except OSError:
                return True
    return False
