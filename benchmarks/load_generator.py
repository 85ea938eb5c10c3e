"""Sends one load to one contender and takes down what came back: a light process of its own, not to be the limit.

    python -m benchmarks.load_generator < job.json > outcome.json

Closed loop: `concurrency` callers, each of whom asks again as soon as it is answered. Open loop: requests leave at the
times of a Poisson process whether answers come or not, and a latency counts from the time at which the request should
have left, so that a server that stalls cannot slow its own examination.
"""

import asyncio
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import psutil
import uvloop

from benchmarks.traffic import Content, Load


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask, and for how long: until all `requests` are asked or `seconds` are over.

    `rate` of None is the closed loop. The clock starts after `warm_up` answers or, open loop, seconds.
    """

    url: str
    dialect: str
    model: str
    load: str
    shares: dict[str, float]
    context: int
    seed: int
    salt: str
    requests: int
    concurrency: int
    warm_up: float
    seconds: float
    rate: float | None = None
    timeout_s: float = 120.0


@dataclass(slots=True)
class Outcome:
    """Latencies in milliseconds of the answers to requests that left within the window, errors by what went wrong.

    `verdicts` came within `window_s`; `answered` counts whatever was asked, warm-up included, as counters outside do.
    """

    latencies_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    verdicts: int = 0
    unsafe: int = 0
    asked: int = 0
    answered: int = 0
    window_s: float = 0.0
    cpu_s: float = 0.0
    lag_ms: float = 0.0
    """By how much the generator was at most late in sending, open loop: what it adds to latencies."""


def body(dialect: str, model: str, content: Content) -> bytes:
    """The request of a caller who wants this content judged, in the dialect moderations, chat or checks (NeMo's)."""
    if dialect == "moderations":
        return json.dumps({"input": content}).encode()
    message = {"role": "user", "content": content}
    if dialect == "checks":
        return json.dumps({"model": model, "messages": [message]}).encode()
    return json.dumps({"model": model, "messages": [message], "temperature": 0, "max_tokens": 50}).encode()


def verdict(dialect: str, answer: Any) -> bool:
    """Whether the answer says unsafe. Raises ValueError, KeyError, IndexError or TypeError when it is no verdict."""
    if dialect == "moderations":
        flagged = answer["results"][0]["flagged"]
        if not isinstance(flagged, bool):
            raise ValueError("flagged is no boolean")
        return flagged
    if dialect == "checks":
        return {"passed": False, "blocked": True}[answer["status"]]
    said = answer["choices"][0]["message"]["content"]
    if not isinstance(said, str):
        raise ValueError("the content is no text")
    word, _, _ = said.strip().partition("\n")
    if word not in ("safe", "unsafe"):
        raise ValueError("neither safe nor unsafe")
    return word == "unsafe"


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Seconds from the start at which `count` requests leave, `rate` of them a second on average."""
    choose = random.Random(seed)
    return list(itertools.accumulate(choose.expovariate(rate) for _ in range(count)))


class Caller:
    """Asks, and takes down when it asked and what it was told."""

    def __init__(self, session: aiohttp.ClientSession, job: Job) -> None:
        self._session = session
        self._job = job
        self.taken: list[tuple[float, float, bool | None, str]] = []
        """When it left or should have, when it was answered, the verdict, and the error if there is no verdict."""

    async def ask(self, data: bytes, due: float | None = None) -> None:
        sent = time.perf_counter() if due is None else due
        said, error = None, ""
        try:
            async with self._session.post(self._job.url, data=data) as response:
                payload = await response.read()
            if response.status != 200:
                error = f"HTTP {response.status}"
            else:
                said = verdict(self._job.dialect, json.loads(payload))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            error = "no verdict"
        except (aiohttp.ClientError, TimeoutError) as problem:
            error = type(problem).__name__
        self.taken.append((sent, time.perf_counter(), said, error))


async def run(job: Job) -> Outcome:
    """All of `job`. Contents are made before the clock starts."""
    contents = Load(job.load, job.shares, job.context).contents(job.seed, job.salt)
    bodies = [body(job.dialect, job.model, content) for content in itertools.islice(contents, job.requests)]
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=job.timeout_s)
    process = psutil.Process()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=timeout
    ) as session:
        caller = Caller(session, job)
        before = sum(process.cpu_times()[:2])
        if job.rate is None:
            begin, end = await _closed_loop(caller, iter(bodies), job)
            lag_s = 0.0
        else:
            begin, end, lag_s = await _open_loop(caller, bodies, job)
        cpu_s = sum(process.cpu_times()[:2]) - before
    outcome = _read(caller.taken, begin, end)
    outcome.cpu_s, outcome.lag_ms = cpu_s, 1000 * lag_s
    return outcome


async def _closed_loop(caller: Caller, bodies: Iterator[bytes], job: Job) -> tuple[float, float]:
    begin, end = time.perf_counter(), math.inf
    answered = 0

    async def work() -> None:
        nonlocal begin, end, answered
        for data in bodies:
            await caller.ask(data)
            answered += 1
            if answered == int(job.warm_up):
                begin = time.perf_counter()
            if answered >= job.warm_up and time.perf_counter() - begin > job.seconds:
                break
        # The first caller to stop ends the window: from here on the load is lighter than it should be.
        end = min(end, time.perf_counter())

    await asyncio.gather(*(work() for _ in range(job.concurrency)))
    return begin, end


async def _open_loop(caller: Caller, bodies: list[bytes], job: Job) -> tuple[float, float, float]:
    assert job.rate is not None
    arrivals = poisson_arrivals(job.rate, len(bodies), job.seed)
    start, lag = time.perf_counter(), 0.0
    asking = []
    for data, arrival in zip(bodies, arrivals, strict=True):
        if arrival > job.seconds:
            break
        due = start + arrival
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        lag = max(lag, time.perf_counter() - due)
        asking.append(asyncio.create_task(caller.ask(data, due)))
    await asyncio.gather(*asking)
    return start + job.warm_up, start + job.seconds, lag


def _read(taken: list[tuple[float, float, bool | None, str]], begin: float, end: float) -> Outcome:
    outcome = Outcome(window_s=end - begin, asked=len(taken))
    for sent, answered, said, error in taken:
        outcome.answered += said is not None
        if error:
            # Wherever it happened, warm-up included: an error is never dropped.
            outcome.errors[error] = outcome.errors.get(error, 0) + 1
            continue
        outcome.unsafe += bool(said)
        outcome.verdicts += begin < answered <= end
        if begin <= sent <= end:
            outcome.latencies_ms.append(round(1000 * (answered - sent), 3))
    return outcome


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(Job(**json.load(sys.stdin)))))))
