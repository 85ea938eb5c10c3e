"""A real trail in files, made by the real writer of chains, for tests that damage it."""

import shutil
from pathlib import Path
from typing import Any

from server.audit.chain import Secrets
from server.audit.places import Folder
from server.audit.trail import Trail, timestamp
from server.audit.verify import Report, verify

SECRETS = Secrets.of(b"a pepper of the tests")
NAME = "20261201T120000000000Z-{:012x}"


def trail(folder: Path, number: int = 1, *, rotate_bytes: int = 4096, **options: Any) -> Trail:
    """A trail that has begun, with its records and seals below `folder`."""
    made = Trail(
        SECRETS,
        Folder(folder / "records", rotate_bytes),
        Folder(folder / "seals"),
        chain=NAME.format(number),
        **options,
    )
    made.begin({"event": "start", "time": timestamp(number)})
    return made


def fill(made: Trail, records: int, at: float = 1.0) -> None:
    for number in range(records):
        made.append([{"event": "verdict", "time": timestamp(at), "request_id": f"req_{number}", "filler": "x" * 200}])


def finished(folder: Path, number: int = 1, records: int = 30) -> None:
    made = trail(folder, number)
    fill(made, records)
    made.end()
    made.close()


def checked(folder: Path) -> Report:
    return verify(SECRETS, Folder(folder / "records"), Folder(folder / "seals"))


def files(folder: Path) -> list[Path]:
    return sorted((folder / "records").iterdir())


def copied(folder: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to
