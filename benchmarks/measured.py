"""Tables of what was measured, made from the records in benchmarks/results/, for benchmarks.pages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks import goals, records, soak_figures
from benchmarks.contenders import BARE_ENGINE, BASELINE
from benchmarks.goals import CACHED, SERVERS
from benchmarks.markdown import bullets, table
from benchmarks.records import Record
from benchmarks.report import number

CALLERS = 32
"""Of the short chats that the goals are for."""

FROM_DOCS = "../benchmarks/results"
"""Where the records lie, seen from a page in docs/."""

MACHINES = {
    "epyc-avx2": "AMD EPYC, AVX2",
    "epyc-zen3-avx2": "AMD EPYC Zen 3, AVX2",
    "epyc-zen4-avx2": "AMD EPYC Zen 4, AVX2 only",
    "epyc-zen4-avx512-bf16": "AMD EPYC Zen 4, AVX512_BF16",
    "epyc-zen5-avx512-bf16": "AMD EPYC Zen 5, AVX512_BF16",
    "xeon-model167-amx-bf16": "Intel Xeon, AMX",
}
"""What readers call a machine; one that is not here keeps the short name of its records."""

NAMES = {
    "guard-moderations": "this server, moderations",
    "guard-chat": "this server, chat",
    BASELINE: "vLLM's server",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One goal: `figure` of both dialects under `load`, and the bound that it is held to."""

    title: str
    load: str
    servers: tuple[str, str]
    figure: Callable[[Mapping[str, Any]], float | None]
    bound: float
    at_least: bool = True

    def values(self, record: Record) -> list[float | None]:
        """Of moderations and of chat; None where the run has no such figure."""
        figures = short(record) if self.load == "short" else record.figures(self.load)
        return [self.figure(figures.get(name, {})) for name in self.servers]

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def say(self, value: float | None) -> str:
        """In bold if it misses its goal."""
        return number(value) if value is None or self.is_met(value) else f"**{number(value)}**"

    @property
    def heading(self) -> str:
        return f"{self.title} ({'≥' if self.at_least else '≤'} {self.bound:g})"


def rate(figures: Mapping[str, Any]) -> float | None:
    """Verdicts a second over those of vLLM's server, the median of the rounds."""
    return _ratio(figures, "verdicts_per_s")


def p99(figures: Mapping[str, Any]) -> float | None:
    """The 99th percentile of latency over that of vLLM's server, the median of the rounds."""
    return _ratio(figures, "p99_ms")


def front_ms(figures: Mapping[str, Any]) -> float | None:
    """CPU milliseconds a request of the process that answers HTTP."""
    milliseconds: float | None = figures.get("cpu_ms", {}).get("front")
    return milliseconds


def _ratio(figures: Mapping[str, Any], key: str) -> float | None:
    ratio: Sequence[float] = figures.get("ratio", {}).get(key, ())
    return ratio[0] if ratio else None


COLUMNS = (
    Column("chats × vLLM", "short", SERVERS, rate, goals.LEAST_RATIO),
    Column("p99 × vLLM", "short", SERVERS, p99, goals.MOST_P99_RATIO, at_least=False),
    Column("CPU ms", "short", SERVERS, front_ms, goals.MOST_CPU_MS, at_least=False),
    Column("cache × vLLM", "repeated", CACHED, rate, goals.LEAST_CACHED_RATIO),
    Column("one image × vLLM", "image1", SERVERS, rate, goals.LEAST_IMAGES_RATIO),
    Column("three images × vLLM", "image3", SERVERS, rate, goals.LEAST_IMAGES_RATIO),
)


# --- Which records ---------------------------------------------------------------------------------------


@cache
def known() -> tuple[Record, ...]:
    return tuple(records.read_all())


def short(record: Record) -> Mapping[str, Any]:
    """Figures by contender of the load that the goals are for."""
    return record.figures("short", CALLERS)


def by_machine(wanted: Callable[[Record], bool]) -> dict[str, list[Record]]:
    """Records that compare both dialects with vLLM's server on short chats, by machine, the oldest first."""
    found: dict[str, list[Record]] = {}
    for record in known():
        if wanted(record) and {*SERVERS, BASELINE} <= short(record).keys():
            found.setdefault(record.machine, []).append(record)
    return dict(sorted(found.items()))


def shown(what: str) -> list[Record]:
    """One record for each machine: the newest of those that measured the most goals, be its figures good or bad."""
    found = by_machine(lambda record: record.what == what)
    return [max(runs, key=lambda each: (_measured(each), each.date)) for runs in found.values()]


def _measured(record: Record) -> int:
    return sum(value is not None for column in COLUMNS for value in column.values(record))


# --- Words -----------------------------------------------------------------------------------------------


def machine(record: Record) -> str:
    return MACHINES.get(record.machine, record.machine)


def link(record: Record, words: str) -> str:
    """To the record, from a page in docs/."""
    return f"[{words}]({FROM_DOCS}/{record.folder.name}/{records.FILE})"


