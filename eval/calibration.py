"""The coefficients at which a vector leaves a model coherent, by layer, and what it does there on other questions.

Half of a trait's eval questions find the range by bisection; the other half confirm it: coherence and trait at shares
of the largest coefficient, beside random directions of the same norm, how steerable single samples are, and what other
traits' judges say of the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.calibration_bounds import Arm, Bracket, find_bounds
from eval.finished_answers import Engine, answers_of
from eval.finished_scores import scores_of
from eval.model_utils import Steering
from eval.residual_norm import norms_of
from eval.sweep import Setting, Study, random_seed
from eval.sweep_answers import rendered
from eval.sweep_receipts import Receipts
from eval.token_kl import token_kl
from judge import is_local_judge
from persona_vectors.statistics import Interval, cluster_bootstrap_mean, random_directions
from persona_vectors.steerability import Steerability, steerability
from persona_vectors.store import Store, content_key
from persona_vectors.tokens import tokenize_sample

if TYPE_CHECKING:
    from eval.questions import Question

SHARES = (0.5, 0.75, 1.0)  # of the largest coefficient, on the questions that confirm
N_RANDOM = 3  # directions beside the vector there
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


@dataclass(frozen=True)
class LayerRange:
    """One layer's range, from the questions that find it.

    Attributes:
        norm: mean residual norm over the prompts; vector_norm: of the vector.
        up, down: brackets along and against the vector, in units of `norm`.
        trait: mean trait at the largest coefficient that passed; None where it was not judged.
    """

    layer: int
    norm: float
    vector_norm: float
    up: Bracket
    down: Bracket
    trait: float | None = None

    def coef(self, size: float) -> float:
        """The coefficient that adds `size` mean residual norms, to four digits."""
        return float(f"{size * self.norm / self.vector_norm:.4g}")

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and highest coefficient that passed."""
        return 0.0 - self.coef(self.down.passed), self.coef(self.up.passed)


@dataclass(frozen=True)
class Point:
    """What the judge says of the confirming questions' answers at one coefficient of the vector or a random direction.

    Attributes:
        shifts: other trait -> mean change from the unsteered answers.
    """

    control: str
    coef: float
    trait: Interval
    coherence: Interval
    shifts: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """A vector's ranges, the layer and coefficient taken, and what they do on questions that took no part in that.

    Attributes:
        layer: the one with the highest trait at its largest coefficient; None where no layer has a range.
        coef: the largest share of that coefficient whose coherence is confirmed; None where none is.
        kl: 95th percentile of the tokens' KL at `coef`, on the confirming questions' unsteered answers.
    """

    ranges: list[LayerRange]
    layer: int | None
    coef: float | None
    points: list[Point] = field(default_factory=list)
    steerable: dict[str, Steerability] = field(default_factory=dict)
    kl: float | None = None

    @property
    def chosen(self) -> LayerRange | None:
        return next((one for one in self.ranges if one.layer == self.layer), None)


def calibrate(work: Work, say: Callable[[str], None]) -> Calibration:
    """Finds every layer's range, chooses a layer by the trait reached there, and confirms it on other questions.

    Without a judge the layer is the one whose range is widest in units of the residual norm, and nothing is confirmed
    but the KL.

    Raises:
        ValueError: unsteered answers that are themselves below the coherence asked for.
    """
    prompts = rendered(work.engine.tokenizer, _rows(work, work.questions))
    norms = norms_of(work.engine, work.store, prompts, list(work.vectors))
    arms = [Arm(layer, sign) for layer in work.vectors for sign in (1, -1)]
    if work.limits.criterion == "coherence":
        _check_unsteered(work)
    brackets = find_bounds(arms, lambda sizes: _within(work, norms, sizes, say))
    ranges = [
        LayerRange(layer, norms[layer], float(v.norm()), brackets[Arm(layer, 1)], brackets[Arm(layer, -1)])
        for layer, v in work.vectors.items()
    ]
    usable = [one for one in ranges if one.up.passed]
    if work.judge_model is not None and usable:
        traits = _mean_traits(work, work.questions, [_steering(work, one, one.up.passed) for one in usable])
        reached = dict(zip([one.layer for one in usable], traits, strict=True))
        ranges = [replace(one, trait=reached.get(one.layer)) for one in ranges]
    best = max((one for one in ranges if one.up.passed), key=_merit, default=None)
    if best is None:
        return Calibration(ranges, None, None)
    return _confirmed(work, ranges, best)


def _merit(one: LayerRange) -> float:
    return one.up.passed if one.trait is None else one.trait


def _rows(work: Work, questions: Sequence[Question]) -> list:
    return [row for question in questions for row in question.rows(work.n_per_question)]


def _steering(work: Work, one: LayerRange, size: float) -> Steering:
    return Steering(work.vectors[one.layer], one.layer, one.coef(size))


