"""Nobody learns from the engine's cache what others sent: every key has a prefix cache of its own."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.__main__ import main
from tests.conftest import RunningServer, running_server
from tests.engine.test_check import SAFE_TEXT, guard

BLOCK_TOKENS = 128
"""What the CPU engine caches at once: only whole blocks of a prompt can be found again."""

LONG_TEXT = "The quick brown fox jumps over the lazy dog. " * 60

Ask = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder that the server and the command line share."""
    folder = tmp_path_factory.mktemp("tenants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARD_DATA_DIR", str(folder))
        patch.setenv("GUARD_DATABASE_URL", "")
        yield folder


@pytest.fixture(scope="module")
def locked_server(data: Path) -> Iterator[RunningServer]:
    with running_server(GUARD_AUTH="required") as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def make_key(locked_server: RunningServer, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def make(*options: str) -> str:
        assert main(["keys", "create", "tenant", *options]) == 0
        return capsys.readouterr().out.strip()

    return make


@pytest.fixture
def ask(locked_server: RunningServer) -> Iterator[Ask]:
    """The usage of a verdict on `text` under `key`."""
    with locked_server.client() as client:

        def ask(key: str, text: str) -> dict[str, Any]:
            headers = {"authorization": f"Bearer {key}"}
            response = client.post("/v1/moderations", json={"input": text}, headers=headers)
            assert response.status_code == 200, response.text
            usage: dict[str, Any] = response.json()["results"][0]["guard"]["usage"]
            return usage

        yield ask


def test_what_one_key_sent_is_in_no_other_keys_cache(ask: Ask, make_key: Callable[..., str]) -> None:
    victim, attacker = make_key(), make_key()
    first = ask(victim, LONG_TEXT)
    assert first["prompt_tokens"] > 4 * BLOCK_TOKENS
    assert first["cached_tokens"] == 0
    again = ask(victim, LONG_TEXT)
    assert again["cached_tokens"] >= (again["prompt_tokens"] - 1) // BLOCK_TOKENS * BLOCK_TOKENS - BLOCK_TOKENS > 0
    assert ask(attacker, LONG_TEXT)["cached_tokens"] == 0
    assert ask(attacker, LONG_TEXT)["cached_tokens"] == again["cached_tokens"]


def test_scores_do_not_depend_on_the_key(locked_server: RunningServer, make_key: Callable[..., str]) -> None:
    with locked_server.client() as client:
        scores = [
            client.post("/v1/moderations", json={"input": SAFE_TEXT}, headers={"x-api-key": make_key()}).json()[
                "results"
            ][0]["guard"]["p_unsafe"]
            for _ in range(3)
        ]
    assert max(scores) - min(scores) < 1e-3


def test_the_command_line_presents_a_key(
    locked_server: RunningServer, make_key: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key()
    monkeypatch.delenv("GUARD_API_KEY", raising=False)
    without = guard("check", SAFE_TEXT, "--url", locked_server.url)
    assert without.returncode == 2
    assert "didn't provide an API key" in without.stderr
    assert guard("check", SAFE_TEXT, "--url", locked_server.url, "--api-key", key).returncode == 0
    monkeypatch.setenv("GUARD_API_KEY", key)
    assert guard("check", SAFE_TEXT, "--url", locked_server.url).returncode == 0


def test_the_console_has_a_line_that_works_with_a_key(
    locked_server: RunningServer, make_key: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:

    assert any("API keys are on" in line for line in locked_server.console)
    line = next(line for line in locked_server.console if line.startswith("curl"))
    monkeypatch.setenv("GUARD_API_KEY", make_key())
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    assert '"flagged":false' in answer


def test_metrics_need_the_scope_that_prometheus_is_given(
    locked_server: RunningServer, make_key: Callable[..., str]
) -> None:
    url = f"{locked_server.url}/metrics"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"authorization": f"Bearer {make_key()}"}).status_code == 403
    answer = httpx.get(url, headers={"authorization": f"Bearer {make_key('--scope', 'admin')}"})
    assert answer.status_code == 200
    assert "vllm:" in answer.text