def pair(values: Iterable[float | None], say: Callable[[float | None], str] = number) -> str:
    """Moderations / chat; one dash where neither was measured."""
    both = list(map(say, values))
    return "-" if set(both) == {"-"} else " / ".join(both)


def span(values: Iterable[float | None]) -> str:
    """The least and the greatest as they are shown; one number where they look the same."""
    seen = sorted(value for value in values if value is not None)
    return " to ".join(dict.fromkeys(map(number, (seen[0], seen[-1])))) if seen else "-"


def engine_ms(figures: Mapping[str, Any]) -> float | None:
    """CPU milliseconds a request of the engine and, where it has a process of its own, of the model."""
    spent = [figures["cpu_ms"][role] for role in ("engine", "worker") if figures.get("cpu_ms", {}).get(role)]
    return sum(spent) if spent else None


# --- docs/performance.md ---------------------------------------------------------------------------------


def headline() -> str:
    """The answer in a few lines."""
    found = shown("pocket")
    seen = {column.title: [value for record in found for value in column.values(record)] for column in COLUMNS}
    measured = [value for column in COLUMNS for value in seen[column.title] if value is not None]
    missed = {
        f"{column.title} on {machine(record)}": beyond
        for column in COLUMNS
        for record in found
        if (beyond := [value for value in column.values(record) if value is not None and not column.is_met(value)])
    }
    unmet = sum(map(len, missed.values()))
    ours = [short(record)[name] for record in found for name in SERVERS]
    theirs = [short(record)[BASELINE] for record in found]
    cores = sorted({record.run["machine"]["cores"] for record in found})
    cards = sorted({card for record in known() for card in record.run["machine"]["gpu"]})
    others = "; ".join(f"{what} ({pair(values)})" for what, values in missed.items())
    return bullets(
        f"**Text: {span(seen['chats × vLLM'])} times the verdicts a second of vLLM's server**, with "
        f"{span(seen['p99 × vLLM'])} times its p99 latency. This server gives "
        f"{span(each['verdicts_per_s'] for each in ours)} verdicts a second, vLLM's server "
        f"{span(each['verdicts_per_s'] for each in theirs)}.",
        f"**Repeated text, verdict cache on: {span(seen['cache × vLLM'])} times the verdicts.**",
        f"**Images: {span([*seen['one image × vLLM'], *seen['three images × vLLM']])} times the verdicts.**",
        f"**Work: {span(each.get('forward_passes') for each in ours)} forward passes a verdict**, where vLLM's server "
        f"takes {span(each.get('forward_passes') for each in theirs)}.",
        f"**Goals: {len(measured) - unmet} of the {len(measured)} figures in the table below meet theirs.**"
        + (f" The others: {others}." if missed else ""),
        f"**Machines: {len(found)}, with {' or '.join(map(str, cores))} cores each.** "
        + (f"Cards: {'; '.join(cards)}." if cards else "No GPU has been measured yet."),
    )


def machines() -> str:
    """Machines by goals: moderations / chat, what misses its goal in bold."""
    return table(
        ("machine", "type", "record", *(column.heading for column in COLUMNS)),
        (
            (
                machine(record),
                record.run["model"]["engine"].get("dtype", "-"),
                link(record, record.date[:10]),
                *(pair(column.values(record), column.say) for column in COLUMNS),
            )
            for record in shown("pocket")
        ),
    )


def servers() -> str:
    """Short chats: absolute figures, and how near this server comes to the bare engine."""
    titles = (
        *("machine", "verdicts/s", "vLLM's server", "bare engine", "share of the bare engine"),
        *("p99 ms", "vLLM's server", "engine CPU ms", "vLLM's engine"),
    )

    def row(record: Record) -> tuple[str, ...]:
        figures = short(record)
        ours, theirs, bare = [figures[name] for name in SERVERS], figures[BASELINE], figures.get(BARE_ENGINE, {})
        return (
            machine(record),
            pair(each["verdicts_per_s"] for each in ours),
            number(theirs["verdicts_per_s"]),
            number(bare.get("verdicts_per_s")),
            pair(each.get("bare_engine_ratio", {}).get("verdicts_per_s", [None])[0] for each in ours),
            pair(each["p99_ms"] for each in ours),
            number(theirs["p99_ms"]),
            pair(map(engine_ms, ours)),
            number(engine_ms(theirs)),
        )

    return table(titles, map(row, shown("pocket")))


def small_model() -> str:
    """The made-up model with Llama 4's vocabulary, in the words of the table of goals."""
    columns = (*COLUMNS[:3], Column("mixed × vLLM", "mixed", SERVERS, rate, 0))
    return table(
        ("machine", "record", *(column.title for column in columns)),
        (
            (
                machine(record),
                link(record, record.date[:10]),
                *(pair(column.values(record)) for column in columns),
            )
            for record in shown("small")
        ),
    )


