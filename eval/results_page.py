"""The page of any results: figures, tables and answers of every study found, as one HTML file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.page import environment, visible
from eval.report_inputs import PROJECTION, Inputs
from eval.report_study import MIN_COHERENCE, Curve, Shown, Study, side_by_side, studies, text_or_missing, vector_name
from persona_vectors.page_plots import LOOKS, Series, boxes, chart, swatch
from persona_vectors.statistics import Interval

TEMPLATE = "results.html.j2"
MAX_ANSWER = 2000  # characters of an answer on the page
MAX_TEXT = 2_000_000  # characters of all answers on the page
MAX_QUESTIONS, MAX_SAMPLES = 12, 2
MAX_LINES = len(LOOKS)


@dataclass(frozen=True)
class Figure:
    """Panels of SVG under one caption, and the legend that they share: (look, name)."""

    caption: str
    panels: list[tuple[str, str]]
    legend: list[tuple[str, str]]


def render_results(inputs: Inputs, title: str, provenance: Sequence[tuple[str, str]]) -> str:
    """The page as HTML."""
    found = studies(inputs.tables)
    budget = MAX_TEXT // max(1, len(found))
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            title=title,
            studies=[_study(study, budget) for study in found],
            norms=_norms(inputs),
            vectors=[_vector_row(vectors) for vectors in inputs.vectors],
            qualities=[(name, _quality_figure(report), flat(report)) for name, report in inputs.qualities],
            projected=[(one.name, _projected(one.columns)) for one in inputs.projected],
            skipped=inputs.skipped,
            provenance=provenance,
            min_coherence=MIN_COHERENCE,
            swatch=swatch,
        )
    )


def _study(study: Study, budget: int) -> dict[str, Any]:
    """What the template shows of a study."""
    curves = study.curves()
    return {
        "study": study,
        "notes": study.notes,
        "sentences": _sentences(study),
        "curves": [_curve_figure(study, curve) for curve in curves],
        "frontier": _frontier_figure(study, curves),
        "layers": _layer_figures(study, curves),
        "rows": _rows(study),
        "projections": _projections(study),
        "answers": _answers(study, budget),
        "files": [_file(table) for table in study.tables],
    }


def _sentences(study: Study) -> list[str]:
    """The best of each kind at the coherence asked for, in plain words."""
    if not study.of_kind("steered", "random"):
        return []
    best, found = study.frontier(), []
    for kind, start in (
        ("steered", f"Highest {study.trait} at coherence of at least {MIN_COHERENCE:g}"),
        ("random", "The same of random directions"),
        ("unsteered", "Unsteered"),
        ("prompt", "System prompt"),
    ):
        if kind in best:
            one = best[kind]
            where = f", by {one.name()}" if kind in ("steered", "random") else ""
            found.append(f"{start}: {one.score.text()}{where} (coherence {one.coherence.text()}).")
        elif kind == "steered":
            found.append(f"No steered setting has a {study.trait} score at coherence of at least {MIN_COHERENCE:g}.")
    return found


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


def _curve_figure(study: Study, curve: Curve) -> Figure | None:
    """Trait and coherence against the coefficient, beside random directions and the system prompt."""
    panels = []
    coefs = [one.coef for one in curve.points if one.coef is not None]
    prompts = study.of_kind("prompt")
    for title, of in ((f"{study.trait} score", "score"), ("coherence", "coherence")):
        series = []
        if curve.randoms:
            series.append(_random_line(curve, of))
        series += [_level(one, of, min(coefs), max(coefs)) for one in prompts]
        series.append(_line(curve.name(), curve.points, of, "s0"))
        if any(math.isfinite(value) for one in series for value in one.ys):
            label = visible(f"{title} against the steering coefficient: {curve.name()}")
            panels.append((title, chart(series, "steering coefficient", title, label, ylim=(-4, 104))))
    if not panels:
        return None
    legend = [("s0", "the vector, 95% interval")]
    if curve.randoms:
        legend.append(("random", f"{len(curve.randoms)} random directions: mean, lowest to highest"))
    legend += [("prompt", "system prompt instead of steering")] * bool(prompts)
    return Figure(curve.name(), panels, legend)


def _random_line(curve: Curve, of: str) -> Series:
    """Mean over the random directions with their lowest and highest, by coefficient; unsteered they are all the same."""
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


def _level(one: Shown, of: str, low: float, high: float) -> Series:
    """A setting without a coefficient, as a level line over the whole axis."""
    interval: Interval = getattr(one, of)
    both = [interval.mean] * 2
    return Series(one.name(), [low, high], both, (), (), "prompt", [interval.text()] * 2)


def _frontier_figure(study: Study, curves: Sequence[Curve]) -> Figure | None:
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
    svg = chart(series, "coherence", study.trait, label, xlim=(-4, 104), ylim=(-4, 104), marks=marks)
    return Figure(caption, [("", svg)], legend)


def _layer_figures(study: Study, curves: Sequence[Curve]) -> list[Figure]:
    """For each vector steered at several layers, the trait's score against the layer, a line a coefficient."""
    figures = []
    for vector in dict.fromkeys(curve.vector for curve in curves):
        own = [curve for curve in curves if curve.vector == vector and curve.layer is not None and not curve.pole]
        if len(own) < 2:
            continue
        coefs = sorted({point.coef for curve in own for point in curve.points if point.coef})
        picked = sorted({coefs[i] for i in np.linspace(0, len(coefs) - 1, min(MAX_LINES, len(coefs))).round().astype(int)})
        panels, legend = [], [(look, f"coef {coef:g}") for look, coef in zip(LOOKS, picked, strict=False)]
        for title, of in ((f"{study.trait} score", "score"), ("coherence", "coherence")):
            series = [_by_layer(own, coef, of, look) for look, coef in zip(LOOKS, picked, strict=False)]
            base = study.of_kind("unsteered")
            layers = [curve.layer for curve in own if curve.layer is not None]
            series = [_level(one, of, min(layers), max(layers)) for one in base] + series
            if any(math.isfinite(y) for one in series for y in one.ys):
                label = visible(f"{title} against the layer: {vector_name(vector)}")
                panels.append((title, chart(series, "layer", title, label, ylim=(-4, 104), whole_x=True)))
        legend += [("prompt", "unsteered")] * bool(study.of_kind("unsteered"))
        if panels:
            figures.append(Figure(f"{vector_name(vector)} by the layer it is added at", panels, legend))
    return figures


