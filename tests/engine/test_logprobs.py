"""The tokens of an answer and their probabilities, from the engine itself."""

import asyncio
import math
from dataclasses import replace

import openai
import pytest

from server.backends.base import Case
from server.checkpoints.profile import load_profile
from server.domain.caller import Handling
from server.domain.conversation import Conversation, TextPart
from server.domain.policy import Policy
from server.domain.verdict import Levels, Token, Verdict, judge
from server.families.base import Answer
from server.families.llama_guard.wording import write
from tests.finished_prompts import nemo, ogx
from tests.readings import text_of

POLICY = Policy(load_profile("pocket").taxonomy)
SAFE, UNSAFE = "How do I bake bread?", "How do I build a pipe bomb and hide it in a bus station?"


async def judged(backend, text: str, *, threshold: float = 0.5, top: int | None = 20) -> Verdict:
    policy = replace(POLICY, threshold=threshold)
    case = Case(Conversation.from_user(TextPart(text)), (), policy, Handling(top_logprobs=top))
    return judge(await backend.complete(case), policy)


def tokens_of(verdict: Verdict) -> tuple[Token, ...]:
    tokens = write(verdict).tokens
    assert tokens is not None
    return tokens


def check(verdict: Verdict) -> None:
    """The tokens spell the answer, and the first one's probability is the word's."""
    answer = write(verdict)
    assert answer.tokens is not None
    assert b"".join(token.content for token in answer.tokens).decode() == answer.text == text_of(verdict)
    first = answer.tokens[0]
    assert verdict.p_unsafe is not None
    assert verdict.verdict_mass is not None
    word = verdict.p_unsafe if verdict.unsafe else 1 - verdict.p_unsafe
    assert math.exp(first.logprob) == pytest.approx(word * verdict.verdict_mass, rel=1e-6)
    for token in answer.tokens:
        assert token.logprob <= 0
        assert [other.logprob for other in token.alternatives] == sorted(
            (other.logprob for other in token.alternatives), reverse=True
        )
        assert sum(math.exp(other.logprob) for other in token.alternatives) <= 1 + 1e-6


@pytest.mark.parametrize("text", [SAFE, UNSAFE])
async def test_tokens_spell_the_answer_and_agree_with_the_scores(pocket_backend, text):
    verdict = await judged(pocket_backend, text)
    assert verdict.unsafe is (text == UNSAFE)
    check(verdict)
    tokens = tokens_of(verdict)
    assert {other.content for other in tokens[0].alternatives} >= {b"safe", b"unsafe"}
    assert all(len(token.alternatives) == 20 for token in tokens)
    assert all(token.alternatives[0].content == token.content for token in tokens), (
        "greedy decoding takes the likeliest"
    )
    if verdict.unsafe:
        assert [token.text for token in tokens[:3]] == ["unsafe", "\n", "S"]
        code = verdict.categories[0]
        assert verdict.p_unsafe is not None
        assert verdict.category_scores is not None
        score = math.exp(tokens[3].logprob) * verdict.p_unsafe
        assert verdict.category_scores[code] == pytest.approx(score, rel=1e-6)


async def test_alternatives_change_no_verdict_and_nothing_of_its_scores(pocket_backend):
    for text in (SAFE, UNSAFE):
        plain, *others = [await judged(pocket_backend, text, top=top) for top in (None, 0, 1, 20)]
        assert plain.completion.reading.tokens is None
        for other in others:
            assert text_of(other) == text_of(plain)
            assert other.p_unsafe == pytest.approx(plain.p_unsafe, rel=1e-4)
            assert other.category_scores == pytest.approx(plain.category_scores, rel=1e-4, abs=1e-9)
            check(other)


async def test_a_threshold_that_turns_the_word_turns_its_token(pocket_backend):
    listed = await judged(pocket_backend, SAFE, threshold=1e-6)
    assert listed.completion.text == "safe"
    assert text_of(listed).startswith("unsafe\nS")
    check(listed)
    assert tokens_of(listed)[0].alternatives[0].content == b"safe"

    spared = await judged(pocket_backend, UNSAFE, threshold=1.0)
    assert spared.completion.text.startswith("unsafe")
    assert text_of(spared) == "safe"
    check(spared)
    assert tokens_of(spared)[0].alternatives[0].content == b"unsafe"


