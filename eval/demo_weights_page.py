"""What the demo says of a direction of weights, in words, and its section of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.analysis_page import Section, Shown
from eval.findings import MAX_COHERENCE_LOSS, SweepPoint, record_of, row_of
from eval.report_study import spread, text_or_missing
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER
from eval.text_table import aligned, counted
from persona_vectors.page_plots import Series, chart
from persona_vectors.statistics import cluster_bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd

    from eval.demo_weights import Weights

COLUMNS = ("coef", "score", "shift", "random shift", "coherence", "random coherence")
OWN, VECTOR = "weights: W + coef * D", "vector, from above: coef * v"
YLIM = (-3, 103)
N_QUESTIONS = 2


@dataclass(frozen=True)
class WeightsPage:
    """The section of the page: what was found, and its parts."""

    trait: str
    verdict: str
    sentences: Sequence[str]
    sections: Sequence[Section]


def shown(found: Weights) -> WeightsPage:
    """The section of the page."""
    return WeightsPage(
        found.trait,
        found.verdict,
        sentences(found),
        [
            Section(
                "The numbers",
                figures=[_curves(found)],
                columns=COLUMNS,
                cells=cells(found),
            ),
            _carried(found.look),
            Section("Answers side by side", samples=_samples(found)),
        ],
    )


def record(found: Weights) -> dict[str, Any]:
    """What was found, as the sidecar holds it."""
    shares = {key: found.look[key] for key in ("norm", "rank", "by_layer", "by_module_type")}
    points = [record_of(point) for point in found.points]
    told = {"verdict": found.verdict, "sentences": sentences(found), "n_steps": found.n_steps}
    return {"trait": found.trait, **told, "points": points, "look": shares}


def cells(found: Weights) -> list[list[str]]:
    """A row a coefficient, under COLUMNS."""
    return [[row_of(point)[name] for name in COLUMNS] for point in found.points]


def table_lines(found: Weights) -> list[str]:
    """The same in aligned columns."""
    return aligned([list(COLUMNS), *cells(found)])


def sentences(found: Weights) -> list[str]:
    """What was found, a statement each."""
    return [_steered(found), *_backwards(found), _beside_the_vector(found), _where(found.look)]


def _steered(found: Weights) -> str:
    point, base = found.reported, found.points[[p.coef for p in found.points].index(0.0)]
    if point is None:
        first = found.upward[1]
        return (
            f"{found.trait}: no effect can be claimed. At {first.coef:g} x the direction of weights coherence goes "
            f"from {base.coherence.mean:.1f} to {first.coherence.mean:.1f}, a loss of more than {MAX_COHERENCE_LOSS:g}."
        )
    opening = {
        "found": "",
        "no shift": "no effect is shown, because the interval does not lie above 0: ",
        "no better than random": "no evidence for the direction, because random directions do as well: ",
    }[found.verdict]
    sizes = np.abs(point.random_shifts)
    random = counted(len(sizes), "random direction")
    return (
        f"{found.trait}: {opening}{point.coef:g} x the direction of weights ({found.n_steps} steps a side) moves the "
        f"judge's score from {base.score.mean:.1f} to {point.score.mean:.1f}, a shift of "
        f"{point.shift.text(sign=True)}; with {random} of the same singular values it is at most "
        f"{sizes.max():.1f}. Coherence goes from {base.coherence.mean:.1f} to {point.coherence.mean:.1f}."
    )


def _backwards(found: Weights) -> list[str]:
    return [
        f"At {point.coef:g} the score shifts by {point.shift.text(sign=True)} and coherence by "
        f"{point.coherence_shift.text(sign=True)}."
        for point in found.points
        if point.coef < 0
    ]


def _beside_the_vector(found: Weights) -> str:
    """Both methods at the largest coefficient at which coherence holds, on the same questions and random streams."""
    own, other = found.reported, found.vector.reported
    if own is None or other is None:
        lacking = "the direction of weights" if own is None else "the vector"
        return f"Beside the vector: nothing to compare, {lacking} keeps coherence at no coefficient."
    ours, theirs = found.tables[own.coef], found.vector_tables[other.coef]
    questions = ours["question"].tolist()
    if theirs["question"].tolist() != questions:
        raise ValueError("the two methods' tables must ask the same questions in the same order; run the demo anew")
    gaps = {
        name: cluster_bootstrap_mean((ours[name] - theirs[name]).tolist(), questions).text(sign=True)
        for name in (found.trait, "coherence")
    }
    return (
        f"Beside the vector on the same questions, each at the largest of its coefficients at which coherence holds: "
        f"weights {own.score.mean:.1f} ({own.coef:g}), vector {other.score.mean:.1f} ({other.coef:g}), a difference "
        f"of {gaps[found.trait]}; coherence {own.coherence.mean:.1f} and {other.coherence.mean:.1f} "
        f"({gaps['coherence']}). "
        "The coefficients have different units and neither grid is fine, so read the curves."
    )


def _where(look: Mapping[str, Any]) -> str:
    told = []
    for key, name in (("by_layer", "layer {}"), ("by_module_type", "{}")):
        group, one = max(look[key].items(), key=lambda item: item[1]["share"])
        told.append(f"{name.format(group)} ({one['share']:.0%}, with {one['share_of_entries']:.0%} of the entries)")
    return f"Of the direction's squared norm most lies in {told[0]}, and by kind of module in {told[1]}."


def _curves(found: Weights) -> Figure:
    """Trait and coherence over the coefficient, and one against the other."""
    panels = []
    for title, x, y in ((found.trait, "coef", "score"), ("coherence", "coef", "coherence"), ("", "coherence", "score")):
        series = [
            Series(f"random direction {k + 1}", *_random_xy(found, k, x, y), look="random")
            for k in range(len(found.upward[-1].random_scores))
        ]
        for name, points, look in ((VECTOR, found.vector.points, "s0"), (OWN, found.points, "s1")):
            xs, ys = ([_mean(point, of) for point in points] for of in (x, y))
            bands = [[getattr(getattr(point, y), end) for point in points] for end in ("low", "high")]
            notes = [f"coef {point.coef:g}" for point in points]
            series.append(Series(name, xs, ys, *(bands if x == "coef" else ()), look=look, notes=notes))
        label = title or f"{found.trait} against coherence"
        xlabel = "coefficient, each of its own" if x == "coef" else "coherence"
        panels.append((label, chart(series, xlabel, title or found.trait, label, ylim=YLIM)))
    return Figure(
        "The direction merged into the weights, the vector added to activations, and random directions of weights with "
        "D's singular values. The same questions and random streams; unsteered answers are coefficient 0 of all.",
        panels,
        [("s1", OWN), ("s0", VECTOR), ("random", "random directions of weights")],
    )


def _mean(point: SweepPoint, of: str) -> float:
    return point.coef if of == "coef" else getattr(point, of).mean


def _random_xy(found: Weights, k: int, x: str, y: str) -> list[list[float]]:
    """Coordinates of the k-th random direction's curve; at 0 it is the unsteered answers."""

    def of(point: SweepPoint, name: str) -> float:
        if name == "coef" or not point.coef:
            return _mean(point, name)
        return float((point.random_scores if name == "score" else point.random_coherences)[k])

    return [[of(point, name) for point in found.points] for name in (x, y)]


