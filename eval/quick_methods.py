"""Five ways to make a direction of the same answers, compared by held-out AUC (`persona_vectors.directions`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from eval.analysis_page import Section
from eval.quick_extract import Asked, Plan, Reading
from eval.quick_report import record, write_vectors_npz
from eval.sweep import check_once
from eval.text_table import aligned
from persona_vectors.directions import METHODS, difference_of_means, method, scaled
from persona_vectors.files import write_csv_atomic, write_sidecar
from persona_vectors.separation import Separations, held_out_separations, no_narrower, permuted_aucs
from persona_vectors.statistics import Interval, auc, held_out_auc

if TYPE_CHECKING:
    from tqdm import tqdm

ALONE = (
    "mean_centred is mean_diff here: with one trait, everything is its own two sides; with several in --trait the "
    "others' answers are the background"
)


@dataclass(frozen=True, eq=False)
class MethodScore:
    """One method at one layer.

    Attributes:
        auc: held out by question; its interval is no narrower than swapped labels scatter for the difference of means.
        separation: held out; None where there is no spread.
        in_sample: of the direction on the answers it was made from, circular.
        cosine: to the difference of means.
        vector: made of all pairs, with the norm of the difference of means.
    """

    method: str
    layer: int
    auc: Interval
    separation: float | None
    in_sample: float
    cosine: float
    vector: Float[np.ndarray, " d_model"]


def wanted(methods: Sequence[str] | None) -> list[str]:
    """The methods' names in a fixed order; every one for `all`, none without the flag."""
    if not methods:
        return []
    check_once("methods", methods)
    return [name for name in METHODS if "all" in methods or name in methods]


def score_methods(
    names: Sequence[str], work: Plan, readings: Sequence[Reading], which: int, seed: int, bar: tqdm
) -> list[MethodScore]:
    """Every method at every layer that was read, for the reading in place `which`; the other traits are background.

    Raises:
        ValueError: answers of fewer than two questions, or sides that are the same.
    """
    reading, others = readings[which], [one for i, one in enumerate(readings) if i != which]
    found = []
    for row, layer in enumerate(work.layers):
        pos, neg = reading.pos[:, row].double().numpy(), reading.neg[:, row].double().numpy()
        sides = [side[:, row].double().numpy() for one in others for side in (one.pos, one.neg)]
        background = np.concatenate(sides) if sides else None
        chance = permuted_aucs(pos, neg, reading.questions, seed=seed)
        plain = difference_of_means(pos, neg)
        for name in names:
            direction = method(name, background)
            held_out = held_out_auc(pos, neg, reading.questions, seed=seed, direction=direction)
            vector = scaled(direction(pos, neg), float(np.linalg.norm(plain)))
            cosine = float(vector @ plain / (plain @ plain))
            in_sample = auc(pos @ vector, neg @ vector)
            apart, _ = held_out_separations(pos, neg, reading.questions, n_random=1, seed=seed, direction=direction)
            found.append(MethodScore(name, layer, no_narrower(held_out, chance), apart, in_sample, cosine, vector))
            bar.update()
    return found


def lines(found: Sequence[MethodScore], report: Separations, alone: bool) -> list[str]:
    """The table: a row a layer, a column a method, and what random directions reach."""
    columns, cells = table(found, report)
    note = [ALONE] if alone and any(one.method == "mean_centred" for one in found) else []
    return [heading(report), *aligned([columns, *cells]), *note]


def heading(report: Separations) -> str:
    return f"held-out AUC [95%], separation of each method, over {report.n_questions} questions"


def table(found: Sequence[MethodScore], report: Separations) -> tuple[list[str], list[list[str]]]:
    """(headings, a row a layer)."""
    names = list(dict.fromkeys(one.method for one in found))
    by_place = {(one.layer, one.method): one for one in found}
    rows = []
    for own in report.layers:
        scores = [by_place[own.layer, name] for name in names]
        texts = [f"{one.auc.text(2)}, {_number(one.separation, 1)}" for one in scores]
        random = f"{_number(own.quality.auc_random_95, 2)}, {_number(own.random_95, 1)}"
        rows.append([str(own.layer), *texts, random])
    return ["layer", *names, "random 95th"], rows


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_methods(
    asked: Asked, work: Plan, reading: Reading, report: Separations, found: Sequence[MethodScore]
) -> list[Path]:
    """`<base>_methods.csv`, and `<base>_<method>_vectors.npz` of every method but the difference of means."""
    base, told = reading.plan.base, record(asked, work, reading, report)
    random = {one.layer: one for one in report.layers}
    rows = [
        {
            **{"method": one.method, "layer": one.layer, "auc": one.auc.mean},
            **{"auc_low": one.auc.low, "auc_high": one.auc.high, "auc_in_sample": one.in_sample},
            **{"auc_random_95": random[one.layer].quality.auc_random_95, "separation": one.separation},
            **{"separation_random_95": random[one.layer].random_95, "cosine_to_mean_diff": one.cosine},
        }
        for one in found
    ]
    table_path = write_csv_atomic(pd.DataFrame(rows), base.with_name(f"{base.name}_methods.csv"))
    write_sidecar(table_path, {"kind": "methods of extraction", **told})
    written = [table_path]
    for name in dict.fromkeys(one.method for one in found if one.method != "mean_diff"):
        vectors = {one.layer: one.vector for one in found if one.method == name}
        path = write_vectors_npz(base.with_name(f"{base.name}_{name}_vectors.npz"), vectors)
        write_sidecar(path, told | {"method": name, "scaled": "to the norm of the difference of means at each layer"})
        written.append(path)
    return written


def section(found: Sequence[MethodScore], report: Separations, alone: bool) -> Section:
    """The table on the page."""
    columns, cells = table(found, report)
    said = [f"{heading(report)[0].upper()}{heading(report)[1:]}; each direction is made anew for each fold."]
    note = [f"{ALONE}."] if alone else []
    extra: dict[str, Any] = {"columns": columns, "cells": cells}
    return Section("Methods side by side", sentences=[*said, *note], **extra)
