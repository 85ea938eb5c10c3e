"""groq: a file goes up, a batch judges its rows, its output comes down."""

import io
import json
import os
import time

import groq

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
client = groq.Groq(base_url=os.environ["GUARD_URL"], api_key=os.environ["GUARD_KEY"], _strict_response_validation=True)


def row(name: str, words: str) -> str:
    body = {"model": "meta-llama/llama-guard-4-12b", "messages": [{"role": "user", "content": words}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


rows = "\n".join([row("safe", SAFE), row("unsafe", UNSAFE)]).encode()
file = client.files.create(file=("rows.jsonl", io.BytesIO(rows)), purpose="batch")
assert client.files.info(file.id).bytes == len(rows)

batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
deadline = time.monotonic() + 60
while batch.status != "completed":
    assert batch.status != "failed" and time.monotonic() < deadline, batch
    time.sleep(0.2)
    batch = client.batches.retrieve(batch.id)

lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text().splitlines()]
said = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
assert said["safe"] == "safe"
assert said["unsafe"].startswith("unsafe\nS")
assert client.files.delete(file.id).deleted
