"""The file by which the engine's processes find each other lies in the server's own folder, which is always deleted.

Why: vLLM puts it into the system's folder for temporary files and leaves it there when the server is killed.
Where: every process of this server's engine.
Upstream: none known.
Needed: tests/engine/test_mends.py::test_vllm_still_leaves_its_rendezvous_among_everybodys_files
Until: vLLM puts the file where its sockets are.
"""

import os
import tempfile
from types import SimpleNamespace


def install() -> None:
    """For all that this process starts from now on. The folder is the one of private_sockets."""
    from vllm.utils import network_utils

    folder = os.environ.get("VLLM_RPC_BASE_PATH") or tempfile.gettempdir()
    network_utils.tempfile = SimpleNamespace(gettempdir=lambda: folder)  # ty: ignore[invalid-assignment]
