"""Records of runs, each in a folder of its own: results/<date>-<machine>-<what>/run.json, with plots where it has any.

Most runs are comparisons. A run of benchmarks.soak is a soak; its folder's name ends so.

Records are never changed and never overwritten. A second run of the same kind on the same day gets `-2` at the end.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FILE = "run.json"

KINDS = COMPARISON, SOAK = "comparison", "soak"
"""Kinds of runs, as `benchmark` in run.json says it. A record without one is a comparison."""

GATEWAYS = ("litellm", "nemo")
SIZES = ("layers", "hidden", "heads", "kv_heads", "mlp")
"""Options that change the size of a model with made-up weights."""

OLD_NAMES = {"floor": "bare-engine", "floor_ratio": "bare_engine_ratio"}
"""What records from before December 2026 call a contender and the ratio to it, and what they are called now."""

INTEL_GENERATIONS = {143: "sapphire-rapids", 173: "granite-rapids", 207: "emerald-rapids"}

NOT_TELLING = re.compile(r"\((?:r|tm)\)|\b(?:amd|intel|nvidia|processor|cpu)\b|\b\d+-core\b|@.*$")
"""Parts of a processor's or a card's name that tell no two machines apart."""


@dataclass(frozen=True, slots=True)
class Record:
    """One run. `machine` and `what` are parts of the folder's name; `run` is the content of run.json."""

    folder: Path
    machine: str
    what: str
    run: Mapping[str, Any]

    @property
    def date(self) -> str:
        date: str = self.run["date"]
        return date

    @property
    def commit(self) -> str:
        return f"{self.run['commit']}{' with changes' if self.run['dirty'] else ''}"

    @property
    def model(self) -> str:
        name: str = self.run["model"]["name"]
        return name

    def figures(self, load: str, callers: int | None = None) -> Mapping[str, Any]:
        """Figures by contender of the closed loop of `load`, of so many callers if that is given; none if not run."""
        for section in self.run["sections"]:
            closed = section["load"] == load and section["rate"] is None
            if closed and callers in (None, section["concurrency"]):
                contenders: Mapping[str, Any] = section["contenders"]
                return contenders
        return {}


def read_all(results: Path = RESULTS, kind: str = COMPARISON) -> list[Record]:
    """All records of a kind, the oldest first. Raises ValueError for a folder whose name does not fit its content."""
    found = [read(folder) for folder in results.iterdir() if folder.is_dir()]
    return sorted((record for record in found if kind_of(record.run) == kind), key=lambda record: record.date)


def kind_of(result: Mapping[str, Any]) -> str:
    kind: str = result.get("benchmark", COMPARISON)
    return kind


def read(folder: Path) -> Record:
    """The record in `folder`. Raises ValueError when its name does not fit its content."""
    run = _renamed(json.loads((folder / FILE).read_text(encoding="utf-8")))
    what = what_of(run)
    name = re.fullmatch(rf"{run['date'][:10]}-([a-z0-9-]+?)-{re.escape(what)}(?:-\d+)?", folder.name)
    if name is None:
        raise ValueError(f"{folder.name} should be called {run['date'][:10]}-MACHINE-{what}, with -2 for a second run")
    return Record(folder, name[1], what, run)


def _renamed(run: dict[str, Any]) -> dict[str, Any]:
    """With today's names in place of those that the records had before."""
    for section in run.get("sections", ()):
        section["contenders"] = {
            OLD_NAMES.get(name, name): {OLD_NAMES.get(key, key): value for key, value in figures.items()}
            for name, figures in section["contenders"].items()
        }
    return run


def write(result: Mapping[str, Any], results: Path = RESULTS) -> Path:
    """Write run.json into a new folder below `results`. Returns the folder."""
    stem = f"{result['date'][:10]}-{machine_of(result['machine'])}-{what_of(result)}"
    folder = _new_folder(results, stem)
    (folder / FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return folder


def _new_folder(results: Path, stem: str) -> Path:
    results.mkdir(parents=True, exist_ok=True)
    name, number = stem, 1
    while True:
        try:
            # Not looked for first: two runs that end together must not take the same folder.
            (results / name).mkdir()
        except FileExistsError:
            number += 1
            name = f"{stem}-{number}"
        else:
            return results / name


def what_of(result: Mapping[str, Any]) -> str:
    """The model, and what makes the run a special one."""
    if kind_of(result) == SOAK:
        return f"{_slug(result['model']['name'])}-{SOAK}"
    options = result["options"]
    made_up = options["model"] == "small" and not any(options.get(size) for size in SIZES)
    name = "small" if made_up else result["model"]["name"]
    contenders = {contender for section in result["sections"] for contender in section["contenders"]}
    kinds = [
        *(["gateways"] if contenders & set(GATEWAYS) else []),
        *(["open-loop"] if any(section["rate"] is not None for section in result["sections"]) else []),
    ]
    return "-".join([_slug(name), *kinds])


def machine_of(machine: Mapping[str, Any]) -> str:
    """A short name of a machine as benchmarks.stamp describes it: its card, else its processor and how it computes."""
    if machine["gpu"]:
        card: str = machine["gpu"][0].partition(",")[0]
        return _slug(NOT_TELLING.sub(" ", card.lower()))
    words, _, instructions = machine["cpu"].lower().partition(" with ")
    said = re.fullmatch(r"(.*) family (\d+) model (\d+)", words)
    name, generation = (said[1], _generation(said[1], int(said[2]), int(said[3]))) if said else (words, "")
    return _slug(f"{NOT_TELLING.sub(' ', name)} {generation} {instructions}") or "unknown"


def _generation(name: str, family: int, model: int) -> str:
    """The generation's name where it is known; else the numbers, so that two of them are never called the same."""
    if "amd" in name and family == 25:
        return "zen3" if model < 0x10 or 0x20 <= model < 0x60 else "zen4"
    if "amd" in name and family == 26:
        return "zen5"
    if "intel" in name and family == 6:
        return INTEL_GENERATIONS.get(model, f"model{model}")
    return f"family{family}-model{model}"


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
