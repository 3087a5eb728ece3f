"""The figures of a results page: a study in, SVG panels with their caption and legend out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.page import visible
from eval.report_inputs import PROJECTION, Vectors
from eval.report_study import MIN_COHERENCE, Curve, Shown, Study, place, spread, vector_name
from eval.text_table import counted
from persona_vectors.page_plots import LOOKS, Series, boxes, chart
from persona_vectors.statistics import Interval

MAX_LINES = len(LOOKS)
MAX_BOXES = 60


@dataclass(frozen=True)
class Figure:
    """Panels of SVG under one caption, and the legend that they share: (look, name)."""

    caption: str
    panels: list[tuple[str, str]]
    legend: list[tuple[str, str]]


def _line(name: str, settings: Sequence[Shown], of: str, look: str, **options: Any) -> Series:
    """Settings by coefficient; `of` is score or coherence."""
    intervals: list[Interval] = [getattr(one, of) for one in settings]
    return Series(
        visible(name),
        [one.coef if one.coef is not None else math.nan for one in settings],
        [interval.mean for interval in intervals],
        [interval.low for interval in intervals],
        [interval.high for interval in intervals],
        look,
        [f"95% {interval.text()}, {interval.n} answers" for interval in intervals],
        **options,
    )


def steering_figure(study: Study, curve: Curve) -> Figure | None:
    """Trait and coherence against the coefficient, beside random directions and the system prompt."""
    panels = []
    coefs = [one.coef for one in curve.points if one.coef is not None]
    prompts = study.of_kind("prompt")
    for title, of in ((f"{study.trait} score", "score"), ("coherence", "coherence")):
        series = []
        if curve.randoms:
            series.append(_random_line(curve, of))
        series += [_level(one, of, min(coefs), max(coefs), "prompt") for one in prompts]
        series.append(_line(curve.name(), curve.points, of, "s0"))
        if any(math.isfinite(value) for one in series for value in one.ys):
            label = visible(f"{title} against the steering coefficient: {curve.name()}")
            panels.append((title, chart(series, "steering coefficient", title, label, ylim=(-4, 104))))
    if not panels:
        return None
    legend = [("s0", f"the {'direction' if curve.layer is None else 'vector'}, 95% interval")]
    if curve.randoms:
        legend.append(("random", f"{counted(len(curve.randoms), 'random direction')}: mean, lowest to highest"))
    legend += [("prompt", "system prompt instead of steering")] * bool(prompts)
    return Figure(curve.name(), panels, legend)


def _random_line(curve: Curve, of: str) -> Series:
    """Mean over the random directions with their lowest and highest, by coefficient; unsteered, all are the same."""
    by_coef: dict[float, list[float]] = {}
    for one in [setting for settings in curve.randoms.values() for setting in settings] + curve.points:
        if one.coef is not None and (one.kind == "random" or not one.coef):
            by_coef.setdefault(one.coef, []).append(getattr(one, of).mean)
    coefs = sorted(coef for coef, means in by_coef.items() if np.isfinite(means).any())
    means = [np.array(by_coef[coef])[np.isfinite(by_coef[coef])] for coef in coefs]
    return Series(
        "random directions",
        coefs,
        [float(one.mean()) for one in means],
        [float(one.min()) for one in means],
        [float(one.max()) for one in means],
        "random",
        [f"{one.min():.1f} to {one.max():.1f}" for one in means],
    )


def _level(one: Shown, of: str, low: float, high: float, look: str) -> Series:
    """A setting without a coefficient, as a level line over the whole axis."""
    interval: Interval = getattr(one, of)
    both = [interval.mean] * 2
    return Series(one.name(), [low, high], both, (), (), look, [interval.text()] * 2)


def frontier_figure(study: Study, curves: Sequence[Curve]) -> Figure | None:
    """Trait against coherence, a line a vector and layer from the unsteered answers on."""
    shown = sorted(curves, key=lambda one: -max((p.score.mean for p in one.points if p.score.n), default=-1))
    series, legend = [], []

    def add(name: str, settings: Sequence[Shown], look: str, *, line: bool) -> None:
        scored = [one for one in settings if one.score.n and one.coherence.n]
        if scored:
            xs, ys = [one.coherence.mean for one in scored], [one.score.mean for one in scored]
            notes = [visible(one.name()) for one in scored]
            series.append(Series(visible(name), xs, ys, (), (), look, notes, line))
            legend.append((look, name))

    add("random directions", study.of_kind("random"), "random", line=False)
    for look, curve in zip(LOOKS, shown, strict=False):
        add(curve.name(), curve.points, look, line=True)
    add("system prompt", study.of_kind("prompt"), "prompt", line=False)
    add("unsteered", study.of_kind("unsteered"), "base", line=False)
    if not curves or not series:
        return None
    left_out = len(shown) - MAX_LINES
    caption = (
        f"{study.trait} against coherence: further up is more of the trait, further right is better text. Lines go "
        "through the coefficients from the unsteered answers on."
    )
    caption += f" The {MAX_LINES} that reach highest; {left_out} more are in the table." if left_out > 0 else ""
    marks = [(MIN_COHERENCE, f"{MIN_COHERENCE:g}")]
    label = visible(f"{study.trait} against coherence")
    left = min([70.0, *(x - 4 for one in series for x in one.xs)])
    svg = chart(series, "coherence", study.trait, label, xlim=(left, 102), ylim=(-4, 104), marks=marks)
    return Figure(caption, [("", svg)], legend)


def layer_figures(study: Study, curves: Sequence[Curve]) -> list[Figure]:
    """For each vector steered at several layers, the trait's score against the layer, a line a coefficient."""
    figures = []
    for vector in dict.fromkeys(curve.vector for curve in curves):
        own = [curve for curve in curves if curve.vector == vector and curve.layer is not None and not curve.pole]
        if len(own) < 2:
            continue
        coefs = sorted({point.coef for curve in own for point in curve.points if point.coef})
        picked = [coefs[i] for i in spread(len(coefs), MAX_LINES)]
        panels, legend = [], [(look, f"coef {coef:g}") for look, coef in zip(LOOKS, picked, strict=False)]
        for title, of in ((f"{study.trait} score", "score"), ("coherence", "coherence")):
            series = [_by_layer(own, coef, of, look) for look, coef in zip(LOOKS, picked, strict=False)]
            base = study.of_kind("unsteered")
            layers = [curve.layer for curve in own if curve.layer is not None]
            series = [_level(one, of, min(layers), max(layers), "base") for one in base] + series
            if any(math.isfinite(y) for one in series for y in one.ys):
                label = visible(f"{title} against the layer: {vector_name(vector)}")
                panels.append((title, chart(series, "layer", title, label, ylim=(-4, 104), whole_x=True)))
        legend += [("base", "unsteered")] * bool(study.of_kind("unsteered"))
        if panels:
            figures.append(Figure(f"{vector_name(vector)} by the layer it is added at", panels, legend))
    return figures


