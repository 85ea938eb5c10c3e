"""On a CPU the engine keeps the memory that it computes in, from one forward pass to the next."""

import os
import subprocess
import sys

import pytest
from vllm.platforms import current_platform

from server.backends.engine_process import SERVER_PID

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="elsewhere a GPU computes")

COMPUTES = """
import resource
import torch
from server.backends import engine_process

engine_process._die_with_parent = lambda server_pid: None
engine_process.prepare()

def compute():
    one = torch.ones(2048, 768)
    results = [one * number for number in range(8)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

compute()
before = faults()
for _ in range(20):
    compute()
print(faults() - before)
"""


def test_memory_is_taken_from_the_system_once():
    """Twenty times 57 MB: up to 276,480 pages where each is taken anew."""
    environment = os.environ | {SERVER_PID: str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", COMPUTES], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 15_000
