"""What a wheel of this project holds. Nothing is built: hatchling lists the files that it would take."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files() -> set[str]:
    """Paths of the files as they lie in the wheel."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    return {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}


def test_a_wheel_serves(files: set[str]) -> None:
    assert {
        "server/__main__.py",
        "server/store/migrations/env.py",
        "model_config/__init__.py",
        "model_config/llama-guard-4-12b/profile.toml",
        "model_config/llama-guard-4-12b/taxonomy.toml",
        "model_config/llama-guard-4-12b/chat_template.jinja",
        "model_config/pocket/profile.toml",
        "model_config/pocket/model.safetensors",
        "model_config/pocket/tokenizer.json",
    } <= files


def test_a_wheel_holds_nothing_that_trains(files: set[str]) -> None:
    assert [file for file in files if "training" in file] == []
    assert [file for file in files if file.startswith("model_config/") and file.endswith(".py")] == [
        "model_config/__init__.py"
    ]


def test_a_wheel_holds_the_server_and_its_models_only(files: set[str]) -> None:
    assert {file.partition("/")[0] for file in files} == {"server", "model_config"}
