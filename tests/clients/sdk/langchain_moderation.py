"""langchain: the moderation chain, and the middleware of agents that stops one before its model is asked."""

import os

import openai
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_openai.middleware import OpenAIModerationMiddleware

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"] = os.environ["GUARD_URL"] + "/v1", os.environ["GUARD_KEY"]

from langchain_classic.chains import OpenAIModerationChain  # noqa: E402

chain = OpenAIModerationChain()
assert chain.invoke(SAFE)["output"] == SAFE
assert "violates" in chain.invoke(UNSAFE)["output"]

guard = openai.OpenAI()
agent = create_agent(
    FakeListChatModel(responses=["Mix flour and water."] * 2), middleware=[OpenAIModerationMiddleware(client=guard)]
)
answered = agent.invoke({"messages": [{"role": "user", "content": SAFE}]})
assert answered["messages"][-1].content == "Mix flour and water."
stopped = agent.invoke({"messages": [{"role": "user", "content": UNSAFE}]})
assert "flagged" in stopped["messages"][-1].content
