"""What a run found: a line a setting, how steerable samples are, and the best trait at the coherence asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.sweep import Setting, shown_names
from eval.sweep_answers import Answered
from eval.text_table import counted
from persona_vectors.statistics import Interval, cluster_bootstrap_mean
from persona_vectors.steerability import frontier, steerability

if TYPE_CHECKING:
    import pandas as pd

Names = Mapping[str, str]
"""vector -> its name to print"""
SETTING = ("coef", "layer", "vector", "control", "matched")
_UNKNOWN: dict[str, float | None] = {"mean": None, "low": None, "high": None}
NO_SLOPE: dict[str, Any] = {"slope": _UNKNOWN, "wrong_way": _UNKNOWN, "n_used": 0, "n_samples": 0}


def sweep_table(found: Sequence[Answered]) -> pd.DataFrame:
    """The published columns of all settings and, for more than one, `coef, layer, vector, control`."""
    import pandas as pd

    if len(found) == 1:
        return found[0].table
    return pd.concat([_with_setting(one.table, one.setting) for one in found], ignore_index=True)


def _with_setting(table: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    import pandas as pd

    layer = pd.array([setting.layer] * len(table), dtype="Int64")  # empty where nothing is steered, never 3.0
    return table.assign(coef=setting.coef, layer=layer, vector=setting.vector, control=setting.control)


def summarise(table: pd.DataFrame, trait: str) -> dict[str, Interval]:
    """Mean and 95% interval of trait and coherence, from a bootstrap clustered by question."""
    clusters = table["question"].tolist()
    return {name: cluster_bootstrap_mean(table[name].tolist(), clusters) for name in (trait, "coherence")}


def sweep_findings(found: Sequence[Answered], trait: str, min_coherence: float) -> dict[str, Any]:
    """Everything below, as the sidecar keeps it."""
    summaries = setting_summaries(found, trait)
    return {
        "sweep": summaries,
        "steerability": steerabilities(found, summaries, trait, min_coherence),
        "frontier": find_frontier(summaries, trait, min_coherence),
    }


def setting_summaries(found: Sequence[Answered], trait: str) -> list[dict[str, Any]]:
    """One dict a setting, for the sidecar's `sweep`."""
    summaries = []
    for one in found:
        intervals = summarise(one.table, trait)
        summaries.append(
            {
                **{name: getattr(one.setting, name) for name in SETTING},
                "n_total": len(one.table),
                "n_scored": intervals[trait].n,
                "n_failed": len(one.failures),
                "n_questions": intervals[trait].n_clusters,
                **{name: described(interval) for name, interval in intervals.items()},
            }
        )
    return summaries


def described(interval: Interval) -> dict[str, float | None]:
    """The interval for a sidecar; JSON has no NaN, so what could not be had is null."""
    numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}


def steerabilities(
    found: Sequence[Answered], summaries: Sequence[dict[str, Any]], trait: str, min_coherence: float
) -> list[dict[str, Any]]:
    """For each vector and random direction at each layer: the slope of each sample's score over the coefficient.

    The unsteered run, where there is one, is coefficient 0 of all of them. Steered settings below `min_coherence` are
    left out (`left_out`), as in the frontier: the judge's score of broken text is no effect of the trait. Samples are
    paired by question id and number. Where fewer than two coefficients were run there is nothing to say; where fewer
    than two are coherent, the slope is null.
    """
    base = [one for one in found if one.setting.is_baseline]
    groups: dict[tuple, list[tuple[Answered, bool]]] = {}
    for one, summary in zip(found, summaries, strict=True):
        if one.setting.steering is not None:
            key = (one.setting.vector, one.setting.matched, one.setting.control, one.setting.layer)
            coherence = summary["coherence"]["mean"]
            groups.setdefault(key, []).append((one, coherence is not None and coherence >= min_coherence))
    described_groups = []
    for (vector, matched, control, layer), steered in groups.items():
        if len(base) + len(steered) < 2:
            continue
        members = [*base, *(one for one, coherent in steered if coherent)]
        described_groups.append(
            {
                **{"vector": vector, "layer": layer, "control": control, "matched": matched},
                "coefs": sorted(one.setting.coef for one in members),
                "left_out": sorted(one.setting.coef for one, coherent in steered if not coherent),
                "min_coherence": min_coherence,
                **(_steerability(members, trait) if len(members) > 1 else NO_SLOPE),
            }
        )
    return described_groups


