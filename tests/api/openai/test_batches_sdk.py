"""OpenAI's own client does files and batches from end to end, and takes every answer in its strict mode."""

# ruff: noqa: F401, F811
import json

import openai
import pytest

from tests.api.conftest import wait_until
from tests.api.openai.test_sdk import async_sdk, sdk
from tests.fakes import until

LINES = b"".join(
    json.dumps({"custom_id": name, "method": "POST", "url": "/v1/moderations", "body": {"input": text}}).encode()
    + b"\n"
    for name, text in (("a", "bread"), ("b", "a bomb"), ("c", ""))
)


def test_from_upload_to_output(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(
        file=("rows.jsonl", LINES), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert sdk.files.wait_for_processing(file.id).status == "processed"
    batch = sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/moderations", completion_window="24h", metadata={"a": "b"}
    )
    wait_until(lambda: sdk.batches.retrieve(batch.id).status == "completed")
    batch = sdk.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    assert batch.output_file_id is not None
    answers = [json.loads(line) for line in sdk.files.content(batch.output_file_id).text.splitlines()]
    assert [answer["response"]["body"]["results"][0]["flagged"] for answer in answers] == [False, True]
    assert [listed.id for listed in sdk.batches.list(limit=1)] == [batch.id]
    assert len(list(sdk.files.list(limit=1))) == 3
    assert sdk.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)
    with pytest.raises(openai.ConflictError):
        sdk.batches.cancel(batch.id)


async def test_the_async_client(async_sdk: openai.AsyncOpenAI) -> None:
    file = await async_sdk.files.create(file=("rows.jsonl", LINES), purpose="batch")
    batch = await async_sdk.batches.create(input_file_id=file.id, endpoint="/v1/moderations", completion_window="24h")
    statuses = []
    for _ in range(500):
        statuses.append((await async_sdk.batches.retrieve(batch.id)).status)
        if statuses[-1] == "completed":
            break
        await until(lambda: True)
    found = [batch.id async for batch in async_sdk.batches.list()]
    assert (found, statuses[-1]) == ([batch.id], "completed")
    assert [file.purpose async for file in async_sdk.files.list()] == ["batch_output", "batch_output", "batch"]