async def test_an_answer_begun_in_the_models_own_way_has_no_blank_line(pocket_backend, monkeypatch):
    asker, found = pocket_backend._asker, []
    levels = asker._levels

    def discontent(answer: Answer, position: int) -> Levels:
        """With each first answer, which was forced."""
        found.append(position)
        return Levels(0.0, 0.0) if len(found) % 2 else levels(answer, position)

    monkeypatch.setattr(asker, "_levels", discontent)
    for text, threshold in ((SAFE, 0.5), (UNSAFE, 0.5), (SAFE, 1e-6), (UNSAFE, 1.0)):
        check(await judged(pocket_backend, text, threshold=threshold))
    assert len(found) == 8
    assert all(position > 0 for position in found[1::2])


async def test_a_batch_of_all_kinds_gives_everybody_their_own(pocket_backend):
    """Where vLLM is asked in two ways at once, it forgets one of them for the whole batch."""
    texts = [SAFE, UNSAFE, "What is the capital of France?", "I will kill you."] * 6
    tops = [None, 0, 3, 20, None, 20, 1]
    wanted = [(text, tops[index % len(tops)]) for index, text in enumerate(texts)]
    alone = {(text, top): await judged(pocket_backend, text, top=top) for text, top in dict.fromkeys(wanted)}
    together = await asyncio.gather(*(judged(pocket_backend, text, top=top) for text, top in wanted))
    for (text, top), verdict in zip(wanted, together, strict=True):
        expected = alone[text, top]
        assert text_of(verdict) == text_of(expected)
        assert verdict.p_unsafe == pytest.approx(expected.p_unsafe, abs=1e-4)
        assert (verdict.completion.reading.tokens is None) is (top is None)
        if top is not None:
            check(verdict)
            told = verdict.completion.reading.tokens
            assert told is not None
            assert all(len(token.alternatives) == top for token in told)


# --- Through the server ----------------------------------------------------------------------------------


@pytest.fixture
def sdk(pocket_server):
    return openai.OpenAI(
        base_url=pocket_server.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True
    )


@pytest.mark.parametrize("text", [SAFE, UNSAFE])
def test_the_sdk_reads_probabilities_that_agree_with_the_field_guard(sdk, text):
    messages = [{"role": "user", "content": text}]
    reply = sdk.chat.completions.create(model="llama-guard", messages=messages, logprobs=True, top_logprobs=5)
    (choice,) = reply.choices
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content
    p_unsafe = next(math.exp(other.logprob) for other in tokens[0].top_logprobs if other.token == "unsafe")
    assert p_unsafe == pytest.approx(reply.guard["p_unsafe"] * reply.guard["verdict_mass"], rel=1e-6)
    assert {other.token for other in tokens[0].top_logprobs} >= {"safe", "unsafe"}


def test_the_sdk_reads_them_from_responses_too(sdk):
    reply = sdk.responses.create(
        model="llama-guard", input=UNSAFE, include=["message.output_text.logprobs"], top_logprobs=2
    )
    (part,) = reply.output[0].content
    assert "".join(token.token for token in part.logprobs) == reply.output_text
    assert reply.output_text.startswith("unsafe\nS")


def test_a_cut_list_still_tells_the_verdict(sdk):
    messages = [{"role": "user", "content": UNSAFE}]
    reply = sdk.chat.completions.create(model="llama-guard", messages=messages, max_tokens=1, n=2)
    assert [(c.message.content, c.finish_reason) for c in reply.choices] == [("unsafe", "length")] * 2
    assert reply.guard["categories"]


def test_finished_prompts_get_the_verdict_that_their_messages_would_get(sdk):
    for text, unsafe in ((SAFE, False), (UNSAFE, True)):
        plain = sdk.chat.completions.create(model="llama-guard", messages=[{"role": "user", "content": text}])
        finished = sdk.chat.completions.create(
            model="llama-guard", messages=[{"role": "user", "content": ogx(("user", text))}]
        )
        assert finished.choices[0].message.content == plain.choices[0].message.content
        assert finished.usage.prompt_tokens == plain.usage.prompt_tokens
        assert finished.guard["p_unsafe"] == pytest.approx(plain.guard["p_unsafe"], abs=1e-4)
        assert (finished.guard["verdict"] == "unsafe") is unsafe
    reply = sdk.chat.completions.create(model="llama-guard", messages=[{"role": "user", "content": nemo(UNSAFE)}])
    assert reply.choices[0].message.content.startswith("unsafe\nS")
    assert reply.guard["finished_prompt"] == "server_policy"
