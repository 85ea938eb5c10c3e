"""`llama-guard-server keys`, as a person and as a script types it."""

import json
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.__main__ import main
from server.store.keys import FORM


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUARD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("GUARD_DATABASE_URL", "")
    return tmp_path / "data"


@pytest.fixture
def keys(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command and returns its status and what it wrote on both channels."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["keys", *arguments])
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


def test_standard_output_is_the_key_alone(keys: Any) -> None:
    status, out, err = keys("create", "gateway")
    assert status == 0
    assert FORM.fullmatch(out.removesuffix("\n"))
    assert out.strip() not in err
    assert "may moderate" in err
    assert "shown only once" in err


def test_a_key_is_made_as_the_options_say(keys: Any) -> None:
    options = ("--scope", "batch", "--scope", "admin", "--scope", "batch", "--never-remote", "--finished-prompts")
    limits = ("--expires", "30", "--requests-per-minute", "60", "--tokens-per-minute", "100000")
    status, out, _ = keys("create", "all of it", *options, *limits, "--json")
    made = json.loads(out)
    assert status == 0
    assert FORM.fullmatch(made.pop("key"))
    assert abs(made.pop("created_at") - time.time()) < 5
    assert abs(made.pop("expires_at") - time.time() - 30 * 86400) < 5
    assert made.pop("id").startswith("key_")
    assert made.pop("prefix").startswith("lgs_")
    assert made == {
        "name": "all of it",
        "state": "valid",
        "scopes": ["admin", "batch"],
        "never_remote": True,
        "finished_prompts": True,
        "requests_per_minute": 60,
        "tokens_per_minute": 100000,
        "revoked_at": None,
    }


def test_a_list_shows_states_and_no_secrets(keys: Any) -> None:
    made = [json.loads(keys("create", name, "--json")[1]) for name in ("one", "two")]
    assert keys("revoke", made[0]["id"])[0] == 0
    status, out, _ = keys("list")
    assert status == 0
    states = {line.split()[0]: line.split()[2] for line in out.splitlines()}
    assert states == {made[0]["id"]: "revoked", made[1]["id"]: "valid"}
    listed = json.loads(keys("list", "--json")[1])
    assert {key["name"]: key["state"] for key in listed} == {"one": "revoked", "two": "valid"}
    for key in made:
        secret = key["key"].rpartition("_")[2]
        assert secret not in out + json.dumps(listed)


def test_a_list_of_nothing(keys: Any) -> None:
    assert keys("list") == (0, "", "guard: there are no keys. Make one with `llama-guard-server keys create NAME`.\n")
    assert keys("list", "--json") == (0, "[]\n", "")


def test_revoking_by_the_prefix_that_the_list_shows(keys: Any) -> None:
    made = json.loads(keys("create", "one", "--json")[1])
    status, out, _ = keys("revoke", made["prefix"], "--json")
    assert status == 0
    assert json.loads(out)["state"] == "revoked"
    assert keys("revoke", made["prefix"])[0] == 0, "twice is not wrong"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("revoke", "key_none"), "No key has this id"),
        (("revoke", ""), "No key has this id"),
        (("create", ""), "1 to 200 printable characters"),
        (("create", "  "), "1 to 200 printable characters"),
        (("create", "x" * 201), "1 to 200 printable characters"),
        (("create", "two\nlines"), "1 to 200 printable characters"),
        (("create", "\x1b[31mred"), "1 to 200 printable characters"),
        (("create", "x", "--requests-per-minute", "0"), "A limit must be a whole number"),
        (("create", "x", "--tokens-per-minute", "-5"), "A limit must be a whole number"),
        (("create", "x", "--tokens-per-minute", str(2**31)), "A limit must be a whole number"),
        (("create", "x", "--expires", "0"), "--expires takes"),
        (("create", "x", "--expires", "36501"), "--expires takes"),
    ],
)
def test_what_cannot_be_done_is_told_in_words(keys: Any, arguments: tuple[str, ...], words: str) -> None:
    status, out, err = keys(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("guard: ")
    assert words in err
    assert "Traceback" not in err
    assert keys("list")[1] == ""


@pytest.mark.parametrize(
    "arguments",
    [(), ("create",), ("revoke",), ("create", "x", "--scope", "root"), ("create", "x", "--requests-per-minute", "1.5")],
)
def test_what_is_no_command_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["keys", *arguments])
    assert caught.value.code == 2


def test_a_database_that_is_gone_at_once_is_refused(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_DATABASE_URL", "sqlite://")
    status, out, err = keys("create", "x")
    assert (status, out) == (2, "")
    assert "temporary" in err


@pytest.mark.parametrize("url", ["mysql://x", "nonsense", "postgresql://guard:canary@127.0.0.1:9/none"])
def test_a_database_that_cannot_be_used_is_told_of(keys: Any, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GUARD_DATABASE_URL", url)
    status, out, err = keys("create", "x")
    assert (status, out) == (2, "")
    assert err.startswith("guard: ")
    assert "canary" not in err
    assert "Traceback" not in err


def test_what_it_writes_is_for_its_owner_alone(keys: Any, folder: Path) -> None:
    keys("create", "x")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "pepper").stat().st_mode) == 0o600


def test_processes_that_begin_together_all_make_their_keys(folder: Path) -> None:
    """Each finds neither folder nor database nor pepper."""

    def run(index: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server", "keys", "create", f"key {index}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(run, range(4)))
    assert [each.returncode for each in done] == [0] * 4, [each.stderr for each in done]
    assert len({each.stdout for each in done}) == 4
