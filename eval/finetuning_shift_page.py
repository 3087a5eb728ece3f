"""The files of a comparison of finetuned models: tables, scatter figures and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.analysis_page import Page, Section, Shown, write
from eval.finetuning_shift_findings import overview, sentences
from eval.finetuning_shift_measure import SPANS
from eval.finetuning_shift_models import cluster_line
from eval.finetuning_shift_rows import (
    ALL_COLUMNS,
    OWN_COLUMNS,
    SPAN_NAMES,
    Comparison,
    all_cells,
    correlation_rows,
    matrix_cells,
    own_cells,
    shift_rows,
)
from eval.page import visible
from eval.report_study import spread, text_or_missing
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER
from persona_vectors.files import write_bytes_atomic, write_csv_atomic, write_sidecar
from persona_vectors.page_plots import LOOKS
from persona_vectors.plots import png_bytes
from persona_vectors.scatter import Panel, Points, scatter_png, scatter_svg

N_QUESTIONS, N_MODELS = 2, 5
"""Questions a trait, and finetuned models beside the base, whose answers the page shows."""


def write_results(comparison: Comparison, folder: Path) -> Path:
    """shifts.csv, correlations.csv, answers.csv, a scatter PNG a layer and report.html, each with its sidecar."""
    made = {"settings": dict(comparison.settings), **comparison.sources}
    told = {"sentences": [*overview(comparison), *sentences(comparison)], "notes": list(comparison.notes)}
    for name, rows in (("shifts", shift_rows(comparison)), ("correlations", correlation_rows(comparison))):
        path = write_csv_atomic(pd.DataFrame(rows), folder / f"{name}.csv")
        write_sidecar(path, {**made, **told, "rows": rows})
    path = write_csv_atomic(answers(comparison), folder / "answers.csv")
    write_sidecar(path, made)
    for layer in comparison.layers:
        figure = scatter_png(_panels(comparison, layer), n_rows=len(comparison.traits))
        name = "scatter.png" if len(comparison.layers) == 1 else f"scatter_layer{layer}.png"
        write_sidecar(write_bytes_atomic(folder / name, png_bytes(figure)), {**made, "layer": layer})
    return write(page(comparison), folder / "report.html", comparison.sources)


def answers(comparison: Comparison) -> pd.DataFrame:
    """Every answer of every model, with the trait whose question it answers and its scores."""
    tables = []
    for label, one in zip(_labels(comparison), comparison.measured, strict=True):
        for trait in comparison.traits:
            table = one.tables[trait].rename(columns={trait: "score"})
            tables.append(pd.concat([pd.DataFrame({"model": label, "trait": trait}, table.index), table], axis=1))
    return pd.concat(tables, ignore_index=True)


def _labels(comparison: Comparison) -> list[str]:
    return ["base", *(one.label for one in comparison.finetunes)]


def page(comparison: Comparison) -> Page:
    """The page: own trait, own beside cross, a section a trait, every correlation."""
    return Page(
        title=f"Finetuning shift and trait scores: {', '.join(comparison.traits)}",
        lead=(
            f"Models finetuned from {comparison.base}, asked each trait's eval questions without a system prompt, and "
            f"scored by {comparison.judge}. Shift: mean activation of the finetuned model minus the base model's, "
            "projected on the unit vector, at the last prompt token (prompt_last) and over the answers (response_avg). "
            + cluster_line(comparison.finetunes, comparison.settings.get("group_pattern"))
        ),
        sentences=overview(comparison) or sentences(comparison),
        sections=[
            _own_section(comparison),
            *([_matrix_section(comparison)] if len(comparison.traits) > 1 else []),
            *(_trait_section(comparison, trait) for trait in comparison.traits),
            Section("Every correlation", columns=ALL_COLUMNS, cells=all_cells(comparison)),
        ],
        notes=comparison.notes,
        settings=comparison.settings,
    )


def _own_section(comparison: Comparison) -> Section:
    words = (
        "Each trait's score against the shift along its own vector, over the finetuned models. Random: |r| of 1,000 "
        "random directions on the same activations (median, 95th and 99th percentile), and the share of them that r is "
        "above. The answer mean is read on the very answers that were scored; the last prompt token is read before any "
        "answer exists."
    )
    return Section("Own trait", [words], columns=OWN_COLUMNS, cells=own_cells(comparison))


def _matrix_section(comparison: Comparison) -> Section:
    """Own and cross as one table, a block of rows a span and layer."""
    words = (
        "Rows: the vector whose shift it is. Columns: the trait that was scored. Pearson's r, and in brackets the "
        "share of 1,000 random directions that it is above. A vector that is its trait's own reaches more in its own "
        "column than the other vectors do."
    )
    cells = []
    for layer in comparison.layers:
        for span in SPANS:
            cells += [[f"{row[0]} ({span}, layer {layer})", *row[1:]] for row in matrix_cells(comparison, span, layer)]
    return Section("Own and cross", [words], columns=["vector", *comparison.traits], cells=cells)


def _trait_section(comparison: Comparison, trait: str) -> Section:
    """The trait's figures, a row a model, and answers of a few models."""
    figures = []
    for layer in comparison.layers:
        panels = [
            (title, scatter_svg(panel, visible(f"{trait}: {title}")))
            for title, panel in _panels(comparison, layer, [trait]).items()
            if _drawable(panel)
        ]
        if panels:
            caption = (
                f"{trait}: score against the shift along its own vector, a point a finetuned model, layer {layer}."
            )
            figures.append(Figure(caption, panels, _legend(comparison)))
    columns, cells = _model_table(comparison, trait)
    samples = _samples(comparison, trait)
    words = sentences(comparison, [trait]) if len(comparison.traits) > 1 else []
    return Section(f"Scored on {trait}", words, figures, columns, cells, samples)


