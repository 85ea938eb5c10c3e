"""The journal beside an output: what has been answered so far, so that a run which was killed goes on where it was.

It is a text file: a first line that says what the run is, then one line for each answered row, in the order in which
the answers came. A line that was cut off by a kill is dropped. Once the output is complete, the answers are dropped and
a receipt stays, by which the same command knows its own output.
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
        self.receipt: dict[str, int] | None = None
        """The counts of a run that is complete: its output is there and whole."""
        self._at = array("q")
        """Where each row's answer begins in the file, NOWHERE without one."""
        self._outputs: list[list[int]] = []
        """Every output that this run has written, or was about to write when it was killed."""
        self._synced = 0.0

    def open(self, run: Mapping[str, Any], *, anew: bool) -> Self:
        """Begin the journal, or go on with one of the same `run`.

        `anew`: replace any output, and forget another run, or this one if it is complete. One that was stopped goes on.

        Raises OperatorError if the journal, or the output, belongs to something else.
        """
        self._head = {"journal": MARK, **run}
        if not self.file.exists():
            self._check_output(anew=anew)
            self._begin()
        self._lock()
        try:
            head = self._read()
            self._check_output(anew=anew)
            other, empty = head != self._head, not (self._at or self._outputs)
            # The receipt of an output that was moved away is of no more use.
            past = self.receipt is not None and (anew or not self.out.exists())
            if past or (other and (anew or empty)):
                self._restart()
            elif other:
                differing = sorted(name for name in head.keys() | self._head if head.get(name) != self._head.get(name))
                raise OperatorError(
                    f"{self.file}: belongs to a run with another {', '.join(differing)}. Choose another file with"
                    " --out, or start again with --overwrite."
                )
        except BaseException:
            self._stream.close()
            raise
        return self

    def close(self) -> None:
        if self._stream.closed:
            return
        try:
            self._sync()
        finally:
            self._stream.close()

    def answered(self, number: int) -> bool:
        return number < len(self._at) and self._at[number] != NOWHERE

    def put(self, number: int, answer: Answer) -> None:
        self._note(number, self._append({"row": number, "answer": answer}))
        if time.monotonic() - self._synced >= SYNC_S:
            self._sync()

    def get(self, number: int) -> Answer:
        self._stream.seek(self._at[number])
        answer: Answer = json.loads(self._stream.readline())["answer"]
        return answer

    # --- The output ------------------------------------------------------------------------------------------

    def begin_part(self) -> Path:
        """The name of the file that becomes the output. One that an earlier run left is deleted."""
        part = self.out.with_name(f".{self.out.name}.{os.getpid()}-{time.time_ns()}.part")
        self._append({"part": part.name})
        self._sync()
        return part

    def publish(self, part: Path) -> None:
        """Give `part` the output's name. From now on the output is known to be ours. Raises OperatorError."""
        self._outputs.append(_identity(part))
        self._append({"written": self._outputs[-1]})
        self._sync()
        try:
            part.replace(self.out)
            _sync_folder(self.out.parent)
        except OSError as error:
            raise OperatorError(f"{self.out}: cannot be written: {error.strerror}.") from error

    def finish(self, counts: Mapping[str, int]) -> None:
        """The output holds everything: only the receipt stays. Ends the work on the journal."""
        try:
            self._replace([self._head, {"written": self._outputs[-1]}, {"receipt": dict(counts)}])
        finally:
            self._stream.close()

    def _check_output(self, *, anew: bool) -> None:
        if self.out.is_dir():
            raise OperatorError(f"{self.out}: is a folder. Choose another file with --out.")
        if self.out.exists() and not anew and _identity(self.out) not in self._outputs:
            raise OperatorError(
                f"{self.out}: there is already such a file, and it is not the output of an earlier run of this command."
                " Choose another file with --out, or replace it with --overwrite."
            )

    # --- The file --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        new = self._made([self._head])
        try:
            os.link(new, self.file)
        except FileExistsError:
            pass  # another command was quicker, and holds it
        except OSError:  # some file systems have no links
            new.replace(self.file)
        finally:
            new.unlink(missing_ok=True)

    def _restart(self) -> None:
        """Forget everything but which outputs are ours. While it is replaced, the old file stays locked."""
        old = self._stream
        self._replace([self._head, *({"written": written} for written in self._outputs)])
        self._lock()
        old.close()
        self._at, self.receipt = array("q"), None
        self._stream.seek(0, os.SEEK_END)

    def _replace(self, entries: list[Mapping[str, Any]]) -> None:
        try:
            self._made(entries).replace(self.file)
            _sync_folder(self.file.parent)
        except OSError as error:
            raise OperatorError(f"{self.file}: cannot be written: {error.strerror}.") from error

    def _made(self, entries: list[Mapping[str, Any]]) -> Path:
        """A new file with these lines, complete before it gets the journal's name."""
        new = self.file.with_name(f".{self.file.name}.{os.getpid()}.new")
        try:
            with new.open("wb") as stream:
                stream.writelines(map(_line, entries))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            new.unlink(missing_ok=True)
            raise OperatorError(f"{self.file}: cannot be written: {error.strerror}.") from error
        return new

    def _lock(self) -> None:
        try:
            self._stream = self.file.open("r+b")
        except OSError as error:
            raise OperatorError(f"{self.file}: cannot be opened: {error.strerror}.") from error
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._stream.fileno()).st_ino != self.file.stat().st_ino:
                raise BlockingIOError
        except OSError:
            self._stream.close()
            raise OperatorError(f"{self.file}: another command is at work on it. Wait for its end.") from None

    def _read(self) -> dict[str, Any]:
        """Find all answers, and cut the file where it stops to be whole. Returns the first line.

        Answers that are errors count for nothing: those rows are asked about again. Raises OperatorError if the file is
        no journal.
        """
        at, head = 0, None
        for line in self._stream:
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if head is None:
                    if entry["journal"] != MARK:
                        break
                    head = entry
                elif "row" in entry:
                    answer = entry["answer"]
                    judged = "error" not in answer and answer.get("verdict") in ("safe", "unsafe")
                    self._note(entry["row"], at if judged else NOWHERE)
                elif "written" in entry:
                    self._outputs.append(entry["written"])
                elif "receipt" in entry:
                    self.receipt = entry["receipt"]
                else:
                    self._delete_part(Path(entry["part"]).name)
            except (ValueError, TypeError, KeyError, AttributeError):
                break
            at += len(line)
        if head is None:
            raise OperatorError(f"{self.file}: is no journal of this command. Move it away, or choose another --out.")
        self._stream.truncate(at)
        found: dict[str, Any] = head
        return found

    def _delete_part(self, name: str) -> None:
        if name.startswith(f".{self.out.name}.") and name.endswith(".part"):
            self.out.with_name(name).unlink(missing_ok=True)

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


def _sync_folder(folder: Path) -> None:
    """After a power cut a file has its new name only if its folder was waited for."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
