"""Who is compared: servers that are started once and stay, and the ways in which each of them is asked.

A service is a process tree that listens somewhere. A contender is a URL to post to, what to post there, and the
services that work on it. Two contenders may share a service: this server answers in two dialects, and gateways stand
in front of vLLM's own server.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.model import ROOT, TEMPLATE, Model
from benchmarks.traffic import Load

START_TIMEOUT_S = 1800
ENVIRONMENTS = Path(os.environ.get("CLIENTS", ROOT / ".venv-clients"))
"""Where other people's gateways are installed, each in an environment of its own (`make bench-gateways`)."""

BASELINE = "vllm"

BARE_ENGINE = "bare-engine"
"""This project's connection and engine client with nothing between them: this server cannot beat it."""

BARE_ENGINE_LOAD = "short"
"""The load that the bare engine's own prompts are of, and so the only one that it takes."""


class LeftOut(Exception):
    """A contender cannot take part. The message says why, and how to change that."""


@dataclass(frozen=True, slots=True)
class Contender:
    """`services` are names; counters are read from the server at `engine`, None where nothing counts.

    `dialect` is one of the load generator's.
    """

    name: str
    url: str
    dialect: str
    model: str
    services: tuple[str, ...]
    engine: str | None
    takes_images: bool = True
    only_load: str | None = None
    """The one load that it can do, None for all."""

    def takes(self, load: Load) -> bool:
        return self.only_load in (None, load.name) and (self.takes_images or not load.has_images)


@dataclass(slots=True)
class Service:
    """A running process tree, what it is called in the figures of CPU time, and its log."""

    name: str
    role: str
    process: subprocess.Popen[bytes]
    url: str
    log: Path
    ready_s: float = 0.0

    def wait(self, path: str, deadline_s: float = START_TIMEOUT_S) -> None:
        """Until `path` answers 200. Raises LeftOut with the end of the log when that does not happen."""
        started = time.monotonic()
        while time.monotonic() - started < deadline_s and self.process.poll() is None:
            try:
                if httpx.get(self.url + path, timeout=5).status_code == 200:
                    self.ready_s = time.monotonic() - started
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise LeftOut(f"it did not start: {' '.join(self.log.read_text(errors='replace')[-1500:].split())}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_service(
    folder: Path, name: str, role: str, command: list[str], port: int, ready: str, environment: Mapping[str, str]
) -> Service:
    """Run `command`, with its log in `folder`, until the path `ready` answers 200. Raises LeftOut if it does not."""
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    service = Service(name, role, process, f"http://127.0.0.1:{port}", log)
    try:
        service.wait(ready)
    except BaseException:
        service.stop()
        raise
    return service


@dataclass(frozen=True, slots=True)
class Stage:
    """What starting a service needs: the model, a folder for its files, and the services that run already."""

    model: Model
    folder: Path
    services: Mapping[str, Service]

    def start(
        self, name: str, role: str, command: list[str], port: int, ready: str, environment: Mapping[str, str]
    ) -> Service:
        return start_service(self.folder, name, role, command, port, ready, environment)

    @property
    def raw_url(self) -> str:
        """Of vLLM's own server, which gateways stand in front of."""
        if BASELINE not in self.services:
            raise LeftOut(f"it stands in front of {BASELINE}, which does not run")
        return self.services[BASELINE].url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- Starting each of them -------------------------------------------------------------------------------


def start_guard(stage: Stage, name: str = "guard", settings: Mapping[str, str] | None = None) -> Service:
    """This server with its defaults but for `settings`."""
    place = stage.folder / name
    place.mkdir()
    profile, port = stage.model.write_profile(place), free_port()
    mass = stage.model.minimum_mass
    environment = {
        "GUARD_DATABASE_URL": "sqlite://",
        # Someone who waits for its turn in a crowd of callers still gets it; a deadline is not what is measured.
        "GUARD_DEADLINE": "600",
        # It asks an idle engine for a verdict now and then, which would stand in the counters.
        "GUARD_PROBE_INTERVAL": "3600",
        "GUARD_READY_MAX_AGE": "7200",
        "GUARD_HUNG_AFTER": "10800",
        # What pictures cost is measured on models, too, that do not see what is on them.
        "GUARD_UNSEEN_IMAGES": "judge_text",
        # The others score no categories of a safe text: the work that is compared is a verdict.
        "GUARD_CATEGORY_SCORES_FROM": "1",
        **({} if mass is None else {"GUARD_MINIMUM_VERDICT_MASS": str(mass)}),
        **(settings or {}),
    }
    command = [sys.executable, "-m", "server", "serve", "--profile", str(profile), "--port", str(port)]
    return stage.start(name, "server", command, port, "/ready", environment)


def start_cached_guard(stage: Stage) -> Service:
    """This server with its verdict cache on."""
    return start_guard(stage, "guard-cached", {"GUARD_VERDICT_CACHE": "10000"})


