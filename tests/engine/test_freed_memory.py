"""On a CPU the engine keeps the memory that it computes in, from one forward pass to the next."""

import os
import subprocess
import sys

import pytest
from vllm.platforms import current_platform

from server.backends.vllm.mends.death_with_server import SERVER_PID

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="elsewhere a GPU computes")

COMPUTES = """
import ctypes
import resource
import torch
from server.backends.vllm import process
from server.backends.vllm.mends import death_with_server

death_with_server.install = lambda: None
process.prepare()

def compute():
    one = torch.ones(2048, 768)
    results = [one * number for number in range(8)]

class Counts(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

glibc = ctypes.CDLL(None)
glibc.mallinfo2.restype = Counts

def taken():
    # From the system, by glibc's own count: what is resident also changes when the kernel joins or drops pages.
    counts = glibc.mallinfo2()
    return counts.arena + counts.hblkhd

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

compute()
before = faults()
for _ in range(20):
    compute()
faults_since = faults() - before

held = torch.ones(48 << 20, dtype=torch.uint8)  # glibc alone hands what is larger than 32 MiB back at once
before = taken()
del held
print(faults_since, before - taken())
"""


def computed(server_pid: int) -> tuple[int, int]:
    """Page faults of twenty rounds of work in a process of this server's, and bytes that went back to the system."""
    environment = os.environ | {SERVER_PID: str(server_pid)}
    done = subprocess.run([sys.executable, "-c", COMPUTES], env=environment, capture_output=True, text=True, check=True)
    faults, returned = map(int, done.stdout.splitlines()[-1].split())
    return faults, returned


def test_memory_is_taken_from_the_system_once():
    """Twenty times 57 MB: up to 276,480 pages where each is taken anew."""
    faults, returned = computed(os.getpid())
    assert faults < 15_000
    assert returned < 1 << 20


def test_an_engine_without_mends_would_give_it_back():
    """So does every process that is none of this server's."""
    faults, returned = computed(0)
    assert faults > 30_000
    assert returned > 40 << 20
