import os
import subprocess
import sys

import pytest

from benchmarks.processes import cpu_seconds, memory_mib, role, tree


@pytest.mark.parametrize(
    ("title", "is_root", "name"),
    [
        ("python -m server serve", True, "front"),
        ("VLLM::EngineCore", False, "engine"),
        ("VLLM::Worker", False, "worker"),
        ("python -c from multiprocessing.resource_tracker import main", False, "other"),
    ],
)
def test_roles_of_an_engine_servers_processes(title, is_root, name):
    assert role(title, is_root) == name


def test_children_are_counted_with_their_root():
    child = [sys.executable, "-c", "print('up', flush=True); input()"]
    nested = f"import subprocess; subprocess.run({child!r})"
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert set(tree({process.pid: "gateway"}).values()) == {"gateway"}
        assert sorted(tree({process.pid: "server"}).values()) == ["front", "other"]
        process.communicate(b"\n")


def test_cpu_time_and_memory_of_this_very_process():
    roles = {os.getpid(): "front", 2**22 + 1: "gone"}
    before = cpu_seconds(roles)["front"]
    while cpu_seconds(roles)["front"] == before:
        pass
    assert memory_mib(roles)["front"]["rss"] > 10
    assert "gone" not in cpu_seconds(roles)
