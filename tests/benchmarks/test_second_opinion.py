import pytest

from benchmarks import contenders, second_opinion
from benchmarks.contenders import Contender, LeftOut
from benchmarks.model import SHIPPED, model_of_profile
from benchmarks.traffic import LOADS, Load


def test_a_report_of_guidellms_is_read_in_our_words():
    latency = {"successful": {"percentiles": {"p50": 0.01, "p90": 0.02, "p95": 0.025, "p99": 0.5}}}
    metrics = {
        "requests_per_second": {"successful": {"mean": 89.5}},
        "request_latency": latency,
        "request_totals": {"successful": 358, "errored": 2, "incomplete": 0, "total": 360},
    }
    report = {"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": [{"metrics": metrics}]}
    assert second_opinion.read(report) == {
        "tool": "guidellm 0.8.1",
        "verdicts_per_s": 89.5,
        "p50_ms": 10.0,
        "p90_ms": 20.0,
        "p99_ms": 500.0,
        "errors": 2,
    }


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "ENVIRONMENTS", tmp_path)
    contender = Contender("vllm", "http://127.0.0.1:9/v1/chat/completions", "chat", "m", (), None)
    model = model_of_profile(SHIPPED / "pocket", {})
    with pytest.raises(LeftOut, match="make bench"):
        second_opinion.ask(contender, model, Load("short", LOADS["short"]), 1, 1.0, tmp_path)
