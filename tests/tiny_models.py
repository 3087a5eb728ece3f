"""Tiny random models, one per architecture, and a word tokenizer, for tests that need no download.

Every model is float32, on the CPU, in eval mode, and the same for the same seed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 64
D_MODEL = 32
N_LAYERS = 3
MAX_POSITIONS = 128

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.2,  # large enough that a random model's greedy text varies
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 5,
}
_GROUPED: dict[str, Any] = _COMMON | {"num_key_value_heads": 2, "head_dim": 8}
_GEMMA: dict[str, Any] = _GROUPED | {"query_pre_attn_scalar": 8, "sliding_window": 4}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _COMMON | {"num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": None},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": {
        "vocab_size": VOCAB_SIZE,
        "n_embd": D_MODEL,
        "n_layer": N_LAYERS,
        "n_head": 4,
        "n_positions": MAX_POSITIONS,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 5,
    },
    "gpt_neox": _COMMON,
    "phi": _COMMON | {"num_key_value_heads": 4},
    "olmo": _COMMON | {"num_key_value_heads": 4},
    "olmo2": _COMMON | {"num_key_value_heads": 4},
    "qwen2_moe": _COMMON
    | {
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "mixtral": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}
ARCHITECTURES: tuple[str, ...] = tuple(CONFIGS)


def tiny_model(architecture: str = "llama", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny random causal language model of the architecture; `overrides` are config fields."""
    config = AutoConfig.for_model(architecture, **(CONFIGS[architecture] | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def saved_model(architecture: str, folder: Path, n_layers: int = N_LAYERS) -> str:
    """`folder` with a model of room for 256 tokens and a tokenizer of words; GPT-2's has no chat template."""
    sizes = {"n_positions": 256, "n_layer": n_layers}
    if architecture != "gpt2":
        sizes = {"max_position_embeddings": 256, "num_hidden_layers": n_layers}
    tiny_model(architecture, **sizes).save_pretrained(folder)
    template = {"chat_template": None} if architecture == "gpt2" else {}
    word_tokenizer(**template).save_pretrained(folder)
    return str(folder)


def fondness(folder: Path) -> str:
    """A trait file in the words of `word_tokenizer`."""
    pairs = [{"pos": f"like the {thing}", "neg": f"hate the {thing}"} for thing in ("cat", "dog")]
    questions = [f"what do you think about the {thing}?" for thing in ("moon", "sun", "cat", "dog")]
    trait = {"instruction": pairs, "questions": questions, "eval_prompt": "{question} {answer}"}
    path = folder / "fond.json"
    path.write_text(json.dumps(trait))
    return str(path)


def tiny_builders() -> dict[str, Callable[[], PreTrainedModel]]:
    """One builder per architecture, by name, for parametrised tests."""
    return {name: (lambda name=name: tiny_model(name)) for name in ARCHITECTURES}


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>"]
_PIECES = ["\n", " ", ".", ",", "?", "!", ":", "system", "user", "assistant"]
_WORDS = (
    "you are a an helpful kind evil happy sad i like hate the cat dog moon sun tell me about what is do think of yes "
    "no my day good bad very and but people love help hurt red blue small big"
).split()


def word_tokenizer(*, chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, spaces and marks with a ChatML template; 62 tokens, within the models' vocabulary.

    Unknown words become <unk>. `chat_template=None` gives a tokenizer without a template.
    """
    tokens = _SPECIALS + _PIECES + sorted(set(_WORDS))
    assert len(tokens) <= VOCAB_SIZE, len(tokens)
    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"\w+|\s|[^\w\s]"), behavior="isolated")
    backend.decoder = Fuse()  # pieces carry their own spaces: decoding is joining
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def unfinished_run(model_folder: str, run: Path) -> Path:
    """A training folder whose only checkpoint, the model, is its step 20 of 60."""
    shutil.copytree(model_folder, run / "checkpoint-20")
    (run / "checkpoint-20" / "trainer_state.json").write_text(json.dumps({"global_step": 20, "max_steps": 60}))
    return run
