"""`python -m tests.fake_server`: the real server in a process of its own, on the fake backend; GUARD_ variables apply.

Its one argument is how many seconds a verdict takes. A text with the word FREEZE or CRASH does that to the process, and
a backend that is closed in an environment with STUCK never ends.
"""

import logging
import os
import sys
import time
from typing import Any
from unittest.mock import patch

from server.commands import serve as serving
from server.settings import Settings
from tests.fakes import FakeBackend, by_word, lasting, words_of

PROBED = "User: hello"
"""What the server asks its engine on its own. It takes no time."""

FREEZE, CRASH, STUCK = "freeze the server", "crash the server", "TESTS_STUCK"


class Poisonable(FakeBackend):
    async def close(self) -> None:
        if STUCK in os.environ:
            time.sleep(1000)  # noqa: ASYNC251


def poison(case: Any) -> Any:
    words = words_of(case)
    if FREEZE in words:
        time.sleep(1000)
    if CRASH in words:
        os.abort()
    return by_word(case)


def main() -> int:
    seconds = float(sys.argv[1])
    backend = Poisonable(lasting(lambda words: 0.0 if words == PROBED else seconds, poison))
    logging.basicConfig(level=logging.INFO, format="guard: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with patch.object(serving, "load_backend", lambda settings, profile: backend):
        return serving.serve(Settings(profile="llama-guard-4-12b", port=0))


if __name__ == "__main__":
    sys.exit(main())
