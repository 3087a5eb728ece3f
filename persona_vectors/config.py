"""Credentials: from the process's environment, else from a `.env` file; read when asked for, never at import."""

import os
from collections.abc import Mapping
from pathlib import Path

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
