"""Folders for what lives only as long as this process: the engine's sockets, a temporary database.

A killed process cannot delete its folders, so the next one does. Each folder holds a file that its process keeps
locked. The kernel gives the lock up when the process ends, however it ends.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "guard-"
LOCK = "lock"


class Scratch:
    """A new folder that only its owner may enter. `close` deletes it."""

    def __init__(self) -> None:
        tidy()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.chmod(0o700)  # the umask may have taken rights from its owner
        draft = self.folder / "draft"
        self._lock = os.open(draft, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Only now it gets the name that `tidy` looks for: a file that is not locked yet would pass for a dead one's.
        draft.rename(self.folder / LOCK)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def tidy() -> None:
    """Delete the folders of this user's processes that are dead. Everything else stays."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _abandoned(folder) as abandoned:
            if abandoned:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _abandoned(folder: Path) -> Iterator[bool]:
    """Whether a process of ours made this folder and is dead. Raises OSError for anything that is no such folder."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        ours = not folder.is_symlink() and folder.stat().st_uid == os.geteuid() == os.fstat(descriptor).st_uid
        if ours:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError while its process lives
        yield ours
    finally:
        os.close(descriptor)
