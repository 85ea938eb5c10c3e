"""openai: a file of 20 rows goes up, a batch judges them, and its output is what single requests get."""

import io
import json
import os
import time
from typing import Any

from openai import OpenAI

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
client = OpenAI(
    base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"], _strict_response_validation=True
)


def row(number: int) -> dict[str, Any]:
    body = {"input": UNSAFE if number % 3 == 0 else SAFE, "model": "omni-moderation-latest"}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/moderations", "body": body}


rows = [row(number) for number in range(20)]
content = "\n".join(json.dumps(row) for row in rows).encode()

file = client.files.create(file=("rows.jsonl", io.BytesIO(content)), purpose="batch")
assert (file.object, file.purpose, file.bytes) == ("file", "batch", len(content))
assert client.files.retrieve(file.id).filename == "rows.jsonl"
assert file.id in [other.id for other in client.files.list()]
assert client.files.content(file.id).read() == content

batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/moderations", completion_window="24h", metadata={"made": "by a test"}
)
deadline = time.monotonic() + 90
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    assert time.monotonic() < deadline, batch
    time.sleep(0.2)
    batch = client.batches.retrieve(batch.id)
assert batch.status == "completed", batch
assert batch.request_counts is not None
assert batch.output_file_id is not None
assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (20, 20, 0)
assert batch.metadata == {"made": "by a test"}
assert batch.id in [other.id for other in client.batches.list(limit=1)]

lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
assert sorted(line["custom_id"] for line in lines) == sorted(row["custom_id"] for row in rows)
assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in lines)
flagged = {line["custom_id"]: line["response"]["body"]["results"][0]["flagged"] for line in lines}
single = {row["custom_id"]: client.moderations.create(**row["body"]).results[0].flagged for row in rows}
assert flagged == single
assert set(flagged.values()) == {True, False}

broken = client.files.create(file=("broken.jsonl", b'{"custom_id": "1"\n'), purpose="batch")
failed = client.batches.create(input_file_id=broken.id, endpoint="/v1/moderations", completion_window="24h")
while failed.status == "validating":
    assert time.monotonic() < deadline, failed
    time.sleep(0.2)
    failed = client.batches.retrieve(failed.id)
assert failed.status == "failed"
assert failed.errors is not None
assert failed.errors.data is not None
assert failed.errors.data[0].code == "invalid_json_line"
assert failed.errors.data[0].line == 1

assert client.files.delete(file.id).deleted
