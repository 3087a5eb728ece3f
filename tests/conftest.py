"""What every test has: no network, one thread, its own store; and the embedded model."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)  # two test processes share two cores, and few threads are faster on models this small


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """No test finds finished work of another, or of the person who runs it."""
    monkeypatch.setenv("PERSONA_STORE", str(tmp_path / "store.sqlite"))


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    """Nobody's key is used, and no server asked."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENROUTER_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny_persona() -> str:
    """The folder of the embedded chat model and judge."""
    return str(ROOT / "models" / "tiny-persona")
