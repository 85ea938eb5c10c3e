"""openai: the asynchronous client, many requests at once."""

import asyncio
import os

from openai import AsyncOpenAI

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]


async def main() -> None:
    async with AsyncOpenAI(
        base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"], _strict_response_validation=True
    ) as client:
        replies = await asyncio.gather(*(client.moderations.create(input=words) for words in [SAFE, UNSAFE] * 10))
        assert [reply.results[0].flagged for reply in replies] == [False, True] * 10

        stream = await client.chat.completions.create(
            model="llama-guard", messages=[{"role": "user", "content": UNSAFE}], stream=True
        )
        said = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(said).startswith("unsafe\nS")

        assert [model.object async for model in client.models.list()] == ["model"]


asyncio.run(main())
