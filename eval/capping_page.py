"""The files of `eval.capping`: tables, transcripts, and the page that shows what the cap did beside random ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.analysis_page import Page, Section, Shown, write
from eval.capping_findings import (
    Study,
    answer_rows,
    asked_turns,
    ordinary_rows,
    result_rows,
    sentences,
    talk_share,
    turn_rows,
)
from eval.capping_roles import UNCAPPED, Tried
from eval.page import visible
from eval.results_figures import Figure
from eval.text_table import aligned
from eval.transcripts import write_transcripts
from persona_vectors.files import sha256_of_file, write_csv_atomic, write_sidecar
from persona_vectors.models import fingerprint
from persona_vectors.page_plots import Series, boxes, chart
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

HEADING = ["measure", "setting", "value [95%]", "minus uncapped [95%]", "n"]
N_SHOWN = 4


def write_results(study: Study, personas: Sequence[str], folder: Path, arguments: Mapping[str, Any]) -> list[str]:
    """The lines to be printed, which name transcripts of an earlier run that are still there.

    Writes results, answers, ordinary, turns (.csv), transcripts_<setting>.jsonl and report.html, with sidecars.
    """
    record = {
        "settings": dict(arguments),
        "model_fingerprint": fingerprint(arguments["model_name"]),
        "vector_sha256": sha256_of_file(arguments["vector_path"]),
    }
    rows = list(result_rows(study))
    tables = {"results": rows, "answers": answer_rows(study), "turns": turn_rows(study, personas)}
    tables["ordinary"] = ordinary_rows(study)
    for name, table in tables.items():
        write_sidecar(write_csv_atomic(pd.DataFrame(list(table)), folder / f"{name}.csv"), record)
    earlier = set(folder.glob("transcripts_*.jsonl"))
    for setting in study.settings:
        talks = study.roles[setting.name].talks
        path = write_transcripts(folder / f"transcripts_{setting.name}.jsonl", talks)
        write_sidecar(path, record)
        earlier.discard(path)
    left = ", ".join(sorted(path.name for path in earlier))
    notes = [f"note: {left} in {folder} came from an earlier run; delete what is not wanted"] if left else []
    found = sentences(study, rows)
    report = write(page(study, personas, rows, found, arguments), folder / "report.html", record)
    return [*aligned([HEADING, *cells(rows)]), "", *found, *notes, f"written to {folder}; open {report}"]


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The results as texts: measures together, the settings below one another."""
    by_measure: dict[str, list[list[str]]] = {}
    for row in rows:
        name = row["measure"]
        difference = _with_interval(row, "difference", "+") if "difference" in row else ""
        why = "with an empty turn" if name.startswith("drift") else "not judged"
        missing = f" ({row['n_missing']} {why})" if row["n_missing"] else ""
        own = [name, row["setting"], _with_interval(row, "value", ""), difference, f"{row['n']}{missing}"]
        by_measure.setdefault(name, []).append(own)
    return [own for group in by_measure.values() for own in group]


def _with_interval(row: Mapping[str, Any], of: str, sign: str) -> str:
    low, high = ("low", "high") if of == "value" else (f"{of}_low", f"{of}_high")
    if row[of] is None:
        return "none"
    digits = 1 if row["measure"].startswith(("coherence", "role strength")) else 3
    if row[low] is None:
        return f"{row[of]:{sign}.{digits}f} [no interval]"
    return f"{row[of]:{sign}.{digits}f} [{row[low]:{sign}.{digits}f}, {row[high]:{sign}.{digits}f}]"


def page(
    study: Study,
    personas: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    found: Sequence[str],
    arguments: Mapping[str, Any],
) -> Page:
    """The page: thresholds, role susceptibility, conversations, capability, answers."""
    bounds = "; ".join(f"layer {step.layer}: {step.bounds()}" for step in study.cap.steps)
    table = cells(rows)
    return Page(
        title=f"Capping {study.model} along {study.cap.name}",
        lead=(
            f"{study.model}, {bounds} (units of the projection h.v/|v|), at {study.cap.positions} tokens. Role-play is "
            f"judged fully, somewhat or none by {study.judge}, over {len(personas)} roles and {len(study.questions)} "
            f"questions that did not calibrate. Beside it {len(study.controls)} caps on random directions, at the same "
            "percentiles of what ordinary answers show on them."
        ),
        sentences=found,
        sections=[
            Section("Ordinary answers and role-play along the vector", [_THRESHOLDS], [_threshold_figure(study)]),
            Section("Conversations that lead into a role", [_TALKS], [_talk_figure(study)]),
            Section("With and without the cap", [_RESULTS], columns=HEADING, cells=table),
            Section("Answers to role prompts", samples=list(_samples(study))),
        ],
        notes=_notes(study),
        settings=dict(arguments),
    )