def _steerability(members: Sequence[Answered], trait: str) -> dict[str, Any]:
    """Of samples that are the same question, system prompt and random stream under every setting."""
    columns, questions = [], {}
    for one in members:
        sample = one.table.groupby("question_id", sort=False).cumcount()
        keys = list(zip(one.table["question_id"], sample, strict=True))
        columns.append(dict(zip(keys, one.table[trait], strict=True)))
        questions |= dict(zip(keys, one.table["question"], strict=True))
    scores = np.array([[column.get(key, np.nan) for column in columns] for key in questions], dtype=float)
    found = steerability([one.setting.coef for one in members], scores, list(questions.values()))
    intervals = {"slope": described(found.slope), "wrong_way": described(found.wrong_way)}
    return {**intervals, "n_used": found.n_used, "n_samples": found.n_samples}


def find_frontier(summaries: Sequence[dict[str, Any]], trait: str, min_coherence: float) -> dict[str, Any]:
    """The highest mean trait of the vector's steered settings at mean coherence >= `min_coherence`, and beside it the
    same of random directions, of the unsteered run and of the system prompt; None where there is none.

    The best of many settings is chosen on the answers it is scored by: the more settings, the more it flatters. The
    random directions are chosen in the same way.
    """

    def best(kind: str) -> dict[str, Any] | None:
        rows = [row for row in summaries if _kind(row) == kind]
        least = min_coherence if kind in ("steered", "random") else 0.0  # the others are no choice among settings
        chosen = frontier([(row, row[trait]["mean"], row["coherence"]["mean"]) for row in rows], least)
        if chosen is None:
            return None
        return {name: chosen[0][name] for name in (*SETTING, trait, "coherence")}

    return {
        "min_coherence": min_coherence,
        **{kind: best(kind) for kind in ("steered", "random", "unsteered", "prompt")},
    }


def _kind(row: dict[str, Any]) -> str:
    if row["control"]:
        return "prompt" if row["control"] == "prompt" else "random"
    return "steered" if row["vector"] else "unsteered"


def finding_lines(findings: dict[str, Any], trait: str) -> list[str]:
    """The findings as text: a line a setting, a line for each vector's steerability, and the frontier."""
    names = shown_names(row["vector"] or row["matched"] for row in findings["sweep"])
    return [
        *table_lines(findings["sweep"], trait, names),
        *steerability_lines(findings["steerability"], trait, names),
        frontier_line(findings["frontier"], trait, names),
    ]


def summary_lines(one: Answered, trait: str) -> list[str]:
    """Two lines of a run of one setting."""
    return [
        f"{name + ':':<16} {interval.mean:6.2f}  95% [{interval.low:.2f}, {interval.high:.2f}]"
        f"  n_scored {interval.n} of n_total {len(one.table)}, {interval.n_clusters} questions"
        for name, interval in summarise(one.table, trait).items()
    ]


