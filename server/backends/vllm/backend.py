"""The local engine: vLLM's AsyncLLM inside the server's process, its model in processes of its own.

One forward pass is a verdict. The model always opens its answer with a blank line, so the prompt ends with that token
already, and the first token that is sampled is `safe` or `unsafe`. `safe` stops the request there; `unsafe` goes on, in
the same request, to the list of categories. The probabilities of both words come back with the first token. Where the
word is `safe` and P(unsafe) is not small, a second request goes on from a forced `unsafe` to the first code, for the
scores of the categories. It finds all of the prompt in the prefix cache except its last block.
Together with client.py, which asks the engine, and llama4/images.py, which prepares pictures, this is all of
the server's process that imports vLLM.
"""

import asyncio
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from server.backends.base import Case
from server.backends.vllm.mends.bound_threads import installed as threads_on_their_cores
from server.backends.vllm.mends.death_with_server import SERVER_PID
from server.backends.vllm.process import PLUGIN, arguments_here
from server.checkpoints.checkpoint import LONG_CONTEXT_VARIABLE, CheckpointFacts, fits_one_chunk
from server.checkpoints.profile import Profile
from server.domain.caller import ORDINARY, Handling
from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.errors import ContextLengthExceeded, EngineFailure, EngineUnavailable
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Completion, ScoreMethod, Token, WordProbabilities
from server.families.llama_guard.prompt import Prompt
from server.families.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from vllm.inputs import MultiModalInput
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from server.backends.vllm.client import EngineAnswer, EngineClient
    from server.backends.vllm.llama4.images import EngineImages


LIVE, BACKGROUND = 0, 1
"""Priorities of the engine's scheduler: the lower number goes first."""

NO_SCORES = "the checkpoint's tokenizer has no single tokens for the numbers of categories"

LONG_TEXT = 16_384
"""Characters of a prompt that are encoded without leaving the event loop: a few milliseconds."""


