"""The data type that suits this machine's CPU."""

from pathlib import Path

CPU_FACTS = Path("/proc/cpuinfo")


def fastest_dtype() -> str:
    """bfloat16 if the CPU has instructions for it, otherwise float32, which is closer to the checkpoint's scores."""
    # Every CPU with AMX has these instructions too. Without either, the two were equally fast, and float32 is exact.
    try:
        return "bfloat16" if "avx512_bf16" in CPU_FACTS.read_text().split() else "float32"
    except OSError:
        return "float32"
