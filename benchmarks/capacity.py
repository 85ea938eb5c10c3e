"""How many cards, at what cost, and whether owning beats renting: from a measured result, or from the physical limit.

    python -m benchmarks.capacity --tokens 100                          # on the cards that are known, calculated
    python -m benchmarks.capacity --tokens 20 --images 1024x768 --price-per-hour 2
    python -m benchmarks.capacity --result FILE --load short --price-per-hour 2

Without `--result` a card's speed is the roofline times a share that engines reach (`--efficiency`), an assumption. With
it, it is what `python -m benchmarks` measured and wrote there. Nobody's hardware prices are in here: `--price-per-hour`
is yours.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.roofline import DECODE_STEPS, DEVICES, LLAMA_GUARD_4, REACHED, VENDOR, Device, Load, Precision
from benchmarks.roofline import most_verdicts_per_second as roofline

EFFICIENCY = 0.65
"""Share of the roofline that a good engine reaches: 60 to 70 % is expected, nothing is measured."""

UTILISATION = 0.7
"""Share of a card's top speed to plan with. Requests come in bursts, and close to the top all wait."""

SPARES = 1
"""Cards beyond those needed, so that one may fail or be updated."""

HOSTED_PRICE = 0.18
"""OpenRouter's dollars per million tokens of this model, prompt and completion alike (quoted)."""

SAFE_TOKENS = 3
"""Completion tokens of "safe" that a host charges: a blank line, the word, the end."""

CPU_RECORD = "2026-11-29-epyc-zen3-avx2-pocket"
"""The record in benchmarks/results/ that the next two are from: the slowest cores that were measured."""

CPU_MS = 1.3
"""CPU milliseconds of the process that answers HTTP, for a request with text. A result brings its own."""

LARGE_IMAGE_CPU_MS = 33.0
"""The same for a request with one image of 336 x 336 to 1920 x 1080 pixels."""

RATES = (1, 100, 10_000)
"""Requests a second."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What one card gives at its top: `verdicts_per_s`, each of `prompt_tokens` (cached ones too) and
    `completion_tokens` as a host would charge them. `origin` says whether it was measured."""

    card: str
    verdicts_per_s: float
    prompt_tokens: float
    completion_tokens: float
    origin: str

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.completion_tokens

    @property
    def hosted_dollars(self) -> float:
        """What a host charges for one verdict."""
        return self.tokens * HOSTED_PRICE / 1e6


def calculated(device: Device, precision: Precision, load: Load, efficiency: float = EFFICIENCY) -> Speed:
    """The roofline of Llama Guard 4 times `efficiency`; of a vendor's peaks, only the share that is reached."""
    reached = REACHED if device.source == VENDOR else 1.0
    most = roofline(LLAMA_GUARD_4, device, precision, load)
    return Speed(
        card=f"{device.name}, {precision}",
        verdicts_per_s=most * efficiency * reached,
        prompt_tokens=load.prompt_tokens(LLAMA_GUARD_4),
        completion_tokens=SAFE_TOKENS + load.unsafe_share * load.decode_steps,
        origin=f"calculated: {efficiency:.0%} of the physical limit",
    )


def measured(result: Mapping[str, Any], load_name: str, contender: str) -> tuple[Speed, float]:
    """The top speed that `python -m benchmarks` saw of `contender` under a load, and the CPU milliseconds of its front
    a request.

    The top is the section with the most verdicts a second at a fixed concurrency. Raises ValueError when there is none.
    """
    sections = [section for section in result.get("sections", ()) if section["rate"] is None]
    figures = [
        section["contenders"][contender]
        for section in sections
        if section["load"] == load_name and contender in section["contenders"]
    ]
    if not figures:
        seen = sorted({f"{section['load']} {name}" for section in sections for name in section["contenders"]})
        raise ValueError(f"the result has no {load_name} {contender}, but {', '.join(seen) or 'no sections'}")
    top = max(figures, key=lambda each: each["verdicts_per_s"] or 0)
    if not top["verdicts_per_s"] or "prompt_tokens" not in top:
        raise ValueError(f"of {load_name} {contender} the result has no verdicts, or no count of tokens")
    machine = result["machine"]
    speed = Speed(
        card="; ".join(machine["gpu"]) or f"{machine['cores']} cores, no GPU",
        verdicts_per_s=top["verdicts_per_s"],
        prompt_tokens=top["prompt_tokens"],
        completion_tokens=SAFE_TOKENS + top["unsafe"] / top["requests"] * DECODE_STEPS,
        origin=f"measured: {load_name}, {contender}, model {result['model']['name']}, {result['date']}",
    )
    return speed, top["cpu_ms"]["front"]