def start_vllm(stage: Stage) -> Service:
    """vLLM's own server with the official template and the engine arguments of the profile, else with its defaults.

    What this server changes of them on CPUs by itself (arguments_here) it keeps: steps of 4,096 tokens give vLLM's 0.89
    times the verdicts. Without a log line for each request, which this server does not write either.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(stage.model.folder)),
        *("--served-model-name", stage.model.served_as, "--chat-template", str(TEMPLATE)),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"),
        *stage.model.engine_flags,
    ]
    return stage.start(BASELINE, "server", command, port, "/health", VLLM_ENVIRONMENT)


def start_bare_engine(stage: Stage) -> Service:
    """No moderation server: what this project's connection, its engine client and the engine cost by themselves."""
    port, model = free_port(), stage.model
    command = [
        *(sys.executable, "-m", "benchmarks.bare_engine", str(model.folder), str(port)),
        json.dumps({**model.engine, "max_model_len": model.context, "limit_mm_per_prompt": {"image": model.images}}),
    ]
    # The model in the engine's own process, as this server has it too: the fastest arrangement on CPUs.
    in_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if model.on_cpu else {}
    return stage.start(BARE_ENGINE, "server", command, port, "/", VLLM_ENVIRONMENT | in_process)


def start_transformers(stage: Stage) -> Service:
    """The snippet of the model card behind a few lines of HTTP, one request at a time."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.transformers_server", str(stage.model.folder), str(port)]
    return stage.start("transformers", "front", command, port, "/health", {"HF_HUB_OFFLINE": "1"})


def start_litellm(stage: Stage) -> Service:
    """LiteLLM's proxy in front of vLLM's own server."""
    config, port = stage.folder / "litellm.yaml", free_port()
    entry = {
        "model_name": stage.model.served_as,
        "litellm_params": {
            "model": f"hosted_vllm/{stage.model.served_as}",
            "api_base": f"{stage.raw_url}/v1",
            "api_key": "none",
        },
    }
    config.write_text(json.dumps({"model_list": [entry]}))  # JSON is YAML too
    command = [program("litellm", "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return stage.start("litellm", "gateway", command, port, "/health/liveliness", QUIET)


def start_nemo(stage: Stage) -> Service:
    """NeMo Guardrails' server with its llama guard rail for input, in front of vLLM's own server."""
    folder, port = stage.folder / "nemo" / "guard", free_port()
    folder.mkdir(parents=True)
    model = {
        "type": "llama_guard",
        "engine": "openai",
        "model": stage.model.served_as,
        "parameters": {"base_url": f"{stage.raw_url}/v1", "api_key": "none"},
    }
    flows = {"input": {"flows": ["llama guard check input"]}}
    (folder / "config.yml").write_text(json.dumps({"models": [model], "rails": flows}))
    # The official template is the server's: what the rail sends is the text alone, and so the same prompt as anyone's.
    prompt = {"task": "llama_guard_check_input", "content": "{{ user_input }}"}
    (folder / "prompts.yml").write_text(json.dumps({"prompts": [prompt]}))
    command = [
        *(program("nemo-server", "nemoguardrails"), "server", "--config", str(folder.parent)),
        *("--port", str(port), "--default-config-id", "guard", "--disable-chat-ui"),
    ]
    return stage.start("nemo", "gateway", command, port, "/v1/rails/configs", QUIET)


VLLM_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LANGSMITH_TRACING": "false",
    "NEMO_GUARDRAILS_NO_USAGE_STATS": "1",
}
"""Nothing is fetched from or told to anyone, and nobody on this machine needs a key."""


def program(environment: str, name: str) -> str:
    """The path of a gateway's program. Raises LeftOut when it is not installed."""
    path = ENVIRONMENTS / environment / "bin" / name
    if not path.exists():
        raise LeftOut(f"{name} is not installed: make bench-gateways, or bench-second")
    return str(path)


STARTERS: dict[str, Callable[[Stage], Service]] = {
    "guard": start_guard,
    "guard-cached": start_cached_guard,
    BASELINE: start_vllm,
    BARE_ENGINE: start_bare_engine,
    "transformers": start_transformers,
    "litellm": start_litellm,
    "nemo": start_nemo,
}

ENGINES = ("guard", "guard-cached", BASELINE, BARE_ENGINE, "transformers")
"""Those that hold the model in memory."""


# --- Asking them -----------------------------------------------------------------------------------------


def contenders_of(services: Mapping[str, Service], model: Model) -> list[Contender]:
    """Every way to ask the services that run."""
    found: list[Contender] = []
    for name, service in services.items():
        chat = service.url + "/v1/chat/completions"
        if name.startswith("guard"):
            moderations = service.url + "/v1/moderations"
            found.append(Contender(f"{name}-moderations", moderations, "moderations", "", (name,), service.url))
            found.append(Contender(f"{name}-chat", chat, "chat", model.served_as, (name,), service.url))
        elif name == BARE_ENGINE:
            url = service.url + "/v1/moderations"
            found.append(Contender(name, url, "moderations", "", (name,), service.url, only_load=BARE_ENGINE_LOAD))
        elif name == "litellm":
            behind = services[BASELINE].url
            found.append(Contender(name, chat, "chat", model.served_as, (name, BASELINE), behind))
        elif name == "nemo":
            # Its prompts hold text alone.
            checks, behind = service.url + "/v1/checks", services[BASELINE].url
            found.append(Contender(name, checks, "checks", "guard", (name, BASELINE), behind, takes_images=False))
        else:
            engine = service.url if name == BASELINE else None
            found.append(Contender(name, chat, "chat", model.served_as, (name,), engine))
    return found
