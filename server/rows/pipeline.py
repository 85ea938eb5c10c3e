"""A file of rows becomes a file of rows with verdicts: in order, each row once, whatever stops the run in between."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.domain.errors import OperatorError
from server.rows.formats import format_of
from server.rows.journal import Answer, Journal
from server.rows.messages import messages_of
from server.rows.reading import Placed, Row, Source
from server.rows.writing import write

Ask = Callable[[Sequence[Any]], Awaitable[Answer]]
"""Messages to a verdict's detail, or to an error."""

Progress = Callable[[int, Mapping[str, int]], None]
"""Called with the number of rows answered since the last call, and the counts of all."""

TEXT_COLUMNS = ("text", "messages", "images")

VERDICT_COLUMNS = ("verdict", "flagged", "categories", "p_unsafe", "threshold", "model", "error", "error_code")
WHOLE_COLUMN = "guard"
"""In JSON Lines also the whole detail of the verdict, as in a reply."""

PREFIX = "guard_"
"""Before all of these names, if the input has one of them."""


@dataclass(slots=True)
class Summary:
    """What a run did. `answered` counts the rows that this run asked about; the others were answered before."""

    counts: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        pace = f"{self.answered / self.seconds:.1f} a second" if self.seconds else "none asked about"
        before = f", {self.rows - self.answered} of them answered before" if self.rows > self.answered else ""
        return (
            f"{self.rows} rows{before}: {self.counts['safe']} safe, {self.counts['unsafe']} unsafe,"
            f" {self.counts['errors']} errors; {self.seconds:.1f} s, {pace}"
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One file to work through. `text` is the column of the text. `policy` is part of what makes a run the same."""

    file: Path
    out: Path
    text: str = "text"
    policy: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    overwrite: bool = False


def check_files(run: Run) -> Source:
    """Everything that can be wrong with the files before any work is done. Raises OperatorError."""
    source = Source(run.file)
    format_of(run.out)
    if not run.out.parent.is_dir():
        raise OperatorError(f"{run.out.parent}: there is no such folder. Make it, or choose another file with --out.")
    if run.out.exists() and run.file.exists() and run.out.samefile(run.file):
        raise OperatorError(f"{run.out}: is the input itself. Choose another file with --out.")
    wanted = {run.text, *TEXT_COLUMNS}
    if source.columns is not None and not wanted.intersection(source.columns):
        there = ", ".join(source.columns) or "none"
        raise OperatorError(
            f"{run.file}: has no column {run.text!r} (its columns: {there}). Name the column of the text with --column."
        )
    return source


async def work_through(run: Run, ask: Ask, progress: Progress = lambda *_: None) -> Summary:
    """Ask about every row that has no answer yet, and write the output. Raises OperatorError."""
    source, summary, started = check_files(run), Summary(), time.monotonic()
    journal = Journal(run.out)
    identity = {"input": _digest(run.file), "policy": dict(run.policy), "column": run.text}
    journal.open(identity, anew=run.overwrite)
    try:
        await _answer_rows(run, source, journal, ask, summary, progress)
        if not summary.rows:
            raise OperatorError(f"{run.file}: the file has no rows to judge.")
        summary.seconds = time.monotonic() - started
        _write_output(run, source, journal)
    except BaseException:
        journal.close()
        raise
    if summary.counts["errors"]:
        journal.close()  # the same command asks about these rows again
    else:
        journal.discard()
    return summary


async def _answer_rows(
    run: Run, source: Source, journal: Journal, ask: Ask, summary: Summary, progress: Progress
) -> None:
    def rows_to_ask() -> Iterator[tuple[int, Placed]]:
        for number, placed in enumerate(source):
            if journal.answered(number):
                count(journal.get(number))
            else:
                yield number, placed

    def count(answer: Answer) -> None:
        summary.counts["errors" if "error" in answer else answer["verdict"]] += 1
        progress(1, summary.counts)

    # All workers take from one iterator, so only their own rows are in memory.
    waiting = rows_to_ask()

    async def work() -> None:
        for number, placed in waiting:
            try:
                messages = messages_of(_named(placed.row, run.text), run.file.parent)
            except OperatorError as error:
                answer: Answer = {"error": {"message": str(error), "code": "invalid_row"}}
            else:
                answer = await ask(messages)
            journal.put(number, answer)
            summary.answered += 1
            count(answer)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(run.concurrency):
                group.create_task(work())
    except* OperatorError as errors:
        raise _first(errors) from None


def _write_output(run: Run, source: Source, journal: Journal) -> None:
    columns = _columns_of(source)
    prefix = PREFIX if {*VERDICT_COLUMNS, WHOLE_COLUMN} & set(columns) else ""
    whole = format_of(run.out).kind == "jsonl"

    def rows() -> Iterator[Row]:
        for number, placed in enumerate(source):
            answer = journal.get(number)
            row = {**placed.row, **{prefix + name: value for name, value in _verdict_of(answer).items()}}
            if whole and "error" not in answer:
                row[prefix + WHOLE_COLUMN] = {name: value for name, value in answer.items() if name != "row"}
            yield row

    part = journal.begin_part()
    try:
        write(part, run.out, rows, [*columns, *(prefix + name for name in VERDICT_COLUMNS)], source.schema)
        journal.publish(part)
    finally:
        part.unlink(missing_ok=True)


def _columns_of(source: Source) -> list[str]:
    if source.columns is not None:
        return list(source.columns)
    columns: dict[str, None] = {}
    for placed in source:
        columns.update(dict.fromkeys(placed.row))
    return list(columns)


def _verdict_of(answer: Answer) -> Row:
    """The columns of one answer. None where there is no verdict."""
    error = answer.get("error") or {}
    return {
        "verdict": answer.get("verdict"),
        "flagged": answer["verdict"] == "unsafe" if "verdict" in answer else None,
        "categories": answer.get("categories"),
        "p_unsafe": answer.get("p_unsafe"),
        "threshold": answer.get("threshold"),
        "model": answer.get("model"),
        "error": error.get("message"),
        "error_code": error.get("code"),
    }


def _named(row: Row, text: str) -> Row:
    """The row with its text under the name `text`, and without fields that are not there."""
    named = {name: value for name, value in row.items() if value is not None}
    if text != "text" and text in named:
        named["text"] = named.pop(text)
    return named


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}.") from error


def _first(errors: BaseExceptionGroup[OperatorError]) -> OperatorError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, OperatorError)
    return error
