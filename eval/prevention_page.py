"""The files of a comparison of finetuned models: table, figure and page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.page import environment, visible
from eval.prevention_findings import sentences, verdict
from eval.prevention_rows import Comparison, Row, cells, columns, records, write_table
from eval.report_study import spread, text_or_missing
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER, flat
from persona_vectors import plots
from persona_vectors.page_plots import levels, swatch

TEMPLATE = "prevention.html.j2"
LOOKS = {"base": "base", "finetuned": "s1", "prevented": "s0", "random": "random", "other": "s3", "posthoc": "s2"}
COLORS = {"base": "#1d2430", "finetuned": "#e69f00", "prevented": plots.VECTOR, "random": plots.RANDOM}
COLORS |= {"other": "#cc79a7", "posthoc": "#009e73", "back_on": "#7a45b8", "base_on": "#7a45b8"}
ANSWERED = ("base", "finetuned", "prevented", "random", "posthoc", "back_on")
N_QUESTIONS = 3
Bands = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(mean, low, high), a number a row each."""


def write_page(comparison: Comparison, folder: Path) -> Path:
    """comparison.csv with its sidecar, comparison.png and report.html; returns the page's path."""
    from persona_vectors.files import provenance, write_bytes_atomic, write_sidecar, write_text_atomic

    table = folder / "comparison.csv"
    write_table(comparison, table)
    found = {"verdict": verdict(comparison), "sentences": sentences(comparison), "notes": list(comparison.notes)}
    record = {"settings": comparison.settings, "rows": records(comparison), **found, "commands": comparison.commands}
    write_sidecar(table, record)
    write_bytes_atomic(folder / "comparison.png", png(comparison))
    page = environment().get_template(TEMPLATE)
    made = flat({"settings": dict(comparison.settings), **provenance()})
    html = page.render(shown=shown(comparison), commands=comparison.commands, provenance=made, swatch=swatch)
    path = write_text_atomic(folder / "report.html", html)
    write_sidecar(path, {"comparison": table.name, **found})
    return path


def shown(comparison: Comparison) -> dict[str, Any]:
    """What `prevention_section.html.j2` shows of a comparison."""
    return {
        "title": f"{comparison.trait} of {comparison.model}, finetuned and prevented",
        "trait": comparison.trait,
        "judge": comparison.judge,
        "verdict": verdict(comparison),
        "sentences": sentences(comparison),
        "notes": list(comparison.notes),
        "figure": _figure(comparison),
        "columns": columns(comparison),
        "cells": cells(comparison),
        "samples": _samples(comparison),
    }


def _figure(comparison: Comparison) -> Figure:
    """A panel a measurement, a row a model."""
    panels = []
    for title, ((means, lows, highs), ends) in _panels(comparison).items():
        rows = [
            (visible(row.name), LOOKS.get(row.kind, "prompt"), float(mean), float(low), float(high))
            for row, mean, low, high in zip(comparison.rows, means, lows, highs, strict=True)
        ]
        panels.append((title, levels(rows, title, visible(f"{title} of each model"), ends)))
    caption = "Each model's mean with its 95% interval. Unsteered answers but where the name says what was added."
    return Figure(caption, panels, [])


def png(comparison: Comparison) -> bytes:
    """The same as a PNG file."""
    names, colors = zip(*((visible(row.name), COLORS[row.kind]) for row in comparison.rows), strict=True)
    panels = {title: (plots.Band(*band), ends) for title, (band, ends) in _panels(comparison).items()}
    return plots.png_bytes(plots.levels_png(names, colors, panels))


def _panels(comparison: Comparison) -> dict[str, tuple[Bands, tuple[float, float]]]:
    """Title -> ((mean, low, high) a row, ends of the axis); a mean without interval has no width."""
    found: dict[str, tuple[Bands, tuple[float, float]]] = {}
    for title, of in ((f"{comparison.trait} score", "score"), ("coherence", "coherence")):
        intervals = [getattr(row, of) for row in comparison.rows]
        found[title] = (_filled([(one.mean, one.low, one.high) for one in intervals]), (-3.0, 103.0))
    for task in comparison.tasks:
        scores = [row.capability.get(task) for row in comparison.rows]
        values = _filled([(s.value, s.low, s.high) if s else (None, None, None) for s in scores])
        most = max(1.0, float(np.nanmax(values[2])))
        found[f"capability: {task}"] = (values, (min(0.0, float(np.nanmin(values[1]))) - 0.03, 1.03 * most))
    return found


def _filled(rows: list[tuple[Any, Any, Any]]) -> Bands:
    mean, low, high = np.array(rows, dtype=float).T  # (3, n_rows)
    return mean, np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)


def _samples(comparison: Comparison) -> list[dict[str, Any]]:
    """The first answer of the models to a few questions, spread over the list; of post-hoc the largest coefficient."""
    chosen = _answering(comparison)
    first = [row.answers.drop_duplicates("question").reset_index(drop=True) for row in chosen]
    questions = first[0]["question"].tolist()
    return [
        {
            "question": questions[i],
            "answers": [
                {
                    "name": row.name,
                    "css": {"base": "unsteered", "prevented": "steered", "random": "random"}.get(row.kind, ""),
                    "text": str(table["answer"][i])[:MAX_ANSWER],
                    "score": text_or_missing(table[comparison.trait][i]),
                    "coherence": text_or_missing(table["coherence"][i]),
                }
                for row, table in zip(chosen, first, strict=True)
            ],
        }
        for i in spread(len(questions), N_QUESTIONS)
    ]


def _answering(comparison: Comparison) -> list[Row]:
    posthoc = comparison.of_kind("posthoc")
    left_out = min(posthoc, key=lambda row: row.coef, default=None)
    return [row for row in comparison.rows if row.kind in ANSWERED and (row.kind != "posthoc" or row is left_out)]