def _by_layer(curves: Sequence[Curve], coef: float, of: str, look: str) -> Series:
    points = [(curve.layer or 0, point) for curve in curves for point in curve.points if point.coef == coef]
    intervals: list[Interval] = [getattr(point, of) for _, point in points]
    columns = ([i.mean for i in intervals], [i.low for i in intervals], [i.high for i in intervals])
    return Series(f"coef {coef:g}", [layer for layer, _ in points], *columns, look, [i.text() for i in intervals])


def _rows(study: Study) -> list[dict[str, str]]:
    """A row a setting; the random directions of one layer and coefficient are one row."""
    rows, randoms = [], {}
    for one in study.settings:
        if one.kind == "random":
            randoms.setdefault((one.layer, one.coef, one.matched), []).append(one)
        else:
            rows.append(_row(one.name(), [one], one.score.text(), one.coherence.text()))
    for (layer, coef, matched), group in sorted(randoms.items(), key=lambda item: str(item[0])):
        like = f" with the norm of {vector_name(matched)}" if matched else ""
        name = f"{len(group)} random directions{like}, layer {layer}, coef {coef or 0:g}"
        rows.append(_row(name, group, *(_range([getattr(one, of).mean for one in group]) for of in _OF)))
    return rows


_OF = ("score", "coherence")


