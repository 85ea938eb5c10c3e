"""langchain-openai: the verdict as a structured output, by every method that LangChain has."""

import os
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
options = {"model": "llama-guard", "base_url": os.environ["GUARD_URL"] + "/v1", "api_key": os.environ["GUARD_KEY"]}


class Moderation(BaseModel):
    """A verdict."""

    verdict: Literal["safe", "unsafe"]
    categories: list[str]
    p_unsafe: float


guards = [
    ChatOpenAI(**options).with_structured_output(Moderation, method=method)
    for method in ("json_schema", "function_calling", "json_mode")
]
guards.append(ChatOpenAI(**options, use_responses_api=True).with_structured_output(Moderation))
for guard in guards:
    unsafe, safe = guard.invoke(UNSAFE), guard.invoke(SAFE)
    assert (unsafe.verdict, safe.verdict) == ("unsafe", "safe")
    assert unsafe.categories
    assert not safe.categories
    assert unsafe.p_unsafe > 0.5 > safe.p_unsafe
