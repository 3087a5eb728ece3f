"""What each model gives: its answers and their scores, and its mean activations; all by way of the store."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.finished_answers import Engine, answers_of
from eval.finished_scores import scores_of
from eval.questions import Question
from eval.sweep_answers import rendered
from judge import JudgeError
from persona_vectors import cli
from persona_vectors.activations import mean_activations
from persona_vectors.blocks import hidden_size
from persona_vectors.judging import failure_line
from persona_vectors.responses import PromptRow, response_table
from persona_vectors.store import Store, content_key
from persona_vectors.tokens import tokenize_sample

if TYPE_CHECKING:
    import pandas as pd

SPANS = ("prompt_last", "response_avg")
Questions = Mapping[str, Sequence[Question]]
"""Trait -> its eval questions."""


@dataclass(frozen=True)
class Sampling:
    """How every model is asked; the arguments of these names."""

    n_per_question: int
    max_tokens: int
    seed: int
    dtype: str
    device_map: str
    engine: Literal["vllm", "hf"] = "hf"


@dataclass(frozen=True)
class Measured:
    """What one model gave, by trait.

    Attributes:
        tables: its response table.
        means: (trait, span) -> mean activation over the trait's prompts, or over its answers to them: (layers,
            d_model). NaN where no answer has any text.
        n_empty: answers without text; they count for the score and not for the activations.
    """

    tables: Mapping[str, pd.DataFrame]
    means: Mapping[tuple[str, str], Float[Tensor, "layers d_model"]]
    n_empty: Mapping[str, int]


@dataclass(frozen=True)
class _Answered:
    """A model's prompts and answers by trait, in the order of the questions' rows."""

    prompts: dict[str, list[str]]
    answers: dict[str, list[str]]


def measure(
    names: Sequence[str], questions: Questions, layers: Sequence[int], how: Sampling, store: Store
) -> list[Measured]:
    """What every model gives; one model is in memory at a time, and the judge is asked after all of them.

    Raises:
        Unfinished: judge calls that failed, after all others were scored and stored.
        ValueError: the judge gave a trait no score at all.
    """
    rows = {trait: [row for one in own for row in one.rows(how.n_per_question)] for trait, own in questions.items()}
    answered: list[_Answered] = []
    means: list[dict[tuple[str, str], Tensor]] = []
    for number, name in enumerate(names, 1):
        print(f"[{number} of {len(names)}] {name}", flush=True)
        engine = Engine(name, how.dtype, how.device_map, kind=how.engine)
        answered.append(_sample(engine, rows, questions, how, store))
        engine.release()  # before the same model reads, or the next one starts
        means.append(_means(engine, answered[-1], layers, store))
        del engine
        gc.collect()  # of this model, before the next is loaded
    scores = _scores(answered, rows, questions, store)
    found = []
    for model, (own, activations) in enumerate(zip(answered, means, strict=True)):
        tables = {
            trait: response_table(rows[trait], own.prompts[trait], own.answers[trait], scores[trait][model])
            for trait in questions
        }
        empty = {trait: sum(not answer for answer in own.answers[trait]) for trait in questions}
        found.append(Measured(tables, activations, empty))
    return found


def _sample(
    engine: Engine, rows: Mapping[str, list[PromptRow]], questions: Questions, how: Sampling, store: Store
) -> _Answered:
    """One sampling job of all traits. The random streams are those of `eval.eval_persona`, and so are the answers."""
    prompts = {trait: rendered(engine.tokenizer, own) for trait, own in rows.items()}
    jobs = [(trait, place) for trait, own in rows.items() for place in range(len(own))]
    texts = answers_of(
        engine,
        [prompts[trait][place] for trait, place in jobs],
        [(how.seed, *rows[trait][place].stream) for trait, place in jobs],
        max_tokens=how.max_tokens,
        temperature=next(iter(questions.values()))[0].temperature,
        steerings=[None] * len(jobs),
        store=store,
    )
    answers: dict[str, list[str]] = {trait: [] for trait in rows}
    for (trait, _), text in zip(jobs, texts, strict=True):
        answers[trait].append(text)
    return _Answered(prompts, answers)


def _means(engine: Engine, own: _Answered, layers: Sequence[int], store: Store) -> dict[tuple[str, str], Tensor]:
    """(trait, span) -> (layers, d_model), read with the model where the store does not have it."""
    found = {}
    for trait, prompts in own.prompts.items():
        for span in SPANS:
            answers = own.answers[trait] if span == "response_avg" else [""] * len(prompts)
            found[trait, span] = _mean(engine, prompts, answers, span, layers, store)
    return found


def _mean(
    engine: Engine, prompts: Sequence[str], answers: Sequence[str], span: str, layers: Sequence[int], store: Store
) -> Float[Tensor, "layers d_model"]:
    """The mean over samples of each sample's mean over the span, at each layer; answers without text are left out."""
    pairs = [list(pair) for pair in zip(prompts, answers, strict=True)]
    keys = {
        layer: content_key("mean_activation", **engine.reading_key(), samples=pairs, span=span, layer=layer)
        for layer in layers
    }
    known = store.get_many(list(keys.values()))
    if todo := [layer for layer, key in keys.items() if key not in known]:
        samples = [tokenize_sample(engine.tokenizer, prompt, answer) for prompt, answer in pairs]
        if span == "response_avg":
            samples = [sample for sample in samples if sample.response_len > 0]
        if samples:
            read = mean_activations(engine.model, samples, todo, [span], progress=True)[span]
            mean = read.double().mean(0)  # (todo, d_model)
        else:
            mean = torch.full((len(todo), hidden_size(engine.model)), torch.nan)
        fresh = {keys[layer]: _stored(one) for layer, one in zip(todo, mean, strict=True)}
        store.put_many(fresh, kind="mean_activation", source=engine.name)
        known |= fresh
    return torch.stack([_restored(known[key]) for key in keys.values()])


