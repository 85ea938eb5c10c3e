"""What `make serve` would do on other machines, and that it installs once."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(tmp_path):
    """Runs make without running its recipes, in a world where only `tools` are installed."""
    tools = tmp_path / "bin"
    tools.mkdir()

    def run(*arguments: str, gpu: str | None = None) -> str:
        if gpu is not None:
            (tools / "nvidia-smi").write_text(f"#!/bin/sh\necho '{gpu}'\n")
            (tools / "nvidia-smi").chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name not in ("HOST", "PORT", "PROFILE")}
        environment["PATH"] = f"{tools}:/usr/bin:/bin"
        command = ["make", "--no-print-directory", "--dry-run", f"VENV={tmp_path / 'venv'}", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    return run


def install(tmp_path: Path, *stamps: str) -> None:
    """Leave what an earlier run leaves."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for file in ("bin/python", *stamps):
        (tmp_path / "venv" / file).touch()


def test_a_fresh_machine_without_a_gpu_gets_the_pocket_model(make):
    recipe = make("serve")
    assert "'.[cpu]'" in recipe
    assert "serve --profile pocket" in recipe
    assert "--host" not in recipe  # 127.0.0.1:8000 is the server's own default


def test_a_gpu_gets_the_real_model_and_is_named(make):
    recipe = make("serve", gpu="NVIDIA L4")
    assert "'.[cuda]'" in recipe
    assert "found NVIDIA L4" in recipe
    assert "--profile llama-guard-4-12b " in recipe


def test_overrides(make):
    recipe = make("serve", "PORT=9000", "HOST=0.0.0.0", "PROFILE=llama-guard-4-12b:24gb", gpu="NVIDIA L4")
    assert "--profile llama-guard-4-12b:24gb --host 0.0.0.0 --port 9000" in recipe


def test_a_remote_backend_needs_no_gpu_for_the_real_model(make):
    recipe = make("serve", "GUARD_BACKEND=openrouter")
    assert "'.[cpu]'" in recipe
    assert "serve --profile llama-guard-4-12b " in recipe


def test_second_start_installs_nothing(make, tmp_path):
    install(tmp_path, ".installed-cpu")
    assert "pip " not in make("serve")


def test_tests_install_their_own_extra_and_then_nothing(make, tmp_path):
    assert "'.[cpu,dev]'" in make("test")
    install(tmp_path, ".installed-cpu-dev", ".installed-cpu")
    assert "pip" not in make("test")


def test_benchmarks_install_what_they_need_and_what_the_tests_have_does_for_them(make, tmp_path):
    assert "'.[cpu,bench]'" in make("bench")
    install(tmp_path, ".installed-cpu-dev", ".installed-cpu-bench", ".installed-cpu")
    assert "pip" not in make("bench")


def test_benchmarks_take_their_options_from_makes_own(make, tmp_path):
    install(tmp_path, ".installed-cpu-bench", ".installed-cpu")
    recipe = make("bench", "MODEL=small", "MIX=short=70,image1=30", "PREFIX_CACHE=off", "RECORD=1")
    flags = " ".join(recipe.partition("-m benchmarks")[2].split())
    assert flags == "--model 'small' --prefix-cache 'off' --mix 'short=70,image1=30' --record"
