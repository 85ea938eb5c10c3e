"""The card of the pocket model shows what was measured, of the weights that are here."""

import json
from hashlib import sha256

from tests.model_config.test_pocket_checkpoint import POCKET

RECORD = json.loads((POCKET / "training/measured.json").read_text(encoding="utf-8"))
CARD = (POCKET / "README.md").read_text(encoding="utf-8")
SETS = {
    "smoke rows written for this project": "pocket_smoke",
    "benign chat": "benign_chat",
    "SimpleSafetyTests": "simple_safety_tests",
    "XSTest": "xstest",
    "HateCheck": "hatecheck",
}
FIGURES = ("right", "recall", "fpr", "f1", "auprc", "least mass")


def test_the_record_is_of_these_weights() -> None:
    assert sha256((POCKET / "model.safetensors").read_bytes()).hexdigest() == RECORD["weights"]


def test_the_table_is_the_record() -> None:
    table = CARD.partition("\n## Measured\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    shown = {SETS[name]: figures for name, *figures in rows[2:]}
    assert shown == {
        name: [f"{figures['rows']:,}", *(cell(figures.get(figure)) for figure in FIGURES)]
        for name, figures in RECORD["sets"].items()
    }


def cell(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}".removeprefix("0")
