"""`python -m benchmarks`: compare this server with others on the same engine and machine, side by side in one run."""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison
from benchmarks.contenders import Service, contenders_of, start_guard, start_vllm
from benchmarks.model import SHIPPED, model_of_profile
from benchmarks.report import COLUMNS, results_of, stamp, table
from benchmarks.traffic import LOADS, Load, parse_mix


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(": ")[2])
    parser.add_argument("--model", default="pocket", help="pocket, or a profile's folder with its checkpoint")
    parser.add_argument("--loads", default="short,repeated,image1", help=f"comma-separated: {', '.join(LOADS)}")
    parser.add_argument("--mix", type=parse_mix, help="a load of your own: short=70,long=10,image1=20")
    parser.add_argument("--contenders", default="guard,vllm", help="comma-separated: guard, vllm")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one contender's turn")
    return parser.parse_args()


def finite(value: Any) -> Any:
    """The same with None for what is not a number, which JSON cannot say."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    options = parse_options()
    loads = [Load(name, LOADS[name]) for name in options.loads.split(",") if name]
    if options.mix:
        loads.append(Load("mix", options.mix))
    folder = SHIPPED / "pocket" if options.model == "pocket" else Path(options.model)
    model = model_of_profile(folder, {})
    services: dict[str, Service] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        try:
            for name in options.contenders.split(","):
                starter = {"guard": start_guard, "vllm": start_vllm}[name]
                services[name] = starter(model, Path(place))
                say(f"{name}: ready after {services[name].ready_s:.1f} s")
            comparison = Comparison(
                contenders_of(services, model), services, options.concurrency, options.rounds, options.seconds
            )
            for load in loads:
                say(f"load {load.name}")
                comparison.closed(load)
        finally:
            for service in services.values():
                service.stop()
    results = results_of(comparison.slices, loads)
    print(table(results))
    print(COLUMNS)
    line = {
        "benchmark": "comparison",
        **stamp(),
        "options": vars(options),
        "ready_s": {name: service.ready_s for name, service in services.items()},
        "results": results,
    }
    print(json.dumps(finite(line)))


if __name__ == "__main__":
    main()
