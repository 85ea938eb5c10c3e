"""Log-probabilities by this server's shorter way are vLLM's own."""

import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.sample import sampler
from vllm.v1.sample.sampler import Sampler

from server.backends.vllm.mends import asked_logprobs

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="elsewhere vLLM's own way is taken")

ROWS, VOCABULARY = 3, 100

VLLMS_OWN = Sampler.gather_specific_token_logprobs
"""This process is no engine of this server's, so that nothing took its place."""


@pytest.mark.parametrize(
    "asked",
    [
        {0: [7, 3], 1: [7, 3], 2: [7, 3]},
        {0: [7, 3, 99, 0], 1: [5], 2: [7, 3]},
        {1: [4, 4]},
        {0: [], 1: [8], 2: []},
    ],
    ids=["equal lists", "lists of several lengths", "one request alone asks", "empty lists"],
)
def test_they_are_what_vllm_gathers(asked):
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(ROWS, VOCABULARY, generator=generator).log_softmax(dim=-1)
    sampled = torch.tensor([98, 0, 5])
    ours = asked_logprobs._gather(None, logprobs, asked, sampled)
    vllms = Sampler().gather_specific_token_logprobs(logprobs, asked, sampled)
    assert torch.equal(ours.logprob_token_ids, vllms.logprob_token_ids)
    assert torch.equal(ours.logprobs, vllms.logprobs)
    assert ours.logprob_token_ids.dtype == vllms.logprob_token_ids.dtype
    assert len(ours.selected_token_ranks) == len(vllms.selected_token_ranks)


def test_vllm_still_ranks_each_sampled_token(monkeypatch):
    """When this fails, vLLM leaves the ranks out by itself, and asked_logprobs.py can go."""
    ranked = []

    def noted(logprobs: torch.Tensor, of_sampled: torch.Tensor) -> torch.Tensor:
        ranked.append(len(logprobs))
        return torch.zeros(len(logprobs), dtype=torch.int64)

    monkeypatch.setattr(sampler, "batched_count_greater_than", noted)
    VLLMS_OWN(Sampler(), torch.zeros(ROWS, VOCABULARY), {0: [7]}, torch.tensor([98, 0, 5]))
    assert ranked == [ROWS]
