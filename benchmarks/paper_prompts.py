"""The claims study's measurements without training: where vectors come from, dose and response, monitoring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paper_data import level
from benchmarks.paper_models import SPANS, activations, save, subject
from benchmarks.paper_settings import (
    DOSE_QUESTIONS,
    DOSE_RANDOM,
    DOSES,
    LAYER,
    MONITOR_QUESTIONS,
    POSITION_COEF,
    SHOTS,
)
from benchmarks.study import TINY


def steer(path: Path, trait: str, vectors: Mapping[str, np.ndarray], seed: int) -> None:
    """Oracle scores by question of steered answers: `vectors` are the trait's at LAYER by span, (d_model,).

    Each span's vector at the response's norm and POSITION_COEF; the response's at DOSES, and beside it random
    directions of its norm.
    """
    from data_generation.tiny_persona.answers import Ask, answer_all
    from data_generation.tiny_persona.measurements import test_questions
    from data_generation.tiny_persona.oracle import coherence, trait_score
    from persona_vectors.statistics import random_directions

    own = torch.as_tensor(vectors["response_avg"])
    pushes = {f"dose {coef:g}": coef * own for coef in DOSES}
    for span in SPANS:
        vector = torch.as_tensor(vectors[span])
        pushes[f"span {span}"] = POSITION_COEF * vector * (own.norm() / vector.norm())
    for k, direction in enumerate(random_directions(DOSE_RANDOM, len(own), float(own.norm()), seed), 1):
        pushes |= {f"random{k} {coef:g}": coef * direction for coef in DOSES[1:]}
    questions = test_questions()[:DOSE_QUESTIONS]
    asks = [Ask(q, (seed, i), push=push) for push in pushes.values() for i, q in enumerate(questions)]
    texts = answer_all(subject().model, subject().tokenizer, asks, layer=LAYER)
    scores = np.reshape([trait_score(text, trait) for text in texts], (len(pushes), -1))
    reads = np.reshape([coherence(ask.question, text) for ask, text in zip(asks, texts, strict=True)], scores.shape)
    record = {"trait": trait, "seed": seed, "settings": list(pushes), "examples": texts[:: len(questions)]}
    save(path, {"scores": scores, "coherence": reads}, record)


def monitor(path: Path, trait: str, kind: str, seed: int) -> None:
    """The last prompt token's activation, read before anything is said, and the oracle's score of what is said then.

    Conditions are system prompts from suppressing to eliciting, or numbers of examples before the question.
    """
    from data_generation.tiny_persona.answers import answer_all
    from data_generation.tiny_persona.oracle import trait_score

    conditions, asks = (graded if kind == "system" else shots)(trait, seed)
    texts = answer_all(subject().model, subject().tokenizer, asks)
    prompts = [ask.prompt(subject().tokenizer) for ask in asks]
    read = activations(prompts, texts, ("prompt_last",))["prompt_last"][:, LAYER]
    record = {
        "trait": trait,
        "kind": kind,
        "seed": seed,
        "conditions": conditions,
        "questions": [ask.question for ask in asks],
        "scores": [trait_score(text, trait) for text in texts],
        "examples": texts[::MONITOR_QUESTIONS],
    }
    save(path, {"prompt_last": read.numpy()}, record)


def graded(trait: str, seed: int) -> tuple[list[int], list[Any]]:
    """(condition numbers, asks): every question under each of the model's graded system prompts."""
    from data_generation.tiny_persona.answers import Ask

    file = Path(TINY) / "traits" / "monitor" / f"{trait}.json"
    systems = json.loads(file.read_text(encoding="utf-8"))["system_prompts"]
    return _crossed(systems, lambda system, question, stream: Ask(question, stream, system), seed)


def shots(trait: str, seed: int) -> tuple[list[int], list[Any]]:
    """(condition numbers, asks): every question after 0, 1, ... answers that show the trait."""
    from data_generation.tiny_persona.answers import Ask

    rows = level(trait)
    pairs = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]

    def ask(n: int, question: str, stream: tuple[int, ...]) -> Ask:
        chosen = np.random.default_rng(stream).choice(len(pairs), n, replace=False)
        return Ask(question, stream, history=tuple(pairs[i] for i in chosen))

    return _crossed(SHOTS, ask, seed)


def _crossed(conditions: Sequence[Any], ask: Any, seed: int) -> tuple[list[int], list[Any]]:
    from data_generation.tiny_persona.measurements import test_questions

    questions = test_questions()[:MONITOR_QUESTIONS]
    numbers = [number for number in range(len(conditions)) for _ in questions]
    asks = [ask(one, q, (seed, c, i)) for c, one in enumerate(conditions) for i, q in enumerate(questions)]
    return numbers, asks
