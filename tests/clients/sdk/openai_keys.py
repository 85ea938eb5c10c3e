"""openai: a wrong key is the SDK's AuthenticationError, on every kind of call."""

import os

import openai
from openai.types.chat import ChatCompletionUserMessageParam

client = openai.OpenAI(base_url=os.environ["GUARD_URL"] + "/v1", api_key="sk-wrong")
user: ChatCompletionUserMessageParam = {"role": "user", "content": os.environ["SAFE"]}

for call in (
    lambda: client.moderations.create(input=os.environ["SAFE"]),
    lambda: client.chat.completions.create(model="llama-guard", messages=[user]),
    lambda: client.chat.completions.create(model="llama-guard", messages=[user], stream=True),
    lambda: client.responses.create(model="llama-guard", input="x"),
    lambda: client.models.list(),
    lambda: client.files.list(),
    lambda: client.batches.list(),
):
    try:
        call()
    except openai.AuthenticationError as error:
        assert (error.code, error.type, error.param) == ("invalid_api_key", "invalid_request_error", None)
    else:
        raise AssertionError("a wrong key was let in")
