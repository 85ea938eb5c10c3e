"""Runs loads against contenders, interleaved, and keeps what was seen."""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.contenders import Contender, Service
from benchmarks.engine_counters import EngineCounters, read_counters
from benchmarks.load_generator import Job, Outcome
from benchmarks.model import ROOT
from benchmarks.processes import cpu_seconds, tree
from benchmarks.traffic import Load

PILOT = -1
"""The round before the first: it warms up, shows how many to ask, and is in no figure."""


@dataclass(slots=True)
class Slice:
    """One load on one contender in one round. CPU and counters belong to all that was asked, warm-up included."""

    contender: str
    round: int
    outcome: Outcome
    cpu_s: dict[str, float]
    engine: EngineCounters | None

    @property
    def verdicts_per_s(self) -> float:
        window = self.outcome.window_s
        return self.outcome.verdicts / window if window > 0 else float("nan")


@dataclass(slots=True)
class Section:
    """One load at one concurrency, or at one rate of arrivals a second, on everyone: a table of the report."""

    load: Load
    concurrency: int
    rate: float | None
    slices: list[Slice] = field(default_factory=list)

    @property
    def title(self) -> str:
        how = f"{self.concurrency} concurrent" if self.rate is None else f"{self.rate:.1f} arrivals/s"
        return f"{self.load.name}, {how}"

    def of(self, contender: str) -> list[Slice]:
        """The contender's slices in the order of the rounds."""
        return sorted((each for each in self.slices if each.contender == contender), key=lambda each: each.round)

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(each.contender for each in self.slices))


def generate(job: Job) -> Outcome:
    """Run the load generator in a process of its own. Raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "benchmarks.load_generator"]
    result = subprocess.run(command, cwd=ROOT, input=json.dumps(asdict(job)).encode(), capture_output=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the load generator failed: {result.stderr.decode(errors='replace')[-2000:]}")
    return Outcome(**json.loads(result.stdout))


@dataclass(slots=True)
class Comparison:
    """Who is asked, and for how long: `rounds` turns each, of `seconds`."""

    contenders: Sequence[Contender]
    services: Mapping[str, Service]
    rounds: int
    seconds: float
    sections: list[Section] = field(default_factory=list)

    def closed(self, load: Load, concurrency: int) -> Section:
        """`concurrency` callers at a time, each of whom asks again as soon as it is answered."""
        section = Section(load, concurrency, None)
        self.sections.append(section)
        speeds: dict[str, float] = {}
        for contender in self._turns(section, 0):
            job = self._job(contender, section, PILOT, requests=4 * concurrency, warm_up=concurrency)
            speeds[contender.name] = self._slice(contender, PILOT, job).verdicts_per_s
        for number in range(self.rounds):
            for contender in self._turns(section, number):
                speed = speeds[contender.name]
                # Twice what is expected: the clock should end a slice and not a lack of questions.
                wanted = 2 * concurrency + int(2 * self.seconds * speed) if speed > 0 else 4 * concurrency
                job = self._job(contender, section, number, requests=wanted, warm_up=concurrency)
                section.slices.append(self._slice(contender, number, job))
        return section

    def open(self, load: Load, rate: float, concurrency: int) -> Section:
        """`rate` arrivals a second, equal for all. `concurrency` is that of the closed loop which the rate is from."""
        section = Section(load, concurrency, rate)
        self.sections.append(section)
        for number in range(self.rounds):
            for contender in self._turns(section, number):
                wanted = int(2 * self.seconds * rate) + 10
                job = self._job(contender, section, number, requests=wanted, warm_up=0.1 * self.seconds)
                section.slices.append(self._slice(contender, number, job))
        return section

    def _turns(self, section: Section, number: int) -> list[Contender]:
        """Who can do it; nobody is always first."""
        able = [each for each in self.contenders if each.takes(section.load)]
        turn = number % len(able)
        return [*able[turn:], *able[:turn]]

    def _job(self, contender: Contender, section: Section, number: int, requests: int, warm_up: float) -> Job:
        return Job(
            url=contender.url,
            dialect=contender.dialect,
            model=contender.model,
            load=section.load.name,
            shares=dict(section.load.shares),
            context=section.load.context,
            # Equal for all contenders: they judge the same texts. New in each section and round.
            seed=1000 * len(self.sections) + number,
            salt=str(1 + [other.name for other in self.contenders].index(contender.name)),
            requests=requests,
            concurrency=section.concurrency,
            warm_up=warm_up,
            seconds=self.seconds,
            rate=section.rate,
        )

    def _slice(self, contender: Contender, number: int, job: Job) -> Slice:
        processes = tree({self.services[name].process.pid: self.services[name].role for name in contender.services})
        counters = read_counters(contender.engine) if contender.engine else None
        before = cpu_seconds(processes)
        outcome = generate(job)
        after = cpu_seconds(processes)
        counted = read_counters(contender.engine) - counters if contender.engine and counters else None
        used = {role: after[role] - before[role] for role in after} | {"load": outcome.cpu_s}
        return Slice(contender.name, number, outcome, used, counted)


def speed(section: Section, contender: str) -> float:
    """Verdicts a second of the contender's median round."""
    return statistics.median(each.verdicts_per_s for each in section.of(contender))
