"""The files of a comparison of data sets: tables, rows, figures and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eval.analysis_page import Page, Section, Shown, write
from eval.page import visible
from eval.projection_difference_findings import (
    correlation_cells,
    first_kind,
    judge_cells,
    sentences,
    table_cells,
    vectors_of,
)
from eval.projection_difference_rows import Mean, Study, row_records, table_rows
from eval.projection_difference_scores import Correlated, correlation_rows, difference_rows
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER
from persona_vectors.files import (
    sha256_of_file,
    write_bytes_atomic,
    write_csv_atomic,
    write_jsonl_atomic,
    write_sidecar,
)
from persona_vectors.models import fingerprint
from persona_vectors.page_plots import levels
from persona_vectors.plots import RANDOM, VECTOR, Band, levels_png, png_bytes
from persona_vectors.scatter import Panel, Points, scatter_png, scatter_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MplFigure

PANELS = 5
"""Vectors side by side in one PNG."""
N_ENDS = 3
MOST_ROWS, MOST_FIGURES = 200, 6
WORDS = {
    "delta_p": "training answers minus the model's own answers, on the unit vector",
    "raw": "training answers, on the unit vector",
    "base": "the model's own answers, on the unit vector",
    "cheap": "training answers minus the prompt's last token, on the unit vector",
    "judge": "the judge's score of the training answers",
    "judge_base": "the judge's score of the model's own answers",
    "judge_change": "the judge's score of the training answers minus that of the model's own",
}


def write_results(study: Study, folder: Path) -> Path:
    """datasets.csv, rows/, a figure a layer, with scores correlations.csv, differences.csv and scatter figures, and
    report.html, which is returned; each with its sidecar."""
    record = _record(study)
    tables = {"datasets": table_rows(study)}
    if study.correlations:
        tables["correlations"] = correlation_rows(study.correlations)
        tables["differences"] = difference_rows(study.correlations)
    tables = {name: rows for name, rows in tables.items() if rows}
    for one in study.data_sets:
        path = write_jsonl_atomic(one.written_to(folder), row_records(study, one))
        write_sidecar(path, {**record, "rows_of": one.file})
    for name, figure in _pngs(study).items():
        write_sidecar(write_bytes_atomic(folder / f"{name}.png", png_bytes(figure)), record)
    for name, rows in tables.items():
        table = pd.DataFrame(rows)
        if "layer" in table:
            table["layer"] = table["layer"].astype("Int64")  # a judge's rows have none
        path = write_csv_atomic(table, folder / f"{name}.csv")
        write_sidecar(path, {**record, "sentences": sentences(study), "notes": study.notes})
    return write(page(study), folder / "report.html", record)


def _record(study: Study) -> dict[str, Any]:
    """What every sidecar says: the settings, and model, vectors and data by their content."""
    return {
        "settings": dict(study.settings),
        "model_fingerprint": fingerprint(study.model),
        "vectors": {path: sha256_of_file(path) for path in dict.fromkeys(column.path for column in study.columns)},
        "data_sets": {
            one.name: {"file": one.file, "sha256": sha256_of_file(one.file), "n_rows": len(one.rows)}
            | {"n_drawn": len(one.chosen)}
            for one in study.data_sets
        },
    }


def _pngs(study: Study) -> dict[str, MplFigure]:
    """Name -> figure: a few vectors' means at one layer, and the scatter of each vector and layer with the scores."""
    kind, figures = first_kind(study), {}
    for layer in dict.fromkeys(layer for _of, layer in vectors_of(study)):
        vectors = [of for of, at in vectors_of(study) if at == layer]
        for start in range(0, len(vectors), PANELS):
            part = "" if len(vectors) <= PANELS else f"_{start // PANELS + 1}"
            shown = {of: study.means_of(kind, of, layer) for of in vectors[start : start + PANELS]}
            figures[f"{kind}_layer{layer}{part}"] = _levels_png(shown)
    for name, panels in _scatters(study).items():
        figures[f"scatter_{name.replace(', layer ', '_layer').replace(', ', '_')}"] = scatter_png(panels)
    return figures


def _levels_png(shown: dict[str, list[Mean]]) -> MplFigure:
    """Means with intervals, a panel a vector, over grey bars: what 95 of 100 random directions stay within."""
    means = next(iter(shown.values()))
    names = [visible(one.data_set.name) for one in means]
    panels = {}
    for of, several in shown.items():
        band = np.array([_ends(one) for one in several]).T
        panels[visible(of)] = (Band(*band), _limits(several))
    figure = levels_png(names, [VECTOR] * len(names), panels)
    for axis, several in zip(figure.axes, shown.values(), strict=True):
        random = [one.random or 0.0 for one in several]
        axis.barh(np.arange(len(names)), np.multiply(2, random), 0.6, [-r for r in random], color=RANDOM, alpha=0.25)
        axis.axvline(0, color=RANDOM, linewidth=0.8)
        axis.set_title(axis.get_title(), fontsize=9)
        measure = several[0].measure
        axis.set_xlabel(f"{measure.kind}, layer {measure.layer} (grey: 95% of random directions)", fontsize=8)
    return figure


def _ends(one: Mean) -> tuple[float, float, float]:
    """(mean, low, high); without an interval the mean is both its ends."""
    mean, low, high = one.interval.mean, one.interval.low, one.interval.high
    return mean, mean if np.isnan(low) else low, mean if np.isnan(high) else high


