"""The physical limit: what a verdict costs in arithmetic and memory traffic, and so the most that a card can do.

    python -m benchmarks.roofline                           # Llama Guard 4 12B on the cards that are known
    python -m benchmarks.roofline --config DIR/config.json  # any dense Llama 4 checkpoint, a dummy one too
    python -m benchmarks.roofline --measure                 # this machine's own peaks first

A forward pass multiplies every token with every weight once: two floating-point operations (FLOP) a parameter. And it
reads every weight once, however many tokens it works on. So a step can take no less than its FLOP divided by the
card's peak, and no less than its bytes divided by the card's bandwidth. Everything else (launching kernels, softmax,
norms, sampling, the server) only adds to that: a measured figure divided by this one is how well it is done, and can
never pass 1. A measured figure that does is a mistake in one of the two.

Nothing here is measured but the peaks that say so; nothing needs torch but `measure`.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

Precision = Literal["bf16", "fp8"]
"""How the text decoder's linear layers and the KV cache are kept, as in the profiles of model_config/. Head, embeddings
and vision encoder are bf16 in both."""

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8")

BF16_BYTES = 2
STEP_TOKENS = 2048
"""Tokens that the engine computes together in one step at most (`max_num_batched_tokens` of the profile)."""

MAX_TILES = 16
IMAGE_MARKS = 3
"""Tokens around the patches of an image: its start, itself before the overview, its end."""

SCAFFOLD_TOKENS, PREAMBLE_TOKENS = 203, 144
"""The moderation prompt without the message, and the whole blocks of 16 at its start that every message shares."""

IMAGE_SCAFFOLD_TOKENS, IMAGE_PREAMBLE_TOKENS = 198, 128
"""The same where there are images: S14 is not asked about."""

DECODE_STEPS = 5
"""Forward passes after the first of an unsafe answer with one category: its line, its code, its end."""


# --- The network -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vision:
    """A Llama 4 vision encoder with adapter and projector: an image tile in, `tokens_per_tile` text embeddings out."""

    layers: int
    hidden: int
    mlp: int
    tile_pixels: int
    patch_pixels: int
    channels: int
    shuffle: float
    adapter: int
    output: int
    text_hidden: int

    @property
    def patches(self) -> int:
        return (self.tile_pixels // self.patch_pixels) ** 2

    @property
    def tokens_per_tile(self) -> int:
        """Neighbouring patches are folded into one token: a ratio of 0.5 makes four of them one."""
        return round(self.patches * self.shuffle**2)

    @property
    def layer_parameters(self) -> int:
        """Those that each patch meets, and the class token beside them."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.mlp)

    @property
    def fold_parameters(self) -> int:
        """Those that each folded token meets on its way to the text decoder."""
        # The adapter reads the folded patches side by side.
        folded = round(self.hidden / self.shuffle**2)
        return folded * self.adapter + self.adapter * self.output + self.output * self.text_hidden

    @property
    def parameters(self) -> int:
        """Matrices alone: norms, biases and positions are a thousandth."""
        return self.layer_parameters + self.fold_parameters + self._patch_parameters

    @property
    def _patch_parameters(self) -> int:
        return self.channels * self.patch_pixels**2 * self.hidden

    @property
    def flops_per_tile(self) -> float:
        sequence = self.patches + 1
        linear = sequence * self.layer_parameters + self.patches * self._patch_parameters
        attention = self.layers * 2 * sequence**2 * self.hidden
        return 2.0 * (linear + attention + self.tokens_per_tile * self.fold_parameters)


