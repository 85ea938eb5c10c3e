"""The short way to the engine gives what vLLM's own way gives, and ends as that does."""

import asyncio
import copy
import itertools
import math
import time
from types import SimpleNamespace

import pytest
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from server.backends.vllm.client import EngineAnswer, EngineClient
from server.backends.vllm.mends import tapped_outputs
from tests.fakes import until

TOKENS = 12
SAMPLING = SamplingParams(
    temperature=0.0,
    max_tokens=TOKENS,
    ignore_eos=True,
    logprob_token_ids=[200, 300, 400],
    detokenize=False,
    output_kind=RequestOutputKind.FINAL_ONLY,
)
ONE_TOKEN = copy.copy(SAMPLING)
ONE_TOKEN.max_tokens = 1
PROMPTS = [[1000 + (7 * at * length) % 5000 for at in range(length)] for length in (1, 5, 63, 64, 65, 400, 2500)]


@pytest.fixture
def engine(pocket_backend):
    return pocket_backend.engine


@pytest.fixture
def client(pocket_backend) -> EngineClient:
    client: EngineClient = pocket_backend._client
    return client


async def by_vllm(engine, prompt, name: str) -> EngineAnswer:
    async for output in engine.generate(prompt, copy.deepcopy(SAMPLING), name):
        last = output
    (completion,) = last.outputs
    return EngineAnswer(
        prompt_ids=last.prompt_token_ids,
        times=last.metrics,
        ids=list(completion.token_ids),
        logprobs=[{id_: entry.logprob for id_, entry in position.items()} for position in completion.logprobs],
        finish_reason=completion.finish_reason,
        cached_tokens=last.num_cached_tokens,
    )


def assert_same(ours: EngineAnswer, vllms: EngineAnswer) -> None:
    assert ours.finish_reason == vllms.finish_reason == "length"
    assert ours.ids == vllms.ids
    assert list(ours.prompt_ids) == list(vllms.prompt_ids)
    assert len(ours.logprobs) == len(vllms.logprobs) == TOKENS
    for one, other in zip(ours.logprobs, vllms.logprobs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "mixed in one batch"])
async def test_answers_are_those_of_vllms_own_way(engine, client, at_once):
    form = client.form(SAMPLING)
    asked = [way for at, ids in enumerate(PROMPTS) for way in (
        client.ask(form, ids), by_vllm(engine, {"type": "token", "prompt_token_ids": ids}, f"{at_once}-{at}")
    )]  # fmt: skip
    answers = await asyncio.gather(*asked) if at_once else [await one for one in asked]
    for ours, vllms in zip(answers[::2], answers[1::2], strict=True):
        assert_same(ours, vllms)
        assert 0 <= ours.queued_s < 60
        assert 0 < ours.computed_s < 60


async def test_vllms_own_way_still_costs_more(engine, client, no_garbage_collection):
    """CPU time of this process, least of several rounds. When this fails, tapped_outputs.py and client.py can go."""
    form = client.form(ONE_TOKEN)

    async def by_client(_: str) -> None:
        await client.ask(form, PROMPTS[0])

    async def by_generate(name: str) -> None:
        async for _ in engine.generate({"type": "token", "prompt_token_ids": PROMPTS[0]}, ONE_TOKEN, name):
            pass

    least = dict.fromkeys((by_client, by_generate), math.inf)
    for turn, way in itertools.product(range(5), least):
        started = time.process_time()
        await asyncio.gather(*(way(f"{turn}-{number}") for number in range(64)))
        least[way] = min(least[way], time.process_time() - started)
    print({way.__name__: f"{1e6 * seconds / 64:.0f} us" for way, seconds in least.items()})
    assert least[by_generate] > 1.2 * least[by_client]


def test_a_tap_that_is_installed_again_takes_the_place_of_the_first_one():
    done = []

    class Outputs:
        def process_outputs(self, outputs, timestamp, step, weight_version=None):
            done.append(("vLLM", outputs))

        def propagate_error(self, error):
            done.append(("vLLM", error))

        def update_scheduler_stats(self, stats):
            done.append(("vLLM", stats))

    engine = SimpleNamespace(output_processor=Outputs(), _run_output_handler=lambda: None)
    for name in ("first", "second"):

        def take(outputs, timestamp, step, name=name):
            done.append((name, outputs))
            return outputs[1:]

        def died(name=name):
            done.append((name, "died"))

        def heard(name=name):
            done.append((name, "heard"))

        tapped_outputs.install(engine, take, died, heard)
    engine.output_processor.process_outputs([1, 2], 0.0, None, weight_version=None)
    engine.output_processor.propagate_error("error")
    engine.output_processor.update_scheduler_stats("stats")
    assert done[:2] == [("second", [1, 2]), ("vLLM", [2])]
    assert done[2:4] == [("second", "died"), ("vLLM", "error")]
    assert done[4:] == [("second", "heard"), ("vLLM", "stats")]


