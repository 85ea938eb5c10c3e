"""`python -m tests.fake_server`: the real server in a process of its own, on the fake backend; GUARD_ variables apply.

Its one argument is how many seconds a verdict takes.
"""

import logging
import sys
from unittest.mock import patch

from server.commands import serve as serving
from server.settings import Settings
from tests.fakes import FakeBackend, lasting


def main() -> int:
    seconds = float(sys.argv[1])
    backend = FakeBackend(lasting(lambda _: seconds))
    logging.basicConfig(level=logging.INFO, format="guard: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with patch.object(serving, "load_backend", lambda settings, profile: backend):
        return serving.serve(Settings(profile="llama-guard-4-12b", port=0))


if __name__ == "__main__":
    sys.exit(main())
