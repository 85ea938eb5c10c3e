"""The last layer on CPUs computes the last positions only, and nobody can tell."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from vllm.platforms import current_platform

from server.backends.engine_process import SERVER_PID

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="elsewhere the layer is whole")


def run(*arguments: str, **environment: str) -> str:
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, *arguments], env=variables, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    return json.loads(run("-m", "tests.engine.last_layer_both_ways"))


def test_answers_and_probabilities_are_those_of_the_whole_layer(said):
    assert said["spared"]["ids"] == said["whole"]["ids"]
    for spared, whole in zip(said["spared"]["logprobs"], said["whole"]["logprobs"], strict=True):
        for one, other in zip(spared, whole, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_the_last_layer_computes_a_fraction_and_the_others_all(said):
    *others, last = said["spared"]["rows_by_layer"]
    assert set(others) == set(said["whole"]["rows_by_layer"]) == {others[0]}
    # One row a request and step: 26 prompts of 500 tokens on average, and five more steps for each.
    assert 26 * 6 <= last < others[0] / 20


@pytest.mark.parametrize(("server_pid", "spared"), [(os.getpid(), "True"), (0, "False")], ids=["ours", "another"])
def test_only_this_servers_engine_is_spared(server_pid, spared):
    judge = (
        "from server.backends import engine_process; engine_process._die_with_parent = lambda _: None;"
        "engine_process.prepare(); from vllm.model_executor.models import llama4;"
        "print(llama4.Llama4DecoderLayer.__module__ == 'server.backends.last_positions')"
    )
    assert run("-c", judge, **{SERVER_PID: str(server_pid)}) == spared
