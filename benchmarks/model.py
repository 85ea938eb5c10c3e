"""The model that is served: where it lies, and the engine arguments that this server and vLLM's own both get."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "model_config"
TEMPLATE = SHIPPED / "llama-guard-4-12b" / "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Model:
    """`folder` holds the checkpoint, `base` the profile it is served with; `engine` is all that engines are told."""

    name: str
    served_as: str
    folder: Path
    base: Path
    context: int
    images: int
    engine: Mapping[str, Any]
    minimum_mass: float | None = None
    """For weights that were made up, and so are less sure of their two words than a trained model."""
    on_cpu: bool = False

    def write_profile(self, folder: Path) -> Path:
        """A profile of this server's that says what `engine_flags` says to vLLM's own."""
        lines = [
            f"extends = {json.dumps(str(self.base))}",
            'name = "benchmark"',
            f"model = {json.dumps(str(self.folder))}",
            f"context_tokens = {self.context}",
            # Else the server refuses to put a model that needs a GPU on a CPU.
            *(["runs_on_cpu = true"] if self.on_cpu else []),
            "\n[engine]",
            *(f"{key} = {json.dumps(value)}" for key, value in self.engine.items()),
        ]
        file = folder / "profile.toml"
        file.write_text("\n".join(lines) + "\n")
        return file

    @property
    def engine_flags(self) -> list[str]:
        """The engine arguments for vLLM's command line."""
        flags = [f"--max-model-len={self.context}", f"--limit-mm-per-prompt={json.dumps({'image': self.images})}"]
        for key, value in self.engine.items():
            flag = key.replace("_", "-")
            flags.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag}={value}")
        return flags

    def preamble_tokens(self) -> int:
        """Tokens that stand before a user's text in every prompt without images."""
        before, _ = prompt_around_text()
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        # A space goes with the word behind it.
        return len(tokenizer.encode(before.rstrip(" "), add_special_tokens=False).ids)


def prompt_around_text() -> tuple[str, str]:
    """What the official template puts before and after the text of a user."""
    marker = "\N{OBJECT REPLACEMENT CHARACTER}"
    template = jinja2.Environment(autoescape=False).from_string(TEMPLATE.read_text(encoding="utf-8"))
    before, _, after = template.render(messages=[{"role": "user", "content": marker}]).partition(marker)
    return before, after


def profile_table(file: Path, *variants: str) -> dict[str, Any]:
    """The tables of a profile, of those that it extends and of its variants (else the default one) as one."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    known, default = table.pop("variants", {}), table.pop("default_variant", None)
    if "extends" in table:
        name, *asked = table.pop("extends").split(":")
        base = profile_table((file.parent / name if "/" in name else SHIPPED / name) / "profile.toml", *asked)
        table = _over(base, table)
    for variant in variants or ([default] if default else []):
        table = _over(table, known[variant])
    if table.get("engine", {}).get("dtype") == "fastest":
        table["engine"]["dtype"] = fastest_dtype()
    return table


def fastest_dtype() -> str:
    """What this server takes for the fastest on this machine's CPU, so that all contenders take it."""
    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16") else "float32"


def _over(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **override, "engine": {**base.get("engine", {}), **override.get("engine", {})}}


def model_of_profile(folder: Path, engine: Mapping[str, Any]) -> Model:
    """The model of a profile whose checkpoint lies on this disk; `engine` overrides what the profile says."""
    table = profile_table(folder / "profile.toml")
    return Model(
        name=table["name"],
        served_as=table["served_as"][0],
        folder=(folder / table["model"]).resolve(),
        base=folder.resolve(),
        context=table["context_tokens"],
        images=table.get("image_limit", 0),
        engine={**table["engine"], **engine},
    )


def model_of_checkpoint(folder: Path, name: str, context: int, engine: Mapping[str, Any]) -> Model:
    """A checkpoint of the real model's kind, made up or not, served with the real model's profile."""
    base = SHIPPED / "llama-guard-4-12b"
    table = profile_table(base / "profile.toml")
    return Model(
        name=name,
        served_as=table["served_as"][0],
        folder=folder.resolve(),
        base=base,
        context=context,
        images=table["image_limit"],
        engine={**table["engine"], **engine},
        minimum_mass=0.01,
    )