def _panels(comparison: Comparison, layer: int, traits: Sequence[str] = ()) -> dict[str, Panel]:
    """A panel a trait and span: score against the shift along the trait's own vector."""
    found = {}
    for trait in traits or comparison.traits:
        for span in SPANS:
            shifts, scores = comparison.shifts(trait, trait, span, layer), comparison.scores(trait)
            groups = [
                Points(
                    visible(name),
                    [shifts[i] for i in members],
                    [scores[i] for i in members],
                    [visible(comparison.finetunes[i].label) for i in members],
                    look,
                )
                for (look, name), members in _groups(comparison)
            ]
            r = comparison.of(span, layer, trait)[0].correlation.pearson
            title = f"{trait}, {SPAN_NAMES[span]}: r {r.text()}"
            found[title] = Panel(groups, f"shift along the {trait} vector", f"{trait} score")
    return found


def _groups(comparison: Comparison) -> list[tuple[tuple[str, str], list[int]]]:
    """((look, name), the finetunes' numbers): a look a group while there are looks, otherwise one for all."""
    members: dict[str, list[int]] = {}
    for number, one in enumerate(comparison.finetunes):
        members.setdefault(one.cluster, []).append(number)
    if 1 < len(members) <= len(LOOKS) and len(members) < len(comparison.finetunes):
        return [((look, name), own) for look, (name, own) in zip(LOOKS, members.items(), strict=False)]
    return [(("s0", "finetuned models"), list(range(len(comparison.finetunes))))]


def _legend(comparison: Comparison) -> list[tuple[str, str]]:
    return [*(key for key, _ in _groups(comparison)), ("base", "least squares")]


def _drawable(panel: Panel) -> bool:
    return any(np.isfinite(x) and np.isfinite(y) for own in panel.groups for x, y in zip(own.xs, own.ys, strict=True))


def _model_table(comparison: Comparison, trait: str) -> tuple[list[str], list[list[str]]]:
    """A row a model, by falling score: score, coherence and the shifts along every vector at the first layer."""
    layer = comparison.layers[0]
    kinds = [(vector, span) for vector in comparison.traits for span in SPANS]
    shifts = [[0.0, *comparison.shifts(vector, trait, span, layer)] for vector, span in kinds]
    columns = ["model", "group", f"{trait} score [95%]", "coherence"]
    columns += [f"{vector} shift, {span}" for vector, span in kinds]
    rows = []
    for number, label in enumerate(_labels(comparison)):
        score, coherence = (comparison.interval(number, trait, column) for column in (trait, "coherence"))
        group = comparison.finetunes[number - 1].cluster if number else ""
        own = [f"{values[number]:+.4g}" if np.isfinite(values[number]) else "no answers" for values in shifts]
        rows.append((score.mean, [label, group, score.text(), f"{coherence.mean:.1f}", *own]))
    base, *others = rows
    others.sort(key=lambda row: -np.inf if np.isnan(row[0]) else row[0], reverse=True)
    return columns, [base[1], *(cells for _, cells in others)]


def _samples(comparison: Comparison, trait: str) -> list[tuple[str, list[Shown]]]:
    """The first answers of the base model and of finetuned models from the lowest to the highest score."""
    scores = np.nan_to_num(comparison.scores(trait), nan=-1.0)
    order = np.argsort(scores, kind="stable")
    chosen = [0, *(int(order[i]) + 1 for i in spread(len(order), N_MODELS))]
    labels = _labels(comparison)
    first: dict[int, Any] = {
        i: comparison.measured[i].tables[trait].drop_duplicates("question").reset_index(drop=True) for i in chosen
    }
    questions = first[0]["question"].tolist()
    return [
        (
            questions[row],
            [
                Shown(
                    labels[i],
                    str(first[i]["answer"][row])[:MAX_ANSWER],
                    f"{trait} {text_or_missing(first[i][trait][row])}, "
                    f"coherence {text_or_missing(first[i]['coherence'][row])}",
                    "unsteered" if i == 0 else "",
                )
                for i in chosen
            ],
        )
        for row in spread(len(questions), N_QUESTIONS)
    ]