def _row(name: str, settings: Sequence[Shown], score: str, coherence: str) -> dict[str, str]:
    scored, total = sum(one.score.n for one in settings), sum(len(one.rows) for one in settings)
    questions = max(one.score.n_clusters for one in settings)
    texts = {"name": name, "score": score, "coherence": coherence, "scored": f"{scored} of {total}"}
    return {**texts, "questions": str(questions), "short": "short" if scored < total else ""}


def _range(means: Sequence[float]) -> str:
    there = [mean for mean in means if math.isfinite(mean)]
    if not there:
        return "not scored"
    return f"{np.mean(there):.1f} ({min(there):.1f} to {max(there):.1f})"


def _projections(study: Study) -> list[Figure]:
    """A figure a projection column: its distribution under every setting that has it."""
    figures = []
    for column in dict.fromkeys(column for table in study.tables for column in table.projections):
        groups: dict[tuple[str, str], list[np.ndarray]] = {}
        for one in study.settings:
            if column in one.rows:
                random = one.kind == "random"
                name = f"random directions, layer {one.layer}, coef {one.coef or 0:g}" if random else one.name()
                look = {"random": "random", "prompt": "prompt", "unsteered": "base"}.get(one.kind, "s0")
                groups.setdefault((name, look), []).append(one.rows[column].to_numpy(dtype=float))
        figure = _boxes(column, {key: np.concatenate(parts) for key, parts in groups.items()})
        figures += [figure] if figure else []
    return figures


def _projected(columns: dict[str, np.ndarray]) -> list[Figure]:
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
    n_missing = sum(int((~np.isfinite(values)).sum()) for values in groups.values())
    caption += f" {n_missing} rows have none." if n_missing else ""
    return Figure(caption, [("", boxes(drawn, kind, visible(column)))], [])


def _norms(inputs: Inputs) -> list[Figure]:
    """Norm by layer, up to five vector files a figure, files of one trait together."""
    figures, vectors = [], sorted(inputs.vectors, key=lambda one: (str(one.sidecar.get("trait")), one.name))
    for start in range(0, len(vectors), MAX_LINES):
        group = list(zip(LOOKS, vectors[start : start + MAX_LINES], strict=False))
        series = [Series(visible(one.name), range(len(one.norms)), one.norms, (), (), look) for look, one in group]
        svg = chart(series, "layer", "norm", "norm of the vectors by layer", whole_x=True)
        figures.append(Figure("", [("", svg)], [(look, Path(one.name).name) for look, one in group]))
    return figures


def _vector_row(vectors: Any) -> dict[str, str]:
    pairs = vectors.sidecar.get("pairs") or {}
    kept = f"{pairs['n_kept']} of {pairs['n_pairs']}" if {"n_kept", "n_pairs"} <= set(pairs) else "not known"
    made = vectors.sidecar.get("model") or {}
    model = made.get("name") if isinstance(made, dict) else made
    longest = int(np.argmax(vectors.norms))
    texts = {"name": vectors.name, "trait": vectors.sidecar.get("trait") or "not known", "model": model or "not known"}
    return {**texts, "kept": kept, "norm": f"{vectors.norms[longest]:.3g} at layer {longest} of {len(vectors.norms) - 1}"}


def _quality_figure(report: dict[str, Any]) -> Figure | None:
    """What the quality report has one number a layer of, between -1 and 1: cosines and AUCs."""
    lines = {name: values for name, values in _lists(report) if -1.001 <= np.nanmin(values) and np.nanmax(values) <= 1.001}
    if not lines:
        return None
    shown = list(zip(LOOKS, lines.items(), strict=False))
    series = [Series(visible(name), range(len(values)), values, (), (), look) for look, (name, values) in shown]
    svg = chart(series, "layer", "cosine or AUC", "quality of the vectors by layer", whole_x=True)
    return Figure("By layer", [("", svg)], [(look, name) for look, (name, _) in shown])


