"""Where lines are kept: `Place`, and a folder of files. The database's is in server.store.audit."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from server.store import private

NAME = re.compile(r"(?P<chain>\d{8}T\d{12}Z-[0-9a-f]{12})\.(?P<number>\d{6})\.jsonl")


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it lies in its place, without its break. `whole` is false for a last line that has no break."""

    where: str
    content: bytes
    whole: bool = True


class Part(Protocol):
    """Some lines of a chain that are dropped together: a file, or all rows that are old enough."""

    @property
    def chain(self) -> str: ...

    @property
    def last(self) -> bytes:
        """Its last whole line."""

    @property
    def size(self) -> int:
        """Its bytes."""

    def drop(self) -> None:
        """Delete it. Raises OSError."""


class Place(Protocol):
    """Keeps the lines of chains. Only one process writes a chain; any number of processes may write to a place.

    All methods block, and raise OSError.
    """

    def append(self, chain: str, first: int, lines: Sequence[bytes]) -> None:
        """Write the lines of a chain from number `first` on, all or none. They survive a crash once it returns."""

    def chains(self) -> list[str]:
        """The ids of all chains, the oldest first."""

    def lines(self, chain: str) -> Iterator[Line]:
        """All lines of a chain, in order."""

    def ends(self, chain: str) -> tuple[bytes, bytes]:
        """The first and the last whole line of a chain, both empty if there is none."""

    def parts(self) -> Iterator[Part]:
        """What may be dropped as far as writers are concerned: nothing that a process still writes to."""

    def size(self) -> int:
        """The bytes of all lines."""

    def close(self) -> None: ...


class Folder:
    """A folder of files, `CHAIN.NUMBER.jsonl`. A file that has `rotate_bytes` is followed by another."""

    def __init__(self, folder: Path, rotate_bytes: int = 64 * 2**20) -> None:
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        self._file: int | None = None
        self._number = 0
        self._size = 0
        """The bytes of the file that are whole lines, all of them on the disk."""
        self._torn = False

    def append(self, chain: str, first: int, lines: Sequence[bytes]) -> None:
        if self._torn:
            self._mend()
        if self._file is None or self._size >= self._rotate_bytes:
            self._next_file(chain)
        assert self._file is not None
        content = b"".join(line + b"\n" for line in lines)
        self._torn = True
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(self._file, view) :]
            os.fdatasync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                self._mend()
            raise
        self._size += len(content)
        self._torn = False

    def _mend(self) -> None:
        """Cut off what a write that failed left behind."""
        if self._file is not None:
            os.ftruncate(self._file, self._size)
            os.fdatasync(self._file)
        self._torn = False

    def _next_file(self, chain: str) -> None:
        private.make_folder(self._folder)
        private.narrow(self._folder)
        name = self._folder / f"{chain}.{self._number + 1:06}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        file = os.open(name, flags, private.FILE)
        try:
            os.fchmod(file, private.FILE)
            # Writers do not wait for it. It tells whoever drops old files that a process still writes to this one.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sync_folder(self._folder)
        except OSError:
            os.close(file)
            with contextlib.suppress(OSError):
                name.unlink()
            raise
        if self._file is not None:
            os.close(self._file)
        self._file, self._number, self._size = file, self._number + 1, 0

    def chains(self) -> list[str]:
        return list(dict.fromkeys(found["chain"] for _, found in self._files()))

    def lines(self, chain: str) -> Iterator[Line]:
        for file in self._of(chain):
            with file.open("rb") as content:
                for number, line in enumerate(content, start=1):
                    yield Line(f"{file.name}, line {number}", line.removesuffix(b"\n"), line.endswith(b"\n"))

    def ends(self, chain: str) -> tuple[bytes, bytes]:
        files = self._of(chain)
        first = next((line for file in files if (line := _first(file))), b"")
        last = next((line for file in reversed(files) if (line := _last(file))), b"")
        return (first, last) if first and last else (b"", b"")

    def parts(self) -> Iterator["_File"]:
        for file, found in self._files():
            if not _is_written(file):
                yield _File(found["chain"], _last(file), _size(file), file)

    def size(self) -> int:
        return sum(_size(file) for file, _ in self._files())

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _files(self) -> list[tuple[Path, re.Match[str]]]:
        try:
            names = sorted(file.name for file in self._folder.iterdir())
        except FileNotFoundError:
            return []
        return [(self._folder / name, found) for name in names if (found := NAME.fullmatch(name))]

    def _of(self, chain: str) -> list[Path]:
        return [file for file, found in self._files() if found["chain"] == chain]


@dataclass(frozen=True, slots=True)
class _File:
    chain: str
    last: bytes
    size: int
    file: Path

    def drop(self) -> None:
        self.file.unlink(missing_ok=True)  # another process may have dropped it
        _sync_folder(self.file.parent)


def _is_written(file: Path) -> bool:
    """Whether a process still writes to the file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # another process has dropped it
        return 0


def _first(file: Path) -> bytes:
    with file.open("rb") as content:
        line = content.readline()
    return line.removesuffix(b"\n") if line.endswith(b"\n") else b""


def _last(file: Path) -> bytes:
    """The last whole line of the file, empty if there is none."""
    with file.open("rb") as content:
        size, tail = content.seek(0, os.SEEK_END), b""
        while size and tail.count(b"\n") < 2:
            step = min(size, 64 * 1024)
            size -= step
            content.seek(size)
            tail = content.read(step) + tail
    whole = tail[: tail.rfind(b"\n") + 1]
    return whole.rstrip(b"\n").rpartition(b"\n")[2]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