# --- The questions of an operator ------------------------------------------------------------------------


def cards_needed(requests_per_s: float, speed: Speed, utilisation: float = UTILISATION, spares: int = SPARES) -> int:
    """Cards for a peak of `requests_per_s`, each kept at most at `utilisation` of its top, and spares."""
    return math.ceil(requests_per_s / (speed.verdicts_per_s * utilisation)) + spares


def dollars_per_million_verdicts(speed: Speed, price_per_hour: float, utilisation: float = UTILISATION) -> float:
    """Of a card that is kept at `utilisation` around the clock. Half the traffic is twice the cost."""
    return 1e6 * price_per_hour / (3600 * speed.verdicts_per_s * utilisation)


def dollars_per_million_tokens(speed: Speed, price_per_hour: float, utilisation: float = UTILISATION) -> float:
    """The same by tokens as a host would charge them, to stand beside HOSTED_PRICE."""
    return dollars_per_million_verdicts(speed, price_per_hour, utilisation) / speed.tokens


def break_even_verdicts_per_day(speed: Speed, price_per_hour: float, cards: int = 1 + SPARES) -> float:
    """The volume above which `cards` that run all day cost less than a host does.

    It does not depend on how fast they are, but they must be able to carry it.
    """
    return 24 * price_per_hour * cards / speed.hosted_dollars


def cpu_cores(requests_per_s: float, cpu_ms: float = CPU_MS, utilisation: float = UTILISATION) -> float:
    """Cores that the front processes keep busy, with the same room for bursts. The engine's processes add theirs."""
    return requests_per_s * cpu_ms / 1000 / utilisation


# --- A real day ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Day:
    """A day of a service: tokens as charged."""

    prompt_tokens: float
    completion_tokens: float

    @property
    def dollars(self) -> float:
        return (self.prompt_tokens + self.completion_tokens) * HOSTED_PRICE / 1e6

    @property
    def verdicts(self) -> float:
        """If nearly every answer is "safe"."""
        return self.completion_tokens / SAFE_TOKENS

    @property
    def verdicts_per_s(self) -> float:
        return self.verdicts / 86_400

    @property
    def load(self) -> Load:
        """Its average request."""
        return Load.warm(self.prompt_tokens / self.verdicts - Load.warm(0).prompt_tokens(LLAMA_GUARD_4))


OPENROUTER_DAY = Day(152e6, 1.39e6)
"""All that OpenRouter served of this model in one day (quoted from the model's page)."""


# --- Printing --------------------------------------------------------------------------------------------


def report(
    speeds: Sequence[Speed],
    rates: Sequence[float] = RATES,
    prices: Sequence[float] = (),
    utilisation: float = UTILISATION,
    cpu_ms: float = CPU_MS,
) -> str:
    """Every answer for one load, for people."""
    first = speeds[0]
    lines = [
        f"{first.prompt_tokens:,.0f} prompt tokens and {first.completion_tokens:.1f} of the answer; a host charges "
        f"${1e6 * first.hosted_dollars:,.2f} a million verdicts (${HOSTED_PRICE} a million tokens)."
    ]
    for speed in speeds:
        planned = speed.verdicts_per_s * utilisation
        lines += [
            "",
            f"{speed.card} ({speed.origin})",
            f"  top speed {speed.verdicts_per_s:,.1f} verdicts/s, to plan with {planned:,.1f} ({utilisation:.0%})",
            *(
                f"  {rate:,g} requests/s: {cards_needed(rate, speed, utilisation):,} cards, one of them spare"
                for rate in rates
            ),
            *(_at_price(speed, price, utilisation) for price in prices),
        ]
    lines += ["", f"CPU of the front processes at {cpu_ms:.2f} ms a request, beside the engine's own:"]
    lines += [f"  {rate:,g} requests/s: {cpu_cores(rate, cpu_ms, utilisation):,.2f} cores" for rate in rates]
    return "\n".join(lines)


