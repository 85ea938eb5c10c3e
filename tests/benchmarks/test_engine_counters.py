import pytest

from benchmarks.engine_counters import EngineCounters, parse_block_size, parse_counters

EXPOSITION = """
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 200.0
# TYPE vllm:prompt_tokens_cached_total counter
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 300.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 30.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 9.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 1.0
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="m"} 7.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 7.0
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 930.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",engine="0"} 1.0
"""


def test_counters_of_all_engines_are_one():
    counters = parse_counters(EXPOSITION)
    assert counters == EngineCounters(1200, 300, 30, 7, 10)
    assert counters.computed_tokens == 900
    assert (counters - EngineCounters(200, 100, 10, 2, 1)).computed_tokens == 800


def test_an_engine_that_does_not_count_is_not_taken_for_one_that_counts_nothing():
    with pytest.raises(ValueError, match="vllm:generation_tokens_total"):
        parse_counters(EXPOSITION.replace("generation", "other"))


def test_the_size_of_a_block():
    assert parse_block_size(EXPOSITION) == 128
    assert parse_block_size("") is None
