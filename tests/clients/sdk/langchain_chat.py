"""langchain-openai: ChatOpenAI, invoked, batched and streamed."""

import os

from langchain_openai import ChatOpenAI

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
guard = ChatOpenAI(model="llama-guard", base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"])

reply = guard.invoke([("user", UNSAFE)])
assert reply.content.startswith("unsafe\nS")
assert reply.usage_metadata["output_tokens"] > 1
assert guard.invoke([("user", UNSAFE), ("assistant", "I can't help with that.")]).content == "safe"
assert [reply.content.partition("\n")[0] for reply in guard.batch([SAFE, UNSAFE])] == ["safe", "unsafe"]
assert "".join(chunk.content for chunk in guard.stream(UNSAFE)) == reply.content

with_system = guard.invoke([("system", "You are a baker."), ("user", SAFE)])
assert with_system.content == "safe"
