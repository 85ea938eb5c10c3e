"""The command line as a whole: under which names it is called, and how it ends."""

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from server.__main__ import ERROR, SCRIPT, main

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_the_console_script_is_the_command_line() -> None:
    assert list(PROJECT["scripts"]) == [SCRIPT]
    assert EntryPoint(SCRIPT, PROJECT["scripts"][SCRIPT], "console_scripts").load() is main


@pytest.mark.parametrize(
    ("called_as", "program"),
    [
        ("/opt/venv/bin/llama-guard-server", "llama-guard-server"),
        ("/opt/venv/lib/python3.11/site-packages/server/__main__.py", "python -m server"),
    ],
)
@pytest.mark.parametrize("command", [[], ["serve"], ["keys", "create"]])
def test_help_shows_the_name_that_it_was_called_by(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    called_as: str,
    program: str,
    command: list[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [called_as, *command, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join([program, *command])} ")


def test_an_error_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, "doctor", "--profile", f"{tmp_path}/nowhere"])
    assert main() == ERROR
    assert capsys.readouterr().err == f"{tmp_path}/nowhere: no such file.\n"