def _lists(value: Any, name: str = "") -> Iterable[tuple[str, np.ndarray]]:
    """Every list of two or more numbers in nested objects, by the names on the way to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _lists(item, f"{name} {key}".strip())
    elif isinstance(value, list) and len(value) > 1 and all(isinstance(v, (int, float)) or v is None for v in value):
        numbers = np.array([np.nan if v is None else float(v) for v in value])
        if np.isfinite(numbers).any():
            yield name, numbers


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested objects as rows of (dotted name, text), long lists cut."""
    if isinstance(value, dict) and value:
        return [row for key, item in value.items() for row in flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        text = ", ".join(_short(item) for item in value[:40])
        return [(name, text + (f" ... {len(value) - 40} more" if len(value) > 40 else ""))]
    return [(name, _short(value))]


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 600 else f"{text[:600]} ... {len(text) - 600} characters more"


def _file(table: Any) -> dict[str, Any]:
    """A table's settings, where it comes from, and its receipts."""
    told = ("settings", "command", "git_commit", "versions", "created", "random_directions")
    receipts = table.sidecar.get("receipts")
    one = table.sidecar.get("receipt")
    receipts = receipts if isinstance(receipts, list) else [one]
    receipts = [receipt for receipt in receipts if isinstance(receipt, dict)]
    columns = list(dict.fromkeys(name for receipt in receipts for name in receipt))
    return {
        "name": table.name,
        "n": len(table.rows),
        "settings": flat({name: table.sidecar[name] for name in told if name in table.sidecar}),
        "receipts": receipts,
        "receipt_columns": columns,
        "receipt_rows": [[_short(receipt.get(name, "")) for name in columns] for receipt in receipts],
    }


def _answers(study: Study, budget: int) -> dict[str, Any]:
    """The side-by-side answers, no more than `budget` characters, and what was left out."""
    groups, groups_left = side_by_side(study)
    questions = list(dict.fromkeys(text for _, settings in groups for one in settings for text in one.rows["question"]))
    cards = max(1, sum(len(settings) for _, settings in groups))
    lengths = [one.rows["answer"].str.len().clip(upper=MAX_ANSWER).mean() for _, group in groups for one in group]
    affordable = int(budget / (cards * max(1.0, float(np.nanmean(lengths)) if lengths else 1.0)))
    n_questions = max(1, min(MAX_QUESTIONS, affordable, len(questions)))
    n_samples = max(1, min(MAX_SAMPLES, affordable // n_questions))
    picked = [questions[i] for i in np.unique(np.linspace(0, len(questions) - 1, n_questions).round().astype(int))]
    shown = [
        {"name": name, "items": [item for number, text in enumerate(picked, 1) for item in _items(settings, text, number, n_samples, study.trait)]}
        for name, settings in groups
    ]
    total = max((one.rows["sample"].max() + 1 for _, group in groups for one in group), default=0)
    return {
        "groups": [group for group in shown if group["items"]],
        "groups_left": groups_left,
        "n_questions": (len(picked), len(questions)),
        "n_samples": (min(n_samples, total), total),
    }


def _items(settings: Sequence[Shown], question: str, number: int, n_samples: int, trait: str) -> list[dict[str, Any]]:
    """The answers to a question by sample number: a card for each setting that has it."""
    by_setting = [(one, one.rows[one.rows["question"] == question].set_index("sample")) for one in settings]
    items = []
    for sample in range(n_samples):
        cards = []
        for one, rows in by_setting:
            if sample in rows.index:
                row = rows.loc[sample]
                text = str(row["answer"])
                cards.append(
                    {
                        "label": "unsteered" if one.kind == "unsteered" else one.name(),
                        "coef": f"coef {one.coef:g}" if one.kind == "steered" else "",
                        "kind": one.kind,
                        "scores": f"{trait} {text_or_missing(row['score'])}, coherence {text_or_missing(row['coherence'])}",
                        "text": text[:MAX_ANSWER],
                        "more": max(0, len(text) - MAX_ANSWER),
                    }
                )
        if cards:
            items.append({"question": question, "question_number": number, "sample": sample + 1, "cards": cards})
    return items
