"""The page of any results: figures, tables and answers of every study found, as one HTML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.page import environment
from eval.report_inputs import Inputs
from eval.report_study import (
    MIN_COHERENCE,
    Shown,
    Study,
    place,
    side_by_side,
    spread,
    studies,
    text_or_missing,
    vector_name,
)
from eval.results_figures import (
    frontier_figure,
    layer_figures,
    norm_figures,
    projected_figures,
    projection_figures,
    quality_figure,
    quality_layers,
    steering_figure,
)
from eval.sweep_summary import left_out_text
from eval.text_table import counted
from persona_vectors.page_plots import swatch

TEMPLATE = "results.html.j2"
MAX_ANSWER = 2000  # characters of an answer on the page
MAX_TEXT = 2_000_000  # characters of all answers on the page
MAX_QUESTIONS, MAX_SAMPLES = 12, 2


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
            norms=norm_figures(inputs.vectors),
            vectors=[_vector_row(vectors) for vectors in inputs.vectors],
            qualities=[_quality(name, report) for name, report in inputs.qualities],
            projected=[(one.name, projected_figures(one.columns)) for one in inputs.projected],
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
        "sentences": _sentences(study) + _slopes(study),
        "curves": [steering_figure(study, curve) for curve in curves],
        "frontier": frontier_figure(study, curves),
        "layers": layer_figures(study, curves),
        "rows": _rows(study),
        "projections": projection_figures(study),
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


def _slopes(study: Study) -> list[str]:
    """What the tables' sidecars say of single samples: how many a vector moves the wrong way, beside random ones."""
    found = [one for table in study.tables for one in _dicts(table.sidecar.get("steerability"))]
    lines = []
    for one in found:
        slope, wrong = one.get("slope"), one.get("wrong_way")
        if one.get("control") or not (isinstance(slope, dict) and isinstance(wrong, dict)):
            continue
        name = vector_name(str(one.get("vector"))) + place(one.get("layer"))
        if not _has_mean(slope):
            if one.get("left_out"):
                lines.append(f"{name}: no slope, which needs two coherent coefficients{left_out_text([one])}.")
            continue
        random = [
            other["wrong_way"]["mean"]
            for other in found
            if other.get("control")
            and other.get("layer") == one.get("layer")
            and _has_mean(other.get("wrong_way"))
            and other.get("matched", one.get("vector")) == one.get("vector")
        ]
        beside = f"; of random directions, {min(random):.0%} to {max(random):.0%} do" if random else ""
        share = f"{wrong['mean']:.0%}" if _has_mean(wrong) else "an unknown share"
        lines.append(
            f"{name}: {slope['mean']:+.1f} points of {study.trait} a unit of coef; {share} of {one.get('n_used')} "
            f"samples move the wrong way{left_out_text([one])}{beside}."
        )
    return lines


def _has_mean(interval: Any) -> bool:
    return isinstance(interval, dict) and isinstance(interval.get("mean"), float | int)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _rows(study: Study) -> list[dict[str, str]]:
    """A row a setting; the random directions of one layer and coefficient are one row."""
    rows, randoms = [], {}
    several = len({one.matched for one in study.settings if one.matched}) > 1
    for one in study.settings:
        if one.kind == "random":
            randoms.setdefault((one.layer, one.coef, one.matched), []).append(one)
        else:
            rows.append(_row(one.name(), [one], one.score.text(), one.coherence.text()))
    for (layer, coef, matched), group in sorted(randoms.items(), key=lambda item: str(item[0])):
        like = f" with the norm of {vector_name(matched)}" if matched and several else ""
        name = f"{counted(len(group), 'random direction')}{like}{place(layer)}, coef {coef or 0:g}"
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


def _quality(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """A quality report's figure, its table by layer, and what else it says."""
    layers = quality_layers(report)
    columns = list(dict.fromkeys(key for row in layers for key in row))
    return {
        "name": name,
        "figure": quality_figure(report),
        "columns": columns,
        "layers": [[_short(row.get(key, "")) for key in columns] for row in layers],
        "rest": flat({key: value for key, value in report.items() if key != "layers" or not layers}),
    }


def _vector_row(vectors: Any) -> dict[str, str]:
    pairs = vectors.sidecar.get("pairs") or {}
    kept = f"{pairs['n_kept']} of {pairs['n_pairs']}" if {"n_kept", "n_pairs"} <= set(pairs) else "not known"
    made = vectors.sidecar.get("model") or {}
    model = made.get("name") if isinstance(made, dict) else made
    longest = int(np.argmax(vectors.norms))
    texts = {"name": vectors.name, "trait": vectors.sidecar.get("trait") or "not known", "model": model or "not known"}
    return {
        **texts,
        "kept": kept,
        "norm": f"{vectors.norms[longest]:.3g} at layer {longest} of {len(vectors.norms) - 1}",
    }


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
    picked = [questions[i] for i in spread(len(questions), n_questions)]
    shown = [
        {
            "name": name,
            "items": [
                item
                for number, text in enumerate(picked, 1)
                for item in _items(settings, text, number, n_samples, study.trait)
            ],
        }
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
                score, coherence = text_or_missing(row["score"]), text_or_missing(row["coherence"])
                cards.append(
                    {
                        "label": "unsteered" if one.kind == "unsteered" else one.name(),
                        "coef": f"coef {one.coef:g}" if one.kind == "steered" else "",
                        "kind": one.kind,
                        "scores": f"{trait} {score}, coherence {coherence}",
                        "text": text[:MAX_ANSWER],
                        "more": max(0, len(text) - MAX_ANSWER),
                    }
                )
        if cards:
            items.append({"question": question, "question_number": number, "sample": sample + 1, "cards": cards})
    return items