def runs() -> str:
    """All records of a machine with pocket: how far its runs lie apart."""

    def of(found: Sequence[Record], figure: str, at: int = 0) -> list[float]:
        ratios = (short(record)[name]["ratio"][figure] for record in found for name in SERVERS)
        return [ratio[at] for ratio in ratios if ratio]

    titles = ("machine", "dates", "runs", "chats × vLLM", "worst round", "p99 × vLLM", "worst round")
    return table(
        titles,
        (
            (
                machine(found[0]),
                " to ".join(dict.fromkeys(found[at].date[:10] for at in (0, -1))),
                str(len(found)),
                span(of(found, "verdicts_per_s")),
                number(min(of(found, "verdicts_per_s", 1), default=None)),
                span(of(found, "p99_ms")),
                number(max(of(found, "p99_ms", 2), default=None)),
            )
            for found in by_machine(lambda record: record.model == "pocket").values()
        ),
    )


def gateways() -> str:
    """Other gateways in front of vLLM's server: verdicts a second over vLLM's own."""
    names = {**{name: NAMES[name] for name in SERVERS}, "litellm": "LiteLLM's proxy", "nemo": "NeMo Guardrails"}
    rows = []
    for record in known():
        if "gateways" in record.what.split("-"):
            for load in dict.fromkeys(section["load"] for section in record.run["sections"]):
                figures = record.figures(load)
                cells = (number(rate(figures.get(name, {}))) for name in names)
                rows.append((link(record, f"{record.date[:10]}, {machine(record)}"), load, *cells))
    return table(("record", "load", *names.values()), rows)


def open_loop() -> str:
    """Requests that arrive whether answers come or not."""
    titles = ("record", "server", "arrivals/s", "verdicts/s within 100 ms", "p50 ms", "p99 ms", "p99 × vLLM")
    rows = []
    for record in known():
        opened = [each for each in record.run["sections"] if each["load"] == "short" and each["rate"] is not None]
        rows += [
            (
                link(record, f"{record.date[:10]}, {machine(record)}"),
                NAMES.get(name, name),
                *map(number, (section["rate"], figures["goodput_per_s"], figures["p50_ms"], figures["p99_ms"])),
                number(p99(figures)),
            )
            for section in opened
            for name, figures in section["contenders"].items()
        ]
    return table(titles, rows)


# --- benchmarks/results/README.md ------------------------------------------------------------------------


def index() -> str:
    """Every record, the newest first."""
    titles = (
        *("record", "processor or card, as recorded", "model", "contenders", "loads"),
        *("short chats/s", "× vLLM", "p99 × vLLM", "commit"),
    )

    def row(record: Record) -> tuple[str, ...]:
        stated = record.run["machine"]
        ours = [short(record).get(name, {}) for name in SERVERS]
        loads = dict.fromkeys(section["load"] for section in record.run["sections"])
        return (
            f"[{record.folder.name}]({record.folder.name}/{records.FILE})",
            f"{'; '.join(stated['gpu']) or stated['cpu']}, {stated['cores']} cores",
            f"{record.model}, {record.run['model']['engine'].get('dtype', '-')}",
            ", ".join(records.OLD_NAMES.get(name, name) for name in record.run["options"]["contenders"].split(",")),
            ", ".join(loads),
            pair(each.get("verdicts_per_s") for each in ours),
            pair(map(rate, ours)),
            pair(map(p99, ours)),
            record.commit,
        )

    return table(titles, map(row, reversed(known())))


# --- docs/reliability.md ---------------------------------------------------------------------------------


def soaks() -> str:
    """Every soak that was long enough to say something about growth, the newest first."""
    found = [each for each in records.read_all(kind=records.SOAK) if each.run["seconds"] >= soak_figures.LEAST_S]
    if not found:
        return "No soak of half an hour or more is recorded yet."
    titles = (
        *("record", "minutes", "requests", "memory, % an hour", "descriptors", "5xx", "wrong answers"),
        *("/health p99 ms", "targets met"),
    )

    def row(record: Record) -> tuple[str, ...]:
        run = record.run
        memory, descriptors, held = run["memory"]["all"], run["descriptors"], run["targets"]
        errors = sum(n for seen in run["statuses"].values() for status, n in seen.items() if status[0] == "5")
        return (
            link(record, f"{record.date[:10]}, {machine(record)}"),
            f"{run['seconds'] / 60:.0f}",
            f"{run['requests']:,}",
            f"{number(memory['percent_per_hour'])} ± {number(memory['standard_error'])}",
            " to ".join(str(sum(descriptors[when].values())) for when in ("before", "after")),
            str(errors),
            str(sum(run["wrong"].values())),
            number(run["health_ms"]["p99"]),
            f"{sum(target['met'] is True for target in held)} of {len(held)}",
        )

    return table(titles, map(row, reversed(found)))


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made for made in (headline, machines, servers, small_model, runs, gateways, open_loop, index, soaks)
}
