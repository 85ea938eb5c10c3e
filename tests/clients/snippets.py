"""The fenced blocks of docs/migrate.md, as written but for the address and the key.

What stands behind a block's language says what it is: an environment of tests/clients that runs it, `shell`, or
`file=NAME` for a configuration that one of the programs or tests reads.
"""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/migrate.md"
FENCE = re.compile(r"^```(?P<language>\w+)(?: (?P<use>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PROMISE = re.compile(r"^ *(?:print\(|console\.log\(|.*\| grep ).*?\s(?:#|//) (?P<output>\S.*)$", re.MULTILINE)
ADDRESS, KEY = "http://127.0.0.1:8000", "YOUR_KEY"


@dataclass(frozen=True, slots=True)
class Snippet:
    line: int
    language: str
    use: str
    text: str

    def at(self, url: str, key: str) -> str:
        return self.text.replace(ADDRESS, url).replace(KEY, key)

    @property
    def promised(self) -> list[str]:
        """The lines that it says it prints."""
        return [match["output"] for match in PROMISE.finditer(self.text)]


def snippets() -> list[Snippet]:
    page = PAGE.read_text(encoding="utf-8")
    return [
        Snippet(page.count("\n", 0, match.start()) + 1, match["language"], match["use"] or "", match["text"])
        for match in FENCE.finditer(page)
    ]


def write_files(folder: Path, url: str, key: str) -> None:
    """The configurations, under their names."""
    for snippet in snippets():
        if snippet.use.startswith("file="):
            file = folder / snippet.use.removeprefix("file=")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(snippet.at(url, key), encoding="utf-8")
