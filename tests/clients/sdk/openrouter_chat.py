"""openrouter: chat, plain and streamed, models and generations, in OpenRouter's own shapes."""

import asyncio
import os
from typing import Any

from openrouter import OpenRouter, errors

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
MODEL = "meta-llama/llama-guard-4-12b"
options: dict[str, Any] = {"server_url": os.environ["GUARD_URL"] + "/api/v1", "api_key": os.environ["GUARD_KEY"]}


def user(words: str) -> Any:
    return {"role": "user", "content": words}


async def main() -> None:
    async with OpenRouter(**options) as guard:
        replies = await asyncio.gather(*(guard.chat.send_async(messages=[user(w)]) for w in (SAFE, UNSAFE)))
        assert [reply.choices[0].message.content.partition("\n")[0] for reply in replies] == ["safe", "unsafe"]


with OpenRouter(**options) as client:
    reply = client.chat.send(model=MODEL, messages=[user(UNSAFE)], provider={"zdr": True, "data_collection": "deny"})
    assert reply.choices[0].message.content.startswith("unsafe\nS")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    answered = client.chat.send(model=MODEL, messages=[user(UNSAFE), {"role": "assistant", "content": "I can't."}])
    assert answered.choices[0].message.content == "safe"

    with client.chat.send(model=MODEL, messages=[user(UNSAFE)], stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        reply.choices[0].message.content
    )

    listed = client.models.list()
    (entry,) = listed.result.data
    assert entry.context_length > 0
    assert float(entry.pricing.prompt) >= 0
    author, _, slug = entry.id.partition("/")
    offers = client.endpoints.list(author=author, slug=slug)
    assert offers.data.id == entry.id
    assert len(offers.data.endpoints) == 1

    generation = client.generations.get_generation(id=reply.id)
    assert generation.data.id == reply.id
    assert generation.data.tokens_prompt > 0

    for error, body in (
        (errors.NotFoundResponseError, {"model": "openai/gpt-4o", "messages": [user(SAFE)]}),
        (errors.BadRequestResponseError, {"model": MODEL, "messages": [user("")]}),
    ):
        try:
            client.chat.send(**body)
        except error as caught:
            assert caught.data.error.code in (400, 404)
        else:
            raise AssertionError(f"no {error.__name__}")

asyncio.run(main())
