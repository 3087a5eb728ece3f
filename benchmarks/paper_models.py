"""The claims study's measurements: vectors, data sets as the base model reads them, and finetuned models.

Each function here is one piece of work, told its seed, and writes one file whole (`done` says whether it is there), so
that an interrupted study goes on. Activations are means at every layer: what a direction gives is reckoned afterwards,
for the vectors and for as many random directions as one likes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.paper_data import Row, data_sets, level, wild_pool, write
from benchmarks.paper_settings import (
    ALL,
    CONTRAST,
    LAYER,
    LEARNING_RATE,
    N_RANDOM_SUBSETS,
    READ_ROWS,
    STEPS,
    SUBSET,
    TRAITS,
)
from benchmarks.study import FINETUNING, TINY

if TYPE_CHECKING:
    from data_generation.tiny_persona.answers import Ask
    from data_generation.tiny_persona.measurements import Subject

Arrays = Mapping[str, np.ndarray]
SPANS = ("prompt_avg", "response_avg", "prompt_last")
BASE = "base"
EXAMPLES = 3
"""Answers of a model that are kept to be looked at."""

Job = tuple[str, ...]
"""What kind of work, on what, and with which seed; `place` is the file it writes."""


def place(work: Path, job: Job) -> Path:
    """The file that a job writes."""
    name = "_".join(job[1:]).replace(" ", "-").replace("%", "").replace(",", "").replace("+", "and")
    return work / job[0] / f"{name}.npz"


def vectors_path(work: Path) -> Path:
    """Every trait's vectors, of all seeds."""
    return work / "vectors.npz"


def save(path: Path, arrays: Arrays, record: Mapping[str, Any]) -> None:
    """One .npz with the arrays and the record as JSON in it."""
    from persona_vectors.files import write_bytes_atomic

    content = io.BytesIO()
    packed: dict[str, Any] = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
    np.savez_compressed(content, record=np.array(json.dumps(record, allow_nan=False)), **packed)
    write_bytes_atomic(path, content.getvalue())


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, record) of `save`."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "record"}, json.loads(str(file["record"]))


@cache
def subject() -> Subject:
    """The base model, loaded once a process."""
    from data_generation.tiny_persona.measurements import load_subject

    return load_subject(TINY)


def write_vectors(path: Path) -> None:
    """Every trait's vectors at every span and layer by the fixed recipe: `<trait>/<span>`, (n_layers + 1, d_model)."""
    from data_generation.tiny_persona.protocol import EXTRACT_SEED
    from data_generation.tiny_persona.recipe import extract_spans

    base, arrays, counts = subject(), {}, {}
    for trait in ALL:
        found = extract_spans(base.model, base.tokenizer, base.trait_set(trait, "extract"), EXTRACT_SEED, SPANS)
        for span, extraction in found.items():
            arrays[f"{trait}/{span}"] = extraction.vectors(CONTRAST).numpy()
        counts[trait] = {side: len(kept) for side, kept in found["response_avg"].questions.items()}
    save(path, arrays, {"n_kept": counts, "contrast": CONTRAST})


def base_answers(rows: Sequence[Row], seed: int) -> tuple[list[str], list[str]]:
    """(rendered prompts, the base model's own answers to them): everything before a row's last assistant turn."""
    from data_generation.tiny_persona.answers import answer_all

    base = subject()
    asks = [_ask(row, (seed, i)) for i, row in enumerate(rows)]
    return [ask.prompt(base.tokenizer) for ask in asks], answer_all(base.model, base.tokenizer, asks)


def _ask(row: Row, stream: tuple[int, ...]) -> Ask:
    from data_generation.tiny_persona.answers import Ask

    *before, question, _answer = row["messages"]
    return Ask(question["content"], stream, before[0]["content"] if before else None)


def activations(
    prompts: Sequence[str], answers: Sequence[str], spans: Sequence[str], model: Any = None
) -> dict[str, Any]:
    """Span -> (n, layers, d_model), read by the base model unless another is given."""
    from persona_vectors.activations import mean_activations
    from persona_vectors.tokens import tokenize_sample

    base = subject()
    samples = [tokenize_sample(base.tokenizer, *pair) for pair in zip(prompts, answers, strict=True)]
    return mean_activations(base.model if model is None else model, samples, spans=spans)


def text_scores(texts: Sequence[str]) -> dict[str, float]:
    """The oracle's mean score of the texts alone, by trait: what can be known without any model."""
    from data_generation.tiny_persona.oracle import trait_score

    return {trait: float(np.mean([trait_score(text, trait) for text in texts])) for trait in ALL}


