"""What Llama Guard is asked, step by step.

One forward pass is a verdict. The model always opens its answer with a blank line, so the prompt ends with that token
already, and the first token that is sampled is `safe` or `unsafe`. `safe` stops the request there; `unsafe` goes on, in
the same request, to the list of categories. The probabilities of both words come back with the first token. Where the
word is `safe` and P(unsafe) is not small, a second request goes on from a forced `unsafe` to the first code, for the
scores of the categories. It finds all of the prompt in the engine's prefix cache except its last block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from server.domain.conversation import Conversation
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Levels, Reading, ScoreMethod, Severity, Token, decide
from server.families.base import Answer, Ask, Asker, Prompt, Steps
from server.families.llama_guard.answer import CODES, read
from server.families.llama_guard.prompt import render
from server.families.tokenizer import PromptTokenizer

NO_SCORES = "the checkpoint's tokenizer has no single tokens for the numbers of categories"


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The tokens that answers are made of, read from the checkpoint's own tokenizer."""

    blank_line: int
    newline: int
    safe: int
    unsafe: int
    ends: tuple[int, ...]
    before_number: frozenset[int]
    numbers: Mapping[str, int]
    """Category code to the token of its number, empty when the tokenizer spells numbers otherwise."""

    @property
    def all(self) -> tuple[int, ...]:
        """Whatever can stand at some place of an answer."""
        words = (self.safe, self.unsafe, self.newline, self.blank_line)
        return tuple(dict.fromkeys([*words, *sorted(self.before_number), *self.numbers.values(), *self.ends]))

    @classmethod
    def read(cls, tokenizer: PromptTokenizer, ends: Sequence[int]) -> "AnswerTokens":
        """Raises ValueError without ends, or when the verdict words are no single tokens: one pass could not tell."""
        if not ends:
            raise ValueError("the checkpoint names no token that ends an answer")
        words = {word: tokenizer.single_id(word) for word in ("\n\n", "\n", "safe", "unsafe", "S", ",S")}
        required = [words[word] for word in ("\n\n", "\n", "safe", "unsafe")]
        if None in required:
            raise ValueError("the checkpoint's tokenizer does not hold the verdict words as single tokens")
        blank_line, newline, safe, unsafe = (id_ for id_ in required if id_ is not None)
        numbers = {code: tokenizer.single_id(code[1:]) for code in CODES}
        spelled = None not in numbers.values() and tokenizer.encode_text("unsafe\nS1,S14") == [
            *(unsafe, newline, words["S"], numbers["S1"], words[",S"], numbers["S14"])
        ]
        return cls(
            blank_line=blank_line,
            newline=newline,
            safe=safe,
            unsafe=unsafe,
            ends=tuple(ends),
            before_number=frozenset(id_ for id_ in (words["S"], words[",S"]) if id_ is not None),
            numbers={code: id_ for code, id_ in numbers.items() if id_ is not None} if spelled else {},
        )


