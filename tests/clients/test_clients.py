"""Every client that people already use, unchanged but for its base URL and key, against a running server."""

from pathlib import Path

import pytest

from tests.clients.conftest import HERE, Run, programs

pytestmark = pytest.mark.clients


@pytest.mark.parametrize("program", list(programs()), ids=lambda program: str(program.relative_to(HERE)))
def test_a_client(run: Run, program: Path) -> None:
    run(program.parent.name, program)
