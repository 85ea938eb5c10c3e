"""How good the weights are, honestly: verdicts at threshold 0.5 and the written category lists.

    python -m model_config.pocket.training.measure --data FOLDER

reads the checkpoint as it lies here, in bfloat16 precision, and prints one line for each set. `--record FILE` writes
the figures to a file too, together with the digest of the weights: measured.json is what the model's card shows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model_config.pocket.training.data import Row, read_rows
from model_config.pocket.training.examples import Scribe
from model_config.pocket.training.network import PocketText, state_from_llama4
from model_config.pocket.training.tokenizer import POCKET, VOCABULARY
from server.families.tokenizer import PromptTokenizer

LONGEST_ANSWER = 46


@dataclass(frozen=True, slots=True)
class Judgement:
    """P(unsafe) among the two words, the probability of both words together, and the list written after `unsafe`."""

    score: float
    mass: float
    categories: tuple[int, ...]


class Judge:
    """Asks the network about rows the way the server does, with its own small forward pass."""

    def __init__(self, network: PocketText, scribe: Scribe) -> None:
        self.network = network
        self.scribe = scribe
        spell = scribe.tokenizer
        self.safe, self.unsafe = spell.encode_text("safe")[0], spell.encode_text("unsafe")[0]
        self.opening = spell.encode_text("unsafe\nS")
        self.numbers = {spell.encode_text(str(number))[0]: number for number in range(1, 15)}
        self.comma = spell.encode_text(",S")[0]

    @torch.inference_mode()
    def judge(self, rows: Sequence[Row], lists: bool = True) -> list[Judgement]:
        examples = [self.scribe.plain(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda index: len(examples[index].ids))
        judgements: dict[int, Judgement] = {}
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            # The prompt and the blank line that the server writes itself.
            prompts = [list(examples[index].ids[: examples[index].prompt_length + 1]) for index in chosen]
            odds = self._next(prompts).softmax(-1)
            for index, prompt, row in zip(chosen, prompts, odds, strict=True):
                safe, unsafe = row[self.safe].item(), row[self.unsafe].item()
                score = unsafe / (safe + unsafe)
                listed = self._list(prompt) if lists and score >= 0.5 else ()
                judgements[index] = Judgement(score, safe + unsafe, listed)
        return [judgements[index] for index in range(len(rows))]

    def _list(self, prompt: list[int]) -> tuple[int, ...]:
        """Write the category list greedily."""
        ids = prompt + self.opening
        found = []
        while len(ids) < len(prompt) + LONGEST_ANSWER:
            number = int(self._next([ids])[0].argmax())
            if number not in self.numbers:
                break
            found.append(self.numbers[number])
            ids.append(number)
            following = int(self._next([ids])[0].argmax())
            if following != self.comma:
                break
            ids.append(following)
        return tuple(found)

    def _next(self, sequences: Sequence[list[int]]) -> Tensor:
        """Logits of the token after each sequence."""
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        for number, sequence in enumerate(sequences):
            ids[number, : len(sequence)] = torch.tensor(sequence)
        states = self.network.model(self.network.model.embed_tokens(ids), torch.arange(longest).expand_as(ids))
        last = torch.tensor([len(sequence) - 1 for sequence in sequences])
        logits: Tensor = self.network.lm_head(states[torch.arange(len(sequences)), last])
        return logits


def report(rows: Sequence[Row], judge: Judge, lists: bool = True) -> dict[str, float]:
    """Accuracy, recall, false positives, precision-recall area, category hits and the least joint mass."""
    judgements = judge.judge(rows, lists)
    labels = [row.unsafe for row in rows]
    flagged = [judgement.score >= 0.5 for judgement in judgements]
    bad, good = sum(labels), len(rows) - sum(labels)
    caught = sum(flag and label for flag, label in zip(flagged, labels, strict=True))
    alarms = sum(flag and not label for flag, label in zip(flagged, labels, strict=True))
    figures: dict[str, float] = {"rows": len(rows), "right": (caught + good - alarms) / len(rows)}
    if bad:
        figures["recall"] = caught / bad
        figures["f1"] = 2 * caught / max(1, bad + caught + alarms)
    if good:
        figures["fpr"] = alarms / good
    if bad and good:
        figures["auprc"] = _average_precision([judgement.score for judgement in judgements], labels)
    if lists and bad:
        hits = sum(
            bool(set(row.categories) & set(judgement.categories))
            for row, judgement in zip(rows, judgements, strict=True)
            if row.unsafe
        )
        figures["category hits"] = hits / bad
    figures["least mass"] = min(judgement.mass for judgement in judgements)
    return {name: round(value, 3) for name, value in figures.items()}


def _average_precision(scores: Sequence[float], labels: Sequence[bool]) -> float:
    ranked = sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])
    found, area = 0, 0.0
    for place, (_, label) in enumerate(ranked, 1):
        if label:
            found += 1
            area += found / place
    return area / max(found, 1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with pocket_smoke.jsonl and eval/")
    arguments.add_argument("--checkpoint", type=Path, default=POCKET)
    arguments.add_argument("--record", type=Path, help="JSON file to write the figures to")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    network = PocketText(VOCABULARY)
    network.load_state_dict(state_from_llama4(load_file(options.checkpoint / "model.safetensors")))
    judge = Judge(network.eval(), Scribe(PromptTokenizer.from_folder(options.checkpoint), (), seed=0))
    sets = {}
    for path in (options.data / "pocket_smoke.jsonl", *sorted((options.data / "eval").glob("*.jsonl"))):
        sets[path.stem] = report(read_rows(path), judge, lists=path.stem == "pocket_smoke")
        print(f"{path.stem}:", sets[path.stem], flush=True)
    if options.record:
        digest = sha256((options.checkpoint / "model.safetensors").read_bytes()).hexdigest()
        options.record.write_text(json.dumps({"weights": digest, "sets": sets}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
