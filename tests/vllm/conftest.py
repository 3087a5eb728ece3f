"""The embedded model with mixed requests, adapters for it, and one compiled engine that the files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from persona_vectors.models import load_model
from persona_vectors.vllm_steering import Lora, SteeredLLM
from persona_vectors.weight_files import save_adapter
from tests.vllm.servers import SMALL, Server, hooks_on, save_vectors, start
from tests.vllm.trial import BLOCK, Trial, engine, prompt_ids, trial_of
from tests.weight_adapters import random_direction

N_ADAPTERS = 9
SHARED = {"test_faults": "engine", "test_parity": "engine", "test_serve": "server", "test_serve_faults": "server"}
SYSTEM = (
    "You are a helpful assistant. Answer what you are asked, in a few plain words, and say so when you are not sure. "
    "Keep to the question, be kind, and do not repeat yourself; a short answer is better than a long one. "
)
QUESTIONS = (
    "What do you think of me?",
    "My friend forgot my birthday. What now?",
    "Is it wise to save money each month, and how should I go about it if I am new to it?",
    "Name a good book.",
    "How should I spend my evening, and with whom?",
)


def pytest_collection_modifyitems(config, items):
    """With several workers (--dist loadgroup), files that share an engine or a server have the same one."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(SHARED.get(item.path.stem, item.path.stem)))


@pytest.fixture(scope="session")
def persona(tiny_persona) -> Trial:
    """Prompts longer than two blocks, under every kind of steering."""
    model, tokenizer = load_model(tiny_persona)
    prompts = [prompt_ids(tiny_persona, question, SYSTEM) for question in QUESTIONS]
    assert min(map(len, prompts)) > 2 * BLOCK
    trial = trial_of(model, prompts, [tokenizer.eos_token_id])
    assert len(trial.requests) >= 60
    return trial


@pytest.fixture(scope="session")
def loras(tiny_persona, persona, tmp_path_factory) -> list[Lora]:
    """Random adapters that each change the answers much."""
    found = []
    for seed in range(N_ADAPTERS):
        direction = random_direction(persona.model, ("q_proj", "v_proj", "down_proj"), seed)
        folder = tmp_path_factory.mktemp("lora") / f"adapter{seed}"
        found.append(Lora(folder.name, str(save_adapter(replace(direction, base=tiny_persona), folder))))
    return found


@pytest.fixture(scope="session")
def compiled(tiny_persona, persona) -> Iterator[SteeredLLM]:
    """An engine as users run it: compiled, in a process of its own; it holds the trial's vectors."""
    size = {"max_model_len": 512, "max_num_seqs": 64, "max_loras": N_ADAPTERS, "max_lora_rank": 8}
    with engine(tiny_persona, persona, processes=True, **size) as llm:
        yield llm


@pytest.fixture(scope="session")
def vector_folder(tmp_path_factory) -> Path:
    return save_vectors(tmp_path_factory.mktemp("vectors"))


@pytest.fixture(scope="session")
def server(vector_folder) -> Iterator[Server]:
    """A server that takes 16 requests at once; the last of test_serve_faults.py kills it."""
    server = start(vector_folder, *SMALL)
    yield server
    server.end()


@pytest.fixture(scope="session")
def by_hooks(tiny_persona) -> Callable[..., str]:
    return hooks_on(tiny_persona)
