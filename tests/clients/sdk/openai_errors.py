"""openai: what is wrong with a request arrives as the SDK's own exceptions, with its own fields."""

import os
from collections.abc import Callable

import openai

client = openai.OpenAI(base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"])


def refusal(kind: type[openai.APIStatusError], call: Callable[..., object], **body: object) -> openai.APIStatusError:
    try:
        call(**body)
    except kind as error:
        assert error.request_id is not None
        assert error.request_id.startswith("req_")
        assert error.type == "invalid_request_error"
        return error
    raise AssertionError(f"no {kind.__name__}")


judge, complete = client.moderations.create, client.chat.completions.create
user = {"role": "user", "content": "hello"}

assert refusal(openai.NotFoundError, judge, input="x", model="text-embedding-3-small").code == "model_not_found"
assert refusal(openai.NotFoundError, complete, model="whisper-1", messages=[user]).code == "model_not_found"
assert refusal(openai.BadRequestError, judge, input=["a", ""]).param == "input[1]"
assert refusal(openai.BadRequestError, judge, input="hello " * 200_000).code == "context_length_exceeded"
wrong = refusal(openai.BadRequestError, complete, model="llama-guard", messages=[{"role": "oracle", "content": "x"}])
assert wrong.param == "messages[0].role"
knob = refusal(
    openai.BadRequestError, complete, model="llama-guard", messages=[user], extra_body={"chat_template": "{{ x }}"}
)
assert knob.param == "chat_template"
late = refusal(openai.BadRequestError, complete, model="llama-guard", messages=[], stream=True)
assert late.param == "messages"