async def test_each_step_is_heard_also_one_that_brings_nothing(client):
    """A long prompt is computed in steps. A supervisor must not take the time between answers for a hang."""
    moments: list[float] = []
    before = client.heard_at
    form, budget = client.form(SAMPLING), client._engine.vllm_config.scheduler_config.max_num_batched_tokens
    ids = [1 + number % 200 for number in range(min(3 * budget, client._engine.model_config.max_model_len - 2))]

    async def watch():
        while True:
            if not moments or client.heard_at != moments[-1]:
                moments.append(client.heard_at)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await client.ask(form, ids)
    watching.cancel()
    steps = {moment for moment in moments if moment > before}
    print(f"{len(steps)} messages for {len(ids)} tokens in steps of {budget}")
    assert len(steps) >= -(-len(ids) // budget) >= 2


async def test_pictures_too(engine, client, pocket_backend):
    control = pocket_backend._tokenizer.control_id
    ids = [*PROMPTS[2], control("<|image|>"), *PROMPTS[3]]
    picture = Image.linear_gradient("L").resize((400, 700)).convert("RGB")
    async with pocket_backend._images.shown([picture]) as shown:
        ours = await client.ask(client.form(SAMPLING), shown(ids))
    raw = {"prompt_token_ids": ids, "multi_modal_data": {"image": picture}}
    assert_same(ours, await by_vllm(engine, raw, "picture"))
    assert len(ours.prompt_ids) > len(ids)


async def test_a_repeated_prompt_is_cached_for_its_tenant_alone(client):
    form, ids = client.form(SAMPLING), [1234, *PROMPTS[-1]]
    for salt in (None, "one", "other"):
        first, second = [await client.ask(form, ids, cache_salt=salt) for _ in range(2)]
        assert first.cached_tokens == 0
        assert second.cached_tokens > len(ids) - 256
        assert first.ids == second.ids


async def test_requests_of_one_turn_leave_together(engine, client, monkeypatch):
    done = []
    fill, send = client._filled_in, engine.engine_core.add_request_async

    def noted_filling(*arguments):
        done.append("filled in")
        return fill(*arguments)

    async def noted_sending(request):
        done.append("sent")
        await send(request)

    monkeypatch.setattr(client, "_filled_in", noted_filling)
    monkeypatch.setattr(engine.engine_core, "add_request_async", noted_sending)
    form = client.form(SAMPLING)
    await asyncio.gather(*(client.ask(form, ids) for ids in PROMPTS[:3]))
    assert done == ["filled in"] * 3 + ["sent"] * 3


async def test_vllm_counts_what_it_did(engine, client, monkeypatch):
    """Asked of what vLLM's metrics are told: an engine that another test starts takes the registry's own series."""
    steps = []
    record = engine.logger_manager.record

    def spy(**told):
        steps.append(told["iteration_stats"])
        record(**told)

    monkeypatch.setattr(engine.logger_manager, "record", spy)
    await asyncio.gather(*(client.ask(client.form(SAMPLING), [4321, *ids]) for ids in PROMPTS))
    counted = [step for step in steps if step is not None]
    assert sum(step.num_prompt_tokens for step in counted) == sum(map(len, PROMPTS)) + len(PROMPTS)
    assert sum(step.num_generation_tokens for step in counted) == TOKENS * len(PROMPTS)
    assert sum(len(step.finished_requests) for step in counted) == len(PROMPTS)


async def test_a_prompt_that_leaves_no_room_never_reaches_the_engine(engine, client):
    longest = engine.model_config.max_model_len - 1
    form = client.form(SAMPLING)
    assert len((await client.ask(form, [1000] * longest)).ids) == 1
    with pytest.raises(VLLMValidationError, match=f"at most {longest} tokens"):
        await client.ask(form, [1000] * (longest + 1))
    assert not client._waiting


async def test_cancellation_ends_it_in_the_engine(engine, client, monkeypatch):
    aborted = []
    abort = engine.engine_core.abort_requests_async

    async def spy(ids):
        aborted.extend(ids)
        await abort(ids)

    monkeypatch.setattr(engine.engine_core, "abort_requests_async", spy)
    endless = copy.copy(SAMPLING)
    endless.max_tokens = 5000
    work = asyncio.create_task(client.ask(client.form(endless), PROMPTS[0]))
    await until(lambda: any(request.answer.ids for request in client._waiting.values()))
    (name,) = client._waiting
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert aborted == [name]
    assert not client._waiting


async def test_all_who_wait_hear_of_the_engines_death(engine, client, monkeypatch):
    monkeypatch.setattr(engine.engine_core, "add_request_async", lambda request: asyncio.sleep(0))
    work = [asyncio.create_task(client.ask(client.form(SAMPLING), ids)) for ids in PROMPTS]
    await until(lambda: len(client._waiting) == len(PROMPTS))
    engine.output_processor.propagate_error(EngineDeadError())
    for answer in await asyncio.gather(*work, return_exceptions=True):
        assert isinstance(answer, EngineDeadError)
    assert not client._waiting