def _by_layer(curves: Sequence[Curve], coef: float, of: str, look: str) -> Series:
    points = [(curve.layer or 0, point) for curve in curves for point in curve.points if point.coef == coef]
    intervals: list[Interval] = [getattr(point, of) for _, point in points]
    columns = ([i.mean for i in intervals], [i.low for i in intervals], [i.high for i in intervals])
    return Series(f"coef {coef:g}", [layer for layer, _ in points], *columns, look, [i.text() for i in intervals])


def projection_figures(study: Study) -> list[Figure]:
    """A figure a projection column: its distribution under every setting that has it."""
    figures = []
    for column in dict.fromkeys(column for table in study.tables for column in table.projections):
        groups: dict[tuple[str, str], list[np.ndarray]] = {}
        for one in study.settings:
            if column in one.rows:
                random = one.kind == "random"
                name = f"random directions{place(one.layer)}, coef {one.coef or 0:g}" if random else one.name()
                look = {"random": "random", "prompt": "prompt", "unsteered": "base"}.get(one.kind, "s0")
                groups.setdefault((name, look), []).append(one.rows[column].to_numpy(dtype=float))
        figure = _boxes(column, {key: np.concatenate(parts) for key, parts in groups.items()})
        figures += [figure] if figure else []
    return figures


