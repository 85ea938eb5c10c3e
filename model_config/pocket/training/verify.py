"""Compare the checkpoint, as transformers reads it, with the network that was trained.

    python -m model_config.pocket.training.verify

Text, and text with a picture of two tiles: the largest difference of any logit must stay below a thousandth.
transformers 5.19 cannot run a Llama 4 whose ``attention_chunk_size`` is null, so it is given a number that no prompt
reaches; all layers attend fully either way.
"""

from __future__ import annotations

import random

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Llama4Config, Llama4ForConditionalGeneration

from model_config.pocket.training.network import PocketText, state_from_llama4
from model_config.pocket.training.pictures import random_tiles
from model_config.pocket.training.tokenizer import POCKET, VOCABULARY

ALLOWED = 1e-3


@torch.inference_mode()
def main() -> None:
    own = PocketText(VOCABULARY)
    own.load_state_dict(state_from_llama4(load_file(POCKET / "model.safetensors")))
    own.eval()
    config = Llama4Config.from_pretrained(POCKET)
    config.text_config.attention_chunk_size = config.text_config.max_position_embeddings
    theirs = Llama4ForConditionalGeneration.from_pretrained(POCKET, config=config, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(POCKET)

    for pictures in (0, 1):
        parts = [{"type": "image"}] * pictures + [{"type": "text", "text": "How do I bake bread, and for how long?"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": parts}])
        tile = random_tiles(1, random.Random(5))[0]
        wide = ((torch.cat((tile, tile.flip(2)), dim=2) + 1) * 127.5).to(torch.uint8)
        inputs = processor(
            text=prompt, images=[wide] if pictures else None, return_tensors="pt", add_special_tokens=False
        )
        ids = inputs["input_ids"]
        if pictures:
            inputs["pixel_values"] = inputs["pixel_values"].float()
        expected = theirs(**inputs, use_cache=False).logits
        embedded = own.model.embed_tokens(ids)
        if pictures:
            features = theirs.get_image_features(inputs["pixel_values"]).last_hidden_state
            projected = theirs.multi_modal_projector(features).flatten(0, 1)
            patches = (ids == config.image_token_index).unsqueeze(-1)
            embedded = embedded.masked_scatter(patches, projected)
        found = own.lm_head(own.model(embedded, torch.arange(ids.shape[1]).expand_as(ids)))
        difference = (found - expected).abs().max().item()
        print(f"{ids.shape[1]} tokens, {pictures} pictures: largest difference of a logit {difference:.1e}")
        if difference > ALLOWED:
            raise SystemExit("the exported weights do not compute what was trained")


if __name__ == "__main__":
    main()
