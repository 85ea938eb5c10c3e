"""Train the pocket weights from scratch on a CPU and write the checkpoint.

    python -m model_config.pocket.training.train --data FOLDER --meanings meanings.pt --minutes 25

``FOLDER`` holds ``train.jsonl.gz``; rows that resemble those of ``pocket_smoke.jsonl`` or ``eval/`` there are left out.
The learning rate follows the clock, so equal seeds give equal data but weights that depend on the machine's speed.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from model_config.pocket.training import checkpoint, templates
from model_config.pocket.training.data import Row, read_rows, without_lookalikes
from model_config.pocket.training.examples import Example, Scribe
from model_config.pocket.training.measure import Judge, report
from model_config.pocket.training.network import WIDTH, PocketText, state_from_llama4
from model_config.pocket.training.pictures import Eye
from model_config.pocket.training.tokenizer import ORDINARY_TOKENS, POCKET, VOCABULARY
from server.families.tokenizer import PromptTokenizer

# How much of a source one epoch sees.  Large sets of one kind would drown the rest.
SHARES = {
    "edos": 0.25,
    "hatemojibuild": 0.4,
    "madlibs": 0.3,
    "mmlu_questions": 0.6,
    "gsm8k": 0.4,
    "synth": 0.7,
    "aart": 0.8,
    "sap200": 0.6,
    "caia_replies": 0.6,
    "safetext": 0.6,
}

TOKENS_A_BATCH = 1200
# The loss is a sum over rows divided by this: a lone long row must not weigh as much as forty short ones.
ROWS_A_BATCH = 32
ROWS_A_PORTION = 6000
PEAK_RATE = 1e-3
EMBEDDING_SIZE = 0.3
EYE_SEED = 1  # one tower for all runs, so that a run can go on from another's weights
REPLACED = 0.15
DROPOUT = 0.05
SAFE_WEIGHT = 1.3  # a false alarm costs a little more than a miss
CATEGORY_WEIGHT = 0.6
FORM_WEIGHT = 0.05
AVERAGE = 0.998


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded sequences and the places whose next token counts; all begin with the same preamble."""

    preamble: Tensor
    ids: Tensor
    positions: Tensor
    row: Tensor
    place: Tensor
    target: Tensor
    weight: Tensor
    tiles: int


class Trainer:
    """One network in training: weights, their running average, and the loss."""

    def __init__(self, meanings: Tensor, patch: int, peak: float) -> None:
        self.peak = peak
        self.patch = patch
        self.network = PocketText(VOCABULARY)
        start_from_meaning(self.network, meanings)
        self.eye = Eye(EYE_SEED)
        self.steps = 0
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        decoder = self.network.model
        matrices = [w for n, w in self.network.named_parameters() if w.dim() == 2 and "embed" not in n]
        vectors = [w for w in self.network.parameters() if w.dim() == 1]
        self.groups = [
            {"params": matrices, "weight_decay": 0.1, "share": 1.0},
            {"params": vectors, "weight_decay": 0.0, "share": 1.0},
            # Embeddings know more than the rows can teach: rare words should stay near where they began.
            {"params": [decoder.embed_tokens.weight], "weight_decay": 0.0, "share": 0.3},
        ]
        self.optimizer = torch.optim.AdamW(self.groups, lr=peak, betas=(0.9, 0.95), fused=True)

    def resume(self, folder: Path) -> None:
        """Go on from the weights of a checkpoint."""
        state = state_from_llama4(load_file(folder / "model.safetensors"))
        self.network.load_state_dict(state)
        self.average.load_state_dict(state)

    def step(self, batch: Batch, progress: float) -> float:
        """One update; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * group["share"] * rate(progress)
        embedded = self.network.model.embed_tokens(batch.ids)
        if batch.tiles:
            # What the blank projection makes of every picture.
            embedded = embedded.masked_fill((batch.ids == self.patch).unsqueeze(-1), 0.0)
        states = self.network.model(embedded, batch.positions, DROPOUT, batch.preamble)
        logits = self.network.lm_head(states[batch.row, batch.place])
        losses = functional.cross_entropy(logits, batch.target, reduction="none")
        loss = (losses * batch.weight).sum() / ROWS_A_BATCH
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - min(AVERAGE, 1 - 1 / (1 + self.steps)))
        self.steps += 1
        return loss.item()


def start_from_meaning(network: PocketText, vectors: Tensor) -> None:
    """Token embeddings begin as the principal components of the tokens' sentence vectors."""
    weights = network.model.embed_tokens.weight
    with torch.no_grad():
        centred = vectors - vectors.mean(0)
        _, strength, axes = torch.linalg.svd(centred, full_matrices=False)
        reduced = centred @ axes[:WIDTH].T / strength[:WIDTH].sqrt()
        reduced += 0.2 * reduced.std() * torch.randn_like(reduced)
        weights.normal_(std=EMBEDDING_SIZE)
        weights[:ORDINARY_TOKENS] = reduced * (EMBEDDING_SIZE / reduced.square().mean().sqrt())


def rate(progress: float) -> float:
    """Warm up quickly, stay high, fall to nothing."""
    return min(1.0, progress / 0.04 + 0.01) * min(1.0, (1.0 - progress) / 0.6 + 0.005)


def drawn(rows: Sequence[Row], dice: random.Random) -> list[Row]:
    """A portion of the rows: as many of each source as its share wants."""
    return [
        row for row in dice.sample(rows, min(ROWS_A_PORTION, len(rows))) if dice.random() < SHARES.get(row.source, 1.0)
    ]