def projected_figures(columns: dict[str, np.ndarray]) -> list[Figure]:
    figures = [_boxes(column, {("all rows", "s0"): values}) for column, values in columns.items()]
    return [figure for figure in figures if figure]


def _boxes(column: str, groups: dict[tuple[str, str], np.ndarray]) -> Figure | None:
    drawn = [(visible(name), look, v[np.isfinite(v)]) for (name, look), v in groups.items() if np.isfinite(v).any()]
    if not drawn:
        return None
    match = PROJECTION.fullmatch(column)
    kind = match["kind"] if match else column
    what = {
        "proj": "mean of the answer's activations on the unit vector",
        "prompt_last_proj": "last token of the prompt on the unit vector",
        "cos_sim": "cosine of the answer's mean activation with the vector",
    }.get(kind, column)
    caption = f"{column}: {what}. Box: middle half with the median; line: 5th to 95th percentile."
    if len(drawn) > MAX_BOXES:
        caption += f" The first {MAX_BOXES} of {len(drawn)} settings."
    n_missing = sum(int((~np.isfinite(values)).sum()) for values in groups.values())
    caption += f" {n_missing} rows have none." if n_missing else ""
    return Figure(caption, [("", boxes(drawn[:MAX_BOXES], kind, visible(column)))], [])


def norm_figures(files: Sequence[Vectors]) -> list[Figure]:
    """Norm by layer, up to five vector files a figure, files of one trait together."""
    figures, vectors = [], sorted(files, key=lambda one: (str(one.sidecar.get("trait")), one.name))
    for start in range(0, len(vectors), MAX_LINES):
        group = list(zip(LOOKS, vectors[start : start + MAX_LINES], strict=False))
        series = [Series(visible(one.name), range(len(one.norms)), one.norms, (), (), look) for look, one in group]
        top = 1.05 * max(float(one.norms.max()) for _, one in group) or 1.0
        svg = chart(series, "layer", "norm", "norm of the vectors by layer", ylim=(0, top), whole_x=True)
        figures.append(Figure("", [("", svg)], [(look, Path(one.name).name) for look, one in group]))
    return figures


def quality_layers(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a quality report, one a layer."""
    layers = report.get("layers")
    return [row for row in layers if isinstance(row, dict)] if isinstance(layers, list) else []


def quality_figure(report: dict[str, Any]) -> Figure | None:
    """Split-half cosine and held-out AUC by layer, with the AUC of random directions beside it."""
    rows = quality_layers(report)
    xs = _column(rows, "layer")
    series, legend = [], []
    for name, look, text in (
        ("auc_random", "random", "AUC of random directions"),
        ("split_half_corrected", "s1", "split-half cosine (Spearman-Brown)"),
        ("auc", "s0", "AUC on held-out questions, 95% interval"),
    ):
        ys = _column(rows, name)
        if np.isfinite(ys).any():
            around = (_column(rows, "auc_low"), _column(rows, "auc_high")) if name == "auc" else ((), ())
            series.append(Series(text, xs, ys, *around, look))
            legend.append((look, text))
    if not series or not np.isfinite(xs).any():
        return None
    low = min([0.0, *(float(np.nanmin(one.ys)) for one in series)])
    label = "quality of the vectors by layer"
    svg = chart(series, "layer", "cosine or AUC", label, ylim=(low - 0.03, 1.03), whole_x=True)
    return Figure("How well the direction repeats itself and separates unseen answers, by layer", [("", svg)], legend)


def _column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    values = [row.get(name) for row in rows]
    return np.array([float(v) if isinstance(v, (int, float)) else np.nan for v in values])
