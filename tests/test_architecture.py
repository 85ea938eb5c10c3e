"""Dependencies point down only, and heavy packages stay in their rooms.

Every import counts, wherever in a module it stands: at its top, inside a function, or for type checkers alone.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("domain", "scratch"),
    ("families", "images", "observation"),
    ("checkpoints",),
    ("settings",),
    ("backends", "store"),
    ("moderation", "loading", "audit"),
    ("api",),
    ("batches",),
    ("app",),
    ("rows",),
    ("commands",),
    ("__main__",),
)
"""The rooms of server/, the lowest first: each may import from lower floors only."""

MOST_ROOMS = 20

APART: dict[str, tuple[str, ...]] = {
    "families": (),
    "backends": (),
    "api": ("http", "chat"),
}
"""Rooms whose folders know nothing of each other, but for those named, which any of them may import.

Those named may import each other only backwards: `chat` may import `http`, but `http` imports no folder at all.
"""

ROOMS: dict[str, tuple[str, ...]] = {
    "vllm": ("backends.vllm",),
    "torch": ("backends.vllm",),
    "torchvision": ("backends.vllm",),
    "torchaudio": ("backends.vllm",),
    "transformers": (),
    "fastapi": ("api", "app", "commands.serve"),
    "fastapi_offline": ("app",),
    "starlette": ("api", "app", "commands.serve"),
    "httptools": ("api.http.connection",),
    "uvicorn": ("commands.serve", "api.http.connection"),
    "uvloop": ("commands.serve",),
    "cachetools": ("moderation.verdict_cache",),
    "httpx": (
        "images.fetch",
        "commands.check",
        "commands.batch",
        "commands.audit",
        "rows.asking",
        "backends.openrouter.client",
    ),
    "requests": (),
    "tokenizers": ("families.tokenizer", "families.byte_pairs", "backends.vllm.mends.shared_tokenizers"),
    "tiktoken": ("families.byte_pairs",),
    # It knows what the standard library's re does not: which characters are invisible.
    "regex": ("domain.conversation", "moderation.lookalikes"),
    "orjson": ("api",),
    "jinja2": ("families",),
    "jsonschema": ("api.chat.schemas",),
    "huggingface_hub": ("checkpoints",),
    "prometheus_client": ("observation", "api.operations"),
    "pyarrow": ("rows",),
    "pydantic": ("api", "checkpoints", "settings", "commands.check", "__main__"),
    "typing_extensions": ("api",),
    "pydantic_settings": ("settings",),
    "PIL": ("images", "backends"),
    "sqlalchemy": ("store",),
    "alembic": ("store",),
    "opentelemetry": ("observation.spans",),
}
"""Packages and the only modules or packages of server/ that may import them."""


BENCHMARK_IMPORTS = {"bare_engine": {"server", "vllm"}}


UNKNOWN = "server.unknown"
"""What is imported by a name that the code makes up."""


def modules(folder: str) -> dict[str, Path]:
    """Modules by their name below `folder`; a package is its own name, the folder itself the empty name."""
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        parts = file.relative_to(ROOT / folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


SERVER = modules("server")
BENCHMARKS = modules("benchmarks")


def imports(source: str) -> Iterator[str]:
    """Dotted names of all that is imported: of `from a import b`, both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that a search finds them"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield str(node.args[0].value) if isinstance(node.args[0], ast.Constant) else UNKNOWN


@cache
def imports_of(file: Path) -> frozenset[str]:
    return frozenset(imports(file.read_text(encoding="utf-8")))


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def floor_of(module: str) -> int:
    """The floor of a module other than `server` itself. Raises StopIteration when no room of FLOORS has it."""
    return next(floor for floor, rooms in enumerate(FLOORS) if any(within(module, room) for room in rooms))


def room_of(module: str) -> str:
    return module.partition(".")[0]


def neighbours(module: str) -> set[str]:
    """The modules of server/ that `module` imports."""
    names = {name.removeprefix("server.") for name in imports_of(SERVER[module]) if within(name, "server")}
    return {name for name in names if name in SERVER} - {module}


