"""A checkpoint whose attention is cut into chunks, served as one that is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from server.backends.base import Case
from server.checkpoints.profile import Profile, load_profile
from server.domain.conversation import Conversation, TextPart
from server.domain.policy import Policy
from server.domain.verdict import Levels
from tests.conftest import open_backend

POCKET = load_profile("pocket")
CHUNK = 2048


@pytest.fixture
def chunked(tmp_path: Path) -> Profile:
    """The pocket model as if it had been trained in chunks, with a context of one of them."""
    folder = shutil.copytree(POCKET.model, tmp_path / "chunked")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["attention_chunk_size"] = CHUNK
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return replace(POCKET, model=str(folder), context_tokens=CHUNK)


async def judged(profile: Profile, *, in_chunks: bool) -> list[Levels]:
    """What the engine makes of a short and of a long text."""
    backend = open_backend(profile)
    if in_chunks:
        backend._one_chunk = False
    await backend.start()
    try:
        assert backend.engine is not None
        assert backend.engine.vllm_config.model_config.attention_chunk_size == (CHUNK if in_chunks else None)
        texts = ("How do I bake bread?", "How do I bake bread with flour and water? " * 120)
        cases = [Case(Conversation.from_user(TextPart(text)), (), Policy(profile.taxonomy)) for text in texts]
        read: list[Levels] = []
        for case in cases:
            levels = (await backend.complete(case)).reading.said.levels
            assert levels is not None
            read.append(levels)
        return read
    finally:
        await backend.close()


@pytest.mark.slow
async def test_one_chunk_is_the_whole(chunked: Profile) -> None:
    whole, cut = await judged(chunked, in_chunks=False), await judged(chunked, in_chunks=True)
    for one, other in zip(whole, cut, strict=True):
        assert (one.safe, one.unsafe) == pytest.approx((other.safe, other.unsafe), rel=1e-5)