def _stored(mean: Float[Tensor, " d_model"]) -> list[float | None]:
    """Nine digits, which is all that float32 holds; None for NaN."""
    return [None if np.isnan(value) else float(f"{value:.9g}") for value in mean.float().tolist()]


def _restored(values: Sequence[float | None]) -> Float[Tensor, " d_model"]:
    return torch.tensor([np.nan if value is None else value for value in values], dtype=torch.float32)


def _scores(
    answered: Sequence[_Answered], rows: Mapping[str, list[PromptRow]], questions: Questions, store: Store
) -> dict[str, list[dict[str, list[float | None]]]]:
    """Trait -> for each model the columns of its response table: the trait's and coherence."""
    found: dict[str, list[dict[str, list[float | None]]]] = {}
    failures: list[str] = []
    total = 0
    for trait, own in rows.items():
        items = [
            (row.question, answer) for model in answered for row, answer in zip(own, model.answers[trait], strict=True)
        ]
        columns: dict[str, list[float | None]] = {}
        for column, values, why in _judged(trait, items, questions[trait][0], store):
            columns[column] = values
            failures += why
            total += len(items)
        found[trait] = [
            {name: values[start : start + len(own)] for name, values in columns.items()}
            for start in range(0, len(items), len(own))
        ]
    if failures:
        raise cli.Unfinished(
            f"{failure_line(dict(enumerate(failures)), total)}; nothing is written until all are there"
        )
    _refuse_unscored(found)
    return found


def _judged(
    trait: str, items: Sequence[tuple[str, str]], question: Question, store: Store
) -> Iterator[tuple[str, list[float | None], list[str]]]:
    """(column, scores, why calls failed) by each judge prompt of the trait."""
    for column, template in question.judge_prompts.items():
        words = f"judging {column}" + f" of {trait}'s answers" * (column != trait)
        try:
            yield column, scores_of(question.judge, template, items, store=store, progress=words), []
        except JudgeError as error:
            yield column, error.scores, list(error.failures.values())


def _refuse_unscored(found: Mapping[str, Sequence[Mapping[str, Sequence[Any]]]]) -> None:
    for trait, models in found.items():
        for column in models[0]:
            if all(value is None for model in models for value in model[column]):
                raise ValueError(
                    f"the judge gave no {column} score for any answer to {trait}'s questions; check that --judge_model "
                    "answers the trait's eval_prompt with a number"
                )
