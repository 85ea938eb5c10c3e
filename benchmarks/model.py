"""The model that is served: where it lies, and the engine arguments that this server and vLLM's own both get."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def write_profile(self, folder: Path) -> Path:
        """A profile of this server's that says the same as `engine_flags` says to vLLM's."""
        lines = [
            f"extends = {json.dumps(str(self.base))}",
            'name = "benchmark"',
            f"model = {json.dumps(str(self.folder))}",
            f"context_tokens = {self.context}",
            f"image_limit = {self.images}",
            "\n[engine]",
            *(f"{key} = {json.dumps(value)}" for key, value in self.engine.items()),
        ]
        file = folder / "profile.toml"
        file.write_text("\n".join(lines) + "\n")
        return file

    @property
    def engine_flags(self) -> list[str]:
        """The same for vLLM's command line."""
        flags = [f"--max-model-len={self.context}", f"--limit-mm-per-prompt={json.dumps({'image': self.images})}"]
        for key, value in self.engine.items():
            flag = key.replace("_", "-")
            flags.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag}={value}")
        return flags


def profile_table(file: Path) -> dict[str, Any]:
    """The tables of a profile and of those that it extends, without their variants but a default one."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    variants = table.pop("variants", {})
    chosen = variants.get(table.pop("default_variant", None), {})
    own = {**table, **chosen, "engine": {**table.get("engine", {}), **chosen.get("engine", {})}}
    if "extends" not in own:
        return own
    name, *asked = own["extends"].split(":")
    base_file = (file.parent / name if "/" in name else SHIPPED / name) / "profile.toml"
    base = profile_table(base_file)
    for variant in asked:
        override = tomllib.loads(base_file.read_text(encoding="utf-8"))["variants"][variant]
        base = {**base, **override, "engine": {**base["engine"], **override.get("engine", {})}}
    return {**base, **own, "engine": {**base["engine"], **own["engine"]}}


def model_of_profile(folder: Path, engine: Mapping[str, Any]) -> Model:
    """The model of a profile whose checkpoint lies beside it; `engine` overrides what the profile says."""
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
