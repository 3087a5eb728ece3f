"""Both steering methods over their coefficients: one sampling job, and what it gave a setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.compare_settings import METHODS, Checked, method_of
from eval.sweep import Study
from eval.sweep_answers import Answered, Sampling, answered
from eval.sweep_summary import summarise
from persona_vectors.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

    from eval.finished_answers import Engine
    from persona_vectors.store import Store


@dataclass(frozen=True, eq=False)
class Run:
    """One setting as a method's: the unsteered answers are coefficient 0 of both.

    Attributes:
        control: "" for the method's own, random1, ... for its controls.
        trait, coherence: mean and 95% interval, clustered by question.
    """

    method: str
    control: str
    coef: float
    answered: Answered
    trait: Interval
    coherence: Interval

    @property
    def table(self) -> pd.DataFrame:
        return self.answered.table

    @property
    def words(self) -> float:
        """Mean words of an answer."""
        return float(self.table["answer"].str.split().str.len().mean())

    @property
    def name(self) -> str:
        """`activation, coef 1`."""
        own = f"{self.control} of {self.method}" if self.control else self.method
        return f"{own}, coef {self.coef:g}" if self.coef else "unsteered"


@dataclass(frozen=True, eq=False)
class Behavior:
    """What was sampled: the unsteered run, each method's runs, and the steering receipts."""

    unsteered: Run
    runs: list[Run]
    receipts: Mapping[str, Any]


def compare_behavior_vs_coefficient(engine: Engine, store: Store, checked: Checked) -> Behavior:
    """The unsteered run and every setting of both methods and of their controls, sampled and judged in one job.

    Rows with the same question and sample number draw from the same random stream in every setting, so that settings
    are paired. What each steering does is measured first (a steering receipt).
    """
    from eval.sweep_receipts import Receipts
    from judge import JudgeOptions

    asked = checked.asked
    how = Sampling(asked.n_per_question, asked.max_tokens, asked.seed, asked.overwrite, judge=JudgeOptions())
    study = Study(checked.name, Path(), checked.questions, checked.settings)
    receipts = Receipts(engine, store, [study])
    [found] = answered(engine, store, [study], how, before_sampling=lambda: _say(receipts.take()))
    _say(receipts.earlier())
    return Behavior(_run(found[0], "", checked.name), runs_of(found, checked), receipts.record(checked.settings))


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def runs_of(found: Sequence[Answered], checked: Checked) -> list[Run]:
    """The settings by method, own before controls, lowest coefficient first."""
    runs = []
    for method in METHODS:
        own = [one for one in found if method_of(one.setting) == method]
        if 0 in checked.asked.coefs(method):
            own = [found[0], *own]
        runs += [_run(one, method, checked.name) for one in own]
    order = {method: number for number, method in enumerate(METHODS)}
    return sorted(runs, key=lambda run: (order[run.method], run.control, run.coef))


def _run(one: Answered, method: str, trait: str) -> Run:
    means = summarise(one.table, trait)
    return Run(method, one.setting.control, one.setting.coef, one, means[trait], means["coherence"])


def results_table(runs: Sequence[Run], checked: Checked) -> pd.DataFrame:
    """comparison_results.csv: a row a method, control and coefficient."""
    import pandas as pd

    return pd.DataFrame([_row(run, checked) for run in runs])


def _row(run: Run, checked: Checked) -> dict[str, Any]:
    row: dict[str, Any] = {"method": run.method, "control": run.control, "coef": run.coef}
    for name, interval in ((checked.name, run.trait), ("coherence", run.coherence)):
        row |= {f"{name}_mean": interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    row["answer_words_mean"] = run.words
    return row | {"n_scored": run.trait.n, "n_total": len(run.table), "n_questions": run.trait.n_clusters}
