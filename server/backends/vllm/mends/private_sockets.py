"""The sockets between the server and its engine lie in a folder that nobody else can enter.

Why: vLLM puts them into the system's folder for temporary files, which all users share, and asks nobody who connects
    for anything. Where the umask lets others write, they could send requests to the engine.
Where: the server's process, before the engine starts.
Upstream: none known.
Needed: tests/engine/test_mends.py::test_vllm_still_puts_its_sockets_where_everybody_can_reach
Until: vLLM makes a folder of its own for them.
"""

import os
from pathlib import Path


def install(folder: Path) -> None:
    """For every engine that this process starts from now on. `folder` is its owner's only, as mkdtemp makes it."""
    os.environ["VLLM_RPC_BASE_PATH"] = str(folder)
