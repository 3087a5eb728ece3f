"""What a screen found, in words and as a table, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.screen_auc import Separation
from eval.screen_result import Screen
from eval.screen_rows import JUDGE, Measured

WORDS = {
    "delta_p": "mean activation of the row's answer minus that of the model's own answer, on v/|v|",
    "raw": "mean activation of the row's answer, on v/|v|",
    "cheap": "mean activation of the row's answer minus that of the prompt's last token, on v/|v|",
    JUDGE: "the judge's score of the row's answer, 0 to 100",
}
FEW = 20
"""A percentile of fewer reference rows than this says little."""
SHOWN = 10
"""Lines that are named; all are in scores.csv."""
AUC_COLUMNS = (
    "level",
    "by",
    "AUC [95%]",
    "random directions",
    "above",
    "permuted labels",
    "p",
    "rows",
    "questions",
)


def what(screen: Screen) -> str:
    """What a flagged row is, in words."""
    judged = [one.kind == JUDGE for one in screen.criteria]
    if not any(judged):
        return "far along the vector"
    return "scored high by the judge" if all(judged) else "far along the vector, or scored high by the judge"


def sentences(screen: Screen) -> list[str]:
    """Counts, thresholds with where they come from, and what the rule does to reference and levels."""
    counts, n_unscored = screen.counts(), len(screen.unscored)
    n = counts["n_rows"]
    if screen.rule is None:
        said = [f"{n} rows ranked by {_by(screen)}."]
    else:
        n_flagged = counts["n_flagged"] - (n_unscored if screen.unscored_to == "flag" else 0)
        n_kept = n - n_flagged - n_unscored
        went = "kept" if screen.unscored_to == "keep" else "flagged"
        unscored = f", {n_unscored} cannot be scored and are {went}" if n_unscored else ""
        said = [f"Of {n} rows {n_flagged} are flagged ({what(screen)}), {n_kept} are kept{unscored}."]
        join = " and " if screen.combine == "all" else " or "
        limits = join.join(f"{name} > {limit:.4g}" for name, limit in screen.rule.thresholds.items())
        said.append(f"Threshold: {limits} ({screen.rule.source}).")
        if screen.reference is not None:
            said.append(f"Of the reference rows the rule flags {_share(*screen.share_flagged(screen.reference))}.")
        for name, level in screen.levels.items():
            same = " (the reference itself)" if level is screen.reference else ""
            said.append(f"Of {name}{same} it flags {_share(*screen.share_flagged(level))}.")
    return said


def _by(screen: Screen) -> str:
    names = [one.name for one in screen.criteria]
    how = {"any": "the highest", "all": "the lowest", "mean_rank": "the mean"}[screen.combine]
    return names[0] if len(names) == 1 else f"{how} of their ranks by {', '.join(names)}"


def _share(n: int, of: int) -> str:
    return f"{n} of {of} ({100 * n / of:.1f}%)" if of else "none: no row of them has a value"


def notes(screen: Screen) -> list[str]:
    """What a reader must know beside it: gaps by line, thin references, equal values, degenerate intervals."""
    data, said = screen.data, []
    for reason in dict.fromkeys(filter(None, data.reasons)):
        lines = [row.line for row, why in zip(data.rows, data.reasons, strict=True) if why == reason]
        said.append(f"{len(lines)} rows lack a value ({reason}): {_lines(lines)}.")
    undecided = [row for row in screen.unscored if not data.reasons[row]]
    if undecided:
        said.append(f"{len(undecided)} more rows cannot be decided: {_lines([data.rows[i].line for i in undecided])}.")
    for name, values in data.values.items():
        known = values[~np.isnan(values)]
        if len(known) > 1 and np.ptp(known) == 0:
            said.append(f"{name} is {known[0]:.4g} in all {len(known)} rows: it tells none of them from another.")
    if screen.reference is not None:
        said += _of_reference(screen, screen.reference)
    for name, level in screen.levels.items():
        said += [f"{name} has no value of {one}: no AUC." for one, own in level.values.items() if np.isnan(own).all()]
    if any(one.auc.mean in (0.0, 1.0) for one in screen.separations):
        said.append("An AUC of 0 or 1 has an interval of no width: no resample has a pair of rows the other way round.")
    return [*said, *screen.notes]


def _lines(lines: Sequence[int]) -> str:
    more = f" and {len(lines) - SHOWN} more (why_missing in scores.csv)" if len(lines) > SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:SHOWN]))}{more}"


def _of_reference(screen: Screen, reference: Measured) -> list[str]:
    said = []
    n_known = min(int((~np.isnan(values)).sum()) for values in reference.values.values())
    if n_known < FEW:
        said.append(f"The reference has {n_known} rows with a value: a percentile of fewer than {FEW} says little.")
    if gaps := sum(map(bool, reference.reasons)):
        said.append(f"{gaps} of {len(reference.rows)} reference rows lack a value and are left out.")
    known = {repr(row.messages) for row in screen.data.rows}
    shared = sum(repr(row.messages) in known for row in reference.rows)
    if shared:
        said.append(f"{shared} of {len(reference.rows)} reference rows are also among the rows that are screened.")
    return said


def auc_cells(screen: Screen) -> list[list[str]]:
    """The AUC table, below it the answers' length: a row a level and criterion."""
    return [_cells(one) for one in [*screen.separations, *screen.baseline]]


def _cells(one: Separation) -> list[str]:
    missing = f" ({one.auc.n_dropped} without)" if one.auc.n_dropped else ""
    random = one.random
    return [
        one.level,
        one.criterion,
        one.auc.text(3),
        "" if random is None else random.text(),
        "" if random is None else f"{100 * random.beaten:.1f}%",
        one.permuted.text(),
        f"{one.p:.2g}",
        f"{one.auc.n}{missing}",
        str(one.auc.n_clusters),
    ]


def auc_words(screen: Screen) -> str:
    """What the AUC table means."""
    normal = next(iter(screen.levels))
    return (
        f"AUC: the chance that a row of the level is further along than a row of {normal}; 0.5 is chance. Intervals "
        "and permutations are by question. Random directions (median, 95% range, and the share that the AUC is above): "
        "200 at the same layer, each turned by half of the questions and scored on the other half. Levels that are "
        "written differently differ in many directions, so these can be high: what counts is the distance to them."
    )


def level_names(paths: Sequence[str]) -> list[str]:
    """A short name of each level: its stem, or the whole path where stems are equal."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
