"""The log-probabilities that requests ask for come without what vLLM adds to them.

Why: vLLM also says of each sampled token how many tokens were at least as likely, and nobody here reads that. With the
    vocabulary of Llama 4 it takes a compiler to be done in passing. And vLLM makes a tensor of every request's list of
    tokens, where the lists of this server are a handful: 0.97 times the engine's time a step with pocket, 0.96 with
    202,048 tokens.
Where: this server's engine on CPUs.
Upstream: none known; vllm-project/vllm#29280 asked for the log-probabilities of chosen tokens.
Needed: tests/engine/test_asked_logprobs.py::test_vllm_still_ranks_each_sampled_token
Until: vLLM leaves out the ranks of requests that name the tokens they ask for.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch.nn.utils.rnn import pad_sequence
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler

NOTHING = -1
"""In place of a token, where a list is shorter than another one."""


def install() -> None:
    """For every engine that samples in this process from now on."""
    Sampler.gather_specific_token_logprobs = _gather


def _gather(
    self: Sampler, logprobs: torch.Tensor, logprob_token_ids: Mapping[int, Sequence[int]], sampled: torch.Tensor
) -> LogprobsTensors:
    """Of each row of `logprobs` (requests, vocabulary) the sampled token and those that its request asks for.

    Short lists end in token 0 with a log-probability of minus infinity, as vLLM ends them. Ranks are 0.
    """
    requests = len(logprobs)
    lists = [_tensor(tuple(logprob_token_ids.get(row, ()))) for row in range(requests)]
    asked = pad_sequence(lists, batch_first=True, padding_value=NOTHING)
    ids = torch.cat((sampled.unsqueeze(1), asked), dim=1)
    nothing, ids = ids == NOTHING, ids.clamp(min=0)
    return LogprobsTensors(
        logprob_token_ids=ids.to(torch.int32),
        logprobs=logprobs.gather(1, ids).masked_fill(nothing, -math.inf),
        selected_token_ranks=torch.zeros(requests, dtype=torch.int64),
    )


@lru_cache(maxsize=64)
def _tensor(tokens: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int64)
