"""The context is never cut: what fits is read from its first word to its last, and what does not fit is refused."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from server.backends.base import Case
from server.domain.conversation import Conversation, ImagePart, TextPart
from server.domain.errors import ContextLengthExceeded
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.families.llama_guard.prompt import render
from server.families.tokenizer import PromptTokenizer
from tests.reference_model import ALARM_WORDS, ANSWER_WORDS, ORDINARY_WORDS

TAXONOMY = Taxonomy.from_mapping({"S1": "Violent Crimes.", "S9": "Indiscriminate Weapons.", "S10": "Hate."})
POLICY = Policy(TAXONOMY)

REPEATS_WITHIN = 1e-4


@pytest.fixture(scope="module")
def engine(reference_backend) -> AsyncLLM:
    return reference_backend.engine


@pytest.fixture(scope="module")
def limit(engine) -> int:
    tokens: int = engine.model_config.max_model_len
    return tokens


@pytest.fixture(scope="module")
def tokenizer(engine) -> PromptTokenizer:
    return PromptTokenizer.from_folder(Path(engine.model_config.model))


# --- The edge of the context, as the engine draws it ------------------------------------------------------


async def test_engine_leaves_room_for_one_token_only(engine, tokenizer, limit):
    """Why the server reserves room for the answer itself: vLLM takes a prompt that leaves room for a single token."""
    output = await _generate(engine, _text_ids(tokenizer, limit - 1), max_tokens=50, ignore_eos=True)
    assert len(output.prompt_token_ids) == limit - 1
    assert len(output.outputs[0].token_ids) == 1
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("beyond", [0, 1, 1000])
async def test_engine_refuses_a_prompt_without_room(engine, tokenizer, limit, beyond):
    with pytest.raises(VLLMValidationError):
        await _generate(engine, _text_ids(tokenizer, limit + beyond))


@pytest.mark.parametrize("beyond", [0, 1])
async def test_engine_refuses_images_that_fill_the_context(engine, tokenizer, limit, beyond):
    """The engine counts after it has expanded the images; the bare ids alone would have fitted."""
    picture = Image.new("RGB", (800, 600), "grey")
    ids = _ids(tokenizer, _text(1), images=1)
    expanded = len((await _generate(engine, ids, picture)).prompt_token_ids)
    fits = _ids(tokenizer, _text(limit - expanded), images=1)
    assert len((await _generate(engine, fits, picture)).prompt_token_ids) == limit - 1
    with pytest.raises(VLLMValidationError):
        await _generate(engine, _ids(tokenizer, _text(limit - expanded + 1 + beyond), images=1), picture)


# --- The edge of the context, as a caller meets it --------------------------------------------------------


async def test_longest_accepted_text_is_answered_in_full(reference_backend, tokenizer, limit):
    """Just below the limit an unsafe answer still has room for every category; one word more is refused."""
    shortest = len(_ids(tokenizer, _text(1)))
    longest_answer = len(tokenizer.encode_text("unsafe\n" + ",".join(TAXONOMY.codes))) + 1
    for words in range(limit - shortest + 1, 0, -1):
        case = _case(_text(words, alarm_at=words - 1))
        try:
            completion = await reference_backend.complete(case)
        except ContextLengthExceeded:
            continue
        break
    assert completion.finish_reason == "stop"
    assert completion.text.startswith("unsafe\nS")
    assert completion.prompt_tokens == shortest + words - 1
    # Not refused too early either: a forced newline and the longest answer, give or take two tokens.
    assert 1 + longest_answer <= limit - completion.prompt_tokens <= 1 + longest_answer + 2


@pytest.mark.parametrize("room", [-1000, -1, 0, 1, 2, 100])
async def test_images_beyond_the_context_are_refused_or_answered_in_full(reference_backend, tokenizer, limit, room):
    """`room` is what the expanded prompt would leave of the context. Nothing in between: no answer that was cut off."""
    picture = Image.new("RGB", (800, 600), "grey")
    short = await reference_backend.complete(_case(_text(1), picture))
    words = 1 + limit - short.prompt_tokens - room
    case = _case(_text(words, alarm_at=words - 1), picture)
    if room == 100:
        completion = await reference_backend.complete(case)
        assert completion.finish_reason == "stop"
        assert completion.prompt_tokens == limit - room
    else:
        with pytest.raises(ContextLengthExceeded):
            await reference_backend.complete(case)


# --- Everything is read -----------------------------------------------------------------------------------

LONG = 6000
PLACES = {"start": 1, "middle": LONG // 2, "end": LONG - 1}


async def test_each_word_of_a_long_message_counts(engine, tokenizer):
    """One ordinary word elsewhere moves the verdict's log-probabilities; the same message again does not."""

    async def verdict(text: TextPart) -> dict[int, float]:
        wanted = [tokenizer.single_id(word) for word in ANSWER_WORDS]
        ids = [*_ids(tokenizer, text), tokenizer.single_id("\n\n")]
        output = await _generate(engine, ids, logprob_token_ids=wanted)
        assert len(output.prompt_token_ids) == len(ids) > LONG
        found = output.outputs[0].logprobs[0]
        return {token: found[token].logprob for token in wanted}

    unchanged = await verdict(_text(LONG))
    assert _distance(unchanged, await verdict(_text(LONG))) <= REPEATS_WITHIN
    for place, index in PLACES.items():
        moved = _distance(unchanged, await verdict(_text(LONG, other_at=index)))
        print(f"another word at the {place} of {LONG}: {moved:.6f}")
        assert moved > 3 * REPEATS_WITHIN, place


