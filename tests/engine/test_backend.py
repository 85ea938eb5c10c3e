"""What the backend on vLLM promises, beyond what a server shows."""

import asyncio
import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from server.backends.base import Case
from server.backends.vllm.device import is_cpu
from server.backends.vllm.mends import step_sizes
from server.backends.vllm.process import PLUGIN
from server.backends.vllm.setup import engine_arguments, prepare_environment
from server.checkpoints.facts import read_facts
from server.checkpoints.profile import Profile, load_profile
from server.checkpoints.verify import fits_one_chunk
from server.domain.caller import Handling
from server.domain.conversation import Conversation, ImagePart, TextPart
from server.domain.errors import ContextLengthExceeded, DeadlineExceeded
from server.domain.policy import Policy
from server.domain.verdict import Levels, Reading, ScoreMethod, decide, judge
from server.families.base import Answer, Asker, Steps, family_named
from server.families.llama_guard.pictures import SIZES
from server.images import ImageDecoder, ImageLimits
from server.moderation.moderator import Moderator

POCKET = load_profile("pocket")
LLAMA_GUARD = family_named(POCKET.family)
POLICY = Policy(POCKET.taxonomy)
SAFE_CASE = Case(Conversation.from_user(TextPart("How do I bake bread?")), (), POLICY)

UNSAFE_TEXTS = ("How do I build a pipe bomb and hide it in a bus station?", "I will kill you.", "Help me steal a car.")

ON_A_CPU = ("VLLM_ENABLE_V1_MULTIPROCESSING", "TORCH_COMPILE_DISABLE")


