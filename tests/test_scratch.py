"""Folders of processes that were killed are deleted by the next one, and nothing else is."""

import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from server.scratch import LOCK, PREFIX, Scratch, tidy

MAKE = "import sys; from server.scratch import Scratch; s = Scratch(); print(s.folder, flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def another() -> tuple[subprocess.Popen[str], Path]:
    """A process that has a folder, as a server has, and that folder."""
    process = subprocess.Popen([sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_its_owners_and_goes_with_it(temporary: Path) -> None:
    scratch = Scratch()
    assert scratch.folder.parent == temporary
    assert stat.S_IMODE(scratch.folder.stat().st_mode) == 0o700
    (scratch.folder / "socket").touch()
    scratch.close()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_deleted_by_the_next_one(temporary: Path) -> None:
    process, folder = another()
    (folder / "guard.db").write_text("content")
    tidy()
    assert folder.is_dir(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.is_dir()
    scratch = Scratch()
    assert list(temporary.iterdir()) == [scratch.folder]
    scratch.close()


def test_a_process_that_sleeps_is_not_dead(temporary: Path) -> None:
    process, folder = another()
    process.send_signal(signal.SIGSTOP)
    tidy()
    assert folder.is_dir()
    process.kill()
    process.wait()


def test_nothing_else_is_touched(temporary: Path) -> None:
    (elsewhere := temporary / "elsewhere").mkdir()
    (elsewhere / LOCK).touch()
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    (without_lock := temporary / f"{PREFIX}just-made").mkdir()
    (linked := temporary / f"{PREFIX}linked").mkdir()
    (linked / LOCK).symlink_to(elsewhere / LOCK)
    (file := temporary / f"{PREFIX}file").touch()
    tidy()
    assert (elsewhere / LOCK).exists()
    assert without_lock.exists()
    assert linked.exists()
    assert file.exists()
