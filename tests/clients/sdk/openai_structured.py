"""openai: the verdict in a schema, as content and as a call, and legacy completions."""

import os
from typing import Any

import openai
from openai import BadRequestError, OpenAI
from pydantic import BaseModel

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
client = OpenAI(
    base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"], _strict_response_validation=True
)


class Moderation(BaseModel):
    flagged: bool
    categories: list[str]
    reason: str | None


class Weather(BaseModel):
    city: str


for text, flagged in ((SAFE, False), (UNSAFE, True)):
    messages: list[Any] = [{"role": "user", "content": text}]
    reply = client.chat.completions.parse(model="llama-guard", messages=messages, response_format=Moderation)
    parsed = reply.choices[0].message.parsed
    assert parsed is not None
    assert (parsed.flagged, bool(parsed.categories), parsed.reason) == (flagged, flagged, None)

    response = client.responses.parse(model="llama-guard", input=text, text_format=Moderation)
    assert response.output_parsed == parsed

    tools = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Moderation)]
    called = client.chat.completions.parse(model="llama-guard", messages=messages, tools=tools, tool_choice="required")
    calls = called.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.parsed_arguments == parsed
    assert called.choices[0].finish_reason == "tool_calls"

    completion = client.completions.create(model="llama-guard", prompt=text)
    assert completion.choices[0].text.partition("\n")[0] == ("unsafe" if flagged else "safe")

try:
    client.chat.completions.parse(model="llama-guard", messages=messages, response_format=Weather)
except BadRequestError as error:
    assert error.param == "response_format.json_schema.schema"
else:
    raise AssertionError("a schema of something else was taken")
