"""Credentials: from the process's environment, else from a `.env` file; read when asked for, never at import."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

CREDENTIALS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "OPENROUTER_API_KEY", "WANDB_PROJECT")
"""The names that a `.env` may set, as in `.env.example`."""


@dataclass(frozen=True)
class OpenAiSettings:
    """What an OpenAI client needs; the key is kept out of `repr`, and so out of logs and tracebacks."""

    api_key: str = field(repr=False)
    base_url: str | None
    """None means OpenAI's own address."""


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


def get_openai_settings() -> OpenAiSettings:
    """Key and address for an OpenAI client; ValueError where no key is set and the address is OpenAI's own.

    A served model (`OPENAI_BASE_URL`) often needs no key; the client wants some text, so it gets a placeholder.
    """
    credentials = load_credentials()
    base_url = credentials.get("OPENAI_BASE_URL")
    api_key = credentials.get("OPENAI_API_KEY") or ("no-key" if base_url else None)
    if api_key is None:
        raise ValueError(
            "OPENAI_API_KEY is not set: put it in .env (see .env.example) or the environment, set OPENAI_BASE_URL to a "
            "served model, or judge with a local folder (--judge_model models/tiny-persona)"
        )
    return OpenAiSettings(api_key=api_key, base_url=base_url)
