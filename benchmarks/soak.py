"""One server under mixed traffic for an hour: does its memory grow, does it leak, does it ever answer wrongly?

    python -m benchmarks.soak                       # an hour on the pocket model, after ten minutes of warm-up
    python -m benchmarks.soak --minutes 5           # shorter; memory then has no target
    python -m benchmarks.soak --record              # keep the result in a new folder of benchmarks/results/

The exit status is 0 if every target is met, 1 if not. benchmarks/README.md says what the figures are.
"""

import argparse
import asyncio
import contextlib
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks import records, soak_figures, soak_traffic
from benchmarks.contenders import Service, free_port, start_service
from benchmarks.model import ROOT
from benchmarks.processes import tree
from benchmarks.soak_figures import Sample, Soaked
from benchmarks.soak_traffic import Tally
from benchmarks.stamp import stamp

OUT = ROOT / "build" / "soak"
POCKET = [sys.executable, "-m", "server", "serve", "--profile", "pocket"]
END_TIMEOUT_S = 60
SAMPLE_EVERY_S, HEALTH_EVERY_S = 5.0, 0.25
SETTLE_S = 10.0
"""Time without traffic before descriptors are counted: connections and pictures in work are gone by then."""

ORPHANS_END_S = 5.0
"""Within this time after the server its other processes have ended too (docs/reliability.md, row 16)."""

MOST_WARM_UP_S = 600.0
DEFECT = re.compile(r"Traceback|\bdefect\b|leaked")
"""What no line of the server's log may say."""


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Service]:
    """The pocket model, served with everything that may leak. Raises LeftOut with the end of its log."""
    environment = {
        "GUARD_DATABASE_URL": f"sqlite:///{folder / 'guard.db'}",
        "GUARD_DATA_DIR": str(folder),
        "GUARD_AUDIT": str(folder / "audit"),
        # Pocket does not see what is on pictures, but they are read, decoded and bounded as ever.
        "GUARD_UNSEEN_IMAGES": "judge_text",
    }
    port = free_port()
    command = [*POCKET, "--port", str(port)]
    service = start_service(folder, "server", "server", command, port, "/ready", environment)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def sample(server: Service, at_s: float) -> Sample:
    """Resident memory in MiB, open descriptors and threads of its processes, by role."""
    found = Sample(at_s)
    for pid, role in tree({server.process.pid: "server"}).items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            with process.oneshot():
                found.add(role, process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())
    return found


async def watch(server: Service, began: float, found: Soaked) -> None:
    """Sample the server's processes and the time that /health takes, until cancelled.

    Raises RuntimeError if the server ends.
    """
    due = began
    async with soak_traffic.session() as session:
        while True:
            asked = time.perf_counter()
            try:
                async with session.get(f"{server.url}/health") as response:
                    await response.read()
                found.tally.count("/health", response.status)
            except (aiohttp.ClientError, TimeoutError):
                found.tally.wrong["/health did not answer"] += 1
            found.health_ms.append(1000 * (time.perf_counter() - asked))
            if server.process.poll() is not None:
                # The rest of the hour would prove nothing.
                raise RuntimeError(f"the server ended:\n{server.log.read_text(errors='replace')[-3000:]}")
            if time.monotonic() >= due:
                found.samples.append(sample(server, time.monotonic() - began))
                due += SAMPLE_EVERY_S
            await asyncio.sleep(HEALTH_EVERY_S)


async def soak(server: Service, warm_up_s: float, seconds: float, callers: int, seed: int = 1) -> Soaked:
    """Warm up, count what is open, let `callers` ask for `seconds`, and count again.

    Raises RuntimeError if the model does not judge the known texts as they are known: nothing could be proven then.
    """
    await soak_traffic.check_known(server.url)
    warming = Tally()
    await soak_traffic.ask(server.url, warming, callers, warm_up_s, seed)
    await asyncio.sleep(SETTLE_S)
    found = Soaked(tally=Tally(), before=sample(server, 0.0), seconds=seconds)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(server, began, found))
        await soak_traffic.ask(server.url, found.tally, callers, seconds, seed + 1)
        watching.cancel()
    await asyncio.sleep(SETTLE_S)
    found.after = sample(server, time.monotonic() - began)
    # An error counts whenever it happened.
    found.tally.add(warming)
    return found


def run(folder: Path, warm_up_s: float, seconds: float, callers: int) -> Soaked:
    """Start the server, soak it, and end it. Raises LeftOut and TimeoutExpired."""
    with started(folder) as server:
        found = asyncio.run(soak(server, warm_up_s, seconds, callers))
        processes = [psutil.Process(pid) for pid in tree({server.process.pid: "server"})]
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        found.exit_status, found.ended_s = server.process.wait(END_TIMEOUT_S), time.monotonic() - told
        found.left_running = len(psutil.wait_procs(processes, timeout=ORPHANS_END_S)[1])
        found.defects = [line for line in server.log.read_text(errors="replace").splitlines() if DEFECT.search(line)]
    return found


def result_of(found: Soaked, options: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The run as data that JSON can say."""
    return {
        "benchmark": records.SOAK,
        **stamp(),
        "options": dict(options),
        "model": {"name": model},
        **found.figures(),
        "targets": [asdict(target) for target in soak_figures.targets(found)],
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    say = parser.add_argument
    say("--minutes", type=float, default=60.0, help="of traffic that is measured")
    say("--warm-up", type=float, help="minutes before that; a sixth as long, and ten at most, unless it is given")
    say("--callers", type=int, default=8, help="callers at the same time")
    say("--record", action="store_true", help="keep the result in a new folder of benchmarks/results/")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    seconds = 60 * options.minutes
    warm_up_s = min(seconds / 6, MOST_WARM_UP_S) if options.warm_up is None else 60 * options.warm_up
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = run(Path(folder), warm_up_s, seconds, options.callers)
    said = {"minutes": options.minutes, "warm_up_minutes": warm_up_s / 60, "callers": options.callers}
    result = result_of(found, said, "pocket")
    print(soak_figures.report(found))
    written = records.write(result, records.RESULTS if options.record else OUT) / records.FILE
    print(f"written: {written.relative_to(ROOT)}")
    return 0 if all(target["met"] is not False for target in result["targets"]) else 1


if __name__ == "__main__":
    sys.exit(main())
