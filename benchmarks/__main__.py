"""This server beside others on the same engine and machine, in one run, taking turns.

    python -m benchmarks                                              # a small model, any machine, about six minutes
    python -m benchmarks --model full --loads short,long,image1,image3   # a GPU
    python -m benchmarks --loads short --rates 0.5,0.7,0.8,0.9 --prefix-cache off

benchmarks/README.md says what everything means. The last line is the result as JSON.
"""

import argparse
import json
import math
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import checkpoint, limits, plots, records, second_opinion
from benchmarks.comparison import Comparison, speed
from benchmarks.contenders import BASELINE, ENGINES, STARTERS, LeftOut, Service, Stage, contenders_of
from benchmarks.engine_counters import read_block_size
from benchmarks.goals import goals, lines
from benchmarks.model import ROOT, SHIPPED, Model, fastest_dtype, model_of_checkpoint, model_of_profile
from benchmarks.processes import memory_mib, tree
from benchmarks.report import COLUMNS, number, results_of, table
from benchmarks.stamp import gpus, stamp
from benchmarks.traffic import LOADS, Load, parse_mix

OUT = ROOT / "build" / "bench"
FP8 = {"quantization": "fp8_per_channel", "kv_cache_dtype": "fp8"}
ON_CPU = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30}
GPU_SHARE = 0.92
"""Of the card's memory, for all engines together."""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    say = parser.add_argument
    say("--model", default="pocket", help="pocket; small or full, with made-up weights; a checkpoint or profile folder")
    say("--layers", type=int, help="of the model with made-up weights, as the next four")
    say("--hidden", type=int)
    say("--heads", type=int)
    say("--kv-heads", type=int)
    say("--mlp", type=int)
    say("--context", type=int, help="tokens of context; 8192, and 163840 where a full-size model is alone on a card")
    say("--folder", type=Path, default=OUT / "models", help="where made-up models are kept")
    say("--precision", choices=("bf16", "fp8"), default="bf16", help="fp8: weights and KV cache; needs a GPU")
    say("--engine", action="append", default=[], metavar="KEY=VALUE", help="an engine argument, for all engines")
    say("--prefix-cache", choices=("on", "off"), default="on", help="off: every prompt is computed whole")
    say("--contenders", default="guard,vllm", help=f"comma-separated: {', '.join(STARTERS)}")
    say("--loads", default="short,repeated,image1", help=f"comma-separated: {', '.join(LOADS)}")
    say("--mix", type=parse_mix, help="a load of your own, such as short=70,long=10,image1=20")
    say("--concurrency", default="32", help="comma-separated, for loads of text")
    say("--image-concurrency", default="8", help="the same for loads with images")
    say("--rates", default="", help="open loop too: shares of vllm's verdicts/s at the highest concurrency, 0.5,0.9")
    say("--rounds", type=int, default=4, help="turns of each contender")
    say("--seconds", type=float, default=3.0, help="length of a turn")
    say("--second", action="store_true", help="guidellm's figures beside ours, on chats of the first load")
    say("--record", action="store_true", help="keep the result in a new folder of benchmarks/results/")
    return parser.parse_args()


def engine_arguments(options: argparse.Namespace, engines: int) -> dict[str, Any]:
    """What the options say to every engine, on top of the profile."""
    arguments: dict[str, Any] = {}
    if torch.cuda.is_available():
        if engines > 1:
            # All stay in memory side by side.
            arguments["gpu_memory_utilization"] = round(GPU_SHARE / engines, 2)
        arguments |= FP8 if options.precision == "fp8" else {}
    elif options.model != "pocket":
        arguments |= ON_CPU | {"dtype": fastest_dtype()}
    if options.prefix_cache == "off":
        arguments["enable_prefix_caching"] = False
    for item in options.engine:
        key, _, value = item.partition("=")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments


def model_of(options: argparse.Namespace, engines: int) -> Model:
    """The model that the options name; one with made-up weights is built unless it lies there from an earlier run."""
    arguments = engine_arguments(options, engines)
    if options.model in checkpoint.SHAPES:
        given = {key: getattr(options, key) for key in ("layers", "hidden", "heads", "kv_heads", "mlp")}
        shape = replace(checkpoint.SHAPES[options.model], **{key: value for key, value in given.items() if value})
        if not torch.cuda.is_available():
            shape = replace(shape, dtype="float32")
        context = options.context or (163_840 if options.model == "full" and engines == 1 else 8192)
        # The limit in the config is the whole context always, so that one checkpoint does for all.
        name = f"{options.model}-{shape.layers}x{shape.hidden}-{shape.heads}-{shape.kv_heads}-{shape.mlp}"
        checkpoint.ensure(options.folder / name, shape, 163_840)
        return model_of_checkpoint(options.folder / name, name, context, arguments)
    folder = SHIPPED / "pocket" if options.model == "pocket" else Path(options.model)
    if (folder / "profile.toml").exists():
        model = model_of_profile(folder, arguments)
        return replace(model, context=options.context or model.context)
    return model_of_checkpoint(folder, folder.name, options.context or 8192, arguments)


def start(stage: Stage, names: list[str], services: dict[str, Service]) -> dict[str, str]:
    """Start those named, in this order; says who is left out and why."""
    left_out = {}
    for name in names:
        try:
            services[name] = STARTERS[name](stage)
            tell(f"{name}: ready after {services[name].ready_s:.1f} s")
        except LeftOut as reason:
            left_out[name] = str(reason)
            tell(f"{name}: left out: {reason}")
    return left_out


