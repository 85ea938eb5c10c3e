"""openai: chat completions, plain and streamed, and the list of models."""

import os
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletion

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
client = OpenAI(
    base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"], _strict_response_validation=True
)

models = client.models.list()
(model,) = models.data
assert client.models.retrieve(model.id).id == model.id
assert client.models.retrieve("meta-llama/Llama-Guard-4-12B").object == "model"


def ask(*said: str, **options: Any) -> str:
    roles = ("user", "assistant", "user")
    messages: list[Any] = [{"role": role, "content": words} for role, words in zip(roles, said, strict=False)]
    reply: ChatCompletion = client.chat.completions.create(
        model="meta-llama/Llama-Guard-4-12B", messages=messages, **options
    )
    assert reply.system_fingerprint
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.choices[0].finish_reason == "stop"
    content = reply.choices[0].message.content
    assert content is not None
    return content


assert ask(SAFE) == "safe"
assert ask(UNSAFE).startswith("unsafe\nS")
assert ask(UNSAFE, "I can't help with that.") == "safe"
assert ask(UNSAFE, temperature=0, max_tokens=100, seed=7, user="somebody", top_p=1, stop=None).startswith("unsafe\nS")

chunks = list(
    client.chat.completions.create(
        model="llama-guard",
        messages=[{"role": "user", "content": UNSAFE}],
        stream=True,
        stream_options={"include_usage": True},
    )
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ask(UNSAFE)
assert chunks[-1].choices == []
assert chunks[-1].usage is not None
assert chunks[-1].usage.completion_tokens > 1
assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"

with client.chat.completions.stream(model="llama-guard", messages=[{"role": "user", "content": SAFE}]) as events:
    assert events.get_final_completion().choices[0].message.content == "safe"
