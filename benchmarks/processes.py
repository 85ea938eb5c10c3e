"""CPU time and memory of a contender's processes, counted from outside and told apart by role."""

from collections.abc import Mapping

import psutil


def role(title: str, is_root: bool) -> str:
    """What a process below an engine's server does. vLLM titles its own; the root answers HTTP."""
    if "EngineCore" in title:
        return "engine"
    if "Worker" in title:
        return "worker"
    return "front" if is_root else "other"


def tree(roots: Mapping[int, str]) -> dict[int, str]:
    """Roles by process id of all processes below `roots`, which are process ids and the role of what stands there.

    Below a `server` they are told apart, alike in this server and in vLLM's own; anything else is one thing.
    """
    found: dict[int, str] = {}
    for pid, kind in roots.items():
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                found[process.pid] = role(" ".join(process.cmdline()), process is root) if kind == "server" else kind
            except psutil.NoSuchProcess:
                continue
    return found


def cpu_seconds(roles: Mapping[int, str]) -> dict[str, float]:
    """User and system time since each process began, by role."""
    sums: dict[str, float] = {}
    for pid, name in roles.items():
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        sums[name] = sums.get(name, 0.0) + times.user + times.system
    return sums


def memory_mib(roles: Mapping[int, str]) -> dict[str, dict[str, float]]:
    """Resident memory by role, and the proportional share of what is shared where the system tells it."""
    sums: dict[str, dict[str, float]] = {}
    for pid, name in roles.items():
        try:
            memory = psutil.Process(pid).memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        entry = sums.setdefault(name, {"rss": 0.0})
        entry["rss"] += memory.rss / 2**20
        if hasattr(memory, "pss"):
            entry["pss"] = entry.get("pss", 0.0) + memory.pss / 2**20
    return sums
