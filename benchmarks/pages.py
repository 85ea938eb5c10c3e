"""The tables of the pages on performance, capacity and reliability, made by the code that calculates or measures them.

    python -m benchmarks.pages    # writes them anew, between the marks in the pages

tests/benchmarks/test_pages.py fails when a page is not up to date.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import capacity, measured, roofline
from benchmarks.capacity import HOSTED_PRICE, OPENROUTER_DAY, RATES, calculated, cards_needed, usual_precision
from benchmarks.markdown import bullets, table
from benchmarks.records import RESULTS
from benchmarks.roofline import DEVICES, LLAMA_GUARD_4, REACHED, VENDOR, Device, Load, Precision

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    *(DOCS / name for name in ("capacity.md", "performance.md", "performance-limits.md", "reliability.md")),
    RESULTS / "README.md",
)

SHORT, LONG, IMAGE = Load.warm(100), Load.warm(2000), Load.warm(20, ((1024, 768),))
H100 = DEVICES["h100"]
EXAMPLE_PRICES = (0.5, 1.0, 2.0, 4.0)

PREFILL_CHUNK = 1024
"""Tokens of a long prompt in one step (`long_prefill_token_threshold` of the profile)."""


def rows_of_cards() -> list[tuple[Device, Precision]]:
    """Every card as its profile uses it; the H100 in fp8 too."""
    rows = [(device, usual_precision(device)) for device in DEVICES.values()]
    return [rows[0], (H100, "fp8"), *rows[1:]]


def number(value: float) -> str:
    """Two digits that count: these are no measurements."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


# --- docs/capacity.md ------------------------------------------------------------------------------------


def cards() -> str:
    """Top speed of a card by load."""
    titles = ("card", "weights", "short chat", "2,000 tokens", "one image of 1024 x 768", "a full step", "its peaks")
    return table(
        titles,
        (
            (
                device.name,
                precision,
                *(f"{number(calculated(device, precision, load).verdicts_per_s)}/s" for load in (SHORT, LONG, IMAGE)),
                f"{1000 * full_step_seconds(device, precision):.0f} ms",
                device.source,
            )
            for device, precision in rows_of_cards()
        ),
    )


def full_step_seconds(device: Device, precision: Precision) -> float:
    """Time of a step of STEP_TOKENS at the efficiency that is assumed."""
    least = roofline.step_seconds(LLAMA_GUARD_4, device, precision, roofline.STEP_TOKENS, rows=10)
    return least / capacity.EFFICIENCY / (REACHED if device.source == VENDOR else 1)


def fleet() -> str:
    """Cards for a peak, one of them spare."""
    titles = ("card", "weights", *(f"{rate:,} {kind}/s" for kind in ("chats", "images") for rate in RATES))
    return table(
        titles,
        (
            (
                device.name,
                precision,
                *(
                    f"{cards_needed(rate, calculated(device, precision, load)):,}"
                    for load in (SHORT, IMAGE)
                    for rate in RATES
                ),
            )
            for device, precision in rows_of_cards()
        ),
    )


def own_or_rent() -> str:
    """What owning costs at example prices, and from which volume on it is cheaper."""
    speed = calculated(H100, "bf16", SHORT)
    titles = (
        *("a card's hour (example)", "a million short chats", "a million tokens"),
        *("one card pays off above", "two cards pay off above"),
    )
    rows = [
        (
            f"${price:.2f}",
            f"${capacity.dollars_per_million_verdicts(speed, price):.2f}",
            f"${capacity.dollars_per_million_tokens(speed, price):.3f}",
            *(
                f"{number(capacity.break_even_verdicts_per_day(speed, price, count))} a day"
                for count in (1, 1 + capacity.SPARES)
            ),
        )
        for price in EXAMPLE_PRICES
    ]
    return table(titles, [*rows, ("OpenRouter", f"${1e6 * speed.hosted_dollars:.2f}", f"${HOSTED_PRICE:.3f}", "", "")])


def real_day() -> str:
    """OpenRouter's day of this model on one card."""
    day = OPENROUTER_DAY
    titles = ("card", "weights", "share of its top speed that the day keeps busy", "days that it carries, at 70 %")
    rows = []
    for device, precision in rows_of_cards():
        speed = calculated(device, precision, day.load)
        share = day.verdicts_per_s / speed.verdicts_per_s
        rows.append((device.name, precision, f"{100 * share:.1f} %", number(capacity.UTILISATION / share)))
    return table(titles, rows)


