"""Lets the engine start where torch is a CPU build, but its companions were built for CUDA.

That is what package indexes hand out beside a CPU torch: the compiled parts of torchvision and torchaudio then cannot
be loaded, and importing either of them fails, which takes transformers and vLLM down. torch runs `mend` through its
`torch.backends` entry points in every process that imports it, before anything can import a companion.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any

_KEPT: list[Any] = []


def mend() -> None:
    """Make both companions importable, or not installed, where their compiled parts cannot be loaded."""
    if is_broken("torchvision", "_C.so"):
        import torch

        # The import dies on registering Python kernels for two operators that have no schema. Nothing here calls
        # them, so their schemas are enough. The library is kept: its schemas would go with it.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    if is_broken("torchaudio", "lib/_torchaudio.abi3.so", "lib/_torchaudio.so"):
        # transformers and vLLM both do without torchaudio, but only where it is not installed: this says so.
        sys.modules["torchaudio"] = None  # type: ignore[assignment]


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
