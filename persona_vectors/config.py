"""What a run of the assistant axis is made with, and credentials: from the process's environment, else from a `.env`.

Nothing is read at import; keys are read when they are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CHECKOUT = Path(__file__).resolve().parent.parent

CREDENTIALS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "OPENROUTER_API_KEY", "WANDB_PROJECT")
"""The names that a `.env` may set, as in `.env.example`."""


def load_credentials() -> dict[str, str]:
    """The credentials that are set, by name; those that a `.env` adds are put into `os.environ`, where libraries look.

    The environment wins over `./.env`, which wins over the checkout's `.env`; blank values count as unset.
    """
    from dotenv import dotenv_values

    merged: dict[str, str] = {}
    sources: list[Mapping[str, str | None]] = [dotenv_values(folder / ".env") for folder in (CHECKOUT, Path.cwd())]
    for source in [*sources, os.environ]:
        merged.update({name: value.strip() for name in CREDENTIALS if (value := source.get(name)) and value.strip()})
    os.environ.update(merged)
    return merged


@dataclass
class PersonaVectorConfig:
    """How personas are sampled and read. Fields may be set after construction; `check` runs before each use.

    Attributes:
        model_name: the model whose activations are read: hub id, model folder or adapter folder.
        openrouter_model: the name under which an API answers for it; None takes model_name (`answering_model`).
        layer_fraction: depth at which activations are read, see `get_extraction_layer`.
        prompt_format: chat (the tokenizer's template) or raw (`System: ...`, `User: ...`, `Assistant: ...`).
        max_tokens: most tokens of an answer.
        temperature: of sampling; 0 is greedy.
        max_concurrent_requests: calls to the API in flight at once.
        hf_token: for gated models of the hub; None takes HF_TOKEN when a model is loaded.
        openrouter_api_key: None takes OPENROUTER_API_KEY when answers are asked for.
    """

    model_name: str = "google/gemma-3-27b-it"
    openrouter_model: str | None = None
    layer_fraction: float = 0.65
    prompt_format: Literal["chat", "raw"] = "chat"
    max_tokens: int = 256
    temperature: float = 0.7
    max_concurrent_requests: int = 10
    hf_token: str | None = field(default=None, repr=False)
    openrouter_api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Returns if every field can be used.

        Raises:
            ValueError: the first field that cannot, with what it was and what is expected.
        """
        if not self.model_name:
            raise ValueError("model_name is empty; give a hub id such as google/gemma-3-27b-it or a model folder")
        if self.prompt_format not in ("chat", "raw"):
            raise ValueError(f"prompt_format must be chat or raw; got {self.prompt_format!r}")
        if not 0 <= self.layer_fraction <= 1:
            raise ValueError(f"layer_fraction must be between 0 (embeddings) and 1; got {self.layer_fraction}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0; got {self.temperature}")
        for name in ("max_tokens", "max_concurrent_requests"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {number!r}")

    @property
    def answering_model(self) -> str:
        """The name of the model that answers: openrouter_model, or else model_name."""
        return self.openrouter_model or self.model_name

    def get_extraction_layer(self, num_layers: int) -> int:
        """The layer (a hidden_states index) at which activations are read: int(num_layers * layer_fraction + 0.5)."""
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1; got {num_layers}")
        self.check()
        return int(num_layers * self.layer_fraction + 0.5)