def _carried(look: Mapping[str, Any]) -> Section:
    """Which layers and kinds of modules carry the direction."""
    rows = []
    for key, prefix in (("by_layer", "layer "), ("by_module_type", "")):
        for group, one in look[key].items():
            cosine = one["cosine_pos_neg"]
            shares = [f"{one['share']:.1%}", f"{one['share_of_entries']:.1%}"]
            rows.append(
                [prefix + group, *shares, f"{one['effective_rank']:.1f}", "" if cosine is None else f"{cosine:.3f}"]
            )
    said = (
        f"Norm {look['norm']:.3g}, rank {look['rank']} in every module. Cosine: of what the two sides changed; they "
        "begin from the same initialisation, and both learn to answer."
    )
    return Section(
        "Which layers and modules carry it",
        [said],
        columns=["where", "share of norm²", "of the entries", "effective rank", "cosine of pos and neg"],
        cells=rows,
    )


def _samples(found: Weights) -> list[tuple[str, list[Shown]]]:
    """The first answer to a few questions: unsteered, and each method where its coherence still holds."""
    own, other = found.reported or found.upward[1], found.vector.reported
    tables = [("unsteered", found.tables[0.0], "unsteered"), (f"weights, {own.coef:g}", found.tables[own.coef], "")]
    tables.append((f"random direction of weights, {own.coef:g}", found.random_tables[own.coef], "random"))
    if other is not None:
        tables.append((f"vector, {other.coef:g}", found.vector_tables[other.coef], "steered"))
    first = (~found.tables[0.0]["question"].duplicated()).to_numpy().nonzero()[0].tolist()
    return [
        (
            found.tables[0.0]["question"].iloc[row],
            [_shown(name, table, row, css, found.trait) for name, table, css in tables],
        )
        for row in (first[i] for i in spread(len(first), N_QUESTIONS))
    ]


def _shown(name: str, table: pd.DataFrame, row: int, css: str, trait: str) -> Shown:
    own = table.iloc[row]
    note = f"{trait} {text_or_missing(own[trait])}, coherence {text_or_missing(own['coherence'])}"
    return Shown(name, str(own["answer"])[:MAX_ANSWER], note, css)
