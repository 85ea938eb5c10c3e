"""openai: the log-probabilities of a verdict, plain and streamed, add up to the scores of the moderation endpoint."""

import math
import os
from typing import Any

from openai import OpenAI

UNSAFE = os.environ["UNSAFE"]
client = OpenAI(
    base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"], _strict_response_validation=True
)
asked: dict[str, Any] = {"model": "llama-guard", "messages": [{"role": "user", "content": UNSAFE}], "logprobs": True}

choice = client.chat.completions.create(**asked, top_logprobs=5).choices[0]
tokens = choice.logprobs.content
assert "".join(token.token for token in tokens).strip() == choice.message.content
assert all(bytes(token.bytes).decode() == token.token for token in tokens)
assert all(token.logprob <= 0 for token in tokens)
assert all(len(token.top_logprobs) == 5 for token in tokens)

word = next(token for token in tokens if token.token.strip())
p_unsafe = client.moderations.create(input=UNSAFE).results[0].model_dump()["guard"]["p_unsafe"]
assert word.token == "unsafe"
assert abs(math.exp(word.logprob) - p_unsafe) < 0.1

streamed = client.chat.completions.create(**asked, stream=True)
pieces = [token for chunk in streamed for token in (chunk.choices[0].logprobs or chunk).model_dump().get("content", [])]
assert "".join(piece["token"] for piece in pieces).strip() == choice.message.content

assert len(client.chat.completions.create(**{**asked, "logprobs": False}, n=3).choices) == 3
