"""Dependencies point down only, and heavy packages stay in their rooms.

Every import counts, wherever in a module it stands: at its top, inside a function, or for type checkers alone.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "taxonomy", "caller"),
    ("conversation", "policy"),
    ("verdict", "lookalikes"),
    ("answer", "finished_prompt", "byte_pairs", "passes", "sight"),
    ("tokenizer", "admission", "rate_limit", "metrics", "fetch", "profile"),
    ("prompt", "images", "checkpoint"),
    ("template_check", "memory", "settings", "rows"),
    (
        "backends.asked_logprobs",
        "backends.cpu_norm",
        "backends.last_positions",
        "backends.step_sizes",
        "backends.torch_companions",
        "backends.base",
    ),
    ("backends.engine_process",),
    ("backends.tiles",),
    ("backends.engine_images", "backends.engine_client"),
    ("backends.vllm", "backends.openrouter"),
    ("backends.fallback",),
    ("question", "in_flight", "judges"),
    ("verdict_cache",),
    ("moderator", "loading"),
    ("readiness", "store"),
    ("api",),
    ("batch_runner",),
    ("app", "connection"),
    ("serve", "check", "batch", "doctor", "keys"),
    ("__main__",),
)
"""Modules and packages of server/, the lowest first: each may import from lower floors only."""

DOMAIN = (
    "errors",
    "taxonomy",
    "caller",
    "conversation",
    "policy",
    "verdict",
    "answer",
    "finished_prompt",
    "lookalikes",
    "passes",
)

ROOMS: dict[str, tuple[str, ...]] = {
    # engine_images writes the engine's own input format, engine_client talks to its core: in backends.vllm both would
    # drown the verdict's story.
    "vllm": (
        "backends.vllm",
        "backends.engine_client",
        "backends.engine_images",
        "backends.engine_process",
        "backends.asked_logprobs",
        "backends.cpu_norm",
        "backends.last_positions",
        "backends.step_sizes",
    ),
    "torch": ("backends",),
    "torchvision": ("backends",),
    "torchaudio": ("backends",),
    "transformers": (),
    "fastapi": ("api", "app", "serve"),
    "fastapi_offline": ("app",),
    "starlette": ("api", "app", "serve"),
    "uvicorn": ("serve", "connection"),
    "uvloop": ("serve",),
    "cachetools": ("verdict_cache",),
    "httpx": ("fetch", "check", "batch", "backends.openrouter.client"),
    "requests": (),
    "tokenizers": ("tokenizer", "byte_pairs", "backends.engine_process"),
    "tiktoken": ("byte_pairs",),
    "regex": ("conversation", "lookalikes"),
    "orjson": ("api",),
    "jinja2": ("template_check",),
    "huggingface_hub": ("checkpoint",),
    "prometheus_client": ("metrics", "api"),
    "pydantic": ("api", "settings", "check", "__main__"),
    "pydantic_settings": ("settings",),
    "PIL": ("images", "backends"),
    "sqlalchemy": ("store",),
    "alembic": ("store",),
}
"""Packages and the only modules or packages of server/ that may import them."""


BENCHMARK_IMPORTS = {"bare_engine": {"server", "vllm"}}


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
            yield str(ast.literal_eval(node.args[0]))


@cache
def imports_of(file: Path) -> frozenset[str]:
    return frozenset(imports(file.read_text(encoding="utf-8")))


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def floor_of(module: str) -> int | None:
    """The floor of a module, None for the bare packages, which are empty."""
    return next((floor for floor, rooms in enumerate(FLOORS) if any(within(module, room) for room in rooms)), None)


def neighbours(module: str) -> set[str]:
    """The modules of server/ that `module` imports."""
    names = {name.removeprefix("server.") for name in imports_of(SERVER[module]) if within(name, "server")}
    return {name for name in names if name in SERVER} - {module}


def packages(file: Path) -> set[str]:
    """Top-level names that a file imports from outside of the standard library."""
    return {name.partition(".")[0] for name in imports_of(file)} - sys.stdlib_module_names


def test_every_module_has_its_floor():
    """A new module is placed by hand, in FLOORS."""
    assert [name for name in SERVER if floor_of(name) is None] == ["", "backends"]
    assert [room for floor in FLOORS for room in floor if room not in SERVER] == []


@pytest.mark.parametrize("module", [name for name in SERVER if floor_of(name) is not None])
def test_dependencies_point_down(module):
    room = next(room for room in FLOORS[floor_of(module)] if within(module, room))
    upward = {
        name
        for name in neighbours(module)
        if not within(name, room) and floor_of(name) is not None and floor_of(name) >= floor_of(module)
    }
    assert upward == set()


@pytest.mark.parametrize("room", ["api", "images"])
def test_a_package_does_not_run_in_circles(room):
    inside = {
        name: {other for other in neighbours(name) if within(other, room)} for name in SERVER if within(name, room)
    }
    while free := {name for name, others in inside.items() if not others}:
        inside = {name: others - free for name, others in inside.items() if name not in free}
    assert inside == {}


@pytest.mark.parametrize("module", ["", "backends", "backends.openrouter"])
def test_bare_packages_import_nothing(module):
    """Importing any module of a package runs these: whatever they imported, everybody would."""
    assert imports_of(SERVER[module]) == frozenset()


@pytest.mark.parametrize("module", DOMAIN)
def test_domain_is_the_standard_library_and_itself(module):
    # regex knows what the standard library's re does not: which characters are invisible.
    assert packages(SERVER[module]) <= {"server", "regex"}
    assert neighbours(module) <= set(DOMAIN)


@pytest.mark.parametrize("package", ROOMS)
def test_packages_stay_in_their_rooms(package):
    users = {module for module, file in SERVER.items() if package in packages(file)}
    assert {module for module in users if not any(within(module, room) for room in ROOMS[package])} == set()


def test_every_foreign_package_has_a_room():
    """What is imported from outside is placed by hand too, in ROOMS or here."""
    anywhere = {"server", "model_config", "numpy", "tqdm"}
    assert {package for file in SERVER.values() for package in packages(file)} - {*ROOMS} <= anywhere


@pytest.mark.parametrize("module", BENCHMARKS or [pytest.param("", marks=pytest.mark.skip("no benchmark yet"))])
def test_benchmarks_know_the_server_by_its_wire_only(module):
    # The bare engine is a server itself, made of this project's connection and client of vLLM's engine.
    assert packages(BENCHMARKS[module]) & {"server", "vllm", "model_config"} <= BENCHMARK_IMPORTS.get(module, set())


# --- The rules above can fail -----------------------------------------------------------------------------

HIDDEN = """
from typing import TYPE_CHECKING
import importlib
if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
def later():
    import torch.nn as nn
    from server import app, errors
    importlib.import_module("fastapi.routing")
    __import__("starlette")
"""


def test_no_import_hides():
    found = set(imports(HIDDEN))
    assert {"vllm.outputs", "torch.nn", "server.app", "server.errors", "fastapi.routing", "starlette"} <= found


def test_relative_imports_are_refused():
    with pytest.raises(AssertionError, match="absolute"):
        list(imports("from . import app"))