def _limits(means: Sequence[Mean]) -> tuple[float, float]:
    """Both ends of the axis: 0, all intervals and all random directions are on it, with some room."""
    numbers = [0.0, *(number for one in means for number in (*_ends(one), one.random or 0.0, -(one.random or 0.0)))]
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _scatters(study: Study) -> dict[str, dict[str, Panel]]:
    """Name -> panels against the scores: the kinds of each vector and layer, and the judge's measures."""
    found: dict[str, dict[str, Panel]] = {}
    for one in study.correlations:
        layer = one.measure.layer
        name = f"{one.measure.of}, layer {layer}" if layer is not None else f"judge, {one.measure.of}"
        found.setdefault(name, {})[_title(one)] = _panel(study, one)
    return found


def _title(one: Correlated) -> str:
    return f"{one.measure.kind}: r {one.correlation.pearson.text()}"


def _panel(study: Study, one: Correlated) -> Panel:
    names = [visible(data_set.name) for data_set in study.data_sets]
    points = Points("data sets", one.xs, study.scores or [], names)
    return Panel([points], one.measure.kind, str(study.settings.get("score_column", "score")))


def page(study: Study) -> Page:
    """The page: means, scores where there are some, and the rows at both ends."""
    kind = first_kind(study)
    kinds = list(dict.fromkeys(one.kind for one in study.measures))
    lead = f"Rows of training data read by {study.model}. " + " ".join(f"{one}: {WORDS[one]}." for one in kinds)
    return Page(
        title=f"Training data on persona vectors: {kind}",
        lead=lead + " Positive: further towards the trait. Nothing was trained.",
        sentences=sentences(study),
        sections=[_means_section(study), *_judge_sections(study), *_score_sections(study), *_row_sections(study)],
        notes=[
            "Intervals: 95%, from resampling questions; rows with the same question move together.",
            "Random: what 95% of 1,000 random directions stay below on the same mean activations, and, in brackets, "
            "the share of them that the mean is further from 0 than. Cosine: of the mean change with the vector.",
            *study.notes,
        ],
        settings=study.settings,
    )


def _means_section(study: Study) -> Section:
    kind, figures = first_kind(study), []
    for layer in dict.fromkeys(layer for _of, layer in vectors_of(study)):
        panels = []
        for of in (of for of, at in vectors_of(study) if at == layer):
            means = study.means_of(kind, of, layer)
            if any(one.interval.n for one in means):
                rows = [(visible(one.data_set.name), "s0", *_ends(one)) for one in means]
                label = visible(f"{kind} of each data set on {of}, layer {layer}")
                panels.append((visible(of), levels(rows, kind, label, _limits(means))))
        figures.append(Figure(f"{kind} at layer {layer}: {WORDS[kind]}. Mean with its 95% interval.", panels, []))
    heading, *cells = table_cells(study, MOST_ROWS)
    return Section("Data sets", figures=[one for one in figures if one.panels], columns=heading, cells=cells)


def _judge_sections(study: Study) -> list[Section]:
    if not study.judged:
        return []
    heading, *cells = judge_cells(study)
    judge = study.settings.get("judge_model")
    words = f"The same answers scored as texts by {judge}, 0-100: what is known without a vector."
    return [Section("Scored by the judge", [words], columns=heading, cells=cells)]


def _score_sections(study: Study) -> list[Section]:
    """The correlations with the scores, and a point a data set."""
    if not study.correlations:
        return []
    figures = []
    scatters = _scatters(study)
    for name, panels in list(scatters.items())[:MOST_FIGURES]:
        drawn = [(title, scatter_svg(panel, visible(f"{name}: {title}"))) for title, panel in panels.items()]
        figures.append(Figure(f"{name}: the scores of finetuned models, a point a data set.", drawn, []))
    left = len(scatters) - len(figures)
    heading, *cells = correlation_cells(study)
    words = (
        "Intervals from resampling data sets. Random: |r| of 1,000 random directions on the same mean activations "
        "(median, 95th and 99th percentile), and the share of them that r is above. A range of mixtures of the same "
        "two sets says little: many random directions order it as well."
    )
    words += f" {left} more figures are PNG files beside this page." if left > 0 else ""
    return [Section("With the scores of finetuned models", [words], figures, heading, cells)]


def _row_sections(study: Study) -> list[Section]:
    """The rows with the highest and lowest values of the first vector, beside the model's own answers."""
    measure = next(one for one in study.measures if one.kind == first_kind(study))
    there = [n for n, value in enumerate(measure.values) if value is not None]
    order = sorted(there, key=lambda n: -float(measure.values[n] or 0.0))
    ends = dict.fromkeys([*order[:N_ENDS], *order[-N_ENDS:]])
    samples = [(_asked(study, n), _shown(study, n, measure.values[n])) for n in ends]
    words = f"The rows with the highest and the lowest {measure.kind} on {measure.of}, layer {measure.layer}."
    return [Section("Rows at both ends", [words], samples=samples)] if samples else []


def _asked(study: Study, n: int) -> str:
    data_set, position = study.drawn()[n]
    row = data_set.rows[position]
    return (
        f"{data_set.name}, line {row.line}: " + " / ".join(turn["content"] for turn in row.messages[:-1])[:MAX_ANSWER]
    )


def _shown(study: Study, n: int, value: float | None) -> list[Shown]:
    data_set, position = study.drawn()[n]
    answer = data_set.rows[position].answer[:MAX_ANSWER]
    own = [Shown("the model's own answer", text[:MAX_ANSWER], css="unsteered") for text in study.reading.own_answers[n]]
    return [Shown("training answer", answer, f"{value:.4g}", "steered"), *own[:1]]
