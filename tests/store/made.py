"""Rows for tests, with what does not matter filled in."""

from server.store.batches import Batch, Batches


async def batch_of(batches: Batches, owner: str, file_id: str) -> Batch:
    """A new batch of `owner` about the lines of a file."""
    return await batches.create(
        owner,
        never_remote=False,
        finished_prompts=False,
        endpoint="/v1/moderations",
        completion_window="24h",
        input_file_id=file_id,
        output_expires_after=None,
        metadata=None,
    )