def _at_price(speed: Speed, price: float, utilisation: float) -> str:
    alone = break_even_verdicts_per_day(speed, price, 1)
    spare = break_even_verdicts_per_day(speed, price)
    most = 86_400 * speed.verdicts_per_s * utilisation
    beyond = "" if most > alone else ", more than it can carry: renting is cheaper at any volume"
    return (
        f"  at ${price:g} an hour: ${dollars_per_million_verdicts(speed, price, utilisation):,.2f} a million verdicts, "
        f"${dollars_per_million_tokens(speed, price, utilisation):.4f} a million tokens; beats the host above "
        f"{alone:,.0f} verdicts a day ({spare:,.0f} with a spare card){beyond}"
    )


def result_in(text: str) -> Any:
    """The result in the text of a run.json, or at the end of what `python -m benchmarks` printed. Raises ValueError."""
    try:
        return json.loads(text)
    except ValueError:
        lines = text.strip().splitlines()
        return json.loads(lines[-1] if lines else "")


def size(text: str) -> tuple[int, int]:
    """`1024x768` as width and height. Raises ValueError."""
    width, height = text.lower().split("x")
    return int(width), int(height)


def positive(text: str) -> float:
    """A number above 0. Raises ValueError."""
    value = float(text)
    if not value > 0:
        raise ValueError(text)
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=float, default=100, help="tokens of the average message (100)")
    parser.add_argument("--images", type=size, nargs="*", default=(), help="sizes of its images, such as 1024x768")
    parser.add_argument("--unsafe-share", type=float, default=0.0, help="share of unsafe verdicts (0)")
    parser.add_argument("--requests", type=positive, nargs="+", default=RATES, help="requests a second to plan for")
    parser.add_argument("--price-per-hour", type=positive, nargs="*", default=(), help="dollars that a card costs")
    parser.add_argument("--device", choices=DEVICES, help="this card only")
    parser.add_argument("--precision", choices=("bf16", "fp8"), help="else as the profile for the card's memory")
    parser.add_argument("--efficiency", type=positive, default=EFFICIENCY, help="share of the limit that is assumed")
    parser.add_argument("--utilisation", type=positive, default=UTILISATION, help="share of the top speed to plan with")
    parser.add_argument("--cpu-ms", type=positive, help="CPU of the front process a request; else the result's")
    parser.add_argument("--result", type=Path, help="a benchmark's run.json or output, in place of the limit")
    parser.add_argument("--load", default="short", help="which of the result's loads (short)")
    parser.add_argument("--contender", default="guard-moderations", help="and of its contenders (guard-moderations)")
    options = parser.parse_args(arguments)
    front_ms = CPU_MS
    load = Load.warm(options.tokens, tuple(options.images), options.unsafe_share)
    if options.result:
        try:
            speed, front_ms = measured(result_in(options.result.read_text()), options.load, options.contender)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            parser.error(f"{options.result} is no result of python -m benchmarks: {error}")
        speeds = [speed]
    else:
        devices = [DEVICES[options.device]] if options.device else DEVICES.values()
        speeds = [
            calculated(device, options.precision or usual_precision(device), load, options.efficiency)
            for device in devices
        ]
    cpu_ms = options.cpu_ms or front_ms
    print(report(speeds, options.requests, options.price_per_hour, options.utilisation, cpu_ms))


def usual_precision(device: Device) -> Precision:
    """What the profile for the card's memory takes: fp8 below 80 GB."""
    return "bf16" if device.memory_gb >= 80 else "fp8"


if __name__ == "__main__":
    main()
