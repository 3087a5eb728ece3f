"""What capability measurements show: a row a model x setting x task, each beside the reference, item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.sweep import Setting
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

LEVEL = 0.95
PROBE = "probe"


@dataclass(frozen=True)
class Measure:
    """One metric of one task.

    Attributes:
        part: "" for the whole task, otherwise the kind of items, or a group's task.
        value: as the task computes it.
        items: item -> its value where `value` is their mean; empty otherwise.
        n_items: how many items the value is of, where `items` does not say.
        answers: item -> what the model answered, where that is at hand.
    """

    task: str
    part: str
    metric: str
    value: float
    items: Mapping[str, float] = field(default_factory=dict)
    n_items: int = 0
    answers: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.part, self.metric


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its 95% interval: Wilson's where every value is 0 or 1, otherwise a bootstrap over the items."""
    numbers = np.asarray(values, dtype=float)
    if len(numbers) and np.isin(numbers, (0.0, 1.0)).all():
        from scipy.stats import binomtest  # half a second

        limits = binomtest(int(numbers.sum()), len(numbers)).proportion_ci(LEVEL, method="wilson")
        return Interval(float(numbers.mean()), float(limits.low), float(limits.high), len(numbers), len(numbers))
    return cluster_bootstrap_mean(numbers, range(len(numbers)), level=LEVEL)


def paired_difference(values: Mapping[str, float], reference: Mapping[str, float]) -> Interval | None:
    """Mean of value - reference over the items that both have, with a 95% interval from resampling items."""
    shared = [item for item in values if item in reference]
    if not shared:
        return None
    return cluster_bootstrap_mean([values[item] - reference[item] for item in shared], shared, level=LEVEL)


def task_rows(
    model: str, setting: Setting, measures: Sequence[Measure], reference: Mapping[tuple, Measure] | None
) -> list[dict[str, Any]]:
    """One dict a measure; `reference` has the measures to compare with by key, None for the reference itself."""
    return [
        {**_described(model, setting), **_row(measure, None if reference is None else reference.get(measure.key))}
        for measure in measures
    ]


def item_rows(model: str, setting: Setting, measures: Sequence[Measure]) -> list[dict[str, Any]]:
    """One dict a whole task's metric and item: the item's value, and the model's answer where there is one."""
    return [
        {
            **_described(model, setting),
            **{"task": measure.task, "metric": measure.metric, "item": item, "value": value},
            "answer": measure.answers.get(item, ""),
        }
        for measure in measures
        if not measure.part
        for item, value in measure.items.items()
    ]


def _described(model: str, setting: Setting) -> dict[str, Any]:
    return {"model": model, **{name: getattr(setting, name) for name in ("coef", "layer", "vector", "control")}}


def _row(measure: Measure, reference: Measure | None) -> dict[str, Any]:
    own = mean_interval(list(measure.items.values())) if measure.items else None
    row: dict[str, Any] = {
        **{"task": measure.task, "part": measure.part, "metric": measure.metric},
        **{"value": measure.value, "n": len(measure.items) or measure.n_items},
        "low": None if own is None else own.low,
        "high": None if own is None else own.high,
        **dict.fromkeys(("difference", "difference_low", "difference_high", "n_worse", "n_better")),
    }
    if reference is not None:
        row["difference"] = measure.value - reference.value
        paired = paired_difference(measure.items, reference.items)
        if paired is not None:
            shared = [value - reference.items[item] for item, value in measure.items.items() if item in reference.items]
            row |= {"difference": paired.mean, "difference_low": paired.low, "difference_high": paired.high}
            row |= {"n_worse": sum(d < 0 for d in shared), "n_better": sum(d > 0 for d in shared)}
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}


def setting_name(row: Mapping[str, Any]) -> str:
    """`unsteered`, `humorous.pt layer 3 coef 1`, `random1 layer 3 coef 1`."""
    if row["layer"] is None:
        return "unsteered"
    return f"{row['control'] or Path(row['vector']).name} layer {row['layer']} coef {row['coef']:g}"


def done_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """What one model, setting and task gave, in one line."""
    first = rows[0]
    whole = [row for row in rows if not row["part"]]
    shown = [f"{row['metric']} {_with_interval(row['value'], row['low'], row['high'])}, n {row['n']}" for row in whole]
    says = "; ".join(shown) or f"{len(rows)} metrics of its parts, none of all its items together"
    return f"{first['model']}, {setting_name(first)}: {first['task']} {says}"


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table for a reader: the probe with its parts and the whole of every other task, in aligned columns."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if not row["part"] or row["task"] == PROBE:
            groups.setdefault((row["task"], row["part"], row["metric"]), []).append(row)
    cells = [["task", "metric", "model", "setting", "value [95%]", "n", "minus reference [95%]", "worse", "better"]]
    cells += [_cells(row) for group in groups.values() for row in group]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cells(row: Mapping[str, Any]) -> list[str]:
    difference = "(reference)"
    if row["difference"] is not None:
        difference = _with_interval(row["difference"], row["difference_low"], row["difference_high"], sign="+")
    return [
        f"{row['task']}: {row['part']}" if row["part"] else row["task"],
        row["metric"],
        Path(row["model"]).name,
        setting_name(row),
        _with_interval(row["value"], row["low"], row["high"]),
        str(row["n"]),
        difference,
        *("" if row[key] is None else str(row[key]) for key in ("n_worse", "n_better")),
    ]


def _with_interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return f"{value:{sign}.3f}"
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
