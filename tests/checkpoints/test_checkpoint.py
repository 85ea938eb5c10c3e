"""Reading checkpoints: tiny ones made here, and a hub that says no."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from server.checkpoints import checkpoint
from server.checkpoints.checkpoint import CheckpointFacts, exceeds_checkpoint, read_facts, verify
from server.checkpoints.profile import Network, Profile, load_profile
from server.domain.errors import OperatorError

BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}

CONFIG = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "torch_dtype": "bfloat16",
    "text_config": {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 131072,
        "attention_chunk_size": None,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        "eos_token_id": 7,
    },
    "vision_config": {"image_size": 336, "patch_size": 14, "pixel_shuffle_ratio": 0.5},
}

TENSORS = {
    "language_model.model.embed_tokens.weight": ("BF16", [100, 32]),
    "language_model.lm_head.weight": ("BF16", [100, 32]),
    "language_model.model.norm.weight": ("BF16", [32]),
    "language_model.model.layers.0.input_layernorm.weight": ("BF16", [32]),
    "language_model.model.layers.0.self_attn.q_proj.weight": ("BF16", [32, 32]),
    "language_model.model.layers.1.feed_forward.up_proj.weight": ("BF16", [64, 32]),
    "vision_model.model.layers.0.self_attn.q_proj.weight": ("BF16", [16, 16]),
    "multi_modal_projector.linear_1.weight": ("BF16", [32, 16]),
}


def write_weights(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_checkpoint(folder: Path, config: dict[str, Any] = CONFIG, tensors: Any = TENSORS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors", tensors)
    return folder


def with_text(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, "text_config": {**CONFIG["text_config"], **changes}}  # type: ignore[dict-item]


# --- Facts -----------------------------------------------------------------------------------------------


def test_facts_of_a_small_llama_4(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [200001, 200008]}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert read_facts(folder) == CheckpointFacts(
        vocabulary_size=100,
        context_tokens=131_072,
        eos_token_ids=(200_001, 200_008),
        tokens_per_tile=144,
        network=Network(
            layers=2,
            kv_heads=2,
            head_dim=8,
            text_linear_parameters=32 * 32 + 64 * 32,
            text_other_parameters=2 * 100 * 32 + 2 * 32,
            vision_parameters=16 * 16 + 32 * 16,
        ),
        chat_template="{{ messages }}",
    )


@pytest.mark.parametrize(
    ("changes", "chunk"),
    [
        ({}, None),
        ({"attention_chunk_size": 4096}, 4096),
        ({"attention_chunk_size": 0}, None),
        ({"model_type": "llama4_text"}, None),
    ],
)
def test_where_attention_is_cut(tmp_path: Path, changes: dict[str, Any], chunk: int | None) -> None:
    assert read_facts(write_checkpoint(tmp_path, with_text(**changes))).attention_chunk == chunk


@pytest.mark.parametrize(("model_type", "chunk"), [("llama4_text", 8192), ("llama", None)])
def test_where_attention_is_cut_if_the_checkpoint_does_not_say(
    tmp_path: Path, model_type: str, chunk: int | None
) -> None:
    config = with_text(model_type=model_type)
    del config["text_config"]["attention_chunk_size"]
    assert read_facts(write_checkpoint(tmp_path, config)).attention_chunk == chunk


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, 131_072),
        ({"rope_scaling": None}, 131_072),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 262_144),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "llama3", "factor": 16.0}}, 131_072),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, 524_288),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_rope_scaling_counts_once(tmp_path: Path, changes: dict[str, Any], allowed: int | None) -> None:
    assert read_facts(write_checkpoint(tmp_path, with_text(**changes))).context_tokens == allowed


def test_a_text_model_has_no_images_and_a_flat_configuration(tmp_path: Path) -> None:
    facts = read_facts(write_checkpoint(tmp_path, dict(CONFIG["text_config"])))  # type: ignore[call-overload]
    assert facts.tokens_per_tile is None
    assert (facts.vocabulary_size, facts.eos_token_ids, facts.chat_template) == (100, (7,), None)


def test_absent_sizes_follow_from_others(tmp_path: Path) -> None:
    network = read_facts(write_checkpoint(tmp_path, with_text(head_dim=None, num_key_value_heads=None))).network
    assert (network.kv_heads, network.head_dim) == (4, 8)


def test_quantised_weights_count_as_stored(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "compressed-tensors"}}
    q_proj = "language_model.model.layers.0.self_attn.q_proj.weight"
    facts = read_facts(write_checkpoint(tmp_path, config, {**TENSORS, q_proj: ("F8_E4M3", [32, 32])}))
    assert facts.network.text_linear_bytes == 32 * 32 + 2 * 64 * 32


def test_several_files_and_older_templates(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    names = sorted(TENSORS)
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((names[:3], names[3:])):
        write_weights(folder / f"part-{number}.safetensors", {name: TENSORS[name] for name in part})
    index = {name: f"part-{int(name not in names[:3])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    facts = read_facts(folder)
    assert facts.network == read_facts(write_checkpoint(tmp_path / "whole")).network
    assert facts.chat_template == "old"
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(OperatorError, match=r"weights are missing: part-1\.safetensors"):
        read_facts(folder)


def test_incomplete_checkpoints_are_told(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"config\.json: cannot be read"):
        read_facts(tmp_path)
    folder = write_checkpoint(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut, told in ((len(whole) - 1, "cut short"), (20, "cut short"), (3, "cut short")):
        weights.write_bytes(whole[:cut])
        with pytest.raises(OperatorError, match=told):
            read_facts(folder)
    weights.write_bytes(struct.pack("<Q", 4) + b"{not")
    with pytest.raises(OperatorError, match="no readable safetensors header"):
        read_facts(folder)
    weights.unlink()
    with pytest.raises(OperatorError, match=r"no \*\.safetensors file"):
        read_facts(folder)


@pytest.mark.parametrize("missing", ["vocab_size", "num_hidden_layers", "num_attention_heads"])
def test_a_configuration_without_sizes_is_told(tmp_path: Path, missing: str) -> None:
    with pytest.raises(OperatorError, match="is missing or makes no sense"):
        read_facts(write_checkpoint(tmp_path, with_text(**{missing: None})))


# --- Comparing -------------------------------------------------------------------------------------------


@pytest.fixture
def profile() -> Profile:
    return load_profile("llama-guard-4-12b")


@pytest.fixture
def facts(tmp_path: Path) -> CheckpointFacts:
    """What the real checkpoint should say, as far as it is known."""
    return replace(read_facts(write_checkpoint(tmp_path)), vocabulary_size=202_048, context_tokens=163_840)


def token_id(text: str) -> int | None:
    return {"\n\n": 368, "safe": 60_411, "unsafe": 72_110}.get(text)


def test_a_matching_checkpoint_passes(profile: Profile, facts: CheckpointFacts) -> None:
    verify(profile, facts, token_id)
    verify(profile, replace(facts, context_tokens=None), token_id)


def test_every_mismatch_is_told_at_once(profile: Profile, facts: CheckpointFacts) -> None:
    other = replace(facts, vocabulary_size=128_256, context_tokens=131_072, tokens_per_tile=None)
    with pytest.raises(OperatorError) as raised:
        verify(profile, other, lambda word: {"\n\n": 271, "safe": 60_411}.get(word))
    assert str(raised.value).splitlines() == [
        "llama-guard-4-12b:80gb: profile and checkpoint do not agree:",
        "  - the profile expects a vocabulary of 202048, the checkpoint has 128256",
        "  - the profile expects token 368 for '\\n\\n' (tokens.blank_line), the tokenizer gives it 271",
        "  - the profile expects token 72110 for 'unsafe' (tokens.unsafe), the tokenizer writes it with several tokens",
        "  - the checkpoint has no vision encoder; set images = false",
        "  - the profile asks for 163840 tokens of context, the checkpoint allows 131072; "
        "set context_tokens to at most 131072",
    ]


def test_a_longer_context_can_be_waived_loudly(
    profile: Profile, facts: CheckpointFacts, caplog: pytest.LogCaptureFixture
) -> None:
    short = replace(facts, context_tokens=131_072)
    assert exceeds_checkpoint(profile, short)
    assert not exceeds_checkpoint(profile, facts)
    verify(replace(profile, context_beyond_checkpoint=True), short, token_id)
    assert "163840 tokens of context, the checkpoint allows 131072" in caplog.text


def test_a_text_only_profile_accepts_a_checkpoint_with_images(facts: CheckpointFacts) -> None:
    verify(load_profile("llama-guard-4-12b:text-only"), facts, token_id)


# --- The hub ---------------------------------------------------------------------------------------------


def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/"))
    return kind("refused\nwith details", response=response)


def answer_with(monkeypatch: pytest.MonkeyPatch, online: Exception | str, offline: Exception | str) -> list[Any]:
    calls = []

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append((repository, options))
        answer = offline if options["local_files_only"] else online
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(checkpoint, "snapshot_download", snapshot_download)
    return calls


NOTHING_CACHED = LocalEntryNotFoundError("nothing here")


def test_a_hub_id_is_downloaded_without_the_second_copy(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer_with(monkeypatch, "/cache/snapshot", NOTHING_CACHED)
    assert checkpoint.locate(profile) == Path("/cache/snapshot")
    ((repository, options),) = calls
    assert (repository, options["revision"]) == ("meta-llama/Llama-Guard-4-12B", "main")
    assert options["ignore_patterns"] == ["original/*"]
    assert "token" not in options, "huggingface_hub reads HF_TOKEN itself"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (refusal(GatedRepoError, 403), "Accept the licence"),
        (refusal(RepositoryNotFoundError, 401), "Accept the licence"),
        (refusal(HfHubHTTPError, 401), "Accept the licence"),
        (refusal(HfHubHTTPError, 503), "The hub failed while handing out .*: refused$"),
        (refusal(RevisionNotFoundError, 404), "no revision 'main'"),
        (LocalEntryNotFoundError("offline"), "cannot be reached"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_refusals_are_told_in_words(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    answer_with(monkeypatch, error, NOTHING_CACHED)
    with pytest.raises(OperatorError, match=told):
        checkpoint.locate(profile)


@pytest.mark.parametrize(("token", "told"), [("", "HF_TOKEN is not set"), ("hf_secret", "may belong to another")])
def test_a_refusal_says_whether_there_is_a_token_but_not_which(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, token: str, told: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    answer_with(monkeypatch, refusal(GatedRepoError, 403), NOTHING_CACHED)
    with pytest.raises(OperatorError, match=told) as raised:
        checkpoint.locate(profile)
    assert "hf_secret" not in str(raised.value)


def test_a_refused_token_does_not_keep_cached_weights_from_serving(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(tmp_path)
    answer_with(monkeypatch, refusal(GatedRepoError, 403), str(folder))
    assert checkpoint.locate(profile) == folder
    assert "Serving the copy in the local cache" in caplog.text


def test_what_is_cached_is_found_without_network(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = RuntimeError("the network was used")
    answer_with(monkeypatch, unreachable, NOTHING_CACHED)
    assert checkpoint.cached(profile) is None
    answer_with(monkeypatch, unreachable, str(tmp_path))
    assert checkpoint.cached(profile) is None, "an aborted download has no configuration"
    answer_with(monkeypatch, unreachable, str(write_checkpoint(tmp_path)))
    assert checkpoint.cached(profile) == tmp_path


def test_a_local_folder_is_taken_as_it_is(profile: Profile, tmp_path: Path) -> None:
    local = replace(profile, model=str(tmp_path / "weights"))
    with pytest.raises(OperatorError, match="weights does not exist"):
        checkpoint.locate(local)
    assert checkpoint.cached(local) is None
    write_checkpoint(tmp_path / "weights")
    assert checkpoint.locate(local) == checkpoint.cached(local) == tmp_path / "weights"
