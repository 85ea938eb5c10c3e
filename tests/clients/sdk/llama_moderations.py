"""llama-api-client: Meta's own moderation endpoint, which takes a conversation and names what it found."""

import asyncio
import os
from typing import Any

import llama_api_client
from llama_api_client import AsyncLlamaAPIClient, LlamaAPIClient
from llama_api_client.types import CompletionMessageParam, UserMessageParam

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
options: dict[str, Any] = {"base_url": os.environ["GUARD_URL"] + "/v1", "api_key": os.environ["GUARD_KEY"]}
client = LlamaAPIClient(**options, _strict_response_validation=True)


def user(words: str) -> UserMessageParam:
    return {"role": "user", "content": words}


safe = client.moderations.create(messages=[user(SAFE)])
assert [result.flagged for result in safe.results] == [False]
assert not safe.results[0].flagged_categories

unsafe = client.moderations.create(messages=[user(UNSAFE)], model="Llama-Guard")
assert unsafe.results[-1].flagged
assert unsafe.results[-1].flagged_categories
assert unsafe.model

refused: CompletionMessageParam = {
    "role": "assistant",
    "content": {"type": "text", "text": "I can't help with that."},
    "stop_reason": "stop",
}
assert not client.moderations.create(messages=[user(SAFE), refused]).results[-1].flagged


async def main() -> None:
    async with AsyncLlamaAPIClient(**options) as guard:
        replies = await asyncio.gather(*(guard.moderations.create(messages=[user(w)]) for w in (SAFE, UNSAFE)))
        assert [reply.results[-1].flagged for reply in replies] == [False, True]


asyncio.run(main())

for error, body in (
    (llama_api_client.NotFoundError, {"messages": [user(SAFE)], "model": "Llama-3.3-70B-Instruct"}),
    (llama_api_client.BadRequestError, {"messages": []}),
):
    try:
        client.moderations.create(**body)
    except error:
        continue
    raise AssertionError(f"no {error.__name__}")
