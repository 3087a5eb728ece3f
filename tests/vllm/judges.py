"""A judge that writes numbers digit by digit, as a folder: what vLLM's label probabilities are tried on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tests.tiny_models import tiny_model

TINY = Path(__file__).parents[2] / "models" / "tiny-persona"
LIKELY = {"0123456789": 9.0, "YNR": 10.8, "ESOFUAL": 8.0}  # what is added to the logits of these characters


def digit_judge(folder: Path, **shape: Any) -> str:
    """A random Llama of tiny-persona's size that mostly says digits, then the first letters of YES, NO and REFUSAL.

    Its tokenizer is tiny-persona's without the tokens of numbers. vLLM serves no bias on logits, so the first number of
    every embedding is large, and the head reads it.
    """
    for file in TINY.glob("*token*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_bytes((TINY / "chat_template.jinja").read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["special"]]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "num_hidden_layers": 4}
    model: Any = tiny_model("llama", vocab_size=len(tokenizer), **(size | {"max_position_embeddings": 1024} | shape))
    ids = torch.tensor([tokenizer("How kind is it?").input_ids])
    with torch.inference_mode():
        model.get_input_embeddings().weight[:, 0] = 20.0
        constant = model.model(ids).last_hidden_state[0, :, 0].mean()
        head = model.get_output_embeddings().weight
        head *= 0.3  # so that no other token of the 2,400 is as likely
        head[:, 0] = 0.0
        for characters, bias in LIKELY.items():
            head[tokenizer.convert_tokens_to_ids(list(characters)), 0] = bias / constant
    model.save_pretrained(folder)
    return str(folder)