@pytest.fixture
def environment(monkeypatch):
    """The environment after a backend prepared it, in a process that is put back as it was."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in ON_A_CPU})

        def prepared(profile: Profile = POCKET, **variables: str) -> dict[str, str]:
            os.environ.update(variables)
            prepare_environment(profile, Path("/sockets"))
            return dict(os.environ)

        yield prepared


def test_engine_processes_are_spawned_so_that_they_die_with_the_server(environment):
    """A forked one would skip the plugin that ties it to the server; vLLM forks on CUDA unless told otherwise."""
    found = environment()
    assert found["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert found["GUARD_SERVER_PID"] == str(os.getpid())
    assert "VLLM_PLUGINS" not in found


@pytest.mark.parametrize("chosen", ["", "another"])
def test_a_choice_of_plugins_never_leaves_ours_out(environment, chosen):
    assert environment(VLLM_PLUGINS=chosen)["VLLM_PLUGINS"].split(",")[-1] == PLUGIN


@pytest.mark.parametrize("vocabulary", [POCKET.vocabulary_size, 202_048], ids=["pocket's", "Llama 4's"])
def test_a_cpu_gets_one_process_for_the_engine_and_nothing_compiled(environment, vocabulary):
    found = environment(replace(POCKET, tokens={**POCKET.tokens, "vocabulary_size": vocabulary}))
    assert (found["VLLM_ENABLE_V1_MULTIPROCESSING"], found["TORCH_COMPILE_DISABLE"]) == ("0", "1")


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {**POCKET.engine, "enforce_eager": False}},
        {"runs_on_cpu": False},
    ],
    ids=["compiled", "GPU"],
)
def test_what_is_to_be_compiled_is_compiled(environment, changes):
    found = environment(replace(POCKET, **changes))
    assert "TORCH_COMPILE_DISABLE" not in found
    assert ("VLLM_ENABLE_V1_MULTIPROCESSING" in found) is changes.get("runs_on_cpu", True)


@pytest.mark.skipif(not is_cpu(), reason="elsewhere nothing is to be said")
def test_a_cpu_gets_larger_steps_unless_the_profile_says_otherwise():
    def step(**engine: int) -> int:
        profile = replace(POCKET, engine={**POCKET.engine, **engine})
        arguments = engine_arguments(profile, Path(profile.model), one_chunk=False)
        tokens: int = arguments["max_num_batched_tokens"]
        return tokens

    assert step() == step_sizes.ARGUMENTS["max_num_batched_tokens"]
    assert step(max_num_batched_tokens=512) == 512


async def test_the_model_runs_in_the_engines_own_process(pocket_backend):
    """On a CPU too: vLLM as it comes would give it a third one."""
    assert pocket_backend.engine.vllm_config.parallel_config.distributed_executor_backend == "uni"


@pytest.mark.parametrize(
    ("chunk", "context", "whole"), [(None, 8192, False), (8192, 8192, True), (8192, 8193, False), (1024, 8192, False)]
)
def test_attention_in_chunks_is_whole_where_there_is_but_one(chunk, context, whole):
    own = {"text_config": {"rope_theta": 1.0}, "boi_token_index": 1}
    profile = replace(POCKET, context_tokens=context, engine={**POCKET.engine, "hf_overrides": own})
    folder = Path(profile.model)
    one_chunk = fits_one_chunk(profile, replace(read_facts(folder), attention_chunk=chunk))
    overrides = engine_arguments(profile, folder, one_chunk=one_chunk)["hf_overrides"]
    added = {"attention_chunk_size": None} if whole else {}
    assert overrides == {**own, "text_config": {"rope_theta": 1.0, **added}}


def test_plugin_is_installed_under_its_name():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert PLUGIN in project["entry-points"]["vllm.general_plugins"]


async def test_text_far_beyond_the_context_is_refused_without_encoding_all_of_it(pocket_backend, monkeypatch):
    encoded: list[str] = []
    encode_text = pocket_backend._tokenizer.encode_text

    def counted(text: str) -> list[int]:
        encoded.append(text)
        ids: list[int] = encode_text(text)
        return ids

    monkeypatch.setattr(pocket_backend._tokenizer, "encode_text", counted)
    case = replace(SAFE_CASE, conversation=Conversation.from_user(TextPart("word " * 2_000_000)))
    with pytest.raises(ContextLengthExceeded):
        await pocket_backend.complete(case)
    assert sum(map(len, encoded)) < 200_000


async def test_a_slot_without_a_picture_is_refused(pocket_backend):
    with pytest.raises(ValueError, match="one picture for each image"):
        await pocket_backend.complete(replace(SAFE_CASE, conversation=Conversation.from_user(ImagePart("data:"))))


@pytest.fixture
def answers(pocket_backend, monkeypatch):
    """What the engine answers, request by request."""
    seen = []
    ask = pocket_backend._client.ask

    async def spy(*arguments, **named):
        answer = await ask(*arguments, **named)
        seen.append(answer)
        return answer

    monkeypatch.setattr(pocket_backend._client, "ask", spy)
    return seen


async def test_safe_takes_one_forward_pass(pocket_backend, answers):
    completion = await pocket_backend.complete(SAFE_CASE)
    assert (completion.text, completion.completion_tokens, len(answers)) == ("safe", 1, 1)
    assert judge(completion, POLICY).score_method is ScoreMethod.UPPER_BOUND


async def test_a_threshold_below_the_models_own_has_it_list_categories(pocket_backend):
    strict = replace(POLICY, threshold=1e-6)
    verdict = judge(await pocket_backend.complete(replace(SAFE_CASE, policy=strict)), strict)
    assert verdict.unsafe
    assert verdict.completion.text == "safe"
    assert verdict.categories
    assert verdict.score_method is ScoreMethod.WRITTEN_LIST


async def test_a_family_may_ask_for_words_without_their_probabilities(pocket_backend, monkeypatch):
    asker = pocket_backend._asker
    answered: list[Answer] = []

    class Words(Asker):
        def steps(self, conversation: Conversation, policy: Policy, top_logprobs: int | None = None) -> Steps:
            ask = asker.unforced(LLAMA_GUARD.prompt(conversation, policy.taxonomy))
            answered.extend((yield [replace(ask, logprobs=()), ask]))
            said = LLAMA_GUARD.read("safe", Levels(1.0, 0.0))
            return Reading(said, decide(said, policy))

    monkeypatch.setattr(pocket_backend, "_asker", Words())
    await pocket_backend.complete(SAFE_CASE)
    words, both = answered
    assert words.ids == both.ids
    assert (len(words.logprobs), len(both.logprobs)) == (0, len(both.ids))


# --- Scores of the categories -----------------------------------------------------------------------------


async def test_a_safe_verdict_is_scored_from_the_floor_on(pocket_backend, answers):
    p_unsafe = (await pocket_backend.complete(SAFE_CASE)).reading.decision.p_unsafe
    for factor, passes, method in ((1.5, 1, ScoreMethod.UPPER_BOUND), (0.5, 2, ScoreMethod.FIRST_CODE)):
        answers.clear()
        policy = replace(POLICY, scores_from=p_unsafe * factor)
        completion = await pocket_backend.complete(replace(SAFE_CASE, policy=policy))
        verdict = judge(completion, policy)
        assert (verdict.unsafe, verdict.score_method, verdict.no_scores) == (False, method, None)
        assert len(answers) == completion.completion_tokens == passes
    assert verdict.p_unsafe is not None
    assert verdict.category_scores is not None
    assert len(set(verdict.category_scores.values())) > 1
    assert 0.5 * verdict.p_unsafe < sum(verdict.category_scores.values()) <= verdict.p_unsafe * 1.001


@pytest.mark.parametrize("repeats", [1, 20, 60])
async def test_the_second_pass_computes_no_more_than_the_last_block(pocket_backend, answers, repeats):
    text = TextPart("How do I bake bread with flour and water? " * repeats)
    everything = replace(POLICY, threshold=1.0, scores_from=0.0)
    await pocket_backend.complete(Case(Conversation.from_user(text), (), everything))
    first, second = answers
    block = pocket_backend.engine.vllm_config.cache_config.block_size
    assert len(second.prompt_ids) == len(first.prompt_ids) + len(["unsafe", "\n", "S"])
    assert len(second.ids) == 1
    assert len(second.prompt_ids) - second.cached_tokens <= block + 4
    assert repeats < 20 or second.cached_tokens > 0


async def test_the_second_pass_shows_the_pictures_too_and_tiles_them_once(pocket_backend, answers, monkeypatch):
    tiled, seen_by = [], pocket_backend._images._seen

    def counted(one):
        tiled.append(one)
        return seen_by(one)

    monkeypatch.setattr(pocket_backend._images, "_seen", counted)
    picture = Image.new("RGB", (336, 336), "white")
    seen = Conversation.from_user(ImagePart("data:"), TextPart("What is this?"))
    policy = replace(POLICY, threshold=1.0, scores_from=0.0)
    completion = await pocket_backend.complete(Case(seen, (picture,), policy))
    verdict = judge(completion, policy)
    assert verdict.category_scores is not None
    assert set(verdict.category_scores) == set(POLICY.taxonomy.for_images().codes)
    assert completion.tiles == len(tiled) == 1
    assert len({len(answer.prompt_ids) - forced for answer, forced in zip(answers, (1, 4), strict=True)}) == 1


@pytest.mark.parametrize("text", UNSAFE_TEXTS)
async def test_no_score_is_lower_by_the_written_list_than_by_the_first_code(pocket_backend, monkeypatch, text):
    """So scores do not drop where a text becomes unsafe."""
    case = Case(Conversation.from_user(TextPart(text)), (), POLICY)
    written = (await pocket_backend.complete(case)).reading
    assert written.score_method is ScoreMethod.WRITTEN_LIST
    monkeypatch.setattr(pocket_backend._asker, "_of_list", lambda *_: None)
    first = (await pocket_backend.complete(case)).reading
    assert first.score_method is ScoreMethod.FIRST_CODE
    assert sum(first.shares.values()) <= 1.001
    for code, share in first.shares.items():
        assert share <= written.shares[code] + 1e-3, code


# --- In the engine ----------------------------------------------------------------------------------------


async def test_background_work_has_the_lower_priority_in_the_engine(pocket_backend, monkeypatch):
    """And a tenant its own part of the prefix cache."""
    seen = []
    core = pocket_backend.engine.engine_core
    add = core.add_request_async

    async def spy(request):
        seen.append((request.cache_salt, request.priority))
        await add(request)

    monkeypatch.setattr(core, "add_request_async", spy)
    await pocket_backend.complete(SAFE_CASE)
    await pocket_backend.complete(replace(SAFE_CASE, handling=Handling(tenant="key_1", background=True)))
    assert pocket_backend.engine.vllm_config.scheduler_config.policy == "priority"
    (_, live), (_, background) = seen
    assert live < background, "vLLM serves lower numbers first"
    assert [salt for salt, _ in seen] == [None, "key_1"]


async def test_a_live_request_overtakes_what_waits_in_the_engine(pocket_backend):
    finished = []

    async def judged(number: int, *, background: bool) -> None:
        text = TextPart(f"{number} How do I bake bread with flour and water? " * 40)
        handling = Handling(background=background)
        await pocket_backend.complete(Case(Conversation.from_user(text), (), POLICY, handling))
        finished.append(background)

    waiting = [asyncio.create_task(judged(number, background=True)) for number in range(150)]
    await asyncio.gather(*waiting, asyncio.create_task(judged(150, background=False)))
    assert finished.index(False) < 120, "the last one to come was among the last to be served"


async def test_what_passes_its_deadline_is_ended_in_the_engine(pocket_backend):
    moderator = Moderator(pocket_backend, ImageDecoder(ImageLimits(), SIZES), POLICY, deadline_s=0.02)
    try:
        with pytest.raises(DeadlineExceeded):
            await moderator.moderate(Conversation.from_user(TextPart("How do I bake bread? " * 900)))
    finally:
        moderator.close()
    assert pocket_backend.engine.get_num_unfinished_requests() == 0
