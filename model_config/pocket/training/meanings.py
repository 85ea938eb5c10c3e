"""Borrow the meaning of words from a sentence encoder, once, before the training.

The encoder (all-MiniLM-L6-v2, Apache-2.0) gives a vector for every token of the pocket vocabulary; the token embeddings
start from their principal components.  So words that the rows never show stand near words that they do.

    python -m model_config.pocket.training.meanings --encoder FOLDER --out meanings.pt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertModel

from model_config.pocket.training.tokenizer import ORDINARY_TOKENS, POCKET


@torch.inference_mode()
def sentence_vectors(texts: Sequence[str], folder: Path) -> torch.Tensor:
    """Mean-pooled, normalised vectors of short texts."""
    spell = AutoTokenizer.from_pretrained(folder)
    encoder = BertModel.from_pretrained(folder).eval()
    vectors = []
    for start in range(0, len(texts), 64):
        inputs = spell(
            list(texts[start : start + 64]), padding=True, truncation=True, max_length=8, return_tensors="pt"
        )
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled = (encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        vectors.append(torch.nn.functional.normalize(pooled, dim=-1))
    return torch.cat(vectors)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    arguments.add_argument("--out", type=Path, required=True)
    options = arguments.parse_args()
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    words = [tokenizer.decode([index]).strip() or "." for index in range(ORDINARY_TOKENS)]
    torch.save(sentence_vectors(words, options.encoder), options.out)


if __name__ == "__main__":
    main()
