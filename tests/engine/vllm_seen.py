"""Prints what of vLLM this server uses and the installed vLLM does not have, as JSON. Loads no model and needs no card.

It has a process of its own, because it imports every part of vLLM that the server can touch. What types tell is ty's to
check (test_fits_vllm.py); here stands what only shows when it is imported, or lies behind a text.
"""

import ast
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import server.backends
from server.checkpoints.profile import SHIPPED, load_profile, variant_specs

ROOT = Path(server.backends.__file__).parents[1]
"""The server's code."""

TOUCHING = ROOT / "backends" / "vllm"

ENGINE = re.compile(r"(self\._?)?engine$")
"""How the code there calls vLLM's AsyncLLM."""


def modules() -> list[str]:
    found = pkgutil.walk_packages(server.backends.__path__, "server.backends.")
    return ["server.backends", *(module.name for module in found)]


def trees() -> Iterator[ast.Module]:
    for file in sorted(TOUCHING.rglob("*.py")):
        yield ast.parse(file.read_text(encoding="utf-8"), str(file))


def names() -> set[str]:
    """Everything that is imported from vLLM there and whatever is looked up on it, as "module:name.attribute"."""
    return {name for tree in trees() for name in names_in(tree)}


def names_in(tree: ast.Module) -> Iterator[str]:
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vllm":
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}:{alias.name}"
    yield from imported.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in imported and re.fullmatch(r"[\w.]+", rest):
                yield f"{imported[root]}.{rest}"


def has(name: str) -> bool:
    module, _, path = name.partition(":")
    first, *rest = path.split(".")
    found = importlib.import_module(module)
    try:
        # `from package import module` finds modules that nobody has imported yet.
        found = getattr(found, first) if hasattr(found, first) else importlib.import_module(f"{module}.{first}")
        for attribute in rest:
            found = getattr(found, attribute)
    except (AttributeError, ImportError):
        return False
    return True


def engine_attributes() -> set[str]:
    """What is looked up on an AsyncLLM there."""
    nodes = (node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if ENGINE.fullmatch(ast.unparse(node.value))}


def engine_has(attribute: str) -> bool:
    """Whether AsyncLLM itself brings it. Its base class only declares, so that types find it in any case."""
    from vllm.v1.engine.async_llm import AsyncLLM

    stores = ast.walk(ast.parse(inspect.getsource(inspect.getmodule(AsyncLLM))))  # type: ignore[arg-type]
    return attribute in vars(AsyncLLM) or any(
        isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node) == f"self.{attribute}"
        for node in stores
    )


def variables() -> set[str]:
    """vLLM's environment variables that the server sets or reads."""
    texts = "\n".join(file.read_text(encoding="utf-8") for file in ROOT.rglob("*.py"))
    return set(re.findall(r'"(VLLM_[A-Z0-9_]+)"', texts))


def wrong_arguments() -> list[str]:
    """Arguments of the shipped profiles that vLLM's engine does not know, or does not take with such a value."""
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
    from vllm.engine import arg_utils
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    from server.backends.vllm.setup import engine_arguments

    known = inspect.signature(arg_utils.AsyncEngineArgs).parameters
    wrong = []
    for folder in sorted(SHIPPED.glob("*/profile.toml")):
        for spec in variant_specs(folder.parent.name):
            for name, value in engine_arguments(load_profile(spec), folder.parent, one_chunk=True).items():
                if name not in known or (name == "quantization" and value not in QUANTIZATION_METHODS):
                    wrong.append(f"{spec}: {name} = {value!r}")
                    continue
                try:
                    TypeAdapter(known[name].annotation).validate_python(value)
                except PydanticSchemaGenerationError:
                    pass  # a class of vLLM's that pydantic does not know
                except ValidationError as error:
                    wrong.append(f"{spec}: {name} = {value!r}: {error.errors()[0]['msg']}")
    return wrong


def main() -> None:
    failed: dict[str, str] = {}
    for module in modules():
        try:
            importlib.import_module(module)
        except Exception as error:
            failed[module] = f"{type(error).__name__}: {error}"
    import torch
    import vllm
    from vllm import envs, plugins
    from vllm.model_executor.models.mllama4 import Mllama4MultiModalProcessor

    fields: Any = Mllama4MultiModalProcessor._get_mm_fields_config
    seen = {
        "version": vllm.__version__,
        "imported": len(modules()),
        "not imported": failed,
        "names": len(names()),
        "missing names": sorted(name for name in names() if not has(name)),
        "engine attributes": sorted(engine_attributes()),
        "missing of the engine": sorted(name for name in engine_attributes() if not engine_has(name)),
        "variables": sorted(variables()),
        "missing variables": sorted(variables() - set(envs.environment_variables)),
        "wrong arguments": wrong_arguments(),
        "plugins": sorted(plugin.name for plugin in entry_points(group=plugins.DEFAULT_PLUGINS_GROUP)),
        "picture fields": {
            name: type(field.field).__name__
            for name, field in fields(None, {"patches_per_image": torch.tensor([1])}, {}).items()
        },
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
