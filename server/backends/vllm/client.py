"""Requests to vLLM's engine and its answers, by the shortest way that vLLM has.

A request is a copy of one that vLLM prepared before. It is sent to vLLM's engine core, and its answer is read from what
that sends back (mends/tapped_outputs.py says why). `AsyncLLM` goes on working beside it, and counts both.
"""

import asyncio
import copy
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import IterationStats, RequestStateStats

from server.backends.vllm.mends import tapped_outputs
from server.families.base import Answer

if TYPE_CHECKING:
    from vllm.inputs import MultiModalInput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.engine.output_processor import LoRARequestStates


@dataclass(slots=True, kw_only=True)
class EngineAnswer(Answer):
    """An answer, and what it took."""

    prompt_ids: Sequence[int]
    """Of the prompt with its images expanded."""
    times: RequestStateStats
    finish_reason: str | None = None
    """None until the engine is done with it."""
    cached_tokens: int = 0

    @property
    def queued_s(self) -> float:
        seconds: float = self.times.scheduled_ts - self.times.queued_ts
        return max(0.0, seconds)

    @property
    def computed_s(self) -> float:
        seconds: float = self.times.last_token_ts - self.times.scheduled_ts
        return max(0.0, seconds)


class EngineClient:
    """Asks one engine. Made once, in the event loop that the engine runs in."""

    def __init__(self, engine: "AsyncLLM") -> None:
        self._engine = engine
        self._core = cast("AsyncMPClient", engine.engine_core)
        self._numbers = itertools.count()
        self._waiting: dict[str, _Request] = {}
        self.heard_at = -math.inf
        """time.monotonic() of the last message of the engine core, which sends one for each of its steps."""
        tapped_outputs.install(engine, self._take, self._died, self._heard)

    def form(self, sampling: "SamplingParams") -> EngineCoreRequest:
        """A request as vLLM prepares it for `sampling`, to be filled in. Raises ValueError for what vLLM refuses."""
        return self._prepared({"type": "token", "prompt_token_ids": [0]}, sampling)

    async def ask(
        self,
        form: EngineCoreRequest,
        prompt: "list[int] | MultiModalInput",
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> EngineAnswer:
        """Run one request to its end; cancellation ends it in the engine.

        `prompt` is token ids, or what EngineImages makes of them with pictures. Only requests of one `cache_salt` share
        the prefix cache. Raises EngineDeadError, and VLLMValidationError for a prompt that leaves no room for a token.
        """
        request = self._filled_in(form, prompt)
        request.request_id = request.external_req_id = f"guard-{next(self._numbers)}"
        request.arrival_time = time.time()
        request.priority = priority
        request.cache_salt = cache_salt
        # Each request wakes a thread of ZeroMQ's and the engine. One turn later, those of this turn leave together.
        await asyncio.sleep(0)
        waiting = _Request(request)
        self._waiting[request.request_id] = waiting
        try:
            await self._core.add_request_async(request)
            await waiting.ended
        except asyncio.CancelledError:
            await self._core.abort_requests_async([request.request_id])
            raise
        finally:
            del self._waiting[request.request_id]
        if waiting.answer.finish_reason is None:
            raise EngineDeadError()
        return waiting.answer

    def _filled_in(self, form: EngineCoreRequest, prompt: "list[int] | MultiModalInput") -> EngineCoreRequest:
        if not isinstance(prompt, list):
            return self._prepared(prompt, _sampling_of(form))
        longest = self._engine.model_config.max_model_len - 1
        if len(prompt) > longest:  # the engine core believes what it is sent
            raise VLLMValidationError(
                f"A prompt holds at most {longest} tokens.", parameter="input_tokens", value=len(prompt)
            )
        request = copy.copy(form)
        request.prompt_token_ids = prompt
        return request

    def _prepared(self, prompt: Any, sampling: "SamplingParams") -> EngineCoreRequest:
        return self._engine.input_processor.process_inputs("", prompt, sampling, supported_tasks=("generate",))

    def _take(
        self, outputs: Sequence[EngineCoreOutput], timestamp: float, step: IterationStats
    ) -> list[EngineCoreOutput]:
        """What one step of the engine brought for each of some requests. Returns what others asked for."""
        others = []
        for output in outputs:
            request = self._waiting.get(output.request_id)
            if request is None:
                others.append(output)
            else:
                request.add(output, timestamp, step, self._engine.output_processor.lora_states)
        return others

    def _heard(self) -> None:
        self.heard_at = time.monotonic()

    def _died(self) -> None:
        for request in self._waiting.values():
            request.end()


class _Request:
    """A request that the engine works on. Whoever waits for `ended` finds it in `answer`, unless the engine died."""

    __slots__ = ("_request", "_sampling", "answer", "ended")

    def __init__(self, request: EngineCoreRequest) -> None:
        self._request = request
        self._sampling = _sampling_of(request)
        self.answer = EngineAnswer(
            prompt_ids=request.prompt_token_ids or (), times=RequestStateStats(arrival_time=request.arrival_time)
        )
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add(
        self, output: EngineCoreOutput, timestamp: float, step: IterationStats, adapters: "LoRARequestStates"
    ) -> None:
        """What a step brought. `step` counts it for vLLM's metrics, whose functions ask for `adapters` even of none."""
        answer, sampling = self.answer, self._sampling
        first = not answer.ids
        step.update_from_output(output, timestamp, first, answer.times, adapters, None)
        if first and output.prefill_stats is not None:
            answer.cached_tokens = output.prefill_stats.num_cached_tokens
        answer.ids += output.new_token_ids
        if output.new_logprobs is not None:
            # The sampled token's own comes first. In a mixed batch vLLM pads short lists.
            columns = 1 + (sampling.num_logprobs or 0)
            for ids, logprobs in zip(output.new_logprobs.logprob_token_ids, output.new_logprobs.logprobs, strict=True):
                answer.logprobs.append(dict(zip(ids[:columns].tolist(), logprobs[:columns].tolist(), strict=True)))
        if output.finish_reason is not None:
            answer.finish_reason = str(output.finish_reason)
            step.update_from_finished_request(
                output.finish_reason,
                self._request.request_id,
                len(answer.prompt_ids),
                sampling.max_tokens,
                answer.times,
                answer.cached_tokens,
            )
            self.end()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _sampling_of(request: EngineCoreRequest) -> "SamplingParams":
    """What `EngineClient.form` gave it. Requests to pooling models, which have none, are not made here."""
    return cast("SamplingParams", request.sampling_params)
