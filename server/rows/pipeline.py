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
from server.rows.messages import COLUMNS, messages_of
from server.rows.reading import Placed, Row, Source
from server.rows.writing import Kind, Table, write

Ask = Callable[[Sequence[Any]], Awaitable[Answer]]
"""Messages to a verdict's detail, or to an error."""

Progress = Callable[[int, int, Mapping[str, int]], None]
"""Called with the number of rows answered since the last call, the number of all rows, and the counts so far."""

TEXT_COLUMNS = ("text", "messages", "images")

VERDICT_COLUMNS: Mapping[str, Kind] = {
    "verdict": str,
    "flagged": bool,
    "categories": list,
    "p_unsafe": float,
    "threshold": float,
    "model": str,
    "error": str,
    "error_code": str,
}
WHOLE_COLUMN = "guard"
"""In JSON Lines also the whole detail of the verdict, as in a reply."""

PREFIX = "guard_"
"""Before all of these names, as often as it takes, if the input has one of them."""


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
        pace = f"{self.seconds:.1f} s, {self.answered / self.seconds:.1f} rows a second" if self.answered else "0.0 s"
        before = f", {self.rows - self.answered} of them answered before" if self.rows > self.answered else ""
        return (
            f"{self.rows} rows{before}: {self.counts['safe']} safe, {self.counts['unsafe']} unsafe,"
            f" {self.counts['errors']} errors; {pace}"
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One file to work through. `text` is the column of the text.

    `policy` and `model` are part of what makes a run the same: verdicts of several are never mixed.
    """

    file: Path
    out: Path
    text: str = "text"
    policy: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    concurrency: int = 16
    overwrite: bool = False


def check_files(run: Run) -> Source:
    """Everything that can be wrong with the files' names and columns, before any work is done. Raises OperatorError."""
    format_of(run.out)
    source = Source(run.file)
    if not run.out.parent.is_dir():
        raise OperatorError(f"{run.out.parent}: there is no such folder. Make it, or choose another file with --out.")
    if run.out.exists() and run.out.samefile(run.file):
        raise OperatorError(f"{run.out}: is the input itself. Choose another file with --out.")
    if source.columns is not None:
        _check_columns(run, source.columns)
    return source


def _check_columns(run: Run, columns: Sequence[str]) -> None:
    wanted = {run.text} if run.text != "text" else set(TEXT_COLUMNS)
    if not wanted.intersection(columns):
        there = ", ".join(columns) or "none"
        raise OperatorError(
            f"{run.file}: has no column {run.text!r} (its columns: {there}). Name the column of the text with --column."
        )


async def work_through(run: Run, ask: Ask, progress: Progress = lambda *_: None) -> Summary:
    """Ask about every row that has no answer yet, and write the output. Raises OperatorError."""
    source, summary, started = check_files(run), Summary(), time.monotonic()
    before = _stamp(run.file)
    survey = source.survey()
    if not survey.rows:
        raise OperatorError(f"{run.file}: the file has no rows to judge.")
    _check_columns(run, survey.columns)
    journal = Journal(run.out)
    identity = {"input": _digest(run.file), "policy": dict(run.policy), "column": run.text, "model": run.model}
    journal.open(identity, anew=run.overwrite)
    if journal.receipt is not None:
        journal.close()
        return Summary(Counter(journal.receipt))
    try:
        await _answer_rows(run, source, survey.rows, journal, ask, summary, progress)
        _check_unchanged(run.file, before)
        _write_output(run, source, survey.columns, journal, before)
        summary.seconds = time.monotonic() - started
        if not summary.counts["errors"]:
            journal.finish(summary.counts)  # otherwise the same command asks about these rows again
    finally:
        journal.close()
    return summary


async def _answer_rows(
    run: Run, source: Source, total: int, journal: Journal, ask: Ask, summary: Summary, progress: Progress
) -> None:
    def rows_to_ask() -> Iterator[tuple[int, Placed]]:
        for number, placed in enumerate(source.rows(only={run.text, *COLUMNS})):
            if journal.answered(number):
                count(journal.get(number))
            else:
                yield number, placed

    def count(answer: Answer) -> None:
        summary.counts["errors" if "error" in answer else answer["verdict"]] += 1
        progress(1, total, summary.counts)

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
            for _ in range(min(run.concurrency, total)):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


def _write_output(run: Run, source: Source, columns: Sequence[str], journal: Journal, before: object) -> None:
    names, prefix = {*VERDICT_COLUMNS, WHOLE_COLUMN}, ""
    while {prefix + name for name in names} & set(columns):
        prefix += PREFIX
    whole = format_of(run.out).kind == "jsonl"

    def added(number: int) -> Row:
        answer = journal.get(number)
        row = {prefix + name: value for name, value in _verdict_of(answer).items()}
        if whole and "error" not in answer:
            row[prefix + WHOLE_COLUMN] = answer
        return row

    part = journal.begin_part()
    try:
        kinds = {prefix + name: kind for name, kind in VERDICT_COLUMNS.items()}
        write(part, run.out, Table(source, columns, kinds, added))
        _check_unchanged(run.file, before)
        journal.publish(part)
    finally:
        part.unlink(missing_ok=True)


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
        # It may name an image by what no file can be named by.
        "error": message.encode("utf-8", "backslashreplace").decode() if (message := error.get("message")) else None,
        "error_code": error.get("code"),
    }


def _named(row: Row, text: str) -> Row:
    """The row with its text under the name `text`. Who names a column wants that one, whatever `messages` holds."""
    if text == "text":
        return row
    return {"text": row.get(text)} | {name: row.get(name) for name in ("images", "response") if name != text}


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}.") from error


def _stamp(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check_unchanged(file: Path, before: object) -> None:
    """The journal knows rows by their number, so another file under this name would get verdicts on other rows."""
    if not file.exists() or _stamp(file) != before:
        raise OperatorError(f"{file}: was changed during the run. The output was not written.")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
