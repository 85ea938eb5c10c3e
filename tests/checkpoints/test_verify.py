"""A checkpoint beside its profile."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.checkpoints.facts import CheckpointFacts, read_facts
from server.checkpoints.profile import Profile, load_profile
from server.checkpoints.verify import exceeds_checkpoint, verify
from server.domain.errors import OperatorError
from tests.checkpoints.test_facts import write_checkpoint
from tests.readings import FAMILY


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
    verify(profile, facts, FAMILY.tokens, token_id)
    verify(profile, replace(facts, context_tokens=None), FAMILY.tokens, token_id)


def test_every_mismatch_is_told_at_once(profile: Profile, facts: CheckpointFacts) -> None:
    other = replace(facts, vocabulary_size=128_256, context_tokens=131_072, tokens_per_tile=None)
    with pytest.raises(OperatorError) as raised:
        verify(profile, other, FAMILY.tokens, lambda word: {"\n\n": 271, "safe": 60_411}.get(word))
    assert str(raised.value).splitlines() == [
        "llama-guard-4-12b:80gb: profile and checkpoint do not agree:",
        "  - the profile expects a vocabulary of 202048, the checkpoint has 128256",
        "  - the profile expects token 368 for '\\n\\n' (tokens.blank_line), the tokenizer has 271",
        "  - the profile expects token 72110 for 'unsafe' (tokens.unsafe), the tokenizer has no single token for it",
        "  - the checkpoint has no vision encoder: set images = false",
        "  - the profile asks for 163840 tokens of context, the checkpoint allows 131072: "
        "set context_tokens to at most 131072",
    ]


def test_a_longer_context_can_be_waived_loudly(
    profile: Profile, facts: CheckpointFacts, caplog: pytest.LogCaptureFixture
) -> None:
    short = replace(facts, context_tokens=131_072)
    assert exceeds_checkpoint(profile, short)
    assert not exceeds_checkpoint(profile, facts)
    verify(replace(profile, context_beyond_checkpoint=True), short, FAMILY.tokens, token_id)
    assert "163840 tokens of context, the checkpoint allows 131072" in caplog.text


def test_a_text_only_profile_accepts_a_checkpoint_with_images(facts: CheckpointFacts) -> None:
    verify(load_profile("llama-guard-4-12b:text-only"), facts, FAMILY.tokens, token_id)
