"""The snippet of the model card, `generate` with transformers, behind as little HTTP as will do.

    python -m benchmarks.transformers_server FOLDER PORT

One request at a time, as the snippet does: whoever comes meanwhile waits.
"""

import asyncio
import base64
import io
import sys
from typing import Any

import torch
from aiohttp import web
from PIL import Image
from transformers import AutoConfig, AutoProcessor, Llama4ForConditionalGeneration

MAX_NEW_TOKENS = 10
LARGEST_BODY = 64 << 20


class Snippet:
    """Processor and model of a checkpoint."""

    def __init__(self, folder: str) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._processor = AutoProcessor.from_pretrained(folder)
        self._dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        config = AutoConfig.from_pretrained(folder)
        if config.text_config.attention_chunk_size is None:
            # Attention is whole, but transformers builds the mask of chunks even where no layer has any.
            config.text_config.attention_chunk_size = config.text_config.max_position_embeddings
        model = Llama4ForConditionalGeneration.from_pretrained(folder, config=config, dtype=self._dtype)
        self._model = model.to(self._device)
        self._turn = asyncio.Lock()

    def judge(self, messages: list[dict[str, Any]]) -> str:
        """What the model says about the last of `messages`."""
        inputs = self._processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._device, dtype=self._dtype)
        with torch.inference_mode():
            outputs = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answer = outputs[:, inputs["input_ids"].shape[-1] :]
        said: list[str] = self._processor.batch_decode(answer, skip_special_tokens=True)
        return said[0]

    async def complete(self, request: web.Request) -> web.Response:
        messages = [_as_the_card_has_it(message) for message in (await request.json())["messages"]]
        async with self._turn:
            said = await asyncio.to_thread(self.judge, messages)
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": said}}]})


def _as_the_card_has_it(message: dict[str, Any]) -> dict[str, Any]:
    """Contents are lists there, and images are not URLs of data."""
    content = message["content"]
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {
        "role": message["role"],
        "content": [
            {"type": "image", "image": _picture(part["image_url"]["url"])} if part["type"] == "image_url" else part
            for part in parts
        ],
    }


def _picture(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


async def _healthy(_: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    snippet = Snippet(sys.argv[1])
    application = web.Application(client_max_size=LARGEST_BODY)
    application.add_routes([web.get("/health", _healthy), web.post("/v1/chat/completions", snippet.complete)])
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)


if __name__ == "__main__":
    main()