@dataclass(frozen=True, slots=True)
class Network:
    """A dense Llama 4: text decoder, and vision encoder where the checkpoint has one."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    vision: Vision | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Network":
        """What a checkpoint's config.json describes.

        Raises ValueError for a network that the arithmetic here does not cover, KeyError for a field that is missing.
        """
        text = config.get("text_config", config)
        # Every `interleave_moe_layer_step`-th layer has experts; 0 says that none has, whatever their number.
        if text.get("num_local_experts") and text.get("interleave_moe_layer_step", 1):
            raise ValueError("layers with experts: the arithmetic here is that of a dense network")
        heads, hidden = text["num_attention_heads"], text["hidden_size"]
        return cls(
            layers=text["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or hidden // heads,
            # Llama 4 names the width of its dense layers apart from that of an expert.
            mlp=text.get("intermediate_size_mlp") or text["intermediate_size"],
            vocabulary=text["vocab_size"],
            vision=_vision(config["vision_config"], hidden) if config.get("vision_config") else None,
        )

    @property
    def text_linear_parameters(self) -> int:
        """Attention and MLP matrices of all layers: each token meets each of them once."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def token_flops(self) -> float:
        """FLOP of one token in the linear layers. Attention to what stands before it comes on top."""
        return 2.0 * self.text_linear_parameters

    @property
    def attention_flops(self) -> float:
        """FLOP of one token for each token that it attends to: scores and weighted sum, in all layers and heads.

        Full attention, as in Llama Guard 4. A network that attends in chunks does less beyond its first chunk.
        """
        return 4.0 * self.layers * self.heads * self.head_dim

    @property
    def head_flops(self) -> float:
        """FLOP of one sampled row: only the last token of a prompt, and each token of an answer, meets the head."""
        return 2.0 * self.head_parameters

    def prompt_flops(self, tokens: float, cached: float = 0) -> float:
        """FLOP of a prompt of `tokens`, of which the first `cached` are in the prefix cache, without the head."""
        return (tokens - cached) * self.token_flops + self.attended(tokens, cached) * self.attention_flops

    @staticmethod
    def attended(tokens: float, cached: float = 0) -> float:
        """Pairs of a new token and one that it attends to: those before it, and itself."""
        return (tokens * (tokens + 1) - cached * (cached + 1)) / 2

    def weight_bytes(self, precision: Precision) -> int:
        """Bytes of weights that one step reads: layers and head, not the embeddings, of which it reads a few rows."""
        return self.text_linear_parameters * linear_bytes(precision) + self.head_parameters * BF16_BYTES

    def kv_bytes(self, precision: Precision) -> int:
        """Bytes of keys and values of one token, in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * linear_bytes(precision)


def _vision(config: Mapping[str, Any], text_hidden: int) -> Vision:
    return Vision(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        mlp=config["intermediate_size"],
        tile_pixels=config["image_size"],
        patch_pixels=config["patch_size"],
        channels=config.get("num_channels", 3),
        shuffle=config["pixel_shuffle_ratio"],
        adapter=config["projector_input_dim"],
        output=config["projector_output_dim"],
        text_hidden=text_hidden,
    )


def linear_bytes(precision: Precision) -> int:
    """Bytes of one number in the text decoder's linear layers, and in the KV cache."""
    return 1 if precision == "fp8" else BF16_BYTES


LLAMA_GUARD_4 = Network(
    layers=48,
    hidden=5120,
    heads=40,
    kv_heads=8,
    head_dim=128,
    mlp=8192,
    vocabulary=202_048,
    vision=Vision(
        layers=34,
        hidden=1408,
        mlp=5632,
        tile_pixels=336,
        patch_pixels=14,
        channels=3,
        shuffle=0.5,
        adapter=4096,
        output=4096,
        text_hidden=5120,
    ),
)
"""Llama Guard 4 12B. Inferred, not read (docs/models.md): the checkpoint is gated."""


# --- Images ----------------------------------------------------------------------------------------------


