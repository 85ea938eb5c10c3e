"""Answers to requests of one's own are taken from what the engine core sends, past vLLM's output processor.

Why: `AsyncLLM.generate` checks, clones, numbers, detokenizes and wraps whatever a chat may need. For one forward pass
    that is most of what vLLM's front end costs: 0.87 ms of the server's process a verdict instead of 1.17.
Where: the server's process, for one engine. `AsyncLLM` goes on working beside it.
Upstream: none known.
Needed: tests/engine/test_engine_client.py::test_vllms_own_way_still_costs_more
Until: a request of one token costs vLLM's front end no more than this.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessorOutput
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

Take = Callable[["Sequence[EngineCoreOutput]", float, "IterationStats"], "list[EngineCoreOutput]"]
"""Takes what a step brought at a time, counts it, and returns those that are not its own."""


def install(engine: "AsyncLLM", take: Take, died: Callable[[], None], heard: Callable[[], None]) -> None:
    """Have `take` see every step's outputs first, and `died` called when the engine died; in place of earlier ones.

    `heard` is called for each step, also for one that brings no outputs, such as a part of a long prompt.

    In the event loop that the engine runs in.
    """
    outputs = engine.output_processor
    vllms = type(outputs)
    process_others, fail_others = vllms.process_outputs.__get__(outputs), vllms.propagate_error.__get__(outputs)
    count_as_vllm = vllms.update_scheduler_stats.__get__(outputs)

    def process(
        engine_core_outputs: "list[EngineCoreOutput]",
        engine_core_timestamp: float | None = None,
        iteration_stats: "IterationStats | None" = None,
        weight_version: str | None = None,
    ) -> "OutputProcessorOutput":
        # Both are there: this server's engine counts (`disable_log_stats` in setup.py).
        others = take(
            engine_core_outputs, cast("float", engine_core_timestamp), cast("IterationStats", iteration_stats)
        )
        return process_others(others, engine_core_timestamp, iteration_stats, weight_version)

    def fail(e: Exception) -> None:
        died()
        fail_others(e)

    def count(scheduler_stats: "SchedulerStats | None") -> None:  # vLLM calls it for each message of the engine core
        heard()
        count_as_vllm(scheduler_stats)

    outputs.process_outputs, outputs.propagate_error, outputs.update_scheduler_stats = process, fail, count
    engine._run_output_handler()  # which `generate` would start