def packages(file: Path) -> set[str]:
    """Top-level names that a file imports from outside of the standard library."""
    return {name.partition(".")[0] for name in imports_of(file)} - sys.stdlib_module_names


def test_every_room_has_its_floor():
    """A new room is placed by hand, in FLOORS."""
    rooms = {room_of(module) for module in SERVER} - {""}
    assert rooms == {room for floor in FLOORS for room in floor}
    assert len(rooms) <= MOST_ROOMS


@pytest.mark.parametrize("module", [name for name in SERVER if name])
def test_dependencies_point_down(module):
    upward = {
        name
        for name in neighbours(module)
        if room_of(name) != room_of(module) and name and floor_of(name) >= floor_of(module)
    }
    assert upward == set()


@pytest.mark.parametrize("room", sorted({room_of(module) for module in SERVER} - {""}))
def test_a_room_does_not_run_in_circles(room):
    inside = {
        name: {other for other in neighbours(name) if within(other, room)} for name in SERVER if within(name, room)
    }
    while free := {name for name, others in inside.items() if not others}:
        inside = {name: others - free for name, others in inside.items() if name not in free}
    assert inside == {}


@pytest.mark.parametrize("room", APART)
def test_folders_of_a_room_stand_apart(room):
    for module in SERVER:
        folder = folder_in(room, module)
        if folder is not None:
            common = APART[room]
            below = common[: common.index(folder)] if folder in common else common
            seen = {folder_in(room, other) for other in reached(room, module)} - {None, folder}
            assert seen <= set(below), module


def reached(room: str, module: str) -> set[str]:
    """What `module` imports of `room`, by way of other modules too: none that stands above a folder leads into it."""
    found, fresh = set[str](), {module}
    while fresh:
        found |= fresh
        fresh = {other for one in fresh for other in neighbours(one) if within(other, room)} - found
    return found


def folder_in(room: str, module: str) -> str | None:
    """The folder of `room` in which `module` lies."""
    if not within(module, room) or module == room:
        return None
    name = module.removeprefix(f"{room}.").partition(".")[0]
    return name if (ROOT / "server" / room.replace(".", "/") / name).is_dir() else None


@pytest.mark.parametrize("module", [name for name, file in SERVER.items() if file.name == "__init__.py"])
def test_packages_import_nothing_else(module):
    """Importing any module of a package runs these: whatever they imported, everybody would."""
    assert {name for name in imports_of(SERVER[module]) if not within(name, f"server.{module}")} == set()


@pytest.mark.parametrize("module", [name for name in SERVER if within(name, "domain")])
def test_domain_is_the_standard_library_and_itself(module):
    assert packages(SERVER[module]) <= {"server", "regex"}


def test_only_one_place_decides():
    """The threshold is compared, and a Decision made, by server.domain.verdict.decide and by nobody else."""
    decides = re.compile(r"\bDecision\(|[<>]=? *[\w.]*policy\.threshold")
    users = {name for name, file in SERVER.items() if decides.search(file.read_text(encoding="utf-8"))}
    assert users == {"domain.verdict"}


@pytest.mark.parametrize("package", ROOMS)
def test_packages_stay_in_their_rooms(package):
    users = {module for module, file in SERVER.items() if package in packages(file)}
    assert {module for module in users if not any(within(module, room) for room in ROOMS[package])} == set()


def test_every_foreign_package_has_a_room():
    """What is imported from outside is placed by hand too, in ROOMS or here."""
    anywhere = {"server", "model_config", "numpy", "tqdm"}
    assert {package for file in SERVER.values() for package in packages(file)} - {*ROOMS} <= anywhere


def test_only_families_are_imported_by_a_name_that_somebody_wrote():
    assert {name for name, file in SERVER.items() if UNKNOWN in imports_of(file)} == {"families.base"}


@pytest.mark.parametrize("module", SERVER)
def test_no_cancellation_is_swallowed(module):
    """Before Python 3.12, asyncio.wait_for drops one that comes as its work ends; asyncio.timeout does not."""
    assert "asyncio.wait_for" not in SERVER[module].read_text(encoding="utf-8")