def batches(examples: Sequence[Example], dice: random.Random) -> Iterator[Batch]:
    """Sequences of one preamble and like length together, in random order."""
    families: dict[tuple[int, ...], list[Example]] = defaultdict(list)
    for example in examples:
        families[example.ids[: example.preamble]].append(example)
    # Narrowed policies are nearly all different: they go through the network whole.
    whole = [example for family in families.values() if len(family) < 16 for example in family]
    groups = list(_groups(whole, (), dice))
    for preamble, family in families.items():
        if len(family) >= 16:
            groups += _groups(family, preamble, dice)
    dice.shuffle(groups)
    for preamble, group in groups:
        yield _batch(group, preamble, dice)


def _groups(
    examples: Sequence[Example], preamble: tuple[int, ...], dice: random.Random
) -> Iterator[tuple[tuple[int, ...], list[Example]]]:
    group: list[Example] = []
    for example in sorted(examples, key=lambda example: len(example.ids) + dice.random()):
        if group and (len(example.ids) - len(preamble)) * (len(group) + 1) > TOKENS_A_BATCH:
            yield preamble, group
            group = []
        group.append(example)
    if group:
        yield preamble, group


def _batch(examples: Sequence[Example], preamble: tuple[int, ...], dice: random.Random) -> Batch:
    skipped = len(preamble)
    longest = max(len(example.ids) for example in examples) - skipped
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    positions = torch.arange(skipped, skipped + longest).repeat(len(examples), 1)
    row, place, target, weight = [], [], [], []
    for number, example in enumerate(examples):
        own = _replaced(example, dice)[skipped:]
        ids[number, : len(own)] = torch.tensor(own)
        start, far = example.jump
        positions[number, max(0, start - skipped) :] += far
        answer = example.ids[example.prompt_length :]
        codes = len(answer) // 2 - 2
        for offset, wanted in enumerate(answer):
            row.append(number)
            place.append(example.prompt_length - skipped - 1 + offset)
            target.append(wanted)
            # "\n\n", verdict, "\n", "S", number, ",S", number ... end: the verdict counts most, then the numbers.
            is_number = offset >= 4 and offset % 2 == 0 and offset < len(answer) - 1
            verdict_weight = SAFE_WEIGHT if len(answer) == 3 else 1.0
            weight.append(verdict_weight if offset == 1 else CATEGORY_WEIGHT / codes if is_number else FORM_WEIGHT)
    return Batch(
        preamble=torch.tensor(preamble, dtype=torch.long),
        ids=ids,
        positions=positions,
        row=torch.tensor(row),
        place=torch.tensor(place),
        target=torch.tensor(target),
        weight=torch.tensor(weight),
        tiles=sum(example.tiles for example in examples),
    )


def _replaced(example: Example, dice: random.Random) -> list[int]:
    """The sequence with some of the caller's words exchanged for random ones, in two of five sequences."""
    ids = list(example.ids)
    if dice.random() < 0.4:
        for place in example.replaceable:
            if dice.random() < REPLACED:
                ids[place] = dice.randrange(256, ORDINARY_TOKENS)
    return ids


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with train.jsonl.gz")
    arguments.add_argument("--meanings", type=Path, required=True, help="file written by meanings.py")
    arguments.add_argument("--out", type=Path, default=POCKET, help="checkpoint folder; holds tokenizer.json already")
    arguments.add_argument("--minutes", type=float, default=25)
    arguments.add_argument("--resume", type=Path, help="folder of a checkpoint from which to go on")
    arguments.add_argument("--easy", type=float, default=0.7, help="share of the time for short rows without pictures")
    arguments.add_argument("--rate", type=float, default=PEAK_RATE, help="highest learning rate")
    arguments.add_argument("--every", type=float, default=5, help="minutes between drafts of the checkpoint")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    dice = random.Random(options.seed)

    tokenizer = PromptTokenizer.from_folder(options.out)
    measured = [options.data / "pocket_smoke.jsonl", *sorted((options.data / "eval").glob("[!h]*.jsonl"))]
    kept_apart = [row for path in measured if path.exists() for row in read_rows(path)]
    rows = read_rows(options.data / "train.jsonl.gz") + list(without_lookalikes(templates.rows(), kept_apart))
    training, dev = [row for row in rows if not row.dev], [row for row in rows if row.dev]
    scribe = Scribe(tokenizer, training, options.seed)
    trainer = Trainer(torch.load(options.meanings), scribe.patch, options.rate)
    if options.resume:
        trainer.resume(options.resume)
    print(f"{len(training)} rows to learn from, {len(dev)} to watch, {sum(r.unsafe for r in training)} unsafe")

    start, seen = time.monotonic(), 0
    progress, mean, written = 0.0, 1.0, start
    while progress < 1:
        examples = [scribe.disturbed(row, easy=progress < options.easy) for row in drawn(training, dice)]
        for batch in batches(examples, dice):
            progress = (time.monotonic() - start) / 60 / options.minutes
            if progress >= 1:
                break
            mean = 0.99 * mean + 0.01 * trainer.step(batch, progress)
            seen += batch.ids.numel()
            if time.monotonic() - written > 60 * options.every:
                checkpoint.write(options.out, trainer.average, trainer.eye, tokenizer)
                written = time.monotonic()
            if trainer.steps % 200 == 0:
                pace = seen / (time.monotonic() - start)
                print(
                    f"{progress:6.1%} step {trainer.steps} loss {mean:.3f} {pace:,.0f} tokens/s",
                    flush=True,
                )
    checkpoint.write(options.out, trainer.average, trainer.eye, tokenizer)
    judge = Judge(trainer.average.eval(), scribe)
    print("dev:", report(dev, judge, lists=False))
    for path in measured:
        if path.exists():
            print(f"{path.stem}:", report(read_rows(path), judge, lists=path.stem == "pocket_smoke"), flush=True)


if __name__ == "__main__":
    main()
