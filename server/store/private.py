"""Files and folders that only their owner may read, whatever the umask says and whatever was there before."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

FILE, FOLDER = 0o600, 0o700


def make_folder(folder: Path) -> None:
    """Make the folder if it is not there. One that is there stays as it is. Raises OSError."""
    if not folder.is_dir():
        folder.mkdir(mode=FOLDER, parents=True, exist_ok=True)
        folder.chmod(FOLDER)  # the umask may have taken rights from its owner


def make_file(file: Path) -> None:
    """Make an empty file if it is not there, and narrow one that is. Raises OSError."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE)
    except FileExistsError:
        narrow(file)
    else:
        os.fchmod(descriptor, FILE)
        os.close(descriptor)


def narrow(path: Path) -> None:
    """Take all rights from everybody but the owner, or warn if that fails. A path that is not there stays so."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = FOLDER if path.is_dir() else FILE
        if mode & ~wanted:
            path.chmod(mode & wanted)
            log.warning("%s could be read or changed by others (mode %o): now only by its owner", path, mode)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s can be read or changed by others: %s. Change its mode to %o.", path, error.strerror, wanted)
