"""The bare engine: this project's HTTP connection and engine client, with no moderation between them.

    python -m benchmarks.bare_engine FOLDER PORT ENGINE_ARGUMENTS_AS_JSON

This is the one benchmark that imports `server`. It starts vLLM's engine as this project's server does, with the same
mends to it. It does not read a request. It answers each one after one forward pass over the prompt of a short chat,
which was encoded beforehand. It checks, encodes, limits and counts nothing, and it always gives the same answer.

This server does the same and more, so it cannot be faster than the bare engine. Its distance from the bare engine is
what moderation costs. Servers that are made of other parts have other limits.
"""

import asyncio
import gc
import itertools
import json
import os
import sys
from typing import Any

import uvicorn
import uvloop
from prometheus_client import generate_latest
from tokenizers import Tokenizer
from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind

from benchmarks.contenders import BARE_ENGINE_LOAD
from benchmarks.model import prompt_around_text
from benchmarks.traffic import LOADS, Load
from server.api.http.connection import Connection
from server.backends.vllm.client import EngineClient
from server.backends.vllm.mends.bound_threads import installed as threads_on_their_cores
from server.backends.vllm.process import arguments_here

PROMPTS = 1000
NUMBERS = 4096
"""Tokens that number the prompts, two in front of each, so that none comes twice and finds itself cached."""

ANSWER = b'{"results":[{"flagged":false}]}'


class BareEngine:
    """An ASGI application."""

    def __init__(self, client: EngineClient, preamble: list[int], rests: list[list[int]]) -> None:
        """`rests` are what follows the number in each prompt, as token ids."""
        self._client = client
        self._preamble = preamble
        self._rests = rests
        self._form = client.form(
            SamplingParams(
                temperature=0.0,
                max_tokens=1,
                logprob_token_ids=list(range(16)),  # as many as this server asks for
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        )
        self._numbers = itertools.count()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/metrics":
            body = generate_latest()
        else:
            body = ANSWER
            if scope["method"] == "POST":
                await self.pass_forward()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def pass_forward(self) -> None:
        """One prompt that was never seen, through the engine."""
        number = next(self._numbers)
        ids = [*self._preamble, number // NUMBERS % NUMBERS, number % NUMBERS, *self._rests[number % PROMPTS]]
        await self._client.ask(self._form, ids)


async def serve(folder: str, port: int, arguments: dict[str, Any]) -> None:
    """Until a signal ends it."""
    # Have the engine run as it does below this project's server, and end with this process.
    os.environ["GUARD_SERVER_PID"] = str(os.getpid())
    with threads_on_their_cores():
        engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=folder, **arguments_here() | arguments))
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    before, after = prompt_around_text()
    contents = itertools.islice(Load(BARE_ENGINE_LOAD, LOADS[BARE_ENGINE_LOAD]).contents(0, "0"), PROMPTS)
    # The blank line is what the model says first.
    preamble, *rests = (
        tokenizer.encode(text, add_special_tokens=False).ids
        for text in (before, *(f"{content}{after}\n\n" for content in contents))
    )
    application = BareEngine(EngineClient(engine), preamble, rests)
    for at_once in (1, 32):
        await asyncio.gather(*(application.pass_forward() for _ in range(at_once)))
    gc.collect()
    gc.freeze()
    options = uvicorn.Config(
        application,
        host="127.0.0.1",
        port=port,
        http=Connection,
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
    await uvicorn.Server(options).serve()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
