"""What each steering method costs at its best setting: the closed-form facts, answered unsteered and steered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.capability_probe import probe_accuracy
from eval.capability_table import mean_interval, paired_difference
from eval.compare_behavior import Run
from eval.model_utils import Steering, WeightSteering
from lora_utils import LoRASteerer
from persona_vectors.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNSTEERED = "unsteered"
EQUAL_TRAIT = (
    "each method's facts are those at its own best setting, and a stronger steering tends to cost more: compare "
    "facts lost at equal trait"
)


def capability_at(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, runs: Sequence[Run], progress: bool = False
) -> pd.DataFrame:
    """capability.csv: unsteered, then each run's steering with the mean trait it reaches; accuracy with its interval,
    and the paired difference."""
    import pandas as pd

    reference = _items(model, tokenizer, None, progress)
    rows = [_row({"method": UNSTEERED, "control": "", "coef": 0.0, "trait": None}, reference, None)]
    for run in runs:
        named = {"method": run.method, "control": run.control, "coef": run.coef, "trait": run.trait.mean}
        items = _items(model, tokenizer, run.answered.setting.steering, progress)
        rows.append(_row(named, items, paired_difference(items, reference)))
    return pd.DataFrame(rows)


def _items(model: Any, tokenizer: Any, added: Any, progress: bool) -> dict[str, float]:
    """Each question of the probe -> 1 if it is answered right."""
    if isinstance(added, WeightSteering):
        with LoRASteerer(model, added.direction, added.coef, mode="pre_merge"):  # the same change, and no hook
            found = probe_accuracy(model, tokenizer, progress=progress)
    else:
        assert added is None or isinstance(added, Steering)
        found = probe_accuracy(model, tokenizer, steering=added, progress=progress)
    return {f"{one.kind}: {one.question}": float(one.right) for one in found}


def _row(named: Mapping[str, Any], items: Mapping[str, float], difference: Interval | None) -> dict[str, Any]:
    own = mean_interval(list(items.values()))
    row = {**named, "accuracy": own.mean, "low": own.low, "high": own.high, "n": own.n}
    ends = ("difference", "difference_low", "difference_high")
    values = (None,) * 3 if difference is None else (difference.mean, difference.low, difference.high)
    return row | dict(zip(ends, values, strict=True))


def with_controls(best: Mapping[str, Run], runs: Sequence[Run]) -> list[Run]:
    """The best settings, each followed by its first control at the same coefficient."""
    chosen = []
    for method, run in best.items():
        chosen.append(run)
        chosen += [r for r in runs if (r.method, r.control, r.coef) == (method, "random1", run.coef)]
    return chosen


def capability_lines(table: pd.DataFrame) -> list[str]:
    """A line a setting."""
    lines = []
    for row in table.to_dict("records"):
        name = f"{row['control'] + ' of ' if row['control'] else ''}{row['method']}, coef {row['coef']:g}"
        own = f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['n']}"
        if row["method"] == UNSTEERED:
            lines.append(f"facts, unsteered: {own}")
        else:
            ends = f"{row['difference_low']:+.3f}, {row['difference_high']:+.3f}"
            lines.append(
                f"facts, {name} (trait {row['trait']:.1f}): {own}; difference {row['difference']:+.3f} [{ends}]"
            )
    lines.append(EQUAL_TRAIT)
    if not float(table["accuracy"].iloc[0]):
        lines.append(
            "the unsteered model gets none of the facts of models/tiny-persona right, so they say nothing about it; "
            "use python -m eval.capability --tasks"
        )
    return lines
