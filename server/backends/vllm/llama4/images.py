"""The pictures of a case in the form in which vLLM's engine takes them, worked out beside the event loop.

vLLM would do this too, but one request at a time, in one thread, and with its slower processor. What it makes of
two pictures at start-up is compared with what is made here, so that a release of vLLM or a checkpoint that wants
something else is noticed before the first request.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from vllm.inputs import mm_input
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItem, MultiModalKwargsItems, PlaceholderRange

from server.backends.vllm.llama4.pixels import numbers_of
from server.backends.vllm.llama4.tiles import all_levels, tiled
from server.backends.vllm.mends.picture_bytes import takes_bytes
from server.families.llama_guard.pictures import Fit, fit
from server.families.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from vllm.inputs import MultiModalInput
    from vllm.model_executor.models.mllama4 import Mllama4ProcessingInfo
    from vllm.v1.engine.async_llm import AsyncLLM

TILES_AT_ONCE = 1000
"""Tiles that may be at the engine, over all requests: a third of a gigabyte in bytes, twice that in bf16, which it
holds until it has looked at them. It computes about one large picture a step, so it never runs dry."""


class EngineImages:
    """Makes engine inputs out of token ids and pictures. One for an engine: its bounds are the engine's."""

    def __init__(self, engine: "AsyncLLM", tokenizer: PromptTokenizer, tokens_per_tile: int) -> None:
        """Raises RuntimeError when vLLM's own processor makes something else of pictures than what is made here."""
        names = ("image_start", "image", "patch", "tile_x_separator", "tile_y_separator", "image_end")
        found = {name: tokenizer.control_id(f"<|{name}|>") for name in names}
        if None in found.values():
            raise RuntimeError("the checkpoint's tokenizer has no tokens for images")
        self._control = {name: id_ for name, id_ in found.items() if id_ is not None}
        self._tokens_per_tile = tokens_per_tile
        self._dtype = None if takes_bytes() else cast("torch.dtype", engine.model_config.dtype)
        self._placeholder = cache(self._placeholder_of)
        processing = cast("Mllama4ProcessingInfo", engine.renderer.get_mm_processor().info)
        self._most_tiles = processing.get_max_num_tiles()
        self._hash_algorithm = engine.model_config.get_multimodal_config().mm_hasher_algorithm
        # One thread a picture: torch would spread each over all cores, and fight the engine for them.
        self._pool = ThreadPoolExecutor(
            min(4, os.cpu_count() or 1), "tiles", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._places = asyncio.Semaphore(TILES_AT_ONCE)
        self._turn = asyncio.Lock()

        pictures = [all_levels(), Image.linear_gradient("L").resize((500, 800)).convert("RGB")]
        ids = tokenizer.control_id("<|header_end|>")
        slots = [ids or 0, self._control["image"], self._control["image"], ids or 0]
        (expected,) = engine.renderer.render_cmpl(
            [{"prompt_token_ids": slots, "multi_modal_data": {"image": pictures}}]
        )
        if not _same(expected, self._input(slots, [self._seen(picture) for picture in pictures])):
            raise RuntimeError("this version of vLLM, or this checkpoint, prepares images in another way")

    def tokens(self, pictures: Iterable[Image.Image]) -> int:
        """How many tokens the slots of these pictures grow by."""
        return sum(len(self._placeholder(*self._fit(picture)[:2])[0]) - 1 for picture in pictures)

    def tiles(self, prompt_ids: Sequence[int]) -> int:
        """How many tiles a prompt shows, its slots expanded."""
        return prompt_ids.count(self._control["patch"]) // self._tokens_per_tile

    @contextlib.asynccontextmanager
    async def shown(self, pictures: Sequence[Image.Image]) -> AsyncIterator[Callable[[list[int]], "MultiModalInput"]]:
        """Makes the engine's input of any prompt with one `<|image|>` for each of the pictures, which are RGB.

        They are tiled once, however many prompts show them. Waits until the engine has room for them; they count as
        being there until the context ends.
        """
        loop = asyncio.get_running_loop()
        wanted, taken = min(TILES_AT_ONCE, sum(self._fit(picture).tiles for picture in pictures)), 0
        try:
            async with self._turn:  # Two that have half of what they need would wait for each other.
                while taken < wanted:
                    await self._places.acquire()
                    taken += 1
            seen = await asyncio.gather(*(loop.run_in_executor(self._pool, self._seen, one) for one in pictures))
            yield lambda ids: self._input(ids, seen)
        finally:
            for _ in range(taken):
                self._places.release()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fit(self, picture: Image.Image) -> Fit:
        return fit(*picture.size, self._most_tiles)

    def _seen(self, picture: Image.Image) -> tuple[MultiModalKwargsItem, str]:
        """What the vision tower needs of a picture, and the name under which the engine knows it."""
        pixels = np.asarray(picture)
        name = MultiModalHasher.hash_kwargs(self._hash_algorithm, image=pixels)
        tiles = tiled(pixels, self._most_tiles)
        if self._dtype is not None:
            tiles = numbers_of(tiles, self._dtype)
        place = self._fit(picture)
        processed = {
            "pixel_values": tiles,
            "patches_per_image": torch.tensor([place.tiles]),
            "aspect_ratios": torch.tensor([[place.rows, place.columns]]),
        }
        (item,) = MultiModalKwargsItems.from_hf_inputs(
            cast("Any", processed),
            {
                "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", torch.tensor([place.tiles])),
                "patches_per_image": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
                "aspect_ratios": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            },
        )["image"]
        return cast("MultiModalKwargsItem", item), name

    def _input(self, ids: Sequence[int], seen: Sequence[tuple[MultiModalKwargsItem, str]]) -> "MultiModalInput":
        expanded: list[int] = []
        places = []
        start = 0
        for item, _ in seen:
            rows, columns = cast("torch.Tensor", item["aspect_ratios"].data).tolist()
            tokens, is_patch = self._placeholder(columns, rows)
            slot = ids.index(self._control["image"], start)
            expanded += ids[start:slot]
            places.append(PlaceholderRange(offset=len(expanded), length=len(tokens), is_embed=is_patch))
            expanded += tokens
            start = slot + 1
        expanded += ids[start:]
        items = MultiModalKwargsItems({"image": [item for item, _ in seen]})
        return mm_input(expanded, items, {"image": [name for _, name in seen]}, {"image": places})

    def _placeholder_of(self, columns: int, rows: int) -> tuple[list[int], torch.Tensor]:
        """The tokens that stand for a picture on a canvas of so many tiles, and which of them the tower fills in."""
        control = self._control
        tile = [control["patch"]] * self._tokens_per_tile
        row = [*tile, *((columns - 1) * [control["tile_x_separator"], *tile]), control["tile_y_separator"]]
        canvas = rows * row if rows * columns > 1 else []
        tokens = [control["image_start"], *canvas, control["image"], *tile, control["image_end"]]
        return tokens, torch.tensor(tokens) == control["patch"]


def _same(expected: "MultiModalInput", made: "MultiModalInput") -> bool:
    """Whether two inputs tell the engine the same; what they call their pictures may differ."""

    def items(given: "MultiModalInput") -> Sequence[MultiModalKwargsItem]:
        return cast("Sequence[MultiModalKwargsItem]", given["mm_kwargs"]["image"])

    def facts(given: "MultiModalInput") -> list[object]:
        places = [(place.offset, place.length) for place in given["mm_placeholders"]["image"]]
        return [given["prompt_token_ids"], places, [sorted(item) for item in items(given)]]

    def numbers(data: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return numbers_of(data, like.dtype) if data.dtype == torch.uint8 else data

    def tensors(given: "MultiModalInput") -> list[Any]:
        masks: list[Any] = [place.is_embed for place in given["mm_placeholders"]["image"]]
        return masks + [item[key].data for item in items(given) for key in sorted(item)]

    return facts(expected) == facts(made) and all(
        torch.equal(one, numbers(other, one)) for one, other in zip(tensors(expected), tensors(made), strict=True)
    )
