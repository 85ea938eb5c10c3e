"""Nobody pays for a first time: what the engine still has to compute when the first request of each kind comes.

On the reference model: pocket's own vocabulary writes the beginning of the prompt with fewer tokens than a block has.
"""

from itertools import product

import pytest
from PIL import Image

from server.backends.base import Case
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.policy import Policy
from server.families.llama_guard.prompt import render

EVERYTHING = Policy(load_profile("pocket").taxonomy)
NARROWED = EVERYTHING.narrowed(excluded=["S5", "S13"])
ONLY_TEXT = EVERYTHING.narrowed(excluded=set(EVERYTHING.taxonomy.codes) - {"S14"})

PICTURE = Image.new("RGB", (336, 336), "white")


def first_case(policy: Policy, text: str, *, response: bool, image: bool) -> Case:
    asked = Message("user", ((ImagePart("data:"),) if image else ()) + (TextPart(text),))
    answered = Message("assistant", (TextPart("With flour, water and salt."),))
    conversation = Conversation.from_messages([asked, answered] if response else [asked])
    return Case(conversation, (PICTURE,) if image else (), policy)


@pytest.mark.parametrize("policy", [EVERYTHING, NARROWED, ONLY_TEXT], ids=["everything", "narrowed", "only text"])
async def test_the_beginning_of_every_prompt_is_in_the_cache(reference_backend, monkeypatch, policy):
    """Of both roles, with and without an image: all blocks before the conversation, so at most one is left over."""
    engine, tokenizer = reference_backend.engine, reference_backend._tokenizer
    monkeypatch.setattr(reference_backend, "_policy", policy)
    await engine.reset_prefix_cache()
    await reference_backend._warm_up()

    block = engine.vllm_config.cache_config.block_size
    kinds = list(product([False, True], [False, True] if policy is not ONLY_TEXT else [False]))
    for response, image in kinds:
        case, other = (
            first_case(policy, text, response=response, image=image) for text in ("How do I bake bread?", "Why so?")
        )
        prompts = [render(each.conversation, policy.taxonomy).token_ids(tokenizer) for each in (case, other)]
        beginning = next(at for at, (one, another) in enumerate(zip(*prompts, strict=False)) if one != another)
        completion = await reference_backend.complete(case)
        assert completion.cached_tokens >= beginning // block * block, (response, image)
        computed = completion.prompt_tokens + 1 - completion.cached_tokens
        assert computed <= completion.prompt_tokens + 1 - beginning + block, (response, image)
        if not image:
            assert (completion.text, completion.completion_tokens) == ("safe", 1)


async def test_what_is_not_warm_is_not_in_the_cache(reference_backend):
    """Or the test above could not fail."""
    await reference_backend.engine.reset_prefix_cache()
    completion = await reference_backend.complete(first_case(EVERYTHING, "Why so?", response=True, image=False))
    assert completion.cached_tokens == 0
