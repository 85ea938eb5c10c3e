"""The server's pepper: a secret without which the digests in the database are worthless.

It is not in the database, so a stolen copy of one is worth nothing without the other.
"""

import contextlib
import os
import secrets
from pathlib import Path

from server.settings import Settings
from server.store import private
from server.store.database import DatabaseError

BYTES = 32


def pepper_of(settings: Settings) -> bytes:
    """The pepper that the operator set, or the one in the data folder. Raises DatabaseError."""
    return settings.key_pepper.get_secret_value().encode() or read_or_make_pepper(settings.data_folder)


def read_or_make_pepper(folder: Path) -> bytes:
    """The pepper in the file `pepper` of the data folder. If there is none, it is created, readable only by its owner.

    Two processes that create it at the same time get the same one. Raises DatabaseError.
    """
    file = folder / "pepper"
    try:
        private.make_folder(folder)
        private.narrow(folder)
        if file.exists():
            private.narrow(file)
        else:
            _make(file)
        pepper = bytes.fromhex(file.read_text(encoding="ascii"))
    except OSError as error:
        raise DatabaseError(f"{file} cannot be read or created: {error.strerror}. Check GUARD_DATA_DIR.") from error
    except ValueError:
        pepper = b""
    if len(pepper) != BYTES:
        raise DatabaseError(f"{file} holds no pepper. Restore it, or delete it and create all keys again.")
    return pepper


def _make(file: Path) -> None:
    """Write it under another name and then rename it, so that nobody reads half of it. The first one wins."""
    draft = file.with_name(f"pepper.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, private.FILE)
    try:
        os.fchmod(descriptor, private.FILE)  # the umask may have taken rights from its owner
        with os.fdopen(descriptor, "w", encoding="ascii") as sink:
            sink.write(secrets.token_hex(BYTES))
            sink.flush()
            os.fsync(sink.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
