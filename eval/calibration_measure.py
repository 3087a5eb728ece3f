"""What a calibration asks again and again: answers under a steering, their scores, and how far their tokens move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.calibration_bounds import LayerRange
from eval.finished_answers import Engine, answers_of
from eval.finished_scores import scores_of
from eval.model_utils import Steering
from eval.sweep import Setting, Study
from eval.sweep_answers import rendered
from eval.sweep_receipts import Receipts
from eval.token_kl import token_kl
from judge import is_local_judge
from persona_vectors.store import Store, content_key
from persona_vectors.tokens import tokenize_sample

if TYPE_CHECKING:
    from eval.questions import Question

PERCENTILE = 95.0  # of the tokens' KL


@dataclass(frozen=True)
class Limits:
    """What a coefficient must leave: mean coherence of at least `min_coherence` (no score counts as 0),
    or the 95th percentile of the tokens' KL to the unsteered model of at most `max_kl` nats."""

    criterion: Literal["coherence", "kl"]
    min_coherence: float = 75.0
    max_kl: float = 1.0


@dataclass(frozen=True, eq=False)
class Work:
    """What a calibration needs at every step.

    Attributes:
        judge_model: None where nothing is judged.
        others: other traits' judge prompts, for crosstalk.
    """

    engine: Engine
    store: Store
    vectors: Mapping[int, Float[Tensor, " d_model"]]
    questions: Sequence[Question]
    confirming: Sequence[Question]
    judge_model: str | None
    limits: Limits
    n_per_question: int
    max_tokens: int
    seed: int
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def trait(self) -> str:
        return next(iter(self.questions[0].judge_prompts))


def rows_of(work: Work, questions: Sequence[Question]) -> list:
    return [row for question in questions for row in question.rows(work.n_per_question)]


def steering_of(work: Work, one: LayerRange, size: float) -> Steering:
    return Steering(work.vectors[one.layer], one.layer, one.coef(size))


def mean_coherence(scores: Float[np.ndarray, " n"]) -> float:
    """The mean, an answer without a score counting as 0: broken text is what a judge cannot score, and without it a
    coefficient would pass by its few good answers."""
    return float(np.nan_to_num(scores, nan=0.0).mean())


def answered(work: Work, questions: Sequence[Question], steerings: Sequence[Steering | None]) -> list[list[str]]:
    """The answers under each steering; one job, after a receipt of each."""
    rows = rows_of(work, questions)
    settings = [Setting(one.coef, one.layer, steering=one) for one in steerings if one is not None]
    receipts = Receipts(work.engine, work.store, [Study(work.trait, Path(), list(questions), settings)])

    def measure() -> None:
        receipts.take()

    texts = answers_of(
        work.engine,
        rendered(work.engine.tokenizer, rows) * len(steerings),
        [(work.seed, *row.stream) for row in rows] * len(steerings),
        max_tokens=work.max_tokens,
        temperature=questions[0].temperature,
        steerings=[steering for steering in steerings for _ in rows],
        store=work.store,
        progress=False,
        before_sampling=measure,
    )
    return [texts[i * len(rows) : (i + 1) * len(rows)] for i in range(len(steerings))]


def judged(
    work: Work, questions: Sequence[Question], steerings: Sequence[Steering | None], name: str
) -> Float[np.ndarray, "n_steerings n_rows"]:
    """The judge's scores of each steering's answers, NaN where it gave none; `name` may be another trait's."""
    assert work.judge_model is not None
    asked = [row.question for row in rows_of(work, questions)]
    items = [item for texts in answered(work, questions, steerings) for item in zip(asked, texts, strict=True)]
    if is_local_judge(work.judge_model):
        work.engine.release()  # both would want the device's memory
    template = {**work.others, **questions[0].judge_prompts}[name]
    found = scores_of(work.judge_model, template, items, store=work.store)
    scores = np.array([np.nan if score is None else score for score in found]).reshape(len(steerings), -1)
    if np.isnan(scores).all():
        raise ValueError(f"the judge gave no {name} score for any of {scores.size} answers; try another judge")
    return scores


def kl_percentile(work: Work, questions: Sequence[Question], steering: Steering) -> float:
    """The 95th percentile of the tokens' KL, over the unsteered answers' tokens; from the store where known."""
    prompts = rendered(work.engine.tokenizer, rows_of(work, questions))
    [texts] = answered(work, questions, [None])
    key = content_key("token_kl", **work.engine.reading_key(), steering=steering.key(), prompts=prompts, texts=texts)
    if key in (known := work.store.get_many([key])):
        return known[key]
    tokenizer = work.engine.tokenizer
    samples = [tokenize_sample(tokenizer, prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text]
    if not samples:
        raise ValueError("every unsteered answer is empty, so there are no tokens to compare")
    value = float(np.percentile(torch.cat(token_kl(work.engine.model, samples, steering)).numpy(), PERCENTILE))
    work.store.put_many({key: value}, kind="token_kl", source=work.engine.name)
    return value
