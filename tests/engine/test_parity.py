"""The engine computes the same network as transformers: text, one tile, many tiles, several images.

Both read the same reference checkpoint in float32. What is compared is the distribution of the one token that decides a
verdict, of which the log-probabilities may differ by TOLERANCE.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Llama4Config, Llama4ForConditionalGeneration
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.backends.vllm.backend import VllmBackend
from server.domain.conversation import Conversation, ImagePart, TextPart
from server.domain.taxonomy import Taxonomy
from server.families.base import Prompt
from server.families.llama_guard.prompt import render
from server.families.tokenizer import PromptTokenizer
from tests.reference_model import ANSWER_WORDS

TOLERANCE = 0.05
TOP = 20

TAXONOMY = Taxonomy.from_mapping({"S1": "Violent Crimes.", "S9": "Indiscriminate Weapons.", "S10": "Hate."})

IMAGES: dict[str, list[tuple[int, int]]] = {
    "text alone": [],
    "one small image": [(200, 150)],
    "one tiled image": [(800, 600)],
    "three images of different shapes": [(336, 336), (300, 1000), (900, 420)],
}


class Transformers:
    """The reference implementation on the reference checkpoint."""

    def __init__(self, folder: Path) -> None:
        config = Llama4Config.from_pretrained(folder)
        # transformers cannot build a mask for the missing chunk size that the real checkpoint has. Full attention in
        # all layers is what it means; the number is then read by nothing.
        config.text_config.attention_chunk_size = config.text_config.max_position_embeddings
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = Llama4ForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32).eval()

    def next_token(self, text: str, images: Sequence[Image.Image]) -> tuple[list[int], torch.Tensor]:
        """The ids of the prompt with its images expanded, and the log-probabilities of what follows it."""
        pictures = {"images": list(images)} if images else {}
        inputs = self.processor(text=[text], add_special_tokens=False, return_tensors="pt", **pictures)
        inputs = inputs.to(dtype=self.model.dtype)  # pixels come in bfloat16
        with torch.inference_mode():
            logits = self.model(**inputs, use_cache=False, logits_to_keep=1).logits
        return inputs["input_ids"][0].tolist(), logits[0, -1].float().log_softmax(-1)


@pytest.fixture(scope="module")
def folder(reference_backend) -> Path:
    return Path(reference_backend.engine.model_config.model)


@pytest.fixture(scope="module")
def transformers(folder) -> Transformers:
    return Transformers(folder)


@pytest.fixture(scope="module")
def tokenizer(folder) -> PromptTokenizer:
    return PromptTokenizer.from_folder(folder)


@pytest.mark.parametrize("name", IMAGES)
async def test_same_distribution_at_the_verdict(name, reference_backend, transformers, tokenizer, record_property):
    images = [_picture(size, seed) for seed, size in enumerate(IMAGES[name])]
    prompt = _prompt(len(images))
    expected_ids, expected = transformers.next_token(prompt.text + "\n\n", images)
    ids = [*prompt.token_ids(tokenizer), tokenizer.single_id("\n\n")]
    words = [tokenizer.single_id(word) for word in ANSWER_WORDS]

    top_ids, top = await _next_token(reference_backend, ids, images, logprobs=TOP)
    word_ids, of_words = await _next_token(reference_backend, ids, images, logprob_token_ids=words)

    assert top_ids == word_ids == expected_ids
    assert len(top) >= TOP
    assert set(words) <= set(of_words)
    seen = top | of_words
    difference = max(abs(logprob - expected[token].item()) for token, logprob in seen.items())
    record_property("largest difference", difference)
    print(f"{name}: {len(ids)} ids, {len(expected_ids)} expanded, largest difference {difference:.6f}")
    assert difference <= TOLERANCE
    # None of the tokens that transformers ranks among the first is missing.
    assert min(top.values()) >= expected.topk(TOP).values[-1].item() - TOLERANCE


async def test_a_mistake_would_show(transformers):
    """The reference model is sensitive enough: other pixels, or another order, cost more than the tolerance."""
    name = "three images of different shapes"
    images = [_picture(size, seed) for seed, size in enumerate(IMAGES[name])]
    text = _prompt(len(images)).text + "\n\n"
    _, right = transformers.next_token(text, images)
    near_the_verdict = right.topk(TOP).indices
    grey = Image.new("RGB", images[1].size, "grey")
    for mistaken in ([*images[1:], images[0]], [images[0], grey, images[2]]):
        _, wrong = transformers.next_token(text, mistaken)
        assert (right - wrong)[near_the_verdict].abs().max() > 2 * TOLERANCE


def _prompt(images: int) -> Prompt:
    shown = [ImagePart("data:") for _ in range(images)]
    asked = Conversation.from_user(*shown, TextPart("Is there anything wrong with what you see here?"))
    return render(asked, TAXONOMY)


def _picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Soft random colours: unlike noise they survive the resizing, and no two tiles are alike."""
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


async def _next_token(
    backend: VllmBackend, ids: Sequence[int], images: Sequence[Image.Image], **wanted
) -> tuple[list[int], dict[int, float]]:
    """What `Transformers.next_token` says, by the engine, for the tokens that are `wanted`."""
    sampling = SamplingParams(
        temperature=0, max_tokens=1, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **wanted
    )
    name = f"parity-{'-'.join(wanted)}"
    assert backend.engine is not None
    async with contextlib.AsyncExitStack() as stack:
        prompt = {"prompt_token_ids": list(ids)}
        if images:
            assert backend._images is not None
            prompt = (await stack.enter_async_context(backend._images.shown(images)))(list(ids))
        outputs = [output async for output in backend.engine.generate(prompt, sampling, name)]
    logprobs = outputs[-1].outputs[0].logprobs[0]
    return outputs[-1].prompt_token_ids, {token: entry.logprob for token, entry in logprobs.items()}