@pytest.mark.parametrize("module", [name for name in SERVER if not within(name, "commands")])
def test_no_frame_raises_an_error_that_it_holds(module):
    """It would hold the error, and the error the frame with all of the request (server.domain.aio.fresh)."""
    raised = [
        node.exc.lineno
        for node in ast.walk(ast.parse(SERVER[module].read_text(encoding="utf-8")))
        # Not `raise Error`, which makes one.
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id.islower()
    ]
    assert raised == []


@pytest.mark.parametrize("module", BENCHMARKS or [pytest.param("", marks=pytest.mark.skip("no benchmark yet"))])
def test_benchmarks_know_the_server_by_its_wire_only(module):
    # The bare engine is a server itself, made of this project's connection and client of vLLM's engine.
    assert packages(BENCHMARKS[module]) & {"server", "vllm", "model_config"} <= BENCHMARK_IMPORTS.get(module, set())


WHO_OBSERVES = ("app", "commands", "api.operations")


def test_nobody_else_knows_who_observes():
    """All others publish events (server.domain.events), so that metrics, logs and an audit hear of the same things."""
    users = {
        module
        for module in SERVER
        if not within(module, "observation") and any(within(name, "observation") for name in neighbours(module))
    }
    assert {module for module in users if not any(within(module, room) for room in WHO_OBSERVES)} == set()


# --- Mends --------------------------------------------------------------------------------------------------

MENDS = {name: file for name, file in SERVER.items() if within(name, "backends.vllm.mends") and name.count(".") == 3}

FORM = re.compile(
    r"(?P<changes>[^\n]+\.)\n\nWhy: (?P<why>.+)\nWhere: (?P<where>.+)\n"
    r"Upstream: (?P<upstream>.+)\nNeeded: (?P<needed>\S+)\nUntil: (?P<until>.+)",
    re.DOTALL,
)
"""How the docstring of a mend reads."""

THREAD = re.compile(r"[\w.-]+/[\w.-]+#[1-9]\d*")


def form_of(file: Path) -> dict[str, str]:
    found = FORM.fullmatch((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").strip())
    assert found is not None, f"{file.name} does not open in the form that mends/__init__.py shows"
    return found.groupdict()


def functions(file: Path) -> set[str]:
    defined = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, defined)}


@pytest.mark.parametrize("mend", MENDS)
def test_a_mend_says_what_why_where_and_until_when(mend):
    form = form_of(MENDS[mend])
    assert all(text.strip() for text in form.values())
    assert THREAD.search(form["upstream"]) or form["upstream"].startswith("none known")


@pytest.mark.parametrize("mend", MENDS)
def test_a_mend_names_the_test_that_shows_that_it_is_needed(mend):
    file, _, name = form_of(MENDS[mend])["needed"].partition("::")
    assert name in functions(ROOT / file)


@pytest.mark.parametrize("mend", MENDS)
def test_a_mend_is_installed_somewhere(mend):
    named = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    users = {
        module
        for module in SERVER
        if within(module, "backends.vllm") and module not in MENDS and mend in neighbours(module)
    }
    assert users or f'"server.{mend}:' in named
    assert {"install", "installed"} & functions(MENDS[mend]) or "\nARGUMENTS" in MENDS[mend].read_text(encoding="utf-8")


# --- The rules above can fail -----------------------------------------------------------------------------

HIDDEN = """
from typing import TYPE_CHECKING
import importlib
if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
def later():
    import torch.nn as nn
    from server import app
    from server.domain import errors
    importlib.import_module("fastapi.routing")
    __import__("starlette")
"""


def test_no_import_hides():
    found = set(imports(HIDDEN))
    assert {"vllm.outputs", "torch.nn", "server.app", "server.domain.errors", "fastapi.routing", "starlette"} <= found


def test_a_mend_without_its_upstream_is_refused(tmp_path):
    whole = (ROOT / "server/backends/vllm/mends/kept_memory.py").read_text(encoding="utf-8")
    (tmp_path / "mend.py").write_text(whole.replace("Upstream:", ""), encoding="utf-8")
    with pytest.raises(AssertionError, match="does not open in the form"):
        form_of(tmp_path / "mend.py")


def test_relative_imports_are_refused():
    with pytest.raises(AssertionError, match="absolute"):
        list(imports("from . import app"))
