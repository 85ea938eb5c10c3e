"""groq: its client puts /openai/v1 behind the base URL by itself."""

import os

import groq

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
client = groq.Groq(base_url=os.environ["GUARD_URL"], api_key=os.environ["GUARD_KEY"])

assert [model.object for model in client.models.list().data] == ["model"]


def ask(words: str) -> str:
    reply = client.chat.completions.create(
        model="meta-llama/llama-guard-4-12b", messages=[{"role": "user", "content": words}], temperature=0
    )
    return reply.choices[0].message.content


assert ask(SAFE) == "safe"
assert ask(UNSAFE).startswith("unsafe\nS")

stream = client.chat.completions.create(
    model="meta-llama/llama-guard-4-12b", messages=[{"role": "user", "content": UNSAFE}], stream=True
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ask(UNSAFE)

try:
    client.chat.completions.create(model="llama-3.3-70b-versatile", messages=[{"role": "user", "content": SAFE}])
except groq.NotFoundError as error:
    assert error.body["error"]["code"] == "model_not_found"
else:
    raise AssertionError("another model's name was taken")
