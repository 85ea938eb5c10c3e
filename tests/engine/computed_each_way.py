"""Asks one engine the same each way and prints it as JSON: vLLM's own, the last layer spared, steps filled up too.

    python -m tests.engine.computed_each_way

In a process of its own, since the model is in the process that is asked, where its layers can be looked at.
"""

import json
import os
import random
import sys
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

CONTEXT = 2048
STEP = 512
"""Tokens of a step: far fewer than what is asked, so that prompts are cut in parts and share steps with answers."""


def main() -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM, SamplingParams
    from vllm.model_executor.models.llama import LlamaMLP

    from server.backends.vllm.last_position_attention import LastPositionAttention
    from server.backends.vllm.mends import last_positions, step_sizes
    from server.checkpoints.profile import load_profile

    last_positions.install()
    profile = load_profile("pocket")
    engine: dict[str, Any] = {**profile.engine, "dtype": "float32", "max_num_batched_tokens": STEP, "max_num_seqs": 8}
    model = LLM(
        profile.model, max_model_len=CONTEXT, limit_mm_per_prompt={"image": 0}, seed=0, disable_log_stats=True, **engine
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=20, detokenize=False)
    choose = random.Random(7)
    prompts = [[choose.randrange(300, 8000) for _ in range(choose.choice([3, 60, 200, 700, 1500]))] for _ in range(24)]
    prompts += [[*prompts[-1][:-1], token] for token in (400, 500)]  # the cache has nearly all of them

    layers = model.llm_engine.model_config.hf_text_config.num_hidden_layers
    rows: list[int] = []
    compute = LlamaMLP.forward

    def counted(layer: Any, hidden_states: Any) -> Any:
        rows.append(len(hidden_states))
        return compute(layer, hidden_states)

    LlamaMLP.forward = counted
    said: dict[str, Any] = {}
    for way in ("vllm", "spared", "filled"):
        if way == "filled":
            step_sizes.install()
        model.reset_prefix_cache()
        rows.clear()
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        spared = patch.object(LastPositionAttention, "_metadata", lambda _: None) if way == "vllm" else nullcontext()
        with spared:
            answers = model.generate(asked, sampling, use_tqdm=False)
        outputs = [answer.outputs[0] for answer in answers]
        said[way] = {
            "ids": [list(output.token_ids) for output in outputs],
            "logprobs": [
                [{id_: entry.logprob for id_, entry in position.items()} for position in output.logprobs]
                for output in outputs
            ],
            "rows_by_layer": [sum(rows[layer::layers]) for layer in range(layers)],
            "step_sizes": sorted(set(rows[::layers])),
        }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