_THRESHOLDS = (
    "Projections of the tokens of uncapped answers: those of the assistant's own personas, whose percentiles are the "
    "thresholds, and those given under role prompts. Boxes hold the middle half, lines go from the 5th to the 95th "
    "percentile; a floor moves what lies left of it up to it."
)
_RESULTS = (
    "Values with 95% intervals; differences are paired, answer by answer, conversation by conversation, item by item. "
    "Shares of role answers resample personas, drift resamples conversations, capability items. Drift is the slope of "
    "the assistant's mean projection over turns: as generated, under the setting's own cap, which clamps what is "
    "measured; and of the words alone, read uncapped with the user's turns as plain questions, which nothing clamps."
)
_TALKS = (
    "One scripted conversation a role and setting; each setting answers to what it said itself. Projections of the "
    "assistant's turns as generated and of their words alone, and the share of turns judged to play the role fully. "
    "From the dotted line on the user asks for the role, more firmly each turn."
)


def _notes(study: Study) -> list[str]:
    found = [f"How far a role is played is a judge's word ({study.judge_line}); read some answers below."]
    if not study.controls:
        found.append("No caps on random directions were run, so nothing here says what capping does by itself.")
    return found


def _look(setting: Tried) -> str:
    return "base" if setting.name == UNCAPPED else "random" if setting.is_random else "s0"


def _threshold_figure(study: Study) -> Figure:
    panels = []
    for step in study.cap.steps:
        ordinary, role = study.calibration[step.layer][:, 0], study.role_tokens[step.layer]
        rows = [("ordinary answers", "s0", ordinary), ("role answers", "s4", role)]
        label = visible(f"projections on {study.cap.name} at layer {step.layer}")
        title = f"layer {step.layer}, {step.bounds()}"
        panels.append((title, boxes(rows, f"projection on {study.cap.name}", label)))
    return Figure(f"{study.model}: tokens along {study.cap.name}", panels, [])


def _talk_figure(study: Study) -> Figure:
    turns = np.arange(1, len(study.script) + 1)
    asked = asked_turns(study.script)
    marks = [(asked[0] + 0.5, "asked for a role")] if asked and asked[0] else []
    generated, words, shares = [], [], []
    for setting in sorted(study.settings, key=lambda one: not one.is_random):
        own, look = study.roles[setting.name], _look(setting)
        judged = [talk_share(own.talk_labels, [turn]) for turn in range(len(study.script))]
        drawn = [(generated, _columns(own.own_means)), (words, _columns(own.word_means)), (shares, judged)]
        for series, values in drawn:
            around = ([one.low for one in values], [one.high for one in values]) if not setting.is_random else ((), ())
            if values:
                series.append(Series(visible(setting.name), turns, [one.mean for one in values], *around, look=look))
    options: dict[str, Any] = {"whole_x": True, "marks": marks}
    panels = []
    for name, series in (("as generated", generated), ("words alone", words)):
        shown = chart(series, "turn of the assistant", "mean projection", f"projection by turn, {name}", **options)
        panels.append((f"projection at layer {study.layer}, {name}", shown))
    shown = chart(shares, "turn of the assistant", "share", "role-play by turn", ylim=(-0.04, 1.04), **options)
    panels.append(("share that plays the role fully", shown))
    legend = [("base", UNCAPPED), ("s0", f"capped along {study.cap.name}")]
    legend += [("random", "capped along random directions")] if study.controls else []
    n = len(study.roles[UNCAPPED].talks)
    return Figure(
        f"{study.model}, layer {study.layer}: {n} conversations a setting, means with 95% intervals", panels, legend
    )


def _columns(means: np.ndarray | None) -> list[Interval]:
    """The mean over conversations of each turn, with its interval."""
    return [] if means is None else [cluster_bootstrap_mean(column, range(len(column))) for column in means.T]


def _samples(study: Study) -> Iterator[tuple[str, list[Shown]]]:
    """The same role prompts under every setting, spread over the roles."""
    places = list(study.roles[UNCAPPED].answers)
    shown = [one for one in study.settings if one.name in (UNCAPPED, study.cap.name)] + study.controls[:1]
    for place in places[:: max(1, len(places) // N_SHOWN)][:N_SHOWN]:
        answers = []
        for setting in shown:
            own = study.roles[setting.name]
            css = "unsteered" if setting.name == UNCAPPED else "random" if setting.is_random else "steered"
            note = f"plays the role: {own.labels[place] or 'not judged'}"
            answers.append(Shown(setting.name, own.answers[place][:600], note, css))
        yield f"{place[0]}: {place[1]}", answers
