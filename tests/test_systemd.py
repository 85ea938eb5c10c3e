"""The units of deploy/ start the server with few rights, stop it as it wants to be stopped, and watch its health."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.settings import Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
SERVER, HEALTH, TIMER = (
    DEPLOY / f"llama-guard-server{name}" for name in (".service", "-health.service", "-health.timer")
)


def options(unit: Path) -> dict[str, list[str]]:
    """Values of each option of a unit, in the order of the file."""
    text = unit.read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_stop_signal_reaches_the_server_and_leaves_it_time_to_answer():
    unit = options(SERVER)
    assert unit["KillMode"] == ["mixed"]
    assert float(unit["TimeoutStopSec"][0]) > Settings.model_fields["drain_timeout"].default + 10
    assert (unit["Restart"], unit["StartLimitIntervalSec"]) == (["always"], ["0"])


def test_the_server_owns_its_two_folders_and_nothing_else():
    unit = options(SERVER)
    assert (unit["DynamicUser"], unit["ProtectSystem"], unit["ProtectHome"]) == (["yes"], ["strict"], ["yes"])
    assert (unit["NoNewPrivileges"], unit["CapabilityBoundingSet"]) == (["yes"], [""])
    assert (unit["StateDirectoryMode"], unit["UMask"], unit["LimitCORE"]) == (["0700"], ["0077"], ["0"])
    written = dict(value.split("=", 1) for value in unit["Environment"])
    folders = {"GUARD_DATA_DIR": "%S"} | dict.fromkeys(
        ("HOME", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"), "%C"
    )
    for name, folder in folders.items():
        assert written[name].startswith(f"{folder}/llama-guard-server"), name
    assert "MemoryDenyWriteExecute" not in unit, "torch and Triton write machine code while they run"


def test_a_server_that_loads_is_left_alone_and_one_that_fails_is_restarted():
    unit = options(HEALTH)
    (command,) = unit["ExecStart"]
    assert "--fail" in command
    assert command.endswith("http://127.0.0.1:${GUARD_PORT}/health")
    assert f"GUARD_PORT={Settings.model_fields['port'].default}" in unit["Environment"]
    assert unit["SuccessExitStatus"] == ["7"]  # connection refused
    assert unit["Requisite"] == ["llama-guard-server.service"]
    assert "OnUnitInactiveSec" in options(TIMER)


@pytest.mark.parametrize(("result", "restarted"), [("success", False), ("exit-code", True), ("timeout", True)])
def test_only_a_bad_answer_restarts_the_server(result, restarted, tmp_path):
    (after,) = options(HEALTH)["ExecStopPost"]
    script = re.fullmatch(r"\+/bin/sh -c '(.*)'", after)
    assert script is not None
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "asked"}\n')
    (tmp_path / "systemctl").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SERVICE_RESULT": result}
    subprocess.run(["/bin/sh", "-c", script[1]], env=environment, check=True)
    asked = tmp_path / "asked"
    assert asked.exists() is restarted
    if restarted:
        assert asked.read_text().split() == ["--no-block", "try-restart", SERVER.name]


# --- What systemd says ----------------------------------------------------------------------------------------

SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@SYSTEMD
def test_systemd_understands_every_line(tmp_path):
    for unit in (SERVER, HEALTH, TIMER):
        # It looks for the program, which is not installed there.
        text = re.sub(r"^(ExecStart=)/opt/\S+", r"\1/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    files = [tmp_path / unit.name for unit in (SERVER, HEALTH, TIMER)]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "llama-guard-server" in line]
    assert (done.returncode, ours) == (0, [])


@SYSTEMD
@pytest.mark.parametrize("unit", [SERVER, HEALTH], ids=lambda unit: unit.name)
def test_systemd_finds_little_exposed(unit):
    options = subprocess.run(["systemd-analyze", "security", "--help"], capture_output=True, text=True).stdout
    if "--offline" not in options:
        pytest.skip("this systemd judges running services only")
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=20", unit],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-300:]  # of 100, where 92 is a unit without any protection
