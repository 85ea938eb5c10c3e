"""openai: /v1/responses, plain and streamed."""

import os

from openai import OpenAI

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
client = OpenAI(
    base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"], _strict_response_validation=True
)

assert client.responses.create(model="llama-guard", input=SAFE).output_text == "safe"

reply = client.responses.create(model="llama-guard", input=[{"role": "user", "content": UNSAFE}])
assert reply.output_text.startswith("unsafe\nS")
assert reply.status == "completed"
assert reply.usage is not None
assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens

events = list(client.responses.create(model="llama-guard", input=UNSAFE, stream=True))
assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == reply.output_text
assert events[0].type == "response.created"
assert events[-1].type == "response.completed"
assert events[-1].response.output_text == reply.output_text

with client.responses.stream(model="llama-guard", input=SAFE) as stream:
    assert stream.get_final_response().output_text == "safe"