@dataclass(frozen=True, slots=True)
class _AnswerTokens:
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
    def all(self) -> list[int]:
        """Whatever can stand at some place of an answer."""
        words = (self.safe, self.unsafe, self.newline, self.blank_line)
        return list(dict.fromkeys([*words, *sorted(self.before_number), *self.numbers.values(), *self.ends]))

    @classmethod
    def read(cls, tokenizer: PromptTokenizer, ends: tuple[int, ...]) -> "_AnswerTokens":
        """Raises ValueError without ends, or when the verdict words are no single tokens: one pass could not tell."""
        if not ends:
            raise ValueError("the checkpoint names no token that ends an answer")
        words = {word: tokenizer.single_id(word) for word in ("\n\n", "\n", "safe", "unsafe", "S", ",S")}
        required = [words[word] for word in ("\n\n", "\n", "safe", "unsafe")]
        if None in required:
            raise ValueError("the checkpoint's tokenizer does not hold the verdict words as single tokens")
        blank_line, newline, safe, unsafe = (id_ for id_ in required if id_ is not None)
        numbers = {f"S{n}": tokenizer.single_id(str(n)) for n in range(1, 15)}
        spelled = None not in numbers.values() and tokenizer.encode_text("unsafe\nS1,S14") == [
            *(unsafe, newline, words["S"], numbers["S1"], words[",S"], numbers["S14"])
        ]
        return cls(
            blank_line=blank_line,
            newline=newline,
            safe=safe,
            unsafe=unsafe,
            ends=ends,
            before_number=frozenset(id_ for id_ in (words["S"], words[",S"]) if id_ is not None),
            numbers={code: id_ for code, id_ in numbers.items() if id_ is not None} if spelled else {},
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A case on its way through the engine, which may take several requests.

    `ids` are the prompt's tokens, and `list_tokens` those of the longest answer to it. `input` makes the engine's input
    of token ids: it adds the pictures, where there are some.
    """

    case: Case
    taxonomy: Taxonomy
    ids: Sequence[int]
    list_tokens: int
    input: "Callable[[Sequence[int]], Sequence[int] | MultiModalInput]" = lambda ids: ids


def _add_cost(completion: Completion, answer: "EngineAnswer") -> Completion:
    """`completion`, with what a further answer took."""
    return replace(
        completion,
        completion_tokens=completion.completion_tokens + len(answer.ids),
        queued_s=completion.queued_s + answer.queued_s,
        computed_s=completion.computed_s + answer.computed_s,
    )


class VllmBackend:
    """A `Backend` on vLLM. Build it, `await start()` in the main thread, `complete` concurrently, `close()`."""

    name = "vllm"

    def __init__(
        self,
        profile: Profile,
        folder: Path,
        facts: CheckpointFacts,
        tokenizer: PromptTokenizer,
        *,
        policy: Policy,
        minimum_mass: float = 0.9,
    ) -> None:
        """`folder` holds the checkpoint that `profile` names; `facts` and `tokenizer` were read from it.

        `policy` is what requests are judged by that bring none of their own: its prompts are computed before the first
        request comes.
        Below `minimum_mass` of probability on the two verdict words, the model is asked again without the forced blank
        line.
        """
        self._profile = profile
        self._folder = folder
        self._policy = policy
        self._one_chunk = fits_one_chunk(profile, facts)
        self._tokens_per_tile = facts.tokens_per_tile or 1
        self._patch_token = tokenizer.control_id("<|patch|>")
        self._tokenizer = tokenizer
        self._tokens = _AnswerTokens.read(tokenizer, facts.eos_token_ids)
        self._minimum_mass = minimum_mass
        self._list_tokens = lru_cache(256)(self._longest_answer)
        self._forms: dict[tuple[int, bool], EngineCoreRequest] = {}
        self._encoders = ThreadPoolExecutor(2, thread_name_prefix="encoder")
        self._sockets: Path | None = None
        self.engine: AsyncLLM | None = None
        self._client: EngineClient | None = None
        self._images: EngineImages | None = None

    async def start(self) -> None:
        """Load the model, and run every kind of request once so that no caller pays for a first time."""
        self._prepare_environment()
        from vllm import envs
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from server.backends.vllm.client import EngineClient

        with threads_on_their_cores():
            self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._engine_arguments()))
        self._client = EngineClient(self.engine)
        if self._profile.images:
            from server.backends.vllm.llama4.images import EngineImages

            self._images = EngineImages(self.engine, self._tokenizer, self._tokens_per_tile)
        await self._warm_up()
        envs.enable_envs_cache()  # vLLM looks variables up in each request; they change no more

    @property
    def alive(self) -> bool:
        return self.engine is not None and not self.engine.errored

    async def close(self) -> None:
        self._encoders.shutdown(wait=False, cancel_futures=True)
        if self._images is not None:
            self._images.close()
        if self.engine is not None:
            # Nothing is left to finish: its processes spend seconds on tidying up what dies with them.
            self.engine.shutdown(timeout=1)
            self.engine = None
            from vllm import envs

            envs.disable_envs_cache()  # for whoever starts a backend after this one
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    # --- One case ----------------------------------------------------------------------------------------

    async def complete(self, case: Case) -> Completion:
        if len(case.images) != len(case.conversation.images):
            # vLLM takes a slot without a picture for plain text, without a word.
            raise ValueError("a case needs one picture for each image of its conversation")
        prompt = Prompt.render(case.conversation, case.policy.taxonomy)
        ids = await self._encode(prompt)
        list_tokens = self._list_tokens(prompt.taxonomy.codes)
        expanded = self._images.tokens(case.images) if case.images and self._images is not None else 0
        self._check_context(len(ids) + expanded, list_tokens)
        if not case.images:
            return await self._answered(_Asked(case, prompt.taxonomy, ids, list_tokens))
        if self._images is None:
            raise EngineUnavailable("The engine is not ready for images.")
        async with self._images.shown(case.images) as shown:
            return await self._answered(_Asked(case, prompt.taxonomy, ids, list_tokens, shown))

    async def _answered(self, asked: _Asked) -> Completion:
        case = asked.case
        first = answer = await self._generate(asked, [self._tokens.blank_line], asked.list_tokens)
        at = 0
        prompt_tokens = len(first.prompt_ids) - 1
        words = self._words(first, 0)
        if first.finish_reason == "stop" and words.mass < self._minimum_mass:
            # Before the answer is called unparseable, the model may begin it in its own way.
            answer = await self._generate(asked, [], asked.list_tokens)
            at = self._verdict_position(answer)
            words = self._words(answer, at)
        completion = Completion(
            text=self._text(answer).lstrip("\n"),
            finish_reason=answer.finish_reason,
            backend=self.name,
            model=self._profile.served_as[0],
            taxonomy=asked.taxonomy,
            words=words,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(answer.ids),
            cached_tokens=first.cached_tokens,
            images=len(case.images),
            tiles=answer.prompt_ids.count(self._patch_token) // self._tokens_per_tile if case.images else 0,
            queued_s=answer.queued_s,
            computed_s=answer.computed_s,
        )
        if answer is not first:
            completion = _add_cost(completion, first)
        if answer.finish_reason != "stop":
            return completion
        past_threshold = words.mass > 0 and case.policy.is_unsafe(words.p_unsafe)
        if completion.text != "safe":
            tokens = self._spell(answer, at, case) if past_threshold else self._spell_word("safe", answer, at, case)
            return await self._scored(replace(completion, tokens=tokens), asked, answer)
        if past_threshold:
            # The policy is stricter than the model's own word: have it go on from the other one.
            forced = [self._tokens.blank_line, self._tokens.unsafe]
            listing = await self._generate(asked, forced, asked.list_tokens)
            word, codes = self._spell_word("unsafe", answer, at, case), self._spell(listing, 0, case)
            completion = replace(
                _add_cost(completion, listing),
                tokens=None if word is None or codes is None else (*word, *codes),
                listed_text="unsafe" + self._text(listing) if listing.finish_reason == "stop" else None,
            )
            return await self._scored(completion, asked, listing)
        if (tokens := self._spell(answer, at, case)) is not None:
            completion = replace(completion, tokens=tokens)
        if words.mass > 0 and case.policy.wants_scores(words.p_unsafe):
            return await self._scored(completion, asked)
        return completion if self._tokens.numbers else replace(completion, no_scores=NO_SCORES)

    async def _scored(self, completion: Completion, asked: _Asked, written: "EngineAnswer | None" = None) -> Completion:
        """`completion` with the probabilities of its categories: those of a written list, or else of the first code."""
        if not self._tokens.numbers:
            return replace(completion, no_scores=NO_SCORES)
        codes = self._written_codes(written, asked.taxonomy) if written is not None else None
        if codes is not None:
            return replace(completion, code_probabilities=codes, score_method=ScoreMethod.WRITTEN_LIST)
        forced = [self._tokens.blank_line, *self._tokenizer.encode_text("unsafe\nS")]
        first_code = await self._generate(asked, forced, 1)
        if not first_code.logprobs:
            raise EngineFailure("The engine ended the request without probabilities.")
        return replace(
            _add_cost(completion, first_code),
            code_probabilities=self._codes_at(first_code, 0, asked.taxonomy),
            score_method=ScoreMethod.FIRST_CODE,
        )

    async def probe(self, case: Case) -> Completion:
        return await self.complete(case)

    async def complete_freely(self, prompt: Prompt) -> str:
        """What the model writes when nothing is forced: the reference that the one-pass verdict is held against."""
        ids = prompt.token_ids(self._tokenizer)
        answer = await self._ask(ids, self._list_tokens(prompt.taxonomy.codes), ORDINARY)
        return self._text(answer).lstrip("\n")

    async def _generate(self, asked: _Asked, begun: Sequence[int], max_tokens: int) -> "EngineAnswer":
        """Run one request to its end, on an answer that begins with `begun`; cancellation aborts it in the engine."""
        return await self._ask(asked.input([*asked.ids, *begun]), max_tokens, asked.case.handling)

    async def _ask(
        self, prompt: "Sequence[int] | MultiModalInput", max_tokens: int, handling: Handling
    ) -> "EngineAnswer":
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._client is None or not self.alive:
            raise EngineUnavailable("The engine is not running.")
        try:
            answer = await self._client.ask(
                self._form(self._client, max_tokens, handling),
                prompt,
                priority=BACKGROUND if handling.background else LIVE,
                # How fast an answer comes would tell one tenant what another one sent (CVE-2025-46570).
                cache_salt=handling.tenant,
            )
        except EngineDeadError as error:
            raise EngineUnavailable("The engine died while it worked on this request.") from error
        except VLLMValidationError as error:
            # Named by its parameter before images are expanded, and only by its words after that.
            if error.parameter == "input_tokens" or "maximum model length" in str(error):
                raise self._context_exceeded(None) from None
            raise
        if answer.finish_reason == "stop" and not len(answer.logprobs) == len(answer.ids) > 0:
            raise EngineFailure("The engine ended the request without probabilities.")
        return answer

    def _form(self, client: "EngineClient", max_tokens: int, handling: Handling) -> "EngineCoreRequest":
        """What all requests have in common that may write so much, and are asked for alternatives or not."""
        alternatives = bool(handling.top_logprobs)
        known = self._forms.get((max_tokens, alternatives))
        if known is not None:
            return known
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        tokens = self._tokens
        # Never `logprobs=N`, which would bring the likeliest of the whole vocabulary: vLLM answers a batch that mixes
        # it with `logprob_token_ids` by leaving out N, and the words' probabilities with it (v1/sample/sampler.py).
        asked = tokens.all if alternatives else [tokens.safe, tokens.unsafe, *tokens.numbers.values()]
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            stop_token_ids=[tokens.safe, *tokens.ends],
            logprob_token_ids=asked,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._forms[max_tokens, alternatives] = form = client.form(sampling)
        return form

    # --- Reading an answer -------------------------------------------------------------------------------

    def _text(self, answer: "EngineAnswer") -> str:
        """What the model wrote up to its end; a control token anywhere else stays visible, and is no verdict."""
        ended = answer.ids[-1:] and answer.ids[-1] in self._tokens.ends
        return self._tokenizer.decode(answer.ids[:-1] if ended else answer.ids)

    def _words(self, answer: "EngineAnswer", position: int) -> WordProbabilities:
        if position >= len(answer.logprobs):
            return WordProbabilities(0.0, 0.0)
        return WordProbabilities(
            safe=answer.probability(position, self._tokens.safe),
            unsafe=answer.probability(position, self._tokens.unsafe),
        )

    def _verdict_position(self, answer: "EngineAnswer") -> int:
        newlines = {self._tokens.blank_line, self._tokens.newline}
        return next((i for i, id_ in enumerate(answer.ids) if id_ not in newlines), len(answer.ids))

    def _codes_at(self, answer: "EngineAnswer", position: int, taxonomy: Taxonomy) -> dict[str, float]:
        return {code: answer.probability(position, self._tokens.numbers[code]) for code in taxonomy.codes}

    def _written_codes(self, answer: "EngineAnswer", taxonomy: Taxonomy) -> dict[str, float] | None:
        """P(code) at the place of the written list where it is highest, None when no list was written."""
        ended = min(len(answer.ids), len(answer.logprobs))
        places = [at for at in range(1, ended) if answer.ids[at - 1] in self._tokens.before_number]
        if not places:
            return None
        best = dict.fromkeys(taxonomy.codes, 0.0)
        for position in places:
            for code, probability in self._codes_at(answer, position, taxonomy).items():
                if not probability <= best[code]:  # a NaN must stay seen
                    best[code] = probability
        return best

    # --- The tokens of an answer, for callers who want their probabilities ------------------------------------

    def _spell(self, answer: "EngineAnswer", start: int, case: Case) -> tuple[Token, ...] | None:
        """The tokens of `answer` from `start` to before its end."""
        top = case.handling.top_logprobs
        if top is None or not self._tokens.numbers:
            return None
        end = len(answer.ids) - (answer.ids[-1] in self._tokens.ends)
        return tuple(self._token(answer.ids[at], answer.logprobs[at], top) for at in range(start, end))

    def _spell_word(
        self, word: Literal["safe", "unsafe"], answer: "EngineAnswer", at: int, case: Case
    ) -> tuple[Token] | None:
        """One of the two words at the verdict's place, whichever of them the model wrote there."""
        top = case.handling.top_logprobs
        if top is None or not self._tokens.numbers or at >= len(answer.logprobs):
            return None
        id_ = self._tokens.safe if word == "safe" else self._tokens.unsafe
        return (self._token(id_, answer.logprobs[at], top),)

    def _token(self, id_: int, logprobs: Mapping[int, float], top: int) -> Token:
        # In a mixed batch vLLM pads a short list of tokens with impossible ones.
        possible = [(logprob, other) for other, logprob in logprobs.items() if logprob > -math.inf]
        alternatives = [
            Token(self._tokenizer.content(other), logprob) for logprob, other in sorted(possible, reverse=True)[:top]
        ]
        return Token(self._tokenizer.content(id_), logprobs.get(id_, -math.inf), tuple(alternatives))

    # --- Limits ------------------------------------------------------------------------------------------

    async def _encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt. A long one is encoded off the event loop, and not at all when it cannot fit."""
        text = prompt.text
        if len(text) <= LONG_TEXT:
            return prompt.token_ids(self._tokenizer)
        loop = asyncio.get_running_loop()
        limit = 2 * self._profile.context_tokens
        if await loop.run_in_executor(self._encoders, self._tokenizer.exceeds, text, limit):
            raise self._context_exceeded(None)
        return await loop.run_in_executor(self._encoders, prompt.token_ids, self._tokenizer)

    def _longest_answer(self, codes: Sequence[str]) -> int:
        """Tokens of the longest answer: a leading newline, `unsafe`, every code and the end."""
        return len(self._tokenizer.encode_text("unsafe\n" + ",".join(codes))) + 2

    def _check_context(self, prompt_tokens: int, list_tokens: int) -> None:
        if prompt_tokens + 1 + list_tokens > self._profile.context_tokens:
            raise self._context_exceeded(prompt_tokens)

    def _context_exceeded(self, prompt_tokens: int | None) -> ContextLengthExceeded:
        resulted = "too many tokens" if prompt_tokens is None else f"{prompt_tokens} tokens"
        return ContextLengthExceeded(
            f"This model's maximum context length is {self._profile.context_tokens} tokens. However, your messages"
            f" resulted in {resulted}, moderation prompt included, and the answer needs room too. Please reduce the"
            " length of the messages.",
            param="messages",
        )

    # --- Start-up ----------------------------------------------------------------------------------------

    def _prepare_environment(self) -> None:
        """Settings that vLLM reads from the environment, in this process and in the engine's."""
        self._sockets = Path(tempfile.mkdtemp(prefix="guard-"))  # 0700: vLLM's sockets are open to all
        os.environ[SERVER_PID] = str(os.getpid())
        # vLLM forks on CUDA unless told otherwise. A forked process believes that its plugins have run already, so it
        # would not be tied to this one's life; and forking a process with threads and an event loop is asking for it.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        if (chosen := os.environ.get("VLLM_PLUGINS")) is not None and PLUGIN not in chosen.split(","):
            os.environ["VLLM_PLUGINS"] = ",".join(filter(None, [chosen, PLUGIN]))
        os.environ["VLLM_RPC_BASE_PATH"] = str(self._sockets)
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["HF_HUB_OFFLINE"] = "1"  # the checkpoint lies on this disk by now
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if self._profile.runs_on_cpu:
            # Or vLLM gives the model on a CPU a third process of its own, as it never does on one GPU: it takes seconds
            # to start and 0.6 GiB, and each step of the engine waits for messages to it and back.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            if self._profile.engine.get("enforce_eager"):
                # vLLM would still compile the ranking of tokens, which asked_logprobs.py does without: that takes
                # seconds and a C++ compiler.
                os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        # A newcomer should be able to read the console; whoever looks for a fault sets these otherwise.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        # What an engine still holds that is ended at once (see close), multiprocessing tidies up, and would say so.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore:resource_tracker:UserWarning")
        if self._profile.context_beyond_checkpoint:
            os.environ[LONG_CONTEXT_VARIABLE] = "1"

    def _engine_arguments(self) -> dict[str, Any]:
        arguments = {**arguments_here(), **self._profile.engine}
        if self._one_chunk:
            # Equal to attention in chunks while there is but one of them, and it spares vLLM a second kind of KV cache.
            overrides = dict(arguments.get("hf_overrides", {}))
            overrides["text_config"] = {**overrides.get("text_config", {}), "attention_chunk_size": None}
            arguments["hf_overrides"] = overrides
        return {
            # The one default that a profile may change, to measure without the cache.
            "enable_prefix_caching": True,
            **arguments,
            "model": str(self._folder),
            "max_model_len": self._profile.context_tokens,
            # A picture may be shown on two grounds, and with and without its colour profile.
            "limit_mm_per_prompt": {"image": 4 * self._profile.image_limit},
            # vLLM's two image caches drift apart when a request is rejected or cancelled after its images were
            # processed; the next request with that image then ends empty.
            "mm_processor_cache_gb": 0,
            # The checkpoint's own temperature and top_p are for chat, and would make verdicts random.
            "generation_config": "vllm",
            "scheduling_policy": "priority",
            "enable_log_requests": False,
            "disable_log_stats": False,
            "trust_remote_code": False,
        }

    async def _warm_up(self) -> None:
        """Leave nothing to be done for the first time when the first caller comes.

        The beginning of the prompt, up to the conversation, differs by the role that is judged and by whether there
        is an image: each is computed here, and cached. So is each way of sampling run, alone and in a batch.
        """
        user, agent = (Message(role, (TextPart("hello"),)) for role in ("user", "assistant"))
        seen = Message("user", (ImagePart("data:"), TextPart("hello")))
        picture = Image.new("RGB", (336, 336), "grey")
        text = Case(Conversation.from_messages([user]), (), self._policy)
        cases = [text, replace(text, conversation=Conversation.from_messages([user, agent]))]
        if self._profile.images and self._policy.taxonomy.for_images().categories:
            image = replace(text, conversation=Conversation.from_messages([seen]), images=(picture,))
            cases += [image, replace(image, conversation=Conversation.from_messages([seen, agent]))]
        for case in cases:
            await self.complete(case)
        listed, scored = replace(self._policy, threshold=1e-9), replace(self._policy, threshold=1.0, scores_from=0.0)
        forced = [replace(case, policy=policy) for case in cases for policy in (listed, scored)]
        alternatives = replace(forced[0], handling=Handling(top_logprobs=20))
        await asyncio.gather(
            *(self.complete(case) for case in (*cases, *forced, alternatives)),
            self.complete_freely(Prompt.render(text.conversation, self._policy.taxonomy)),
        )
