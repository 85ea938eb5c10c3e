"""What the backend on vLLM promises, beyond what a server shows."""

import asyncio
import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from server.backends.base import Case
from server.backends.engine_process import PLUGIN
from server.caller import Handling
from server.conversation import Conversation, ImagePart, TextPart
from server.errors import ContextLengthExceeded
from server.policy import Policy
from server.profile import load_profile
from server.verdict import ScoreMethod, judge
from tests.conftest import open_backend

POLICY = Policy(load_profile("pocket").taxonomy)
SAFE_CASE = Case(Conversation.from_user(TextPart("How do I bake bread?")), (), POLICY)


@pytest.fixture
def environment(monkeypatch):
    """The environment after a backend prepared it, in a process that is put back as it was."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))

        def prepared(**variables: str) -> dict[str, str]:
            os.environ.update(variables)
            backend = open_backend(load_profile("pocket"))
            backend._prepare_environment()
            asyncio.run(backend.close())
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


def test_plugin_is_installed_under_its_name():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert PLUGIN in project["entry-points"]["vllm.general_plugins"]


async def test_text_far_beyond_the_context_is_refused_without_encoding_all_of_it(pocket_backend, monkeypatch):
    encoded: list[str] = []
    encode_text = pocket_backend._tokenizer.encode_text

    def counted(text: str) -> list[int]:
        encoded.append(text)
        return encode_text(text)

    monkeypatch.setattr(pocket_backend._tokenizer, "encode_text", counted)
    case = replace(SAFE_CASE, conversation=Conversation.from_user(TextPart("word " * 2_000_000)))
    with pytest.raises(ContextLengthExceeded):
        await pocket_backend.complete(case)
    assert sum(map(len, encoded)) < 200_000


async def test_a_slot_without_a_picture_is_refused(pocket_backend):
    with pytest.raises(ValueError, match="one picture for each image"):
        await pocket_backend.complete(replace(SAFE_CASE, conversation=Conversation.from_user(ImagePart("data:"))))


async def test_safe_takes_one_forward_pass(pocket_backend):
    completion = await pocket_backend.complete(SAFE_CASE)
    assert (completion.text, completion.completion_tokens) == ("safe", 1)
    assert judge(completion, POLICY, 0.9).score_method is ScoreMethod.UPPER_BOUND


async def test_a_threshold_below_the_models_own_has_it_list_categories(pocket_backend):
    strict = replace(POLICY, threshold=1e-6)
    verdict = judge(await pocket_backend.complete(replace(SAFE_CASE, policy=strict)), strict, 0.9)
    assert verdict.unsafe
    assert verdict.completion.text == "safe"
    assert verdict.categories
    assert verdict.score_method is ScoreMethod.WRITTEN_LIST


async def test_all_categories_can_be_scored_for_safe_verdicts_too(pocket_backend, monkeypatch):
    monkeypatch.setattr(pocket_backend, "_always_score_categories", True)
    verdict = judge(await pocket_backend.complete(SAFE_CASE), POLICY, 0.9)
    assert not verdict.unsafe
    assert verdict.score_method is ScoreMethod.FIRST_CODE
    assert len(set(verdict.category_scores.values())) > 1
    assert 0.5 * verdict.p_unsafe < sum(verdict.category_scores.values()) <= verdict.p_unsafe * 1.001


async def test_background_work_has_the_lower_priority_in_the_engine(pocket_backend, monkeypatch):
    """And a tenant its own part of the prefix cache."""
    seen = []
    generate = pocket_backend.engine.generate

    def spy(prompt, *arguments, **options):
        seen.append((prompt.get("cache_salt"), options["priority"]))
        return generate(prompt, *arguments, **options)

    monkeypatch.setattr(pocket_backend.engine, "generate", spy)
    await pocket_backend.complete(SAFE_CASE)
    await pocket_backend.complete(replace(SAFE_CASE, handling=Handling(tenant="key_1", background=True)))
    assert pocket_backend.engine.vllm_config.scheduler_config.policy == "priority"
    (_, live), (_, background) = seen
    assert live < background, "vLLM serves lower numbers first"
    assert [salt for salt, _ in seen] == [None, "key_1"]