class LlamaGuardAsker(Asker):
    """Asks an engine with this tokenizer."""

    def __init__(self, tokenizer: PromptTokenizer, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = tokens = AnswerTokens.read(tokenizer, ends)
        self._stop = (tokens.safe, *tokens.ends)
        self._words_and_numbers = (tokens.safe, tokens.unsafe, *tokens.numbers.values())
        self._all = tokens.all
        self._forced_word = (tokens.blank_line, tokens.unsafe)
        self._forced_list = (tokens.blank_line, *tokenizer.encode_text("unsafe\nS"))
        self._list_tokens = lru_cache(256)(self._longest_answer)

    def steps(self, conversation: Conversation, policy: Policy, top_logprobs: int | None = None) -> Steps:
        prompt = render(conversation, policy.taxonomy)
        logprobs = self._all if top_logprobs else self._words_and_numbers
        room = self._list_tokens(prompt.taxonomy.codes)
        spelling = _Spelling(self._tokenizer, self.tokens, top_logprobs)

        (answer,) = yield [Ask(prompt, (self.tokens.blank_line,), room, self._stop, logprobs)]
        at, levels = 0, self._levels(answer, 0)
        if levels.mass < policy.minimum_mass:
            # Before the answer is called unparseable, the model may begin it in its own way.
            (answer,) = yield [self.unforced(prompt, logprobs)]
            at = self._verdict_position(answer)
            levels = self._levels(answer, at)
        said = read(self._text(answer).lstrip("\n"), levels)
        decision = decide(said, policy)

        if said.severity is not Severity.SAFE:
            tokens = spelling.of(answer, at) if decision.unsafe else spelling.of_word("safe", answer, at)
            return (yield from self._scored(Reading(said, decision, tokens=tokens), prompt, logprobs, answer))
        if decision.unsafe:
            # The policy is stricter than the model's own word: have it go on from the other one.
            (listing,) = yield [Ask(prompt, self._forced_word, room, self._stop, logprobs)]
            word, codes = spelling.of_word("unsafe", answer, at), spelling.of(listing, 0)
            tokens = None if word is None or codes is None else (*word, *codes)
            reading = Reading(said, decision, read("unsafe" + self._text(listing)), tokens=tokens)
            return (yield from self._scored(reading, prompt, logprobs, listing))
        reading = Reading(said, decision, tokens=spelling.of(answer, at))
        if decision.wants_scores:
            return (yield from self._scored(reading, prompt, logprobs))
        return reading if self.tokens.numbers else _without_scores(reading)

    def unforced(self, prompt: Prompt, logprobs: tuple[int, ...] = ()) -> Ask:
        """An answer that begins as the model likes: the reference that the one-pass verdict is held against."""
        return Ask(
            prompt, (), self._list_tokens(prompt.taxonomy.codes), self._stop, logprobs or self._words_and_numbers
        )

    def _scored(
        self, reading: Reading, prompt: Prompt, logprobs: tuple[int, ...], written: Answer | None = None
    ) -> Steps:
        """`reading` with the shares of its categories: those of a written list, or else of the first code."""
        if not self.tokens.numbers:
            return _without_scores(reading)
        shares = self._of_list(written, prompt.taxonomy) if written is not None else None
        if shares is not None:
            return _with_shares(reading, shares, ScoreMethod.WRITTEN_LIST)
        (first_code,) = yield [Ask(prompt, self._forced_list, 1, self._stop, logprobs, may_be_cut=True)]
        return _with_shares(reading, self._at(first_code, 0, prompt.taxonomy), ScoreMethod.FIRST_CODE)

    # --- Reading tokens ----------------------------------------------------------------------------------

    def _text(self, answer: Answer) -> str:
        """What the model wrote up to its end; a control token anywhere else stays visible, and is no verdict."""
        ended = answer.ids[-1:] and answer.ids[-1] in self.tokens.ends
        return self._tokenizer.decode(answer.ids[:-1] if ended else answer.ids)

    def _levels(self, answer: Answer, position: int) -> Levels:
        if position >= len(answer.logprobs):
            return Levels(0.0, 0.0)
        return Levels(
            safe=answer.probability(position, self.tokens.safe),
            unsafe=answer.probability(position, self.tokens.unsafe),
        )

    def _verdict_position(self, answer: Answer) -> int:
        newlines = {self.tokens.blank_line, self.tokens.newline}
        return next((at for at, id_ in enumerate(answer.ids) if id_ not in newlines), len(answer.ids))

    def _at(self, answer: Answer, position: int, taxonomy: Taxonomy) -> dict[str, float]:
        return {code: answer.probability(position, self.tokens.numbers[code]) for code in taxonomy.codes}

    def _of_list(self, answer: Answer, taxonomy: Taxonomy) -> dict[str, float] | None:
        """P(code) at the place of the written list where it is highest, None when no list was written."""
        ended = min(len(answer.ids), len(answer.logprobs))
        places = [at for at in range(1, ended) if answer.ids[at - 1] in self.tokens.before_number]
        if not places:
            return None
        best = dict.fromkeys(taxonomy.codes, 0.0)
        for position in places:
            for code, probability in self._at(answer, position, taxonomy).items():
                if not probability <= best[code]:  # a NaN must stay seen
                    best[code] = probability
        return best

    def _longest_answer(self, codes: Sequence[str]) -> int:
        """Tokens of the longest answer: a leading newline, `unsafe`, every code and the end."""
        return len(self._tokenizer.encode_text("unsafe\n" + ",".join(codes))) + 2


def _with_shares(reading: Reading, shares: Mapping[str, float], method: ScoreMethod) -> Reading:
    return Reading(reading.said, reading.decision, reading.listed, shares, method, tokens=reading.tokens)


def _without_scores(reading: Reading) -> Reading:
    return Reading(reading.said, reading.decision, reading.listed, no_scores=NO_SCORES, tokens=reading.tokens)


@dataclass(frozen=True, slots=True)
class _Spelling:
    """The tokens of an answer, for callers who want their probabilities and `top` alternatives to each."""

    tokenizer: PromptTokenizer
    tokens: AnswerTokens
    top: int | None

    def of(self, answer: Answer, start: int) -> tuple[Token, ...] | None:
        """The tokens of `answer` from `start` to before its end."""
        if self.top is None or not self.tokens.numbers:
            return None
        end = len(answer.ids) - (answer.ids[-1] in self.tokens.ends)
        return tuple(self._token(answer.ids[at], answer.logprobs[at], self.top) for at in range(start, end))

    def of_word(self, word: Literal["safe", "unsafe"], answer: Answer, at: int) -> tuple[Token] | None:
        """One of the two words at the verdict's place, whichever of them the model wrote there."""
        if self.top is None or not self.tokens.numbers or at >= len(answer.logprobs):
            return None
        id_ = self.tokens.safe if word == "safe" else self.tokens.unsafe
        return (self._token(id_, answer.logprobs[at], self.top),)

    def _token(self, id_: int, logprobs: Mapping[int, float], top: int) -> Token:
        # In a mixed batch vLLM pads a short list of tokens with impossible ones.
        possible = [(logprob, other) for other, logprob in logprobs.items() if logprob > -math.inf]
        alternatives = [
            Token(self.tokenizer.content(other), logprob) for logprob, other in sorted(possible, reverse=True)[:top]
        ]
        return Token(self.tokenizer.content(id_), logprobs.get(id_, -math.inf), tuple(alternatives))
