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


@pytest.mark.parametrize(
    ("server_pid", "kept"), [(os.getpid(), True), (0, False)], ids=["the engine", "any other process"]
)
def test_memory_is_taken_from_the_system_once(server_pid, kept):
    """Twenty times 57 MB: 276,480 pages where each is taken anew."""
    environment = os.environ | {SERVER_PID: str(server_pid)}
    done = subprocess.run([sys.executable, "-c", COMPUTES], env=environment, capture_output=True, text=True, check=True)
    faults = int(done.stdout.splitlines()[-1])
    assert faults < 15_000 if kept else faults > 100_000
