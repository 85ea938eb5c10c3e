"""What the engine is handed of a case's pictures is what vLLM would have made of them."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from server.backends.base import Case
from server.backends.vllm.llama4 import images as engine_images
from server.backends.vllm.llama4.images import EngineImages
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, ImagePart, TextPart
from server.domain.errors import ContextLengthExceeded
from server.domain.policy import Policy
from server.families.llama_guard.prompt import render

POLICY = Policy(load_profile("pocket").taxonomy)


def picture(width: int, height: int) -> Image.Image:
    samples = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(samples)


def case_of(*pictures: Image.Image) -> Case:
    # A typed placeholder is text: it takes no picture.
    shown = [ImagePart("data:") for _ in pictures]
    asked = Conversation.from_user(TextPart("<|image|> first"), *shown, TextPart("What is <|image|> this?"))
    return Case(asked, pictures, POLICY)


def ids_of(backend, case: Case) -> list[int]:
    return render(case.conversation, POLICY.taxonomy).token_ids(backend._tokenizer)


def by_vllm(backend, ids, pictures):
    (made,) = backend.engine.renderer.render_cmpl([{"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}])
    return made


@pytest.mark.parametrize("sizes", [[(336, 336)], [(900, 420), (300, 1000), (900, 420), (40, 30)], [(1920, 1080)]])
async def test_input_is_what_vllm_would_have_made(pocket_backend, sizes):
    case = case_of(*(picture(*size) for size in sizes))
    ids = ids_of(pocket_backend, case)
    async with pocket_backend._images.shown(case.images) as shown:
        made = shown(ids)
        assert engine_images._same(by_vllm(pocket_backend, ids, list(case.images)), made)
        assert len(made["prompt_token_ids"]) == len(ids) + pocket_backend._images.tokens(case.images)
        names = made["mm_hashes"]["image"]
    assert len(set(names)) == len(set(sizes)), "equal pictures have one name, and only they"


async def test_another_order_of_pictures_is_not_the_same(pocket_backend):
    case = case_of(picture(336, 336), picture(200, 200))
    ids = ids_of(pocket_backend, case)
    async with pocket_backend._images.shown(case.images) as shown:
        made = shown(ids)
        assert not engine_images._same(by_vllm(pocket_backend, ids, list(case.images[::-1])), made)


async def test_a_checkpoint_that_prepares_images_in_another_way_is_noticed_at_the_start(pocket_backend, monkeypatch):
    by_itself = pocket_backend.engine.renderer.render_cmpl

    def brighter(prompts):
        (made,) = by_itself(prompts)
        made["mm_kwargs"]["image"][1]["pixel_values"].data.add_(0.01)
        return [made]

    monkeypatch.setattr(pocket_backend.engine.renderer, "render_cmpl", brighter)
    with pytest.raises(RuntimeError, match="another way"):
        EngineImages(pocket_backend.engine, pocket_backend._tokenizer, 144)


async def test_a_tower_that_takes_no_bytes_gets_its_own_numbers(pocket_backend, monkeypatch):
    """As on GPUs, where vLLM's tower is left as it is."""
    monkeypatch.setattr(engine_images, "takes_bytes", lambda: False)
    images = EngineImages(pocket_backend.engine, pocket_backend._tokenizer, pocket_backend._tokens_per_tile)
    case = case_of(picture(900, 420), picture(40, 30))
    ids = ids_of(pocket_backend, case)
    async with images.shown(case.images) as shown:
        made = shown(ids)
        expected = by_vllm(pocket_backend, ids, list(case.images))
        assert engine_images._same(expected, made)
        for own, theirs in zip(made["mm_kwargs"]["image"], expected["mm_kwargs"]["image"], strict=True):
            assert own["pixel_values"].data.dtype == theirs["pixel_values"].data.dtype
    images.close()


async def test_completion_counts_the_tiles_and_tokens_of_pictures(pocket_backend):
    case = case_of(picture(336, 336), picture(700, 300))
    completion, images = await pocket_backend.complete(case), pocket_backend._images
    assert completion.tiles == sum(images._fit(one).tiles for one in case.images) == 5
    assert completion.prompt_tokens == len(ids_of(pocket_backend, case)) + images.tokens(case.images)


async def test_pictures_that_exceed_the_context_are_refused_before_they_are_tiled(pocket_backend, monkeypatch):
    monkeypatch.setattr(pocket_backend._images, "_seen", lambda picture: pytest.fail("tiled"))
    with pytest.raises(ContextLengthExceeded, match=r"resulted in \d+ tokens"):
        await pocket_backend.complete(case_of(*[picture(1300, 1300)] * 12))


async def test_only_so_many_tiles_are_at_the_engine_at_once(pocket_backend, monkeypatch):
    """Cases wait for room in the order in which they came; one that needs more than all gets all of it."""
    images = pocket_backend._images
    monkeypatch.setattr(engine_images, "TILES_AT_ONCE", 4)
    monkeypatch.setattr(images, "_places", asyncio.Semaphore(4))
    three, large = case_of(picture(600, 300)), case_of(picture(600, 600))
    one = replace(three, images=[picture(300, 300)])
    there: asyncio.Queue[str] = asyncio.Queue()
    leave = asyncio.Event()

    async def show(name: str, case: Case) -> None:
        async with images.shown(case.images):
            there.put_nowait(name)
            await leave.wait()

    tasks = [asyncio.create_task(show(*each)) for each in (("three", three), ("large", large), ("one", one))]
    assert await there.get() == "three"
    tasks[1].cancel()
    assert await there.get() == "one"
    again = asyncio.create_task(show("large", large))
    leave.set()
    await asyncio.gather(*tasks, again, return_exceptions=True)
    assert there.get_nowait() == "large"
    assert there.empty()
    assert images._places._value == 4, "whoever left or gave up has given its room back"
