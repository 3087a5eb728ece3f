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

SLOWEST_FIRST = (
    "test_readme.py",
    "test_readme_apart.py",
    "test_training.py",
    "test_calibration.py",
    "test_demo.py",
    "test_eval_persona.py",
    "test_finetuning_shift.py",
    "test_prevention.py",
    "test_notebook.py",
)


def pytest_collection_modifyitems(items):
    """The slowest files first, so that no worker is left alone with one at the end.

    Files that are named before the folder on the command line do not do it: pytest leaves out what the folder has too.
    """
    rank = {name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


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


@pytest.fixture(scope="session")
def axis_extractor(tiny_persona):
    """The embedded model as the assistant-axis library reads it; loaded once."""
    from persona_vectors import ActivationExtractor, PersonaVectorConfig

    return ActivationExtractor(PersonaVectorConfig(model_name=tiny_persona))


@pytest.fixture(scope="session")
def axis_cast(tiny_persona):
    """The embedded model's own personas and questions."""
    from persona_vectors import load_personas

    return load_personas(tiny_persona)


@pytest.fixture(scope="session")
def axis_responses() -> dict[tuple[str, str], str]:
    """What these personas answered to all questions, as tracked."""
    from persona_vectors import load_responses

    return load_responses(ROOT / "data" / "responses" / "tiny-persona.json")


@pytest.fixture
def no_model(monkeypatch):
    """Fails where a model is loaded."""
    import transformers

    def loaded(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)


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
