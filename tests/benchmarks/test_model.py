import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.model import SHIPPED, Model, model_of_checkpoint, model_of_profile, profile_table
from server.backends.vllm.setup import engine_arguments
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, TextPart
from server.families.llama_guard.prompt import render
from server.families.tokenizer import PromptTokenizer


@pytest.mark.parametrize("spec", ["pocket", "llama-guard-4-12b"])
def test_a_profile_reads_as_the_server_reads_it(spec):
    table, profile = profile_table(SHIPPED / spec / "profile.toml"), load_profile(spec)
    assert table["engine"] == dict(profile.engine)
    assert table["context_tokens"] == profile.context_tokens
    assert table["served_as"] == list(profile.served_as)


def test_a_profile_of_a_variant_of_another_reads_as_the_server_reads_it(tmp_path):
    (tmp_path / "profile.toml").write_text('extends = "llama-guard-4-12b:24gb"\nname = "mine"\n[engine]\nseed = 1\n')
    table, profile = profile_table(tmp_path / "profile.toml"), load_profile(str(tmp_path))
    assert table["engine"] == dict(profile.engine)
    assert table["engine"]["max_num_seqs"] == 64
    assert table["context_tokens"] == profile.context_tokens == 32768


@pytest.fixture
def model(tmp_path) -> Model:
    return model_of_checkpoint(tmp_path, "mine", 4096, {"enable_prefix_caching": False, "dtype": "float32"})


def test_both_servers_are_told_the_same(model, tmp_path):
    (tmp_path / "place").mkdir()
    file = model.write_profile(tmp_path / "place")
    profile, text = load_profile(str(file)), file.read_text()
    assert profile.context_tokens == 4096
    assert not profile.runs_on_cpu
    assert load_profile(str(replace(model, on_cpu=True).write_profile(tmp_path / "place"))).runs_on_cpu
    assert dict(profile.engine) == model.engine == {**tomllib.loads(text)["engine"]}
    flags = model.engine_flags
    assert "--max-model-len=4096" in flags
    assert "--no-enable-prefix-caching" in flags
    assert "--dtype=float32" in flags
    limit = next(flag for flag in flags if flag.startswith("--limit-mm-per-prompt="))
    assert json.loads(limit.partition("=")[2]) == {"image": profile.image_limit}


def test_the_preamble_is_what_every_prompt_begins_with():
    model = model_of_profile(SHIPPED / "pocket", {})
    tokenizer = PromptTokenizer.from_folder(model.folder)
    taxonomy = load_profile("pocket").taxonomy
    prompts = [render(Conversation.from_user(TextPart(text)), taxonomy).token_ids(tokenizer) for text in ("1", "Yes")]
    shared = next(at for at, (one, other) in enumerate(zip(*prompts, strict=False)) if one != other)
    assert model.preamble_tokens() == shared


def test_the_server_takes_its_prefix_cache_from_the_profile_and_has_one_by_default():
    def arguments(engine: dict[str, Any]) -> dict[str, Any]:
        profile = load_profile("pocket")
        given = replace(profile, engine={**profile.engine, **engine})
        return engine_arguments(given, Path(given.model), one_chunk=False)

    assert arguments({})["enable_prefix_caching"] is True
    assert arguments({"enable_prefix_caching": False})["enable_prefix_caching"] is False
    assert arguments({"generation_config": "auto"})["generation_config"] == "vllm"
