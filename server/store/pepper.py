"""The server's pepper: the secret without which the digests in the database prove nothing.

It lies apart from the database, so that a stolen copy of the one is worth nothing without the other.
"""

import contextlib
import os
import secrets
from pathlib import Path

from server.settings import Settings
from server.store.database import DatabaseError

BYTES = 32


def pepper_of(settings: Settings) -> bytes:
    """The one that the operator set, else the one in the data folder. Raises DatabaseError."""
    return settings.key_pepper.get_secret_value().encode() or read_or_make_pepper(settings.data_folder)


def read_or_make_pepper(folder: Path) -> bytes:
    """The pepper in the file `pepper` of the data folder; made there, readable by its owner alone, if there is none.

    Two processes that make one at the same time end up with the same. Raises DatabaseError.
    """
    file = folder / "pepper"
    try:
        if not file.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make(file)
        pepper = bytes.fromhex(file.read_text(encoding="ascii"))
    except OSError as error:
        raise DatabaseError(f"{file} cannot be read or made: {error.strerror}") from error
    except ValueError:
        pepper = b""
    if len(pepper) != BYTES:
        raise DatabaseError(f"{file} holds no pepper; restore it, or remove it and make all keys anew")
    return pepper


def _make(file: Path) -> None:
    """Write it whole under another name, then give it its own: nobody ever reads half of one, and the first wins."""
    draft = file.with_name(f"pepper.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as sink:
            sink.write(secrets.token_hex(BYTES))
            sink.flush()
            os.fsync(sink.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
