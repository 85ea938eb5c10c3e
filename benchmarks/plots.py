"""Plots of a result: throughput and latency by load, and latency against the rate of arrivals."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BAR_SPACE = 0.8

WIDE = 20
"""How many times the lowest bar the highest one may be on a scale that begins at zero."""


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write loads.png for closed loops, and LOAD-arrivals.png for each load with an open loop. Returns the files."""
    sections: Sequence[Mapping[str, Any]] = result["sections"]
    machine = result["machine"]
    caption = f"{result['model']['name']} on {', '.join(machine['gpu']) or machine['cpu']}, {machine['cores']} cores"
    caption += f"; commit {result['commit']}{' with changes' if result['dirty'] else ''}, {result['date'][:10]}"
    closed = [section for section in sections if section["rate"] is None]
    opened = [section for section in sections if section["rate"] is not None]
    files = []
    if closed:
        figure, axes = plt.subplots(
            2, 1, figsize=(max(8, 1.5 + 2.6 * len(closed)), 8), layout="constrained", squeeze=True
        )
        _bars(axes[0], closed, "verdicts_per_s", "verdicts a second")
        _bars(axes[1], closed, "p99_ms", "latency in ms: bar p99, lines p50 and p90", marks=("p50_ms", "p90_ms"))
        # Beside the bars: within them it would hide some.
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
        files.append(_save(figure, caption, folder / "loads.png"))
    for load in dict.fromkeys(section["load"] for section in opened):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
        for axis, key in zip(axes, ("p50_ms", "p99_ms"), strict=True):
            _curves(axis, [section for section in opened if section["load"] == load], key)
        figure.suptitle(f"{load}: latency against the rate of Poisson arrivals")
        files.append(_save(figure, caption, folder / f"{load}-arrivals.png"))
    return files


def _bars(axis: Axes, sections: Sequence[Mapping[str, Any]], key: str, label: str, marks: tuple[str, ...] = ()) -> None:
    names = list(dict.fromkeys(name for section in sections for name in section["contenders"]))
    width = BAR_SPACE / len(names)
    for at, name in enumerate(names):
        places, heights, seen = [], [], []
        for place, section in enumerate(sections):
            figures = section["contenders"].get(name)
            if figures and figures[key] is not None:
                places.append(place + (at - (len(names) - 1) / 2) * width)
                heights.append(figures[key])
                seen.append(figures)
        axis.bar(places, heights, width * 0.95, label=name)
        for mark in marks:
            left, right = [place - width * 0.4 for place in places], [place + width * 0.4 for place in places]
            axis.hlines([figures[mark] for figures in seen], left, right, colors="black", linewidth=1)
    axis.set_xticks(
        range(len(sections)), [f"{section['load']}\n{section['concurrency']} at once" for section in sections]
    )
    shown = [
        value
        for section in sections
        for figures in section["contenders"].values()
        if (value := figures[key]) is not None and value > 0
    ]
    if shown and max(shown) > WIDE * min(shown):
        # From a round number on, lest a bar that is cut off looks like next to nothing.
        axis.set_yscale("log")
        axis.set_ylim(bottom=10 ** math.floor(math.log10(min(shown))))
    axis.set_ylabel(label)
    axis.grid(axis="y", alpha=0.3)


def _curves(axis: Axes, sections: Sequence[Mapping[str, Any]], key: str) -> None:
    for name in dict.fromkeys(name for section in sections for name in section["contenders"]):
        points = [(section["rate"], section["contenders"][name][key]) for section in sections]
        points = sorted(point for point in points if point[1] is not None)
        axis.plot(*zip(*points, strict=True), marker="o", label=name) if points else None
    axis.set_xlabel("arrivals a second")
    axis.set_ylabel(f"{key.removesuffix('_ms')} in ms")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _save(figure: Any, caption: str, file: Path) -> Path:
    figure.supxlabel(caption, fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file