async def test_an_alarm_anywhere_in_a_long_message_is_heard(reference_backend):
    calm = await reference_backend.complete(_case(_text(LONG)))
    assert calm.text == "safe"
    for place, index in PLACES.items():
        alarmed = await reference_backend.complete(_case(_text(LONG, alarm_at=index)))
        assert alarmed.text.startswith("unsafe\nS"), place


# --- Prompts ----------------------------------------------------------------------------------------------


def _text(words: int, *, alarm_at: int | None = None, other_at: int | None = None) -> TextPart:
    """As many ordinary words, which are as many tokens; one of them may be an alarm word or another ordinary one."""
    chosen = [ORDINARY_WORDS[0], *random.Random(0).choices(ORDINARY_WORDS, k=words - 1)]
    if alarm_at is not None:
        chosen[alarm_at] = ALARM_WORDS[0].strip()
    if other_at is not None:
        chosen[other_at] = next(word for word in ORDINARY_WORDS if word != chosen[other_at])
    return TextPart(" ".join(chosen))


def _conversation(text: TextPart, images: int = 0) -> Conversation:
    return Conversation.from_user(*(ImagePart("data:") for _ in range(images)), text)


def _case(text: TextPart, *images: Image.Image) -> Case:
    return Case(_conversation(text, len(images)), images, POLICY)


def _ids(tokenizer: PromptTokenizer, text: TextPart, images: int = 0) -> list[int]:
    return render(_conversation(text, images), TAXONOMY).token_ids(tokenizer)


def _text_ids(tokenizer: PromptTokenizer, length: int) -> list[int]:
    """A moderation prompt of exactly `length` tokens."""
    ids = _ids(tokenizer, _text(1 + length - len(_ids(tokenizer, _text(1)))))
    assert len(ids) == length
    return ids


def _distance(one: dict[int, float], other: dict[int, float]) -> float:
    return max(abs(one[token] - other[token]) for token in one)


async def _generate(
    engine: AsyncLLM, ids: Sequence[int], *images: Image.Image, max_tokens: int = 1, **wanted
) -> RequestOutput:
    sampling = SamplingParams(
        temperature=0, max_tokens=max_tokens, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **wanted
    )
    prompt: dict[str, Any] = {"prompt_token_ids": list(ids)}
    if images:
        prompt["multi_modal_data"] = {"image": list(images)}
    outputs = [output async for output in engine.generate(prompt, sampling, "context")]
    return outputs[-1]