def front() -> str:
    """Cores of the processes that answer HTTP, and what one of them carries."""
    kinds = (
        (f"text, {capacity.CPU_MS} ms a request", capacity.CPU_MS),
        (f"one image, {capacity.LARGE_IMAGE_CPU_MS:.0f} ms a request", capacity.LARGE_IMAGE_CPU_MS),
    )
    rows = [(name, *(f"{number(capacity.cpu_cores(rate, ms))}" for rate in RATES)) for name, ms in kinds]
    made = table(("cores for", *(f"{rate:,}/s" for rate in RATES)), rows)
    return f"{made}\n\nOne server process uses one core: that carries {number(1000 / capacity.CPU_MS)} texts a second."


def summary() -> str:
    """What to remember."""
    speed = calculated(H100, "bf16", SHORT)
    planned = speed.verdicts_per_s * capacity.UTILISATION
    pays_off = capacity.break_even_verdicts_per_day(speed, 2, 1)
    day = OPENROUTER_DAY
    share = day.verdicts_per_s / calculated(H100, "bf16", day.load).verdicts_per_s
    return bullets(
        f"**One H100 carries about {number(planned)} short chats a second** with room for bursts: "
        f"{number(86_400 * planned / 1e6)} million a day. A hundred a second need two cards, one of them spare.",
        f"**Rent below, own above.** A host charges ${HOSTED_PRICE} a million tokens, so "
        f"${1e6 * speed.hosted_dollars:.0f} a million short chats. At $2 an hour (an example) one card costs $48 a "
        f"day: it pays off above {number(pays_off)} verdicts a day, which is "
        f"{number(100 * pays_off / (86_400 * planned))} % of what it can carry.",
        "**A full card is cheap, an idle one is not.** Busy around the clock it judges a million short chats for "
        f"${capacity.dollars_per_million_verdicts(speed, 2):.2f}; with a tenth of that traffic for ten times as much.",
        f"**All that OpenRouter serves of this model in a day** ({number(day.verdicts)} verdicts, ${day.dollars:.1f}) "
        f"keeps {100 * share:.1f} % of one H100 busy.",
    )


# --- docs/performance-limits.md --------------------------------------------------------------------------


def constants() -> str:
    return f"```\n{roofline.constants(LLAMA_GUARD_4)}\n```"


def limit() -> str:
    return roofline.table(LLAMA_GUARD_4, H100)


def peaks() -> str:
    """What the cards are taken to do."""
    return table(
        ("card", "bf16 TFLOP/s", "fp8 TFLOP/s", "memory TB/s", "source"),
        (
            (
                device.name,
                f"{device.bf16_flops / 1e12:,.0f}",
                f"{device.fp8_flops / 1e12:,.0f}" if device.fp8_flops else "-",
                f"{device.bandwidth / 1e12:.2f}",
                device.source,
            )
            for device in DEVICES.values()
        ),
    )


def savings() -> str:
    """What can make a verdict cheaper, on the H100 in bf16."""
    cached = ", ".join(
        f"{_most(Load.warm(tokens)) / _most(replace(Load.warm(tokens), cached_tokens=0)):.2f} times for a message of "
        f"{tokens:,} tokens"
        for tokens in (20, 100, 2000)
    )
    free = _most(SHORT) / _most(replace(SHORT, unsafe_share=1.0, decode_steps=2)) - 1
    one_pass = roofline.least_pass_seconds(LLAMA_GUARD_4, H100, "bf16")
    return bullets(
        f"**Fewer tokens.** {roofline.PREAMBLE_TOKENS} of the {SHORT.prompt_tokens(LLAMA_GUARD_4):.0f} tokens of a "
        f"short chat are the same in every prompt. Keeping them in the prefix cache gives more verdicts: {cached}.",
        "**Fewer passes.** An answer that the model writes by itself takes three passes: blank line, word, end. The "
        f"two extra passes cost {100 * free:.1f} % in full steps, and {1000 * one_pass:.1f} ms each on an idle card.",
        f"**Cheaper arithmetic.** fp8 weights give up to {_most(SHORT, 'fp8') / _most(SHORT):.2f} times the verdicts.",
    )


