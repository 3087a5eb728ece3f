"""What every test has: no network, one thread, its own store; and the embedded model."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from tests.loopback_openai import LoopbackOpenAI

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


@pytest.fixture
def serve(monkeypatch):
    """serve(answer) starts a loopback server that OPENAI_BASE_URL names."""
    servers: list[LoopbackOpenAI] = []

    def start(answer) -> LoopbackOpenAI:
        server = LoopbackOpenAI(answer).__enter__()
        servers.append(server)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        return server

    yield start
    for server in servers:
        server.__exit__()
