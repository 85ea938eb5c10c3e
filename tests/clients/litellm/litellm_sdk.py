"""litellm: moderation(), and completion() under the three names by which it can be sent here."""

import asyncio
import os

import litellm

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
URL, KEY = os.environ["GUARD_URL"], os.environ["GUARD_KEY"]

judged = litellm.moderation(input=[SAFE, UNSAFE], model="omni-moderation-latest", api_base=f"{URL}/v1", api_key=KEY)
assert [result.flagged for result in judged.results] == [False, True]

ROUTES = {
    "openai/llama-guard": f"{URL}/v1",
    "hosted_vllm/meta-llama/Llama-Guard-4-12B": f"{URL}/v1",
    "openrouter/meta-llama/llama-guard-4-12b": f"{URL}/api/v1",
}


def ask(model: str, words: str, **options: object) -> litellm.ModelResponse:
    messages = [{"role": "user", "content": words}]
    return litellm.completion(model, messages, api_base=ROUTES[model], api_key=KEY, num_retries=0, **options)


for model in ROUTES:
    assert ask(model, SAFE).choices[0].message.content == "safe", model
    assert ask(model, UNSAFE).choices[0].message.content.startswith("unsafe\nS"), model
    said = [chunk.choices[0].delta.content or "" for chunk in ask(model, UNSAFE, stream=True)]
    assert "".join(said).startswith("unsafe\nS"), model

reply = asyncio.run(
    litellm.acompletion(
        "openai/llama-guard", [{"role": "user", "content": UNSAFE}], api_base=f"{URL}/v1", api_key=KEY, max_tokens=100
    )
)
assert reply.choices[0].message.content.startswith("unsafe\nS")
assert reply.usage.total_tokens > reply.usage.completion_tokens > 0

try:
    litellm.completion("openai/gpt-4o", [{"role": "user", "content": SAFE}], api_base=f"{URL}/v1", api_key=KEY)
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("another model's name was taken")
