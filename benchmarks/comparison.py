"""Runs every load against every contender, interleaved, and keeps what was seen."""

import json
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


@dataclass(slots=True)
class Slice:
    """One load on one contender in one round. CPU and counters belong to all that was asked, warm-up included."""

    load: str
    contender: str
    round: int
    rate: float | None
    outcome: Outcome
    cpu_s: dict[str, float]
    engine: EngineCounters | None


def generate(job: Job) -> Outcome:
    """Run the load generator in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load_generator"]
    result = subprocess.run(command, cwd=ROOT, input=json.dumps(asdict(job)).encode(), capture_output=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the load generator failed: {result.stderr.decode(errors='replace')[-2000:]}")
    return Outcome(**json.loads(result.stdout))


@dataclass(slots=True)
class Comparison:
    """What is asked of whom, and for how long."""

    contenders: Sequence[Contender]
    services: Mapping[str, Service]
    concurrency: int
    rounds: int
    seconds: float
    slices: list[Slice] = field(default_factory=list)

    def closed(self, load: Load) -> None:
        """`rounds` slices of `load` at each contender, taking turns, after one that only shows how many to ask."""
        speeds: dict[str, float] = {}
        for contender in self.contenders:
            pilot = self._slice(contender, load, -1, self._job(contender, load, -1, 3 * self.concurrency))
            speeds[contender.name] = pilot.outcome.verdicts / pilot.outcome.window_s if pilot.outcome.window_s else 0.0
        for number in range(self.rounds):
            # Nobody is always first.
            turn = number % len(self.contenders)
            for contender in [*self.contenders[turn:], *self.contenders[:turn]]:
                wanted = int(speeds[contender.name] * self.seconds) + 2 * self.concurrency
                self.slices.append(self._slice(contender, load, number, self._job(contender, load, number, wanted)))

    def _job(self, contender: Contender, load: Load, number: int, requests: int) -> Job:
        return Job(
            url=contender.url,
            dialect=contender.dialect,
            model=contender.model,
            load=load.name,
            shares=dict(load.shares),
            # Equal for all contenders: they judge the same texts.
            seed=1000 + number,
            salt=str(1 + [other.name for other in self.contenders].index(contender.name)),
            requests=requests,
            concurrency=self.concurrency,
            warm_up=self.concurrency,
        )

    def _slice(self, contender: Contender, load: Load, number: int, job: Job) -> Slice:
        processes = tree(
            {
                self.services[name].process.pid: "gateway" if name in ("litellm", "nemo") else "server"
                for name in contender.services
            }
        )
        counters = read_counters(contender.engine) if contender.engine else None
        before = cpu_seconds(processes)
        outcome = generate(job)
        after = cpu_seconds(processes)
        counted = read_counters(contender.engine) - counters if contender.engine and counters else None
        used = {role: after[role] - before[role] for role in after} | {"load": outcome.cpu_s}
        return Slice(load.name, contender.name, number, job.rate, outcome, used, counted)