def long() -> str:
    """What a prompt that fills the context costs."""
    context = 163_840
    seconds = LLAMA_GUARD_4.prompt_flops(context) / H100.bf16_flops
    attention = 1 - context * LLAMA_GUARD_4.token_flops / LLAMA_GUARD_4.prompt_flops(context)
    crossing = LLAMA_GUARD_4.token_flops / LLAMA_GUARD_4.attention_flops
    last = roofline.step_seconds(LLAMA_GUARD_4, H100, "bf16", PREFILL_CHUNK, context)
    first = roofline.step_seconds(LLAMA_GUARD_4, H100, "bf16", PREFILL_CHUNK)
    return bullets(
        f"From {number(crossing)} tokens on, a token costs more for attention than for the weights.",
        f"The whole context of {context:,} tokens takes an H100 at least {seconds:.0f} s in bf16, and "
        f"{100 * attention:.0f} % of that is attention. An engine that reaches {100 * capacity.EFFICIENCY:.0f} % of "
        f"the limit needs {seconds / capacity.EFFICIENCY:.0f} s.",
        f"Such a prompt is read in chunks of {PREFILL_CHUNK:,} tokens. The first chunk takes at least "
        f"{1000 * first:.0f} ms, the last one {1000 * last:.0f} ms.",
    )


def _most(load: Load, precision: Precision = "bf16") -> float:
    return roofline.most_verdicts_per_second(LLAMA_GUARD_4, H100, precision, load)


def balance(device: Device, precision: Precision) -> float:
    """Tokens of a step whose arithmetic takes as long as reading the weights."""
    seconds = roofline.least_pass_seconds(LLAMA_GUARD_4, device, precision)
    return seconds * device.flops(precision) / LLAMA_GUARD_4.token_flops


def least() -> str:
    """Least times by card."""
    titles = (
        *("card", "weights", "one forward pass", "limits are equal at"),
        *(f"a step of {roofline.STEP_TOKENS:,} tokens", "the whole context, alone"),
    )
    return table(
        titles,
        (
            (
                device.name,
                precision,
                f"{1000 * roofline.least_pass_seconds(LLAMA_GUARD_4, device, precision):.1f} ms",
                f"{number(balance(device, precision))} tokens",
                f"{1000 * roofline.step_seconds(LLAMA_GUARD_4, device, precision, roofline.STEP_TOKENS):.0f} ms",
                f"{LLAMA_GUARD_4.prompt_flops(163_840) / device.flops(precision):.0f} s"
                if device.memory_gb > 24
                else "does not fit",
            )
            for device, precision in rows_of_cards()
        ),
    )


def steps() -> str:
    """Least time of a step of short chats by its tokens, and the most verdicts a second in such steps."""
    chosen: tuple[tuple[Device, Precision], ...] = ((H100, "bf16"), (DEVICES["l40s"], "fp8"), (DEVICES["l4"], "fp8"))
    computed = SHORT.computed_tokens(LLAMA_GUARD_4)

    def cell(device: Device, precision: Precision, tokens: int) -> str:
        context = SHORT.prompt_tokens(LLAMA_GUARD_4) - computed / 2
        seconds = roofline.step_seconds(LLAMA_GUARD_4, device, precision, tokens, context, rows=tokens / computed)
        most = roofline.most_verdicts_per_second(LLAMA_GUARD_4, device, precision, SHORT, tokens)
        return f"{1000 * seconds:.0f} ms, {most:.0f}/s"

    return table(
        ("tokens a step", *(f"{device.name}, {precision}" for device, precision in chosen)),
        ((f"{tokens:,}", *(cell(*card, tokens) for card in chosen)) for tokens in (256, 512, 1024, 2048, 4096)),
    )


# --- The pages -------------------------------------------------------------------------------------------

MADE = (
    *(summary, cards, fleet, own_or_rent, real_day, front),
    *(constants, peaks, least, limit, savings, steps, long),
)

TABLES: dict[str, Callable[[], str]] = {made.__name__: made for made in MADE} | measured.TABLES

BLOCK = re.compile(r"(<!-- made by benchmarks\.pages: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str) -> str:
    """The page with its tables made anew. Raises KeyError for one that nobody makes."""
    return BLOCK.sub(lambda found: found[1] + f"{TABLES[found[2]]()}\n" + found[3], page)


def main() -> None:
    for file in PAGES:
        file.write_text(fill(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
