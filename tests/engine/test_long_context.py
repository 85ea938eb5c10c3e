"""The whole context that the profile of Llama Guard 4 promises, 163,840 tokens, in one conversation.

The model is a single layer with a single head, so that two cores compute its attention over the whole context in
minutes. What it proves is the way through server and engine: nothing is cut, reordered or forgotten between the first
word and the last. How well the real model judges so far out, nobody has published.
"""

import random
import time
from dataclasses import replace
from types import MappingProxyType

import psutil
import pytest
import pytest_asyncio

from server.backends.base import Case
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, Message, TextPart
from server.domain.errors import ContextLengthExceeded
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from tests.conftest import open_backend
from tests.reference_model import ALARM_WORDS, ORDINARY_WORDS, build_reference_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CONTEXT = load_profile("llama-guard-4-12b").context_tokens
ANSWER_ROOM = 32
"""More than the forced newline and the longest answer about TAXONOMY take."""

TAXONOMY = Taxonomy.from_mapping({"S1": "Violent Crimes.", "S9": "Indiscriminate Weapons.", "S10": "Hate."})

MESSAGES = 21
"""An odd number: the last message is the user's."""


@pytest_asyncio.fixture(scope="module")
async def long_backend(tmp_path_factory, reference_profile):
    folder = build_reference_model(
        tmp_path_factory.mktemp("long"), max_position_embeddings=CONTEXT, layers=1, heads=1, kv_heads=1
    )
    profile = replace(
        reference_profile,
        name="long",
        model=str(folder),
        context_tokens=CONTEXT,
        engine=MappingProxyType({**reference_profile.engine, "max_num_batched_tokens": 8192}),
    )
    backend = open_backend(profile)
    await backend.start()
    yield backend
    await backend.close()


async def test_an_alarm_is_heard_across_the_whole_context(long_backend, record_property):
    scaffold = (await long_backend.complete(_case(_conversation([1] * MESSAGES)))).prompt_tokens - MESSAGES
    words = CONTEXT - ANSWER_ROOM - scaffold
    sizes = [words // MESSAGES] * (MESSAGES - 1)
    sizes.append(words - sum(sizes))
    places = {None: "safe", (-1, sizes[-1] - 1): "unsafe", (MESSAGES // 2, 100): "unsafe", (0, 1): "unsafe"}
    for place, expected in places.items():
        started = time.monotonic()
        completion = await long_backend.complete(_case(_conversation(sizes, alarm_at=place)))
        seconds, gib = time.monotonic() - started, _memory_gib()
        print(
            f"alarm at {place}: {completion.text!r}, {completion.prompt_tokens} tokens, {completion.cached_tokens} of"
            f" them cached, {seconds:.0f} s, {gib:.1f} GiB, {completion.reading.said.levels}"
        )
        record_property(f"alarm at {place}", f"{seconds:.0f} s, {gib:.1f} GiB")
        assert completion.prompt_tokens == CONTEXT - ANSWER_ROOM
        assert completion.finish_reason == "stop"
        assert completion.text.partition("\n")[0] == expected


async def test_a_conversation_beyond_the_context_is_refused(long_backend):
    with pytest.raises(ContextLengthExceeded):
        await long_backend.complete(_case(_conversation([CONTEXT // MESSAGES] * MESSAGES)))


def _conversation(sizes: list[int], alarm_at: tuple[int, int] | None = None) -> Conversation:
    """Messages of so many ordinary words, which are as many tokens; one word may be an alarm (message, word)."""
    source = random.Random(0)
    messages = [[ORDINARY_WORDS[0], *source.choices(ORDINARY_WORDS, k=size - 1)] for size in sizes]
    if alarm_at is not None:
        message, word = alarm_at
        messages[message][word] = ALARM_WORDS[0].strip()
    roles = ["user" if index % 2 == 0 else "assistant" for index in range(len(sizes))]
    return Conversation.from_messages(
        [Message(role, (TextPart(" ".join(words)),)) for role, words in zip(roles, messages, strict=True)]
    )


def _case(conversation: Conversation) -> Case:
    return Case(conversation, (), Policy(TAXONOMY))


def _memory_gib() -> float:
    """Of this process and the engine's, now."""
    here = psutil.Process()
    return sum(process.memory_info().rss for process in (here, *here.children(recursive=True))) / 2**30
