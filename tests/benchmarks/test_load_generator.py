"""The load generator against a small server of our own, whose answers are known."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import pytest
from aiohttp import web

from benchmarks.load_generator import Job, body, poisson_arrivals, run, verdict
from benchmarks.model import ROOT


class Answers:
    """Answers chat completions as told, and remembers what it was asked and how many at once."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.url = ""
        self.at_once = self.most_at_once = 0
        self.say = "safe"
        self.status = 200
        self.delay_s = 0.0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay_s)
        self.at_once -= 1
        return web.json_response({"choices": [{"message": {"content": self.say}}]}, status=self.status)


@pytest.fixture
async def server():
    answers = Answers()
    application = web.Application()
    application.router.add_post("/v1/chat/completions", answers.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    answers.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/chat/completions"
    yield answers
    await runner.cleanup()


def job(url: str, **changes) -> Job:
    settings = {
        "url": url,
        "dialect": "chat",
        "model": "m",
        "load": "short",
        "shares": {"short": 1.0},
        "context": 8192,
        "seed": 1,
        "salt": "1",
        "requests": 40,
        "concurrency": 4,
        "warm_up": 8,
        "seconds": 60,
    }
    return Job(**{**settings, **changes})


async def test_everything_is_asked_at_the_concurrency_and_the_warm_up_is_not_counted(server):
    server.delay_s = 0.002
    outcome = await run(job(server.url))
    assert len(server.asked) == outcome.asked == outcome.answered == 40
    assert server.most_at_once == 4
    # Of 40, 8 came before the clock; those under way then left before it, and those under way at its end come after it.
    assert 40 - 8 - 4 <= len(outcome.latencies_ms) <= 40 - 8
    assert 40 - 8 - 4 <= outcome.verdicts <= 40 - 8
    assert outcome.errors == {}
    assert outcome.unsafe == 0
    assert min(outcome.latencies_ms) >= 2
    assert outcome.window_s > 0


async def test_time_ends_it_before_the_questions_do(server):
    server.delay_s = 0.01
    outcome = await run(job(server.url, requests=400, seconds=0.1))
    assert 8 < outcome.asked < 400


@pytest.mark.parametrize(
    ("status", "say", "error"),
    [(503, "safe", "HTTP 503"), (200, "I cannot judge that", "no verdict"), (200, None, "no verdict")],
)
async def test_what_is_no_verdict_is_an_error_wherever_it_happens(server, status, say, error):
    server.status, server.say = status, say
    outcome = await run(job(server.url))
    assert outcome.errors == {error: 40}
    assert outcome.verdicts == 0
    assert outcome.latencies_ms == []


async def test_nobody_there_is_an_error_too():
    outcome = await run(job("http://127.0.0.1:9/", requests=8, warm_up=0))
    assert sum(outcome.errors.values()) == 8


async def test_open_loop_requests_leave_whether_answers_come_or_not(server):
    server.delay_s = 0.3
    outcome = await run(job(server.url, requests=1000, rate=200.0, seconds=0.4, warm_up=0.0))
    assert outcome.asked == sum(arrival <= 0.4 for arrival in poisson_arrivals(200.0, 1000, 1))
    assert server.most_at_once > 4
    assert len(outcome.latencies_ms) == outcome.answered == outcome.asked


async def test_open_loop_latency_counts_from_when_it_should_have_left(server):
    # The generator is held up for a while after it has begun: those due meanwhile leave late.
    held = asyncio.get_running_loop().call_later(0.05, time.sleep, 0.2)
    outcome = await run(job(server.url, requests=200, rate=200.0, seconds=0.4, warm_up=0.0))
    held.cancel()
    assert outcome.lag_ms > 150
    assert max(outcome.latencies_ms) > 150


def test_arrivals_are_poisson_and_repeat_with_their_seed():
    arrivals = poisson_arrivals(50.0, 5000, 7)
    assert arrivals == poisson_arrivals(50.0, 5000, 7) != poisson_arrivals(50.0, 5000, 8)
    gaps = [later - earlier for earlier, later in zip([0.0, *arrivals], arrivals, strict=False)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert variance**0.5 == pytest.approx(mean, rel=0.1)  # exponential: the deviation is the mean


@pytest.mark.parametrize(
    ("dialect", "answer", "unsafe"),
    [
        ("moderations", {"results": [{"flagged": False}]}, False),
        ("moderations", {"results": [{"flagged": True}]}, True),
        ("chat", {"choices": [{"message": {"content": "\n\nsafe"}}]}, False),
        ("chat", {"choices": [{"message": {"content": "\n\nunsafe\nS1"}}]}, True),
        ("checks", {"status": "passed"}, False),
        ("checks", {"status": "blocked"}, True),
    ],
)
def test_verdicts_of_every_dialect(dialect, answer, unsafe):
    assert verdict(dialect, answer) is unsafe


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        ("moderations", {"results": []}),
        ("moderations", {"results": [{"flagged": None}]}),
        ("chat", {"choices": [{"message": {"content": "safely"}}]}),
        ("checks", {"status": "modified"}),
    ],
)
def test_anything_else_is_no_verdict(dialect, answer):
    with pytest.raises((ValueError, KeyError, IndexError)):
        verdict(dialect, answer)


def test_every_dialect_sends_the_same_content():
    content = [{"type": "text", "text": "hello"}]
    assert json.loads(body("moderations", "m", content)) == {"input": content}
    for dialect in ("chat", "checks"):
        assert json.loads(body(dialect, "m", content))["messages"] == [{"role": "user", "content": content}]
    assert json.loads(body("chat", "m", content))["temperature"] == 0


async def test_as_a_program_it_reads_a_job_and_writes_an_outcome(server):
    work = json.dumps(asdict(job(server.url, requests=12, warm_up=4)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.load_generator", cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate(work.encode())
    assert json.loads(out)["answered"] == 12
