"""The local engine: vLLM's AsyncLLM inside the server's process, its model in processes of its own.

It asks what a family wants asked (server.families), and knows no model itself: token ids and pictures go in, token ids
and log-probabilities come out. What vLLM must be told or spared is in the modules beside this one.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image

from server.backends.base import Case
from server.backends.vllm.mends.bound_threads import installed as threads_on_their_cores
from server.backends.vllm.setup import engine_arguments, prepare_environment
from server.checkpoints.facts import CheckpointFacts
from server.checkpoints.profile import Profile
from server.checkpoints.verify import fits_one_chunk
from server.domain.aio import together
from server.domain.caller import Handling
from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.errors import ContextLengthExceeded, EngineFailure, EngineUnavailable
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Completion, Reading, check_finished
from server.families.base import Ask, Asker, Prompt, Steps
from server.families.tokenizer import PromptTokenizer
from server.scratch import Scratch

if TYPE_CHECKING:
    from vllm.inputs import MultiModalInput
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from server.backends.vllm.client import EngineAnswer, EngineClient
    from server.backends.vllm.llama4.images import EngineImages


LIVE, BACKGROUND = 0, 1
"""Priorities of the engine's scheduler: the lower number goes first."""

LONG_TEXT = 16_384
"""Characters of a prompt that are encoded without leaving the event loop: a few milliseconds."""

LABEL = 16
"""Characters around each text of a prompt, rounded up."""

EngineInput: TypeAlias = "list[int] | MultiModalInput"


