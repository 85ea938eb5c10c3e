"""The formats of files with rows, told by the file's name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.domain.errors import OperatorError

Kind = Literal["jsonl", "csv", "parquet"]

_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Format:
    """`packed`: the file is compressed with gzip."""

    kind: Kind
    packed: bool = False


def format_of(file: Path) -> Format:
    """Raises OperatorError if the name ends in none of the known ways."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = suffixes[-1:] == [".gz"]
    if packed:
        suffixes.pop()
    kind = _KINDS.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise OperatorError(
            f"{file}: the name must end in .jsonl, .ndjson, .csv or .parquet, each also with .gz after it. It tells the"
            " format."
        )
    return Format(kind, packed)
