"""The files of a monitor's study: tables, figure and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.analysis_page import Page, Section, Shown, write
from eval.monitor_conditions import KIND_NAMES, NUMBER_NAMES, Kind
from eval.monitor_findings import TITLES, sentences
from eval.monitor_rows import (
    Study,
    condition_cells,
    condition_rows,
    correlation_cells,
    correlation_rows,
    point_rows,
    prompt_rows,
)
from eval.page import visible
from eval.report_study import spread, text_or_missing
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER
from persona_vectors.files import sha256_of_file, write_bytes_atomic, write_csv_atomic, write_sidecar
from persona_vectors.models import fingerprint
from persona_vectors.page_plots import graded_looks
from persona_vectors.plots import png_bytes
from persona_vectors.scatter import Panel, Points, scatter_png, scatter_svg

N_SHOWN = 4
"""Questions whose answers stand side by side on the page."""


def write_results(study: Study, folder: Path, files: Sequence[str]) -> Path:
    """points.csv, prompts.csv, conditions.csv, correlations.csv, scatter.png (a file a layer where there are several)
    and report.html, which is returned; each with its sidecar. `files` are those that the study was made from."""
    record = _record(study, files)
    tables = {"points": point_rows, "prompts": prompt_rows, "conditions": condition_rows}
    for name, rows in {**tables, "correlations": correlation_rows}.items():
        write_sidecar(write_csv_atomic(pd.DataFrame(rows(study)), folder / f"{name}.csv"), record)
    for layer in study.layers:
        name = "scatter.png" if len(study.layers) == 1 else f"scatter_layer{layer}.png"
        figure = scatter_png({_title(study, kind, layer, "\n"): _panel(study, kind, layer) for kind in study.kinds})
        write_sidecar(write_bytes_atomic(folder / name, png_bytes(figure)), {**record, "layer": layer})
    return write(page(study), folder / "report.html", record)


def page(study: Study) -> Page:
    """The page: correlations with their figure, conditions, answers by condition."""
    heading, *cells = correlation_cells(study)
    words = (
        "Each prompt's projection at its last token, read before anything is said, against the mean score of what is "
        "then said. All prompts: the correlation over all of them. Within a condition: of what is left when each "
        "condition's mean is taken off both sides. Condition means: a point a condition. Intervals resample questions "
        "(of condition means: conditions). Random: |r| of 1,000 random directions on the same activations (median, "
        "95th and 99th percentile), and the share of them that r is above. Number alone: r of the condition's number, "
        "which needs no model; within a condition it is constant. Condition known: r of the score with its condition's "
        "mean score on the other questions: what a monitor of known conditions has anyway, and one of new ones has not."
    )
    return Page(
        title=f"Monitoring {study.trait} at the last prompt token",
        lead=(
            f"{study.model} was asked {study.trait}'s eval questions under conditions that suppress or elicit the "
            f"trait. Answers are scored by {study.judge}. Positive projections lie towards the trait."
        ),
        sentences=sentences(study),
        sections=[
            Section("Overall and within conditions", [words], _figures(study), heading, cells),
            _conditions_section(study),
            *_system_prompts(study),
            *(_answers_section(study, kind) for kind in study.kinds),
        ],
        notes=study.notes,
        settings=study.settings,
    )


def _conditions_section(study: Study) -> Section:
    heading, *cells = condition_cells(study, whole=True)
    words = (
        "Means over a condition's answers with 95% intervals by question. Sd of prompts: how far the prompts' mean "
        "scores lie apart under one condition, which is what can be foretold within it. r: over the condition's own "
        "prompts, and the share of 1,000 random directions that it is above; one condition of several, so read it with "
        "the one within conditions above."
    )
    return Section("Conditions", [words], columns=heading, cells=cells)


def _system_prompts(study: Study) -> list[Section]:
    cells = [[one.name, one.system or ""] for one in study.conditions("system")]
    return [Section("System prompts", columns=["condition", "text"], cells=cells)] if cells else []


def _figures(study: Study) -> list[Figure]:
    """A figure a kind, a panel a layer."""
    found = []
    for kind in study.kinds:
        panels = [
            (
                _title(study, kind, layer, ", "),
                scatter_svg(panel, visible(f"{TITLES[kind]}, layer {layer}: {study.trait}")),
            )
            for layer in study.layers
            if _drawable(panel := _panel(study, kind, layer))
        ]
        if panels:
            conditions = study.conditions(kind)
            legend = [(look, one.name) for look, one in zip(graded_looks(len(conditions)), conditions, strict=True)]
            caption = f"{TITLES[kind]}: a point a prompt, coloured by its {NUMBER_NAMES[kind]}."
            found.append(Figure(caption, panels, [*legend, ("base", "least squares")]))
    return found


def _title(study: Study, kind: Kind, layer: int, joint: str) -> str:
    """The panel's name with both correlations, never one of them."""
    prompts = next(one.prompts for one in study.found if (one.kind, one.layer) == (kind, layer))
    overall, within = (prompts[over].pearson.text() for over in ("overall", "within"))
    where = KIND_NAMES[kind] + (f", layer {layer}" if len(study.layers) > 1 else "")
    return joint.join([where, f"overall r {overall}", f"within a condition r {within}"])


def _panel(study: Study, kind: Kind, layer: int) -> Panel:
    """A group of points for each condition."""
    conditions, projections, scores = study.conditions(kind), study.projections(layer), study.points.means()
    groups = []
    for look, condition in zip(graded_looks(len(conditions)), conditions, strict=True):
        rows = study.points.rows_of(condition)
        labels = [visible(study.points.prompts[row].question_id) for row in rows]
        groups.append(Points(condition.name, projections[rows], scores[rows], labels, look))
    return Panel(groups, f"projection of the last prompt token, layer {layer}", f"{study.trait} score of the answers")


def _drawable(panel: Panel) -> bool:
    return any(np.isfinite(one.ys).any() for one in panel.groups)


def _answers_section(study: Study, kind: Kind) -> Section:
    """The first answers to a few questions under every condition."""
    conditions = study.conditions(kind)
    questions = study.points.rows_of(conditions[0])
    samples = []
    for place in spread(len(questions), N_SHOWN):
        rows = [study.points.rows_of(condition)[place] for condition in conditions]
        samples.append((study.points.prompts[rows[0]].question, [_shown(study, row) for row in rows]))
    return Section(f"Answers by {NUMBER_NAMES[kind]}", samples=samples)


def _shown(study: Study, row: int) -> Shown:
    trait, coherence = (text_or_missing(study.points.scores[name][row, 0]) for name in ("trait", "coherence"))
    layer = study.layers[0]
    note = f"{study.trait} {trait}, coherence {coherence}, projection {study.projections(layer)[row]:.3g}"
    name = study.points.prompts[row].condition.name
    return Shown(name, str(study.points.answers[row, 0])[:MAX_ANSWER], note)


def _record(study: Study, files: Sequence[str]) -> dict[str, Any]:
    """What every sidecar says: the settings, and the model and the files behind the study by their content."""
    return {
        "settings": dict(study.settings),
        "model_fingerprint": fingerprint(study.model),
        "files": {path: sha256_of_file(path) for path in files},
    }