def tiles(width: int, height: int, tile: int = 336) -> tuple[int, int]:
    """Columns and rows of tiles that an image of `width` x `height` pixels is cut into: Llama 4's rule.

    Of all rectangles of at most 16 tiles it takes the one that shrinks the image least, or enlarges it least where none
    shrinks it; of several such, the smallest.
    """
    rectangles = [(columns, rows) for columns in range(1, MAX_TILES + 1) for rows in range(1, MAX_TILES // columns + 1)]

    def scale(rectangle: tuple[int, int]) -> float:
        return min(rectangle[0] * tile / width, rectangle[1] * tile / height)

    enlarging = [scale(rectangle) for rectangle in rectangles if scale(rectangle) >= 1]
    best = min(enlarging) if enlarging else max(map(scale, rectangles))
    return min((found for found in rectangles if scale(found) == best), key=math.prod)


def image_tiles(width: int, height: int, tile: int = 336) -> int:
    """Tiles that the vision encoder sees: those of the rectangle, and an overview where there are several."""
    count = math.prod(tiles(width, height, tile))
    return count + (count > 1)


def image_tokens(width: int, height: int, vision: Vision) -> int:
    """Prompt tokens of one image: patches of its tiles, a separator after each tile of the rectangle, its marks."""
    count = math.prod(tiles(width, height, vision.tile_pixels))
    separators = count if count > 1 else 0
    return image_tiles(width, height, vision.tile_pixels) * vision.tokens_per_tile + separators + IMAGE_MARKS


# --- What a verdict asks for -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """What the average request brings.

    `user_tokens` and `images` (width and height in pixels of each) stand in a prompt with `scaffold_tokens` around
    them. The first `cached_tokens` of the prompt are in the prefix cache: 0 says that there is none. A share of
    `unsafe_share` goes on for `decode_steps` after the first token.
    """

    user_tokens: float
    images: tuple[tuple[int, int], ...] = ()
    cached_tokens: float = PREAMBLE_TOKENS
    unsafe_share: float = 0.0
    decode_steps: float = DECODE_STEPS
    scaffold_tokens: float = SCAFFOLD_TOKENS

    @classmethod
    def warm(cls, user_tokens: float, images: tuple[tuple[int, int], ...] = (), unsafe_share: float = 0.0) -> "Load":
        """A request whose preamble is in the cache, in the prompt that it gets with or without images."""
        if not images:
            return cls(user_tokens, unsafe_share=unsafe_share)
        return cls(user_tokens, images, IMAGE_PREAMBLE_TOKENS, unsafe_share, scaffold_tokens=IMAGE_SCAFFOLD_TOKENS)

    @classmethod
    def counted(
        cls,
        network: Network,
        prompt_tokens: float,
        cached_tokens: float,
        generated_tokens: float,
        images: tuple[tuple[int, int], ...] = (),
    ) -> "Load":
        """What an engine counted for one verdict on average: `prompt_tokens` hold those of the images."""
        seen = sum(image_tokens(*size, _vision_of(network)) for size in images)
        return cls(prompt_tokens - seen, images, cached_tokens, 1.0, generated_tokens - 1, scaffold_tokens=0)

    def prompt_tokens(self, network: Network) -> float:
        """Tokens of the whole prompt, cached ones included."""
        return self.scaffold_tokens + self.user_tokens + sum(self._image_tokens(network))

    def computed_tokens(self, network: Network) -> float:
        """Tokens that the network works through for one verdict: what of the prompt is not cached, and the answer."""
        return self.prompt_tokens(network) - self.cached_tokens + self.unsafe_share * self.decode_steps

    def _image_tokens(self, network: Network) -> list[int]:
        return [image_tokens(width, height, _vision_of(network)) for width, height in self.images]


def _vision_of(network: Network) -> Vision:
    if network.vision is None:
        raise ValueError("the load has images, the network no vision encoder")
    return network.vision


@dataclass(frozen=True, slots=True)
class Work:
    """FLOP and bytes of one verdict. Weights are not in it: a step reads them once for all its verdicts."""

    text_flops: float
    head_flops: float
    vision_flops: float
    kv_bytes: float

    @property
    def flops(self) -> float:
        return self.text_flops + self.head_flops + self.vision_flops


def work(network: Network, load: Load, precision: Precision) -> Work:
    """What one verdict of `load` asks for."""
    prompt = load.prompt_tokens(network)
    decoded = load.unsafe_share * load.decode_steps
    # An answer is a handful of tokens: each attends to the prompt and about half of the answer.
    attended = Network.attended(prompt, load.cached_tokens) + decoded * (prompt + load.decode_steps / 2)
    text = load.computed_tokens(network) * network.token_flops + attended * network.attention_flops
    seen = sum(image_tiles(*size, _vision_of(network).tile_pixels) for size in load.images)
    return Work(
        text_flops=text,
        head_flops=(1 + decoded) * network.head_flops,
        vision_flops=seen * network.vision.flops_per_tile if network.vision else 0.0,
        # What is cached is read, what is new is written, and each token of the answer reads all of it again.
        kv_bytes=prompt * (1 + decoded) * network.kv_bytes(precision),
    )


# --- Cards -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Device:
    """Peaks of a card: dense FLOP a second, bytes a second. `fp8_flops` is None where it has no such arithmetic.

    `source` says where the peaks come from. A vendor's figure is reached by nobody (REACHED).
    """

    name: str
    bf16_flops: float
    fp8_flops: float | None
    bandwidth: float
    memory_gb: float
    source: str

    def flops(self, precision: Precision) -> float:
        """Peak of the text decoder's arithmetic. Weights kept in fp8 without fp8 arithmetic are computed in bf16."""
        return self.fp8_flops if precision == "fp8" and self.fp8_flops else self.bf16_flops


MEASURED, VENDOR = "measured", "vendor's figures, dense"

REACHED = 0.81
"""Share of the vendor's 989 TFLOP/s that the H100's measured 798 are."""

DEVICES = {
    "h100": Device("H100 80 GB", 798e12, 1400e12, 3.0e12, 80, f"{MEASURED}; fp8 assumed at 1.75 times bf16"),
    "h200": Device("H200", 798e12, 1400e12, 4.3e12, 141, f"bandwidth {MEASURED}; arithmetic as the H100 (same chip)"),
    "a100": Device("A100 80 GB", 312e12, None, 2.039e12, 80, VENDOR),
    "l40s": Device("L40S", 362e12, 733e12, 0.864e12, 48, VENDOR),
    "rtx4090": Device("RTX 4090", 165e12, 330e12, 1.008e12, 24, VENDOR),
    "l4": Device("L4", 121e12, 242e12, 0.300e12, 24, VENDOR),
}
"""By a short name. Nothing but what is marked so was measured."""


# --- The least time --------------------------------------------------------------------------------------


def least_pass_seconds(network: Network, device: Device, precision: Precision) -> float:
    """Least time of one forward pass: reading the weights. What a single short prompt and a decode step cannot beat."""
    return network.weight_bytes(precision) / device.bandwidth


def step_seconds(
    network: Network, device: Device, precision: Precision, tokens: float, context: float = 0.0, rows: float = 1.0
) -> float:
    """Least time of a step of `tokens` with `rows` sampled, each token attending to `context` on average.

    Whichever is slower, arithmetic or reading the weights.
    """
    text = tokens * (network.token_flops + context * network.attention_flops)
    arithmetic = text / device.flops(precision) + rows * network.head_flops / device.bf16_flops
    return max(arithmetic, least_pass_seconds(network, device, precision))


def verdict_seconds(
    network: Network, device: Device, precision: Precision, load: Load, step_tokens: float = STEP_TOKENS
) -> float:
    """Least time of a card for one verdict of `load` among many, when every step is full.

    Arithmetic in full; of the weights' bytes the share that the verdict has of a step.
    """
    asked = work(network, load, precision)
    arithmetic = asked.text_flops / device.flops(precision)
    arithmetic += (asked.head_flops + asked.vision_flops) / device.bf16_flops
    weights = network.weight_bytes(precision)
    if load.images:
        weights += _vision_of(network).parameters * BF16_BYTES
    traffic = asked.kv_bytes + weights * load.computed_tokens(network) / step_tokens
    return max(arithmetic, traffic / device.bandwidth)


def most_verdicts_per_second(
    network: Network, device: Device, precision: Precision, load: Load, step_tokens: float = STEP_TOKENS
) -> float:
    """The roofline: no engine on this card can give more verdicts of `load` a second."""
    return 1 / verdict_seconds(network, device, precision, load, step_tokens)


# --- A card's own peaks ----------------------------------------------------------------------------------


def measure(device: str = "cuda", size: int = 8192, copied_bytes: int = 1 << 30, seconds: float = 2.0) -> Device:
    """The peaks of this machine's card, by large matrix products and copies in its memory: about 3 x `seconds`.

    `size` is the side of the square matrices. Peaks are the best of the repetitions, so that a measured share of them
    is never flattered by a slow moment. On "cpu" it runs, and says little.
    """
    import torch

    card = torch.device(device)
    on_gpu = card.type == "cuda"

    def best(run: Any) -> float:
        """Seconds of the fastest run, after one that warms up."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            if on_gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times[1:])

    left = torch.randn(size, size, device=card).to(torch.bfloat16)
    right = torch.randn(size, size, device=card).to(torch.bfloat16)
    product = 2.0 * size**3
    bf16 = product / best(lambda: left @ right)
    fp8 = None
    if on_gpu and torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device=card)
        # The second matrix is read by columns.
        first, second = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).t()
        scaled = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
        fp8 = product / best(lambda: scaled(first, second))
    origin = torch.empty(copied_bytes, dtype=torch.uint8, device=card)
    copy = torch.empty_like(origin)
    bandwidth = 2 * copied_bytes / best(lambda: copy.copy_(origin))
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    memory = torch.cuda.get_device_properties(card).total_memory if on_gpu else 0
    return Device(name, bf16, fp8, bandwidth, memory / 1e9, MEASURED)


# --- Printing --------------------------------------------------------------------------------------------

MESSAGES = (20, 100, 500, 2000)
SIZES = ((336, 336), (1024, 768), (1920, 1080))


def constants(network: Network) -> str:
    """What one token, row, step and tile of `network` cost, a line each."""
    lines = [
        f"prompt token    {network.token_flops / 1e9:.2f} GFLOP and {network.attention_flops / 1e6:.3f} MFLOP for each "
        "token before it",
        f"sampled row     {network.head_flops / 1e9:.2f} GFLOP",
        *(
            f"{precision:<15} {network.weight_bytes(precision) / 1e9:.1f} GB of weights read a step, "
            f"{network.kv_bytes(precision) / 1024:.0f} KiB of KV cache a token"
            for precision in PRECISIONS
        ),
    ]
    if network.vision is not None:
        lines.append(f"image tile      {network.vision.flops_per_tile / 1e12:.2f} TFLOP in the vision encoder")
        lines += [
            f"{f'{width} x {height}':<15} {image_tokens(width, height, network.vision):,} tokens, tiles and overview: "
            f"{image_tiles(width, height, network.vision.tile_pixels)}"
            for width, height in SIZES
        ]
    return "\n".join(lines)


def table(network: Network, device: Device) -> str:
    """Most verdicts a second on `device` by length of message, in Markdown."""
    precisions = [precision for precision in PRECISIONS if precision == "bf16" or device.fp8_flops]

    def most(load: Load) -> str:
        return " / ".join(
            f"{most_verdicts_per_second(network, device, precision, load):,.0f}" for precision in precisions
        )

    kinds = " / ".join(precisions)
    rows = [
        f"| user tokens | no prefix cache, {kinds} | with it | with it, all unsafe ({DECODE_STEPS} decode steps) |",
        "|---|---|---|---|",
    ]
    for tokens in MESSAGES:
        load = Load(tokens)
        columns = (replace(load, cached_tokens=0), load, replace(load, unsafe_share=1.0))
        rows.append(f"| {tokens:,} | {' | '.join(map(most, columns))} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, help="config.json of a checkpoint, in place of Llama Guard 4 12B")
    parser.add_argument("--device", choices=DEVICES, help="this card only")
    parser.add_argument("--measure", action="store_true", help="measure this machine's GPU, and use that")
    options = parser.parse_args()
    network = Network.from_config(json.loads(options.config.read_text())) if options.config else LLAMA_GUARD_4
    devices = [DEVICES[options.device]] if options.device else list(DEVICES.values())
    if options.measure:
        devices = [measure()]
    print(constants(network))
    for device in devices:
        fp8 = f", {device.fp8_flops / 1e12:,.0f} in fp8" if device.fp8_flops else ""
        print(f"\n{device.name}: {device.bf16_flops / 1e12:,.0f} TFLOP/s{fp8}, {device.bandwidth / 1e12:.2f} TB/s")
        print(f"({device.source})\n")
        print(table(network, device))


if __name__ == "__main__":
    main()