class VllmBackend:
    """A `Backend` on vLLM. Build it, `await start()` in the main thread, `complete` concurrently, `close()`."""

    name = "vllm"

    def __init__(
        self,
        profile: Profile,
        folder: Path,
        facts: CheckpointFacts,
        tokenizer: PromptTokenizer,
        asker: Asker,
        *,
        policy: Policy,
    ) -> None:
        """`folder` holds the checkpoint that `profile` names; `facts` and `tokenizer` were read from it.

        `asker` knows what the model is asked. `policy` is what requests are judged by that bring none of their own: its
        prompts are computed before the first request comes.
        """
        self._profile = profile
        self._folder = folder
        self._policy = policy
        self._asker = asker
        self._one_chunk = fits_one_chunk(profile, facts)
        self._tokens_per_tile = facts.tokens_per_tile or 1
        self._tokenizer = tokenizer
        self._forms: dict[tuple[int, tuple[int, ...], tuple[int, ...]], EngineCoreRequest] = {}
        self._encoders = ThreadPoolExecutor(2, thread_name_prefix="encoder")
        self._scratch: Scratch | None = None
        self.engine: AsyncLLM | None = None
        self._client: EngineClient | None = None
        self._images: EngineImages | None = None

    async def start(self) -> None:
        """Load the model, and run every kind of request once so that no caller pays for a first time."""
        self._scratch = Scratch()
        prepare_environment(self._profile, self._scratch.folder)
        from vllm import envs
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from server.backends.vllm.client import EngineClient

        arguments = engine_arguments(self._profile, self._folder, one_chunk=self._one_chunk)
        with threads_on_their_cores():
            self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._client = EngineClient(self.engine)
        if self._profile.images:
            from server.backends.vllm.llama4.images import EngineImages

            self._images = EngineImages(self.engine, self._tokenizer, self._tokens_per_tile)
        await self._warm_up()
        envs.enable_envs_cache()  # vLLM looks variables up in each request; they change no more

    @property
    def alive(self) -> bool:
        return self.engine is not None and not self.engine.errored

    @property
    def heard_at(self) -> float:
        return -math.inf if self._client is None else self._client.heard_at

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
        if self._scratch is not None:
            self._scratch.close()

    # --- One case ----------------------------------------------------------------------------------------

    async def complete(self, case: Case) -> Completion:
        if len(case.images) != len(case.conversation.images):
            # vLLM takes a slot without a picture for plain text, without a word.
            raise ValueError("a case needs one picture for each image of its conversation")
        steps = self._asker.steps(case.conversation, case.policy, case.handling.top_logprobs)
        asks = await self._begun(steps, case)
        work = _Work(case, self._images.tokens(case.images) if case.images and self._images is not None else 0)
        await self._encode_all(asks, work)  # what is too long is refused before its pictures are tiled
        if not case.images:
            return await self._completed(steps, asks, work)
        if self._images is None:
            raise EngineUnavailable("The engine is not ready for images.")
        async with self._images.shown(case.images) as work.input:
            return await self._completed(steps, asks, work)

    async def probe(self, case: Case) -> Completion:
        return await self.complete(case)

    async def _begun(self, steps: Steps, case: Case) -> Sequence[Ask]:
        """The first step. The prompt of a long conversation is written off the event loop."""
        texts = [text for turn in case.conversation.turns for text in turn.texts]
        if sum(map(len, texts)) + LABEL * len(texts) <= LONG_TEXT:
            return next(steps)
        return await asyncio.get_running_loop().run_in_executor(self._encoders, next, steps)

    async def _completed(self, steps: Steps, asks: Sequence[Ask], work: "_Work") -> Completion:
        """Do what the family asks for, step by step, until it has read its verdict."""
        while True:
            await self._encode_all(asks, work)
            if len(asks) == 1:
                answers = [await self._asked(asks[0], work)]
            else:
                answers = await together(self._asked(ask, work) for ask in asks)
            try:
                asks = steps.send(answers)
            except StopIteration as done:
                return self._completion(work, done.value)

    def _completion(self, work: "_Work", reading: Reading) -> Completion:
        tiles = self._images.tiles(work.answers[0].prompt_ids) if work.case.images and self._images is not None else 0
        return Completion(
            reading=reading,
            finish_reason="stop",
            backend=self.name,
            model=self._profile.served_as[0],
            taxonomy=work.taxonomy,
            prompt_tokens=work.prompt_tokens,
            completion_tokens=sum(len(answer.ids) for answer in work.answers),
            cached_tokens=work.cached_tokens,
            images=len(work.case.images),
            tiles=tiles,
            queued_s=sum(answer.queued_s for answer in work.answers),
            computed_s=sum(answer.computed_s for answer in work.answers),
        )

    # --- One request to the engine -----------------------------------------------------------------------

    async def _asked(self, ask: Ask, work: "_Work") -> "EngineAnswer":
        """One request from its prompt to its whole answer; cancellation aborts it in the engine."""
        answer = await self._ask(work.input([*work.ids_of(ask.prompt), *ask.begun]), ask, work.case.handling)
        if not (ask.may_be_cut and answer.finish_reason == "length"):
            check_finished(answer.finish_reason)
        if not answer.ids or (ask.logprobs and len(answer.logprobs) != len(answer.ids)):
            raise EngineFailure("The engine ended the request without probabilities.")
        work.count(ask, answer)
        return answer

    async def _ask(self, prompt: EngineInput, ask: Ask, handling: Handling) -> "EngineAnswer":
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._client is None or not self.alive:
            raise EngineUnavailable("The engine is not running.")
        try:
            return await self._client.ask(
                self._form(self._client, ask),
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

    def _form(self, client: "EngineClient", ask: Ask) -> "EngineCoreRequest":
        """What all requests have in common that are asked alike."""
        alike = (ask.max_tokens, ask.stop, ask.logprobs)
        known = self._forms.get(alike)
        if known is not None:
            return known
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=ask.max_tokens,
            stop_token_ids=list(ask.stop),
            # Never `logprobs=N`, which would bring the likeliest of the whole vocabulary: vLLM answers a batch that
            # mixes it with `logprob_token_ids` by leaving out N, and the words' probabilities with it
            # (v1/sample/sampler.py).
            logprob_token_ids=list(ask.logprobs),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._forms[alike] = form = client.form(sampling)
        return form

    async def _encode_all(self, asks: Sequence[Ask], work: "_Work") -> None:
        """Encode the prompts that are new. Raises ContextLengthExceeded."""
        for ask in asks:
            if not work.knows(ask.prompt):
                ids = await self._encode(ask.prompt)
                self._check_context(len(ids) + work.image_tokens, len(ask.begun) + ask.max_tokens)
                work.keep(ask.prompt, ids)

    async def _encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt. A long one is encoded off the event loop, and not at all when it cannot fit."""
        if sum(len(piece.text) for piece in prompt.pieces) <= LONG_TEXT:
            return prompt.token_ids(self._tokenizer)
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self._encoders, lambda: prompt.text)
        limit = 2 * self._profile.context_tokens
        if await loop.run_in_executor(self._encoders, self._tokenizer.exceeds, text, limit):
            raise self._context_exceeded(None)
        return await loop.run_in_executor(self._encoders, prompt.token_ids, self._tokenizer)

    def _check_context(self, prompt_tokens: int, answer_tokens: int) -> None:
        if prompt_tokens + answer_tokens > self._profile.context_tokens:
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

    async def _warm_up(self) -> None:
        """Leave nothing to be done for the first time when the first caller comes.

        The beginning of the prompt, up to the conversation, differs by who is judged and by whether there is an image:
        each is computed here, and cached. So is whatever a policy can lead to, alone and in a batch.
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
        everything_unsafe = replace(self._policy, threshold=1e-9)
        nothing_unsafe = replace(self._policy, threshold=1.0, scores_from=0.0)
        forced = [replace(case, policy=policy) for case in cases for policy in (everything_unsafe, nothing_unsafe)]
        alternatives = replace(forced[0], handling=Handling(top_logprobs=20))
        await asyncio.gather(*(self.complete(case) for case in (*cases, *forced, alternatives)))


class _Work:
    """A case on its way through the engine, which may take several prompts and several requests for each."""

    def __init__(self, case: Case, image_tokens: int = 0) -> None:
        """`image_tokens` is how many tokens the pictures of a case add to each of its prompts."""
        self.case = case
        self.image_tokens = image_tokens
        self.input: Callable[[list[int]], EngineInput] = lambda ids: ids
        """Makes the engine's input of token ids."""
        self.answers: list[EngineAnswer] = []
        self.prompt_tokens = self.cached_tokens = 0
        # By identity: comparing long texts would take longer than encoding them.
        self._prompts: dict[int, tuple[Prompt, list[int]]] = {}
        self._counted: set[int] = set()

    def knows(self, prompt: Prompt) -> bool:
        return id(prompt) in self._prompts

    def ids_of(self, prompt: Prompt) -> list[int]:
        return self._prompts[id(prompt)][1]

    def keep(self, prompt: Prompt, ids: list[int]) -> None:
        self._prompts[id(prompt)] = prompt, ids

    def count(self, ask: Ask, answer: "EngineAnswer") -> None:
        """A prompt counts once, however often the engine goes on from it: the rest of its tokens are in the cache."""
        self.answers.append(answer)
        if id(ask.prompt) not in self._counted:
            self._counted.add(id(ask.prompt))
            self.prompt_tokens += len(answer.prompt_ids) - len(ask.begun)
            self.cached_tokens += answer.cached_tokens

    @property
    def taxonomy(self) -> Taxonomy:
        """The categories that were asked about, by one prompt or by several."""
        first, *others = [prompt.taxonomy for prompt, _ in self._prompts.values()]
        if not others:
            return first
        categories = dict.fromkeys(category for each in (first, *others) for category in each.categories)
        return Taxonomy(tuple(categories), own=first.own)