def measure(comparison: Comparison, options: argparse.Namespace, loads: list[Load]) -> None:
    """Every load, closed and, where rates are given, open."""
    for load in loads:
        at_once = "1" if load.name == "whole" else options.image_concurrency if load.has_images else options.concurrency
        knee = 0.0
        for concurrency in map(int, at_once.split(",")):
            section = comparison.closed(load, concurrency)
            tell(table(section.title, results_of(section)["contenders"]))
            pace = BASELINE if BASELINE in section.contenders else section.contenders[0]
            knee = max(knee, speed(section, pace))
        for share in map(float, filter(None, options.rates.split(","))):
            section = comparison.open(load, share * knee, concurrency)
            tell(table(section.title, results_of(section)["contenders"]))


def second_opinions(comparison: Comparison, model: Model, folder: Path) -> dict[str, Any]:
    """What guidellm says of everyone who answers chats, on the first section's load."""
    first = comparison.sections[0]
    said: dict[str, Any] = {}
    for contender in comparison.contenders:
        if contender.dialect == "chat":
            try:
                said[contender.name] = second_opinion.ask(
                    contender, model, first.load, first.concurrency, comparison.rounds * comparison.seconds, folder
                )
            except LeftOut as reason:
                said[contender.name] = {"left_out": str(reason)}
    return said


def finite(value: Any) -> Any:
    """The same with None for what is no number, which JSON cannot say, and no digits that say nothing."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    options = parse_options()
    names = options.contenders.split(",")
    if unknown := [name for name in names if name not in STARTERS]:
        raise SystemExit(f"unknown contenders: {', '.join(unknown)}; known: {', '.join(STARTERS)}")
    model = replace(model_of(options, sum(name in ENGINES for name in names)), on_cpu=not torch.cuda.is_available())
    loads = [Load(name, LOADS[name], model.context) for name in filter(None, options.loads.split(","))]
    if options.mix:
        loads.append(Load("mix", options.mix, model.context))
    # Gateways come last: what they stand in front of must run.
    names.sort(key=lambda name: name not in ENGINES)
    services: dict[str, Service] = {}
    # Whoever stops the run, by Ctrl-C or otherwise, stops the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        try:
            left_out = start(Stage(model, Path(place), services), names, services)
            contenders = contenders_of(services, model)
            if not contenders:
                raise SystemExit("nobody is left to measure")
            comparison = Comparison(contenders, services, options.rounds, options.seconds)
            measure(comparison, options, loads)
            second = second_opinions(comparison, model, Path(place)) if options.second else {}
            counting = next((contender.engine for contender in contenders if contender.engine), None)
            block_size = read_block_size(counting) if counting else None
            memory = {name: memory_mib(tree({service.process.pid: service.role})) for name, service in services.items()}
            card_memory = gpus("memory.used")
        finally:
            for service in reversed(services.values()):
                service.stop()
    sections = [results_of(section) for section in comparison.sections]
    if torch.cuda.is_available():
        limits.add(sections, model.folder, options.precision)
    reached = goals(sections, model.preamble_tokens(), block_size)
    result = finite(
        {
            "benchmark": "comparison",
            **stamp(),
            "options": {**vars(options), "folder": options.folder.name, "model": Path(options.model).name},
            "model": {
                "name": model.name,
                "context": model.context,
                "engine": dict(model.engine),
                "preamble_tokens": model.preamble_tokens(),
                "block_size": block_size,
            },
            "ready_s": {name: service.ready_s for name, service in services.items()},
            "memory_mib": memory,
            "card_memory_mib": card_memory,
            "left_out": left_out,
            "sections": sections,
            "second_opinion": second,
            "goals": [asdict(goal) for goal in reached],
        }
    )
    show(result, comparison)
    print("\n".join(["\ngoals", *lines(reached), ""]))
    folder = records.write(result, records.RESULTS if options.record else OUT)
    for file in [folder / records.FILE, *plots.draw(result, folder)]:
        print(f"written: {file.relative_to(ROOT)}")
    print(json.dumps(result))


def show(result: dict[str, Any], comparison: Comparison) -> None:
    """Tables, and what belongs to all of them."""
    for section, figures in zip(comparison.sections, result["sections"], strict=True):
        print(table(section.title, figures["contenders"]))
    print(COLUMNS)
    first = result["sections"][0]["contenders"]
    for name, other in result["second_opinion"].items():
        ours = first[name]
        print(f"\nsecond opinion on {comparison.sections[0].title}, {name}: {other.get('tool', other)}")
        for key in ("verdicts_per_s", "p50_ms", "p90_ms", "p99_ms") if "tool" in other else ():
            print(f"  {key:<15} {number(other[key]):>8}, here {number(ours[key])}")
    print("\nmemory in MiB, resident (proportional share)")
    for name, roles in result["memory_mib"].items():
        parts = (
            f"{role} {use['rss']:.0f}" + (f" ({use['pss']:.0f})" if "pss" in use else "") for role, use in roles.items()
        )
        print(f"  {name}: {', '.join(parts)}; ready after {result['ready_s'][name]:.1f} s")
    for name, reason in result["left_out"].items():
        print(f"left out: {name}: {reason}")


if __name__ == "__main__":
    main()
