"""The files of `eval.drift`: tables, and the page that shows each conversation beside its curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.drift_rows import (
    BAND,
    DRIFT_HEADING,
    Direction,
    Reading,
    drift_cells,
    drift_of,
    drift_rows,
    token_rows,
    turn_rows,
)
from eval.page import environment, visible
from eval.results_page import flat
from persona_vectors import page_plots
from persona_vectors.files import (
    provenance,
    sha256_of_file,
    write_csv_atomic,
    write_jsonl_atomic,
    write_sidecar,
    write_text_atomic,
)
from persona_vectors.models import fingerprint, resolve_model
from persona_vectors.page_plots import Series, chart
from persona_vectors.statistics import cluster_bootstrap_mean

TEMPLATE = "drift.html.j2"
ROLE_LOOKS = {"assistant": "s0", "user": "s1", "system": "prompt"}
CAPPED_LOOK = "s2"
MOST_MARKS = 24  # turns whose starts are marked in the curve by token
MOST_POINTS = 500  # of the curve by token; more would be a black block
SCALE = (5, 95)  # percentiles of a conversation's tokens between which the colours run


def write_results(
    readings: Sequence[Reading],
    directions: Sequence[Direction],
    folder: Path,
    arguments: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> Path:
    """turns.csv, drift.csv, tokens.jsonl and report.html (which is returned) in the folder, each with its sidecar."""
    files = [*arguments["transcripts"], *arguments["vector_path"], *([arguments["cap"]] if arguments["cap"] else [])]
    record = {
        "settings": dict(arguments),
        "model_fingerprint": fingerprint(arguments["model_name"]),
        "files": {path: sha256_of_file(path) for path in files},
    }
    for name, rows in (("turns", turn_rows), ("drift", drift_rows)):
        table = pd.DataFrame(list(rows(readings, directions)))
        write_sidecar(write_csv_atomic(table, folder / f"{name}.csv"), record)
    write_sidecar(write_jsonl_atomic(folder / "tokens.jsonl", token_rows(readings, directions)), record)
    report = write_text_atomic(folder / "report.html", page(readings, directions, arguments, notes))
    write_sidecar(report, {**record, "sentences": sentences(readings, directions), "notes": list(notes)})
    return report


def page(
    readings: Sequence[Reading],
    directions: Sequence[Direction],
    arguments: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML, whole in itself."""
    model = resolve_model(arguments["model_name"]).label
    shown = {
        "title": "Conversations along " + ", ".join(dict.fromkeys(Path(one.path).stem for one in directions)),
        "model": model,
        "sentences": sentences(readings, directions),
        "notes": notes,
        "columns": DRIFT_HEADING,
        "cells": drift_cells(readings, directions),
        "views": [_view(reading, readings, directions, model) for reading in readings],
        "directions": [one.name for one in directions],
        "n_conversations": len({id(one.transcript) for one in readings}),
        "capped": any(one.cap for one in readings),
        "n_random": readings[0].random_means.shape[2],
        "band": BAND,
        "scale": SCALE,
        "most_marks": MOST_MARKS,
        "plot": {"left": page_plots.LEFT, "right": page_plots.WIDTH - page_plots.RIGHT},
        "plot_height": {"top": page_plots.TOP, "bottom": page_plots.HEIGHT - page_plots.BOTTOM},
        "swatch": page_plots.swatch,
        "provenance": flat({"settings": dict(arguments), **provenance()}),
    }
    return environment().get_template(TEMPLATE).render(shown)


def sentences(readings: Sequence[Reading], directions: Sequence[Direction]) -> list[str]:
    """What was found in words: for each direction the mean slope over conversations, beside random directions."""
    found = []
    for cap in dict.fromkeys(one.cap for one in readings):
        for column, direction in enumerate(directions):
            drifts = [drift_of(one, column) for one in readings if one.cap == cap]
            drifts = [one for one in drifts if one is not None]
            where = direction.name + (f", under the cap {cap}" if cap else "")
            if not drifts:
                found.append(f"{where}: no conversation has two assistant turns, so there is no drift to speak of.")
                continue
            mean = cluster_bootstrap_mean([one.slope.mean for one in drifts], range(len(drifts)))
            random = np.mean([one.random for one in drifts], axis=0)  # (n_random,): each direction's own mean slope
            above = float((np.abs(random) < abs(mean.mean)).mean())
            of = f"mean over {len(drifts)} conversations" if len(drifts) > 1 else "one conversation"
            interval = mean if len(drifts) > 1 else drifts[0].slope
            found.append(
                f"{where}: the projection moves by {interval.text(2, sign=True)} a turn of the assistant ({of}); "
                f"{above:.0%} of random directions move less (95th percentile {np.quantile(np.abs(random), 0.95):.2f})."
            )
    return found


