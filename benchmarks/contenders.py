"""Who is compared: servers that are started once and stay, and the ways in which each of them is asked.

A service is a process tree that listens somewhere. A contender is a URL to post to, what to post there, and the
services that work on it. Two contenders may share a service: this server answers in two dialects, and gateways stand
in front of the raw engine.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.model import ROOT, TEMPLATE, Model

START_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Contender:
    """`services` are names; the counters of an engine are read from `engine`, which is a URL or None."""

    name: str
    url: str
    dialect: str
    model: str
    services: tuple[str, ...]
    engine: str | None


@dataclass(slots=True)
class Service:
    """A running process tree and its log."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    log: Path
    ready_s: float = 0.0

    def wait(self, path: str, deadline_s: float = START_TIMEOUT_S) -> None:
        """Until `path` answers 200. Raises RuntimeError with the end of the log when that does not happen."""
        started = time.monotonic()
        while time.monotonic() - started < deadline_s:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(self.url + path, timeout=5).status_code == 200:
                    self.ready_s = time.monotonic() - started
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        self.stop()
        raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(name: str, command: list[str], port: int, folder: Path, environment: Mapping[str, str]) -> Service:
    log = folder / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    return Service(name, process, f"http://127.0.0.1:{port}", log)


def start_guard(model: Model, folder: Path, name: str = "guard", settings: Mapping[str, str] | None = None) -> Service:
    """This server, with its defaults but for `settings`, on `model`."""
    place = folder / name
    place.mkdir(exist_ok=True)
    profile = model.write_profile(place)
    mass = {} if model.minimum_mass is None else {"GUARD_MINIMUM_VERDICT_MASS": str(model.minimum_mass)}
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", "--profile", str(profile), "--port", str(port)]
    environment = {"GUARD_DATABASE_URL": "sqlite://", "GUARD_DEADLINE": "120", **mass, **(settings or {})}
    service = start(name, command, port, folder, environment)
    service.wait("/ready")
    return service


def start_vllm(model: Model, folder: Path) -> Service:
    """vLLM's own server with the official template and the engine arguments of the profile, else its defaults."""
    port = free_port()
    # Without a log line for each request, which this server does not write either.
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.folder)),
        *("--served-model-name", model.served_as, "--chat-template", str(TEMPLATE), "--port", str(port)),
        *("--host", "127.0.0.1", "--disable-uvicorn-access-log"),
        *model.engine_flags,
    ]
    environment = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    service = start("vllm", command, port, folder, environment)
    service.wait("/health")
    return service


def contenders_of(services: Mapping[str, Service], model: Model) -> list[Contender]:
    """Every way to ask the services that run."""
    found: list[Contender] = []
    for name, service in services.items():
        if name.startswith("guard"):
            ways = (("moderations", "/v1/moderations"), ("chat", "/v1/chat/completions"))
            found += [
                Contender(f"{name}-{way}", service.url + path, way, model.served_as, (name,), service.url)
                for way, path in ways
            ]
        if name == "vllm":
            url = service.url + "/v1/chat/completions"
            found.append(Contender("vllm", url, "chat", model.served_as, ("vllm",), service.url))
    return found
