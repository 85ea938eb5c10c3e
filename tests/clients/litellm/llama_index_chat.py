"""llama-index: OpenAILike."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

guard = OpenAILike(
    model="llama-guard",
    api_base=os.environ["GUARD_URL"] + "/v1",
    api_key=os.environ["GUARD_KEY"],
    is_chat_model=True,
    context_window=8192,
)

assert guard.chat([ChatMessage(role="user", content=os.environ["SAFE"])]).message.content == "safe"
assert guard.complete(os.environ["UNSAFE"]).text.startswith("unsafe\nS")
assert list(guard.stream_chat([ChatMessage(role="user", content=os.environ["SAFE"])]))[-1].message.content == "safe"
