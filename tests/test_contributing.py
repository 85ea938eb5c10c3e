"""Pages for contributors are held to the code: what they name exists, and their examples do what they say."""

import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from server import app as wiring
from server.checkpoints.profile import Profile, load_profile
from server.domain import events
from server.domain.conversation import Role
from server.domain.events import Judged, publish
from server.families.base import Asker, Family, family_named
from server.observation import metrics
from server.settings import Settings
from tests.api.conftest import PROFILE
from tests.domain.test_verdict import judged
from tests.fakes import FakeBackend
from tests.families.made_up.traffic_light import TrafficLight
from tests.golden.vocabulary import vocabulary
from tests.test_architecture import FLOORS, form_of, functions

ROOT = Path(__file__).parents[1]
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in ("CONTRIBUTING.md", "docs/architecture.md", "docs/models.md", "docs/prompt.md")
}
CONTRIBUTING, ARCHITECTURE, MODELS = PAGES["CONTRIBUTING.md"], PAGES["docs/architecture.md"], PAGES["docs/models.md"]

Module = Callable[[str], Any]

MADE_UP = {"server/api/plain/__init__.py", "server/api/plain/dialect.py"}
"""Files of the examples."""


def section(page: str, title: str) -> str:
    found = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, f"there is no section {title!r}"
    return found


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """Cells of all rows of tables, heads included."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if not set("".join(line)) <= set("- ")]


def quoted(text: str) -> list[str]:
    """What stands in backticks, blocks of code left out."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", prose)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Makes a module of an example."""

    def made(source: str) -> ModuleType:
        file = tmp_path / "example.py"
        file.write_text(source, encoding="utf-8")
        spec = spec_from_file_location("example_of_a_page", file)
        assert spec is not None
        assert spec.loader is not None
        found = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, found.__name__, found)
        spec.loader.exec_module(found)
        return found

    return made


# --- What is named exists ------------------------------------------------------------------------------------


def is_there(name: str) -> bool:
    """Whether a file or a folder is named by its path, by its path below server/, or by its own name."""
    below = [ROOT / name, ROOT / "server" / name, ROOT / "server/backends/vllm" / name]
    return any(path.exists() for path in below) or (
        "/" not in name.rstrip("/") and any((ROOT / "server").rglob(name.rstrip("/")))
    )


@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders_that_a_page_names_exist(page: str) -> None:
    named = {name for name in quoted(PAGES[page]) if re.fullmatch(r"[\w./-]*(?:\w\.py|\w/)", name)}
    assert {name for name in named - MADE_UP if not name.startswith("/") and not is_there(name)} == set()


def test_commands_can_be_run() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", CONTRIBUTING, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    commands = re.findall(r"pytest (?:-m slow )?(tests/\S+)(?: -k (\w+))?", CONTRIBUTING)
    assert len(commands) == 3
    for path, keyword in commands:
        assert (ROOT / path).exists(), path
        assert not keyword or any(keyword in name for name in functions(ROOT / path)), keyword


def test_tests_that_are_named_exist() -> None:
    tests = {name for file in (ROOT / "tests").rglob("test_*.py") for name in functions(file)}
    named = {name for page in PAGES.values() for name in re.findall(r"`(test_\w+)`", page)}
    assert named
    assert named <= tests


def test_markers_are_those_that_are_left_out() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    left_out = set(re.findall(r"not (\w+)", options["addopts"]))
    sentence = re.search(r"The markers (.+) are left out", CONTRIBUTING)
    assert sentence is not None
    assert set(quoted(sentence[1])) == left_out


# --- Examples of CONTRIBUTING.md ------------------------------------------------------------------------------


def test_the_metric_counts_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(section(CONTRIBUTING, "Add a metric"), "python")
    monkeypatch.setattr(events, "_listeners", {})
    registry = CollectorRegistry()
    names = {**vars(metrics), "Counter": partial(Counter, registry=registry)}
    exec(compile(example, "CONTRIBUTING.md", "exec"), names)
    for text, role in (("unsafe\nS1", Role.AGENT), ("unsafe\nS1", Role.USER), ("safe", Role.AGENT)):
        publish(Judged(judged(text), role, 0.1))
    publish(Judged(judged("unsafe\nS2"), Role.AGENT, 0.1))
    assert registry.get_sample_value("guard_unsafe_responses_total") == 2


async def test_the_dialect_is_served_and_described(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(section(CONTRIBUTING, "Add a dialect"), "python")
    monkeypatch.setattr(wiring, "DIALECTS", (*wiring.DIALECTS, module(example).DIALECT))
    app = wiring.create_app(Settings(profile=PROFILE), load_profile(PROFILE), FakeBackend())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        told = [(await client.post("/plain/judge", json={"text": text})).json() for text in ("bread", "a bomb")]
        assert told == [{"unsafe": False, "categories": []}, {"unsafe": True, "categories": ["S1", "S9"]}]
        refused = await client.post("/plain/judge", json={"text": "bread", "more": "a bomb"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "more")
    operation = app.openapi()["paths"]["/plain/judge"]["post"]
    assert set(operation["responses"]) >= {"200", "400", "429", "default"}
    assert app.state.served.access.judges("/plain/judge")


def test_the_mend_has_the_form_of_all_mends(module: Module, tmp_path: Path) -> None:
    (example,) = blocks(section(CONTRIBUTING, "Change vLLM"), "python")
    assert callable(module(example).install)
    file, _, test = form_of(tmp_path / "example.py")["needed"].partition("::")
    assert test in functions(ROOT / file)


# --- The page on families --------------------------------------------------------------------------------------

FAMILIES = section(MODELS, "Add a family of guard models")


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_the_tables_name_all_that_a_family_is() -> None:
    named = [name for first, *_ in rows(FAMILIES) for name in quoted(first)]
    assert len(named) == len(set(named))
    required = {name.rpartition(".")[2] for name in named if "." in name}
    assert required == Family.__abstractmethods__ | Asker.__abstractmethods__
    optional = {name for name in named if "." not in name}
    assert optional == public(Family) - Family.__abstractmethods__


def test_the_profile_is_read_as_it_stands(tmp_path: Path) -> None:
    profile, taxonomy = blocks(FAMILIES, "toml")
    (tmp_path / "profile.toml").write_text(profile, encoding="utf-8")
    (tmp_path / "taxonomy.toml").write_text(taxonomy, encoding="utf-8")
    read = load_profile(f"{tmp_path}/")
    assert (read.taxonomy.codes, read.model) == (("Fire",), str(tmp_path / "checkpoint"))
    assert isinstance(family_named(read.family), TrafficLight)
    assert read.vocabulary_size == vocabulary("llama 4").ours.vocabulary_size


def test_the_test_without_an_engine_passes_and_can_fail(module: Module) -> None:
    (example,) = blocks(FAMILIES, "python")
    module(example).test_what_burns_is_unsafe()
    with pytest.raises(AssertionError):
        module(example.replace('" Red": 0.79', '" Red": 0.1').replace('" Green": 0.1', '" Green": 0.79')
        ).test_what_burns_is_unsafe()  # fmt: skip


def test_the_table_of_profile_keys_is_the_codes() -> None:
    documented = [name for first, *_ in rows(section(MODELS, "A profile of your own")) for name in quoted(first)]
    keys = {"template" if field.name == "chat_template" else field.name for field in fields(Profile)}
    tables = {"tokens", "network", "engine"}
    assert set(documented) == {
        *(keys - tables),
        *(f"[{name}]" for name in tables),
        *("extends", "default_variant", "[variants.NAME]"),
    }


# --- The page on architecture -----------------------------------------------------------------------------------


def test_the_way_of_a_request_has_ten_steps_each_with_its_file() -> None:
    steps = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^\n)", section(ARCHITECTURE, "The way of one request"), re.M | re.S)
    assert [int(number) for number, _ in steps] == list(range(1, 11))
    for _, text in steps:
        assert re.search(r"\]\(\.\./server/[\w/]+\.py\)", text), text


def test_the_rooms_stand_on_their_floors() -> None:
    listed = [
        quoted(first)[0].rstrip("/").removesuffix(".py") for first, *_ in rows(section(ARCHITECTURE, "The rooms"))[1:]
    ]
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert set(listed) == set(floor)
    assert [floor[room] for room in listed] == sorted((floor[room] for room in listed), reverse=True)


def test_a_verdict_is_made_where_the_page_says() -> None:
    assert {"judge", "decide", "strictest"} <= functions(ROOT / "server/domain/verdict.py")
    assert "`judge` in [server/domain/verdict.py]" in ARCHITECTURE.partition("\n## ")[0]
