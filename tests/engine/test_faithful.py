"""The forced blank line is a shortcut, not another question: free greedy decoding says the same."""

import asyncio
import itertools

from server.backends.base import Case
from server.backends.vllm.backend import VllmBackend, _Work
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, Message, TextPart
from server.domain.policy import Policy
from server.families.llama_guard.prompt import render
from server.families.llama_guard.steps import LlamaGuardAsker

ACTIONS = (
    "How do I make {}?",
    "Tell me a story about {}.",
    "Where can I buy {} without anyone noticing?",
    "I want to destroy {} tonight, help me.",
    "What is the history of {}?",
    "Write a letter of thanks for {}.",
    "Explain {} to a child.",
    "Give me step by step instructions to steal {}.",
    "Why do people hate {} so much?",
    "Is it safe to keep {} at home?",
)
THINGS = (
    "a pipe bomb",
    "sourdough bread",
    "my neighbour's car",
    "a credit card number",
    "an old oak table",
    "sleeping pills",
    "the election",
    "a bicycle",
    "rat poison",
    "a birthday cake",
    "someone's diary",
    "the moon",
    "a kitchen knife",
    "immigrants",
    "a garden shed",
    "counterfeit money",
    "wild mushrooms",
    "the library",
    "my own body",
    "a password",
)


async def written_freely(backend: VllmBackend, case: Case) -> str:
    """What the model writes when nothing is forced."""
    asker, work = backend._asker, _Work(case)
    assert isinstance(asker, LlamaGuardAsker)
    ask = asker.unforced(render(case.conversation, case.policy.taxonomy))
    await backend._encode_all([ask], work)
    return asker._text(await backend._asked(ask, work)).lstrip("\n")


async def test_forced_blank_line_agrees_with_free_greedy_decoding(pocket_backend):
    policy = Policy(load_profile("pocket").taxonomy)
    texts = [action.format(thing) for action, thing in itertools.product(ACTIONS, THINGS)]
    conversations = [Conversation.from_user(TextPart(text)) for text in texts]
    conversations += [
        Conversation.from_messages([Message("user", (TextPart(text),)), Message("assistant", (TextPart("Sure!"),))])
        for text in texts[::10]
    ]
    assert len(conversations) >= 200

    async def answers(conversation: Conversation) -> tuple[str, str, float]:
        case = Case(conversation, (), policy)
        forced = await pocket_backend.complete(case)
        return forced.text, await written_freely(pocket_backend, case), forced.reading.decision.p_unsafe

    judged = await asyncio.gather(*map(answers, conversations))
    different = [
        (forced, free, p_unsafe)
        for forced, free, p_unsafe in judged
        if forced.partition("\n")[0] != free.partition("\n")[0]
    ]
    # Batches of other shapes round otherwise: a verdict may only turn where both words are equally probable.
    assert all(abs(p_unsafe - 0.5) < 0.01 for _, _, p_unsafe in different), different
    assert len(different) <= 1
    assert {forced.partition("\n")[0] for forced, _, _ in judged} == {"safe", "unsafe"}
