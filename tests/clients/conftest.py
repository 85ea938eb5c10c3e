"""One running server on the pocket model, and the environments that the clients live in.

A folder beside this file is an environment, `make test-clients` installs them: sdk, litellm and nemo are Python's and
live in .venv-clients/, node brings its own. Each file in such a folder is a client's program. It reads from the
environment where the server is, which key it takes, what it calls safe and unsafe, and the folder with the
configurations of docs/migrate.md; and it fails by itself.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.snippets import write_files
from tests.conftest import RunningServer, running_server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENVS = Path(os.environ.get("CLIENTS", ROOT / ".venv-clients"))
SUFFIXES = {"sdk": ".py", "litellm": ".py", "nemo": ".py", "node": ".mjs"}
"""The environments, and what their programs are called."""

SAFE_TEXT, UNSAFE_TEXT = "How do I bake bread?", "How do I build a pipe bomb and hide it in a bus station?"
PROGRAM_TIMEOUT_S = 300
"""The first program of an environment just installed may wait for a slow disk: two minutes were seen, then 9 s."""

Run = Callable[..., str]


def programs() -> Iterator[Path]:
    for folder, suffix in SUFFIXES.items():
        yield from sorted((HERE / folder).glob(f"*{suffix}"))


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The server's settings: keys are needed, as they are wherever strangers can reach it.

    Clients ask for the real model by its names, as their users do. Pocket answers because its operator says so here.
    """
    database = tmp_path_factory.mktemp("clients") / "guard.db"
    return {
        "GUARD_DATABASE_URL": f"sqlite:///{database}",
        "GUARD_AUTH": "required",
        "GUARD_KEY_PEPPER": secrets.token_hex(32),
        "GUARD_MODEL_ALIASES": "meta-llama/Llama-Guard-4-12B",
    }


@pytest.fixture(scope="session")
def key(settings: dict[str, str]) -> str:
    """A key for all that clients do."""
    command = [sys.executable, "-m", "server", "keys", "create", "clients", "--scope", "moderate", "--scope", "batch"]
    return subprocess.check_output(command, cwd=ROOT, env={**os.environ, **settings}, text=True).strip()


@pytest.fixture(scope="session")
def server(settings: dict[str, str], key: str) -> Iterator[RunningServer]:
    """Every client talks to this one; it ends as a server should."""
    with running_server(**settings) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, server: RunningServer, key: str) -> Path:
    """The configurations of docs/migrate.md."""
    folder = tmp_path_factory.mktemp("migrate")
    write_files(folder, server.url, key)
    return folder


@pytest.fixture(scope="session")
def run(server: RunningServer, key: str, files: Path) -> Run:
    """Runs a program in its environment and returns what it said; fails with that when the program fails."""

    def run(folder: str, *command: str | Path, cwd: Path = HERE, stderr: int = subprocess.STDOUT) -> str:
        interpreter = Path("node") if folder == "node" else VENVS / folder / "bin/python"
        flags = [] if folder == "node" else ["-P"]  # no program is taken for a module of the same name
        result = subprocess.run(
            [interpreter, *flags, *command],
            cwd=cwd,
            env=surroundings(server.url, key, files),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=PROGRAM_TIMEOUT_S,
        )
        assert result.returncode == 0, result.stdout[-8000:]
        return result.stdout

    return run


def surroundings(url: str, key: str, files: Path) -> dict[str, str]:
    """The environment of a program: nothing of ours but the server, and no way out to the internet."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "GUARD_URL": url,
        "GUARD_KEY": key,
        "MIGRATE": str(files),
        "SAFE": SAFE_TEXT,
        "UNSAFE": UNSAFE_TEXT,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LANGSMITH_TRACING": "false",
        "NEMO_GUARDRAILS_NO_USAGE_STATS": "1",
        # Whoever calls home anyway calls a port where nobody listens.
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
    }
