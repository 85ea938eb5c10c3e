"""What the engine on CPUs does another way than vLLM, and nobody can tell by its answers."""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import current_platform

from server.backends.vllm.mends.death_with_server import SERVER_PID

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="elsewhere the engine is vLLM's own")


def run(*arguments: str, **environment: str) -> str:
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, *arguments], env=variables, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    # A backend in this process may have said that its children are engines of its own.
    by_way: dict[str, Any] = json.loads(run("-m", "tests.engine.computed_each_way", **{SERVER_PID: "0"}))
    return by_way


@pytest.mark.parametrize("way", ["spared", "filled"])
def test_answers_and_probabilities_are_those_of_vllm(said, way):
    assert said[way]["ids"] == said["vllm"]["ids"]
    for ours, vllms in zip(said[way]["logprobs"], said["vllm"]["logprobs"], strict=True):
        for one, other in zip(ours, vllms, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_the_last_layer_computes_a_fraction_and_the_others_all(said):
    *others, last = said["spared"]["rows_by_layer"]
    assert set(others) == set(said["vllm"]["rows_by_layer"]) == {others[0]}
    # One row a request and step: 26 prompts of 500 tokens on average, and five more steps for each.
    assert 26 * 6 <= last < others[0] / 20


def test_steps_come_in_a_few_sizes_and_grow_little(said):
    """Those of 512 tokens at most: all up to 16, then eight between a power of two and the next one."""
    sizes = [*range(1, 17), *range(18, 33, 2), *range(36, 65, 4), *range(72, 129, 8), *range(144, 257, 16)]
    sizes += range(288, 513, 32)
    assert set(said["filled"]["step_sizes"]) <= set(sizes)
    assert not set(said["vllm"]["step_sizes"]) <= set(sizes)
    filled, needed = said["filled"]["rows_by_layer"][0], said["vllm"]["rows_by_layer"][0]
    assert needed < filled < 1.05 * needed


def test_a_new_size_of_step_still_costs_more_than_one_seen_before():
    """When this fails, step_sizes.py can go: oneDNN no longer makes code for each size of a matrix."""
    layer: Any = torch.nn.Linear(128, 128, bias=False)  # which vLLM gives a method
    layer.weight.requires_grad_(False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    layer.cpu_linear(torch.randn(7, 128), layer.weight, None)
    new: list[float] = []
    seen: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other while other work runs on the machine
    for rows in range(101, 301, 4):
        matrix = torch.randn(rows, 128)
        for seconds in (new, seen):
            started = time.thread_time()
            layer.cpu_linear(matrix, layer.weight, None)
            seconds.append(time.thread_time() - started)
    torch.set_num_threads(threads)
    assert statistics.median(new) > 2 * statistics.median(seen)


@pytest.mark.parametrize(("server_pid", "ours"), [(os.getpid(), "True"), (0, "False")], ids=["ours", "another"])
def test_only_this_servers_engine_is_another(server_pid, ours):
    judge = (
        "from server.backends.vllm import process; from server.backends.vllm.mends import death_with_server;"
        "death_with_server.install = lambda: None;"
        "process.prepare(); from vllm.model_executor.models import llama4;"
        "from vllm.v1.sample.sampler import Sampler; from vllm.v1.worker.cpu_model_runner import CPUModelRunner;"
        "print({'server.backends.' in each.__module__ for each in (llama4.Llama4DecoderLayer,"
        " Sampler.gather_specific_token_logprobs, CPUModelRunner._determine_batch_execution_and_padding)})"
    )
    assert run("-c", judge, **{SERVER_PID: str(server_pid)}) == f"{{{ours}}}"