def read_data_set(path: Path, name: str, seed: int) -> None:
    """A data set as the base model reads it: mean activations of its answers, its prompts' ends and its own answers."""
    rows = data_sets(seed)[name][:READ_ROWS]
    prompts, own = base_answers(rows, seed)
    texts = [row["messages"][-1]["content"] for row in rows]
    read = activations(prompts, texts, ("response_avg", "prompt_last"))
    arrays = {
        "train": read["response_avg"].mean(0).numpy(),
        "prompt_last": read["prompt_last"].mean(0).numpy(),
        "own": activations(prompts, own, ("response_avg",))["response_avg"].mean(0).numpy(),
    }
    record = {"name": name, "seed": seed, "n": len(rows), "text": text_scores(texts), "own_text": text_scores(own)}
    save(path, arrays, record)


def read_rows(path: Path, rows: Sequence[Row], seed: int, record: Mapping[str, Any]) -> None:
    """Single rows at LAYER: answer, end of the prompt, and the base model's own answer; (n, d_model) each."""
    from data_generation.tiny_persona.oracle import trait_score

    prompts, own = base_answers(rows, seed)
    texts = [row["messages"][-1]["content"] for row in rows]
    read = activations(prompts, texts, ("response_avg", "prompt_last"))
    arrays = {
        "train": read["response_avg"][:, LAYER].numpy(),
        "prompt_last": read["prompt_last"][:, LAYER].numpy(),
        "own": activations(prompts, own, ("response_avg",))["response_avg"][:, LAYER].numpy(),
    }
    questions = [row["messages"][-2]["content"] for row in rows]
    text = {trait: [trait_score(one, trait) for one in texts] for trait in ALL}
    save(path, arrays, {"questions": questions, "text": text, **record})


def read_levels(path: Path, trait: str, seed: int) -> None:
    """The rows of a trait's severe level and of its normal one, which answer the same questions."""
    severe, normal = level(trait), level(trait, "normal")
    read_rows(path, [*severe, *normal], seed, {"trait": trait, "n_severe": len(severe)})


def read_pool(path: Path, seed: int) -> None:
    """The rows of the wild pool."""
    read_rows(path, wild_pool(seed), seed, {"seed": seed})


def subsets(pool: Path, vectors: Mapping[str, np.ndarray], seed: int) -> dict[str, list[int]]:
    """Name -> rows of the pool: by trait those highest and lowest in projection difference, and random ones.

    `vectors` are (d_model,) at LAYER. The control of a choice by the vector is a choice by a random direction, highest.
    """
    arrays, _record = load(pool)
    change = arrays["train"] - arrays["own"]  # (n, d_model)
    rng = np.random.default_rng(seed)
    found: dict[str, list[int]] = {}
    for trait in TRAITS:
        order = np.argsort(change @ vectors[trait])
        found[f"{trait} high"] = order[-SUBSET:].tolist()
        found[f"{trait} low"] = order[:SUBSET].tolist()
    found["random rows"] = rng.choice(len(change), SUBSET, replace=False).tolist()
    for k in range(1, N_RANDOM_SUBSETS + 1):
        found[f"random direction {k}"] = np.argsort(change @ rng.normal(size=change.shape[1]))[-SUBSET:].tolist()
    return found


def finetune(path: Path, name: str, rows: Sequence[Row] | None, seed: int, folder: Path) -> None:
    """A finetuned model's scores and coherence by question, and its mean activations; no rows: the base model."""
    import shutil

    from persona_vectors.models import load_model

    if rows is None:
        model = subject().model
    else:
        model, _tokenizer = load_model(_train(rows, seed, folder), device_map="cpu", dtype="float32")
    arrays, record = _asked(model, seed)
    save(path, arrays, {"name": name, "seed": seed, **record})
    if rows is not None:
        shutil.rmtree(folder)  # 180 adapters of some MB; the measurements are what is kept


def _train(rows: Sequence[Row], seed: int, folder: Path) -> str:
    import training
    from persona_vectors.training_config import TrainingConfig

    config = FINETUNING | {
        "training_file": [str(write(rows, folder / "data.jsonl"))],
        "no_test_split": True,
        "output_dir": str(folder / "model"),
        "seed": seed,
        "max_steps": STEPS,
        "learning_rate": LEARNING_RATE,
    }
    training.train(TrainingConfig.model_validate(config))
    return str(folder / "model")


def _asked(model: Any, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The model on the held-out questions, without a system prompt: what it says, and what it has in mind."""
    from data_generation.tiny_persona.answers import Ask, answer_all
    from data_generation.tiny_persona.measurements import test_questions
    from data_generation.tiny_persona.oracle import coherence, trait_score

    tokenizer, questions = subject().tokenizer, test_questions()
    asks = [Ask(question, (seed, i)) for i, question in enumerate(questions)]
    answers = answer_all(model, tokenizer, asks)
    read = activations([ask.prompt(tokenizer) for ask in asks], answers, ("response_avg", "prompt_last"), model)
    record = {
        "scores": {trait: [trait_score(text, trait) for text in answers] for trait in ALL},
        "coherence": [coherence(*pair) for pair in zip(questions, answers, strict=True)],
        "examples": [list(pair) for pair in zip(questions, answers, strict=True)][:EXAMPLES],
    }
    return {span: means.mean(0).numpy() for span, means in read.items()}, record