def _view(reading: Reading, readings: Sequence[Reading], directions: Sequence[Direction], model: str) -> dict[str, Any]:
    """One conversation as the template shows it: its messages token by token, charts and numbers by direction."""
    name, spoken = reading.name, [place for turn in reading.turns for place in range(turn.start, turn.end)]
    under = next((one for one in readings if one.transcript is reading.transcript and one.cap), None)
    other = None if reading.cap else under
    by_direction = []
    for column, direction in enumerate(directions):
        values = reading.tokens[spoken, column]
        by_direction.append(
            {
                "values": [float(f"{value:.4g}") for value in values],
                "means": [None if np.isnan(mean) else f"{mean:+.2f}" for mean in reading.means[:, column]],
                "scale": [float(value) for value in np.percentile(values, SCALE)] if len(values) else [0.0, 0.0],
                "caption": f"{model}, {direction.name}: {len(reading.turns)} turns, {len(spoken)} tokens",
                "turns": _turn_chart(reading, other, column, name) if len(values) else "",
                "tokens_a_point": _tokens_a_point(values),
                "tokens": _token_chart(reading, values, name) if len(values) else "",
            }
        )
    roles = [role for role in ROLE_LOOKS if any(turn.role == role for turn in reading.turns)]
    legend = [(ROLE_LOOKS[role], f"{role}'s turns") for role in roles]
    if other is not None:
        legend.append((CAPPED_LOOK, f"assistant's turns under the cap {other.cap}"))
    turns = [{"number": turn.index + 1, "role": turn.role, "pieces": turn.pieces} for turn in reading.turns]
    return {"name": name, "turns": turns, "legend": legend, "by_direction": by_direction}


def _turn_chart(reading: Reading, other: Reading | None, column: int, name: str) -> str:
    """Mean projection by turn, over the control band."""
    series = []
    numbers = np.array([turn.index + 1 for turn in reading.turns], dtype=float)
    band = reading.band(column)
    if band is not None:
        nothing = np.full(len(numbers), np.nan)
        series.append(Series("random", numbers, nothing, band[0], band[1], look="random", dots=False))
    for role, look in ROLE_LOOKS.items():
        rows = [i for i, turn in enumerate(reading.turns) if turn.role == role]
        if rows:
            ys = reading.means[rows, column]
            series.append(Series(role, numbers[rows], ys, look=look, line=role == "assistant"))
    if other is not None:
        rows = other.spoken
        series.append(Series(f"under {other.cap}", numbers[rows], other.means[rows, column], look=CAPPED_LOOK))
    return chart(series, "turn", "mean projection of the turn", visible(f"{name}, by turn"), whole_x=True)


def _token_chart(reading: Reading, values: np.ndarray, name: str) -> str:
    """The projection of every token of the contents, one after the other; of many, means of a few in a row."""
    cuts = np.arange(0, len(values), _tokens_a_point(values))
    counts = np.diff(np.append(cuts, len(values)))
    xs = cuts + (counts + 1) / 2
    line = Series("token", xs, np.add.reduceat(values, cuts) / counts, look="base", dots=False)
    marks = list(_starts(reading)) if len(reading.turns) <= MOST_MARKS else []
    xlim = (1.0, float(max(2, len(values))))
    return chart([line], "token", "projection", visible(f"{name}, by token"), xlim=xlim, whole_x=True, marks=marks)


def _tokens_a_point(values: np.ndarray) -> int:
    return -(-len(values) // MOST_POINTS)


def _starts(reading: Reading) -> Iterator[tuple[float, str]]:
    """Where each turn of the assistant begins."""
    at = 1
    for turn in reading.turns:
        if turn.role == "assistant":
            yield float(at), ""
        at += turn.end - turn.start