def _within(
    work: Work, norms: Mapping[int, float], sizes: Mapping[Arm, float], say: Callable[[str], None]
) -> dict[Arm, bool]:
    """Whether each arm stays within the limit at its size; one job for all of them."""
    steerings = []
    for arm, size in sizes.items():
        own = LayerRange(arm.layer, norms[arm.layer], float(work.vectors[arm.layer].norm()), Bracket(), Bracket())
        steerings.append(_steering(work, own, arm.sign * size))
    if work.limits.criterion == "kl":
        values = [_kl(work, work.questions, steering) for steering in steerings]
        passed = [value <= work.limits.max_kl for value in values]
    else:
        values = [mean_coherence(found) for found in _scores(work, work.questions, steerings, "coherence")]
        passed = [value >= work.limits.min_coherence for value in values]
    unit = "nats" if work.limits.criterion == "kl" else "coherence"
    told = (
        f"layer {arm.layer} {'+' if arm.sign > 0 else '-'}{size:.3g}: {value:.3g}{'' if ok else ' (over)'}"
        for (arm, size), value, ok in zip(sizes.items(), values, passed, strict=True)
    )
    say(f"{unit} at sizes of the residual norm: {', '.join(told)}")
    return dict(zip(sizes, passed, strict=True))


def mean_coherence(scores: Float[np.ndarray, " n"]) -> float:
    """The mean, an answer without a score counting as 0: broken text is what a judge cannot score, and without it a
    coefficient would pass by its few good answers."""
    return float(np.nan_to_num(scores, nan=0.0).mean())


def _check_unsteered(work: Work) -> None:
    [found] = _scores(work, work.questions, [None], "coherence")
    mean = mean_coherence(found)
    if not mean >= work.limits.min_coherence:
        raise ValueError(
            f"the unsteered answers have a mean coherence of {mean:.1f}, below {work.limits.min_coherence:g}: no "
            "coefficient can pass; lower --min_coherence, or take --criterion kl"
        )


def _answers(work: Work, questions: Sequence[Question], steerings: Sequence[Steering | None]) -> list[list[str]]:
    """The answers under each steering; one job, after a receipt of each."""
    rows = _rows(work, questions)
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


def _scores(
    work: Work, questions: Sequence[Question], steerings: Sequence[Steering | None], name: str
) -> Float[np.ndarray, "n_steerings n_rows"]:
    """The judge's scores of each steering's answers, NaN where it gave none; `name` may be another trait's."""
    assert work.judge_model is not None
    asked = [row.question for row in _rows(work, questions)]
    items = [item for texts in _answers(work, questions, steerings) for item in zip(asked, texts, strict=True)]
    if is_local_judge(work.judge_model):
        work.engine.release()  # both would want the device's memory
    template = {**work.others, **questions[0].judge_prompts}[name]
    found = scores_of(work.judge_model, template, items, store=work.store)
    scores = np.array([np.nan if score is None else score for score in found]).reshape(len(steerings), -1)
    if np.isnan(scores).all():
        raise ValueError(f"the judge gave no {name} score for any of {scores.size} answers; try another judge")
    return scores


def _mean_traits(work: Work, questions: Sequence[Question], steerings: Sequence[Steering]) -> list[float]:
    return [float(np.nanmean(found)) for found in _scores(work, questions, steerings, work.trait)]


def _kl(work: Work, questions: Sequence[Question], steering: Steering) -> float:
    """The 95th percentile of the tokens' KL, over the unsteered answers' tokens; from the store where known."""
    prompts = rendered(work.engine.tokenizer, _rows(work, questions))
    [texts] = _answers(work, questions, [None])
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


def _confirmed(work: Work, ranges: list[LayerRange], best: LayerRange) -> Calibration:
    """The calibration with the chosen layer's points on the questions that took no part in the choice."""
    sizes = [share * best.up.passed for share in SHARES]
    vector = work.vectors[best.layer]
    kls = {best.coef(size): _kl(work, work.confirming, _steering(work, best, size)) for size in sizes}
    within = [coef for coef, kl in kls.items() if work.limits.criterion == "coherence" or kl <= work.limits.max_kl]
    if work.judge_model is None:
        coef = max(within, default=None)
        return Calibration(ranges, best.layer, coef, kl=kls.get(coef or 0.0))
    directions = {"": vector}
    seed = random_seed(work.seed, work.trait, best.layer, "")
    drawn = random_directions(N_RANDOM, len(vector), best.vector_norm, seed)
    directions |= {f"random{number}": one.clone() for number, one in enumerate(drawn, 1)}
    keys = [("", 0.0)] + [(name, best.coef(size)) for name in directions for size in sizes]
    steerings = [None if not coef else Steering(directions[name], best.layer, coef) for name, coef in keys]
    scored = {name: _scores(work, work.confirming, steerings, name) for name in (work.trait, "coherence", *work.others)}
    clusters = [str(row.question_index) for row in _rows(work, work.confirming)]

    def interval(values: np.ndarray) -> Interval:
        return cluster_bootstrap_mean(values, clusters, seed=work.seed)

    points = [
        Point(
            *key,
            interval(scored[work.trait][i]),
            interval(np.nan_to_num(scored["coherence"][i], nan=0.0)),  # as the limit counts them
            {other: interval(scored[other][i] - scored[other][0]) for other in work.others},
        )
        for i, key in enumerate(keys)
    ]
    coefs = [0.0, *(best.coef(size) for size in sizes)]
    steerable = {
        name: steerability(
            coefs, scored[work.trait][[0, *(i for i, key in enumerate(keys) if i and key[0] == name)]].T, clusters
        )
        for name in directions
    }
    held = [p.coef for p in points if not p.control and p.coef in within and _coherent(p, work.limits)]
    coef = max(held, default=None)
    return Calibration(ranges, best.layer, coef, points, steerable, kls.get(coef or 0.0))


def _coherent(point: Point, limits: Limits) -> bool:
    return limits.criterion == "kl" or point.coherence.mean >= limits.min_coherence
