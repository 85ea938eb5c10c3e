"""Prints a fingerprint of all that the lock files are made from, so that a lock of other requirements is noticed."""

import hashlib
import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

INPUTS = (
    "requirements/*.in",
    "requirements/cpu-torch.txt",
    "tests/clients/*/requirements.in",
    "benchmarks/environments/*.in",
)


def fingerprint() -> str:
    """Twelve digits that change with any requirement, in pyproject.toml or in a file of INPUTS."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    asked = {
        "pyproject.toml": [
            project["requires-python"],
            project["dependencies"],
            project["optional-dependencies"],
            pyproject["build-system"]["requires"],
            pyproject["tool"]["uv"],
        ]
    }
    for path in sorted(path for pattern in INPUTS for path in ROOT.glob(pattern)):
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
        asked[path.relative_to(ROOT).as_posix()] = [line for line in lines if line]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    print(fingerprint())
