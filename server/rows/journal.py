"""The journal beside an output: what has been answered so far, so that a run which was killed goes on where it was.

It is a text file: a first line that says what the run is, then one line for each answered row, in the order in which
the answers came. A line that was cut off by a kill is dropped.
"""

import fcntl
import json
import os
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from server.domain.errors import OperatorError

MARK = "llama-guard-server rows"
NOWHERE = -1
SYNC_S = 1.0
"""After a power cut, at most so many seconds of answers are asked for again. A kill of the process loses none."""

Answer = dict[str, Any]


class Journal:
    """The answers to the rows of one input, by the row's number from 0. In memory: 8 bytes a row."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.file = out.with_name(out.name + ".journal")
        self._at = array("q")
        """Where each row's answer begins in the file, NOWHERE without one."""
        self._synced = 0.0

    def open(self, run: Mapping[str, Any], *, anew: bool) -> Self:
        """Begin the journal, or go on with one of the same `run`. `anew`: forget an earlier run of ours.

        Raises OperatorError if the journal, or the output, belongs to something else.
        """
        head = {"journal": MARK, **run}
        found = self._head()
        if found is not None and not anew and found != head:
            differing = sorted(name for name in head.keys() | found.keys() if head.get(name) != found.get(name))
            raise OperatorError(
                f"{self.file}: belongs to a run with another {', '.join(differing)}. Choose another file with --out, or"
                " start again with --overwrite."
            )
        if found is None or anew:
            self._begin(head)
        self._stream = self.file.open("r+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OperatorError(f"{self.file}: another command is at work on it. Wait for its end.") from None
        written = self._read()
        if self.out.exists() and not anew and written != _identity(self.out):
            raise OperatorError(
                f"{self.out}: there is already such a file, and this command did not write it. Choose another file with"
                " --out, or replace it with --overwrite."
            )
        return self

    def close(self) -> None:
        self._sync()
        self._stream.close()

    def answered(self, number: int) -> bool:
        return number < len(self._at) and self._at[number] != NOWHERE

    def put(self, number: int, answer: Answer) -> None:
        self._note(number, self._append({"row": number, **answer}))
        if time.monotonic() - self._synced >= SYNC_S:
            self._sync()

    def get(self, number: int) -> Answer:
        self._stream.seek(self._at[number])
        answer: Answer = json.loads(self._stream.readline())
        return answer

    # --- The output ------------------------------------------------------------------------------------------

    def begin_part(self) -> Path:
        """The name of the file that becomes the output. One that an earlier run left is deleted."""
        part = self.out.with_name(f".{self.out.name}.{os.getpid()}-{time.time_ns()}.part")
        self._append({"part": part.name})
        self._sync()
        return part

    def publish(self, part: Path) -> None:
        """Give `part` the output's name. From now on the output is known to be ours."""
        self._append({"written": _identity(part)})
        self._sync()
        part.replace(self.out)

    def discard(self) -> None:
        """The output holds everything: the journal has done its work."""
        self._stream.close()
        self.file.unlink()

    # --- The file --------------------------------------------------------------------------------------------

    def _head(self) -> dict[str, Any] | None:
        """The first line of an existing journal. Raises OperatorError if the file is none."""
        try:
            with self.file.open("rb") as stream:
                head = json.loads(stream.readline())
            if head["journal"] == MARK:
                found: dict[str, Any] = head
                return found
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OperatorError(f"{self.file}: cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError):
            pass
        raise OperatorError(f"{self.file}: is no journal of this command. Move it away, or choose another --out.")

    def _begin(self, head: Mapping[str, Any]) -> None:
        """Make the file with its first line, at once: a kill never leaves half of it."""
        new = self.file.with_name(f".{self.file.name}.{os.getpid()}.new")
        try:
            with new.open("wb") as stream:
                stream.write(_line(head))
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(self.file)
        except OSError as error:
            raise OperatorError(f"{self.file}: cannot be written: {error.strerror}.") from error

    def _read(self) -> list[int] | None:
        """Find all answers, and cut off a line that is not complete. Returns what is known of the output.

        Answers that are errors count for nothing: those rows are asked about again.
        """
        written, at = None, 0
        for line in self._stream:
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            if "row" in entry:
                self._note(entry["row"], NOWHERE if "error" in entry else at)
            elif "written" in entry:
                written = entry["written"]
            elif "part" in entry:
                self.out.with_name(Path(entry["part"]).name).unlink(missing_ok=True)
            at += len(line)
        self._stream.truncate(at)
        return written

    def _note(self, number: int, at: int) -> None:
        if number >= len(self._at):
            self._at.extend([NOWHERE] * (number + 1 - len(self._at)))
        self._at[number] = at

    def _append(self, entry: Mapping[str, Any]) -> int:
        try:
            at = self._stream.seek(0, os.SEEK_END)
            self._stream.write(_line(entry))
            self._stream.flush()
        except OSError as error:
            raise OperatorError(
                f"{self.file}: cannot be written: {error.strerror}. Make room and run the same command again to go on."
            ) from error
        return at

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _identity(file: Path) -> list[int]:
    """What stays the same when a file is renamed, and changes when somebody writes to it."""
    stat = file.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]
