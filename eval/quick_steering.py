"""Do the directions that separate best also steer best? Each method's direction at one layer, all of one norm, by the
same coefficients, beside random directions; trait at matched coherence on questions that chose no coefficient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from eval.analysis_page import Section
from eval.page import visible
from eval.questions import load_persona_questions
from eval.quick_extract import Asked, Plan, Reading
from eval.results_figures import Figure
from eval.select_layer_answers import Scored, score_settings
from eval.select_layer_choice import Halves, Scores, Value, difference, question_sums, split_questions, value_of
from eval.select_layer_settings import Place, Setting
from eval.sweep import random_seed
from eval.text_table import aligned
from judge import JudgeOptions
from persona_vectors.directions import METHODS
from persona_vectors.files import write_csv_atomic, write_sidecar
from persona_vectors.page_plots import LOOKS, Series, chart
from persona_vectors.statistics import Interval, cluster_bootstrap_mean, random_directions

MIN_COHERENCE = 75.0
N_RANDOM = 4
N_PER_QUESTION = 2
COLUMNS = ("direction", "coef", "trait [95%]", "coherence [95%]", "minus the best random [95%]")


@dataclass(frozen=True, eq=False)
class SteeringComparison:
    """What each direction did.

    Attributes:
        n_shared: questions that also made the directions, of a trait file without eval questions of its own.
        values: unsteered, each method, each random direction, at its own best coefficient.
        behind: method -> its trait minus that of the best random direction, paired by question and random stream.
    """

    layer: int
    norm: float
    n_shared: int
    scored: Scored
    scores: Scores
    halves: Halves
    values: dict[str, Value]
    behind: dict[str, Interval]

    @property
    def best_random(self) -> Value:
        own = [value for name, value in self.values.items() if name.startswith("random") and value.setting is not None]
        return max(own, key=lambda value: value.trait.mean, default=self.values["unsteered"])


def check_coefs(asked: Asked) -> list[float]:
    """The coefficients, lowest first; a ValueError where one pushes nowhere."""
    coefs = sorted(float(coef) for coef in asked.coefs)
    if not coefs or not all(np.isfinite(coef) and coef > 0 for coef in coefs) or len(set(coefs)) < len(coefs):
        raise ValueError(f"--coefs must be above 0 and different; got {' '.join(f'{coef:g}' for coef in coefs)}")
    return coefs


def compare(
    asked: Asked, work: Plan, reading: Reading, layer: int, vectors: Mapping[str, Float[np.ndarray, " d_model"]]
) -> SteeringComparison:
    """Samples and judges answers to the trait's eval questions under every direction and coefficient.

    Args:
        vectors: method -> direction at `layer`; all have the same norm.

    Raises:
        cli.Unfinished: judge calls that failed.
        ValueError: too few eval questions to choose on one half and report on the other.
    """
    assert asked.judge_model is not None
    questions = load_persona_questions(
        reading.plan.given, 1.0, judge_model=asked.judge_model, version="eval", model=asked.model_name
    )
    shared = {one.paraphrases[0] for one in questions} & set(reading.plan.questions)
    norm = float(np.linalg.norm(next(iter(vectors.values()))))
    random = random_directions(N_RANDOM, reading.pos.shape[-1], norm, random_seed(asked.seed, reading.name, layer, ""))
    directions = {name: torch.from_numpy(vector).float() for name, vector in vectors.items()}
    directions |= {f"random{k}": one.clone() for k, one in enumerate(random, start=1)}
    settings = [Setting(Place("unsteered"), 0.0, None)]
    settings += _settings(directions, layer, check_coefs(asked))
    scored = score_settings(
        work.engine,
        questions,
        settings,
        n_per_question=N_PER_QUESTION,
        max_tokens=asked.max_tokens,
        seed=asked.seed,
        options=JudgeOptions(),
    )
    return _compared(scored, layer, norm, asked.seed, len(shared))


def _settings(directions: Mapping[str, torch.Tensor], layer: int, coefs: Sequence[float]) -> list[Setting]:
    from eval.model_utils import Steering

    return [
        Setting(Place("layer", layer, name), coef, Steering(vector, layer, coef))
        for name, vector in directions.items()
        for coef in coefs
    ]


def _compared(scored: Scored, layer: int, norm: float, seed: int, n_shared: int) -> SteeringComparison:
    scores = Scores(scored.settings, scored.trait, scored.coherence, scored.questions)
    halves, sums = split_questions(scored.questions, seed), question_sums(scores)
    values = {
        place.control or "unsteered": value_of(scores, sums, place, halves, MIN_COHERENCE) for place in scores.places
    }
    found = SteeringComparison(layer, norm, n_shared, scored, scores, halves, values, {})
    rival = found.best_random
    behind = {name: difference(scores, value, rival, halves) for name, value in values.items() if name in METHODS}
    return replace(found, behind=behind)


def cells(found: SteeringComparison) -> list[list[str]]:
    """A row a method, then the best random direction, then unsteered."""
    shown = {name: value for name, value in found.values.items() if name in METHODS}
    shown |= {"best of random": found.best_random, "unsteered": found.values["unsteered"]}
    rows = []
    for name, value in shown.items():
        coef = "-" if name == "unsteered" or value.coef is None else f"{value.coef:g}"
        trait, coherence = (
            ("not coherent", "") if value.setting is None else (value.trait.text(), value.coherence.text())
        )
        behind = found.behind[name].text(sign=True) if name in found.behind and value.setting is not None else ""
        rows.append([name, coef, trait, coherence, behind])
    return rows


def sentences(found: SteeringComparison, trait: str) -> list[str]:
    """What was done, and which directions beat random ones."""
    n_choose, n_report = len(found.halves.choose_questions), len(found.halves.report_questions)
    shared = f"; {found.n_shared} of the questions also made the directions" if found.n_shared else ""
    beating = [name for name, interval in found.behind.items() if interval.low > 0]
    return [
        f"{trait}: directions of norm {found.norm:.3g} added at layer {found.layer}; each takes the coefficient with "
        f"the most {trait} at coherence >= {MIN_COHERENCE:g} on {n_choose} questions, and the numbers are of the "
        f"{n_report} others{shared}",
        f"above the best of {N_RANDOM} random directions with its whole interval: {', '.join(beating) or 'none'}",
    ]


def lines(found: SteeringComparison, trait: str) -> list[str]:
    """The table as text."""
    said = sentences(found, trait)
    return [said[0], *aligned([list(COLUMNS), *cells(found)]), said[1]]


def write_steering(asked: Asked, reading: Reading, found: SteeringComparison) -> list[Path]:
    """`<base>_methods_steering.csv`, a row a direction and coefficient over all questions, and the answers behind it.

    `<base>_steering.csv` is the table of persona_steering.py.
    """
    base = reading.plan.base
    rows = []
    for number, setting in enumerate(found.scored.settings):
        trait, coherence = (
            cluster_bootstrap_mean(scores[number], found.scored.questions)
            for scores in (found.scored.trait, found.scored.coherence)
        )
        name = setting.place.control or "unsteered"
        row = {"direction": name, "layer": setting.place.layer, "coef": setting.coef, reading.name: trait.mean}
        row |= {f"{reading.name}_low": trait.low, f"{reading.name}_high": trait.high, "coherence": coherence.mean}
        rows.append({**row, "chosen": found.values[name].setting == number})
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    told = {"kind": "steering by methods of extraction", "trait": reading.name, "arguments": vars(asked)}
    told |= {"said": sentences(found, reading.name), "norm": found.norm, "min_coherence": MIN_COHERENCE}
    told |= {"receipts": found.scored.receipts}
    written = []
    for ending, own in (("", table), ("_answers", found.scored.table(reading.name))):
        written.append(write_csv_atomic(own, base.with_name(f"{base.name}_methods_steering{ending}.csv")))
        write_sidecar(written[-1], told)
    return written


def section(found: SteeringComparison, trait: str) -> Section:
    """Table and curves on the page."""
    panels = [(name, _curves(found, name, scores)) for name, scores in _kinds(found, trait).items()]
    methods = [name for name in found.values if name in METHODS]
    legend = [*zip(LOOKS, methods, strict=False), ("random", f"{N_RANDOM} random directions: mean, lowest to highest")]
    figure = Figure("All questions. Coefficient 0 is unsteered.", panels, legend)
    return Section(
        "Which direction steers",
        sentences=[f"{text}." for text in sentences(found, trait)],
        figures=[figure],
        columns=COLUMNS,
        cells=cells(found),
    )


def _kinds(found: SteeringComparison, trait: str) -> dict[str, np.ndarray]:
    return {trait: found.scored.trait, "coherence": found.scored.coherence}


def _curves(found: SteeringComparison, name: str, scores: np.ndarray) -> str:
    """One score over the coefficient, a line a method."""
    means = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in scores])
    unsteered = means[0]
    by_direction: dict[str, list[tuple[float, float]]] = {}
    for setting, mean in zip(found.scored.settings[1:], means[1:], strict=True):
        by_direction.setdefault(setting.place.control, [(0.0, float(unsteered))]).append((setting.coef, float(mean)))
    random = np.array([points for control, points in by_direction.items() if control.startswith("random")])
    coefs, heights = random[0, :, 0], random[:, :, 1]
    series = [Series("random directions", coefs, heights.mean(0), heights.min(0), heights.max(0), "random")]
    for look, control in zip(LOOKS, (one for one in by_direction if one in METHODS), strict=False):
        xs, ys = zip(*by_direction[control], strict=True)
        series.append(Series(control, xs, ys, look=look))
    return chart(series, "coefficient", name, visible(f"{name} over the coefficient"), ylim=(-4, 104))