def table_lines(summaries: Sequence[dict[str, Any]], trait: str, names: Names) -> list[str]:
    """A line a setting, under a heading."""
    rows = [("layer", "coef", "setting", trait, "coherence", "scored")]
    for row in summaries:
        layer = "-" if row["layer"] is None else str(row["layer"])
        coef = "-" if row["control"] == "prompt" else f"{row['coef']:g}"
        counts = f"{row['n_scored']}/{row['n_total']}"
        rows.append((layer, coef, _name(row, names), _text(row[trait]), _text(row["coherence"]), counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {2}  # names; numbers stand at the right
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def steerability_lines(found: Sequence[dict[str, Any]], trait: str, names: Names) -> list[str]:
    """A line for each vector and layer; one for the random directions of each layer, as a range."""
    lines = []
    own = [one for one in found if not one["control"]]
    for one in own:
        what = (
            f"{_text(one['slope'], sign=True)} points of {trait} a unit of coef; {_share(one['wrong_way'])} of "
            f"{one['n_used']} samples move the wrong way"
        )
        if len(one["coefs"]) < 2:
            what = "no slope, which needs two coherent coefficients"
        lines.append(f"steerability of {_name(one, names)}{_at(one['layer'])}: {what}{left_out_text([one])}")
    groups: dict[tuple[int | None, str], list[dict[str, Any]]] = {}
    for one in found:
        if one["control"]:
            groups.setdefault((one["layer"], one["matched"]), []).append(one)
    for (layer, matched), there in sorted(groups.items(), key=lambda item: item[0][0] or 0):
        random = [one for one in there if one["n_used"]]
        if random:
            slopes = [round(one["slope"]["mean"], 1) + 0.0 for one in random]
            shares = [one["wrong_way"]["mean"] for one in random]
            name = f"{counted(len(random), 'random direction')}{_of(matched, names)}{_at(layer)}"
            lines.append(
                f"steerability of {name}: {min(slopes):+.1f} to {max(slopes):+.1f}; {min(shares):.0%} to "
                f"{max(shares):.0%} move the wrong way{left_out_text(there)}"
            )
    return lines


def left_out_text(found: Sequence[dict[str, Any]]) -> str:
    """` (without coef 4, 8: coherence below 75)`; nothing where all settings counted."""
    coefs = sorted({coef for one in found for coef in one.get("left_out", [])})
    if not coefs:
        return ""
    return f" (without coef {', '.join(f'{coef:g}' for coef in coefs)}: coherence below {found[0]['min_coherence']:g})"


def frontier_line(found: dict[str, Any], trait: str, names: Names) -> str:
    """`frontier: evil 61.2 [..] at layer 3, coef 1 (coherence 88); random ...; unsteered ...`."""
    shown = []
    for kind in ("steered", "random", "unsteered", "prompt"):
        best = found[kind]
        if best is not None:
            at = f"{_at(best['layer'])}," if best["layer"] is not None else " at"
            where = f"{at} coef {best['coef']:g}" if kind in ("steered", "random") else ""
            name = {"steered": _name(best, names), "random": _name(best, names)}.get(kind, kind)
            shown.append(f"{name} {_text(best[trait])}{where} (coherence {best['coherence']['mean']:.1f})")
        elif kind == "steered":
            shown.append("no steered setting")
    return f"highest {trait} at coherence >= {found['min_coherence']:g}: {'; '.join(shown)}"


def _at(layer: int | None) -> str:
    """Where hidden states are steered; nothing for a direction of the weights."""
    return "" if layer is None else f" at layer {layer}"


def _name(row: dict[str, Any], names: Names) -> str:
    if row["control"]:
        return row["control"] + _of(row["matched"], names)
    return names[row["vector"]] if row["vector"] else "unsteered"


def _of(matched: str, names: Names) -> str:
    """Whose control a random direction is, where there are several it could be."""
    return f" of {names[matched]}" if matched and len(names) > 1 else ""


def _text(interval: dict[str, float | None], *, sign: bool = False) -> str:
    if interval["mean"] is None:
        return "no score"

    def form(value: float | None) -> str:
        return f"{round(value or 0.0, 1) + 0.0:{'+' if sign else ''}.1f}"  # adding 0.0 turns -0.0 into 0.0

    if interval["low"] is None:
        return f"{form(interval['mean'])} [no interval]"
    return f"{form(interval['mean'])} [{form(interval['low'])}, {form(interval['high'])}]"


def _share(interval: dict[str, float | None]) -> str:
    if interval["mean"] is None:
        return "none"
    bounds = "" if interval["low"] is None else f" [{interval['low']:.0%}, {interval['high']:.0%}]"
    return f"{interval['mean']:.0%}{bounds}"
