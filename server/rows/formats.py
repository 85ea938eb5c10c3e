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
    kind = _KINDS.get((suffixes[:-1] if packed else suffixes)[-1:][0]) if len(suffixes) > packed else None
    if kind is None or (packed and kind == "parquet"):
        raise OperatorError(
            f"{file}: the name must end in .jsonl, .ndjson, .csv (each also with .gz after it) or .parquet, which tells"
            " the format."
        )
    return Format(kind, packed)
