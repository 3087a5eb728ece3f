"""Tables that belong together, by trait, model and judge, and what they show: settings, curves, frontier, answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.report_inputs import SETTING, Table
from eval.sweep import TOGETHER
from persona_vectors.statistics import Interval, cluster_bootstrap_mean
from persona_vectors.steerability import frontier

if TYPE_CHECKING:
    import pandas as pd

MIN_COHERENCE = 75.0
_SHARED = ("model", "judge_model", "version")
_COMPARABLE = ("max_tokens", "n_per_question", "seed", "steering_type", "coef_unit", "assistant_name", "dtype")


@dataclass(frozen=True)
class Shown:
    """One setting and what was measured under it.

    Attributes:
        pole: "pos" or "neg" where answers were sampled under the trait's instructions, "" otherwise.
        control: "", "randomN" or "prompt".
        vector, matched: vector file as given; for random directions the one whose norm they have, where known.
        layer, coef: None where unknown or none.
        rows: its rows, with `sample`, the number among the answers to the same question.
    """

    pole: str
    control: str
    vector: str
    matched: str
    layer: int | None
    coef: float | None
    rows: pd.DataFrame
    score: Interval
    coherence: Interval

    @property
    def kind(self) -> str:
        """pos | neg | prompt | random | unknown | unsteered | steered."""
        if self.pole and not self.coef:
            return self.pole
        if self.control:
            return "random" if self.control.startswith("random") else "prompt"
        if self.coef is None:
            return "unknown"
        return "steered" if self.coef else "unsteered"

    def name(self) -> str:
        """What a reader calls it."""
        where = place(self.layer)
        under = f" under {self.pole} instructions" if self.pole else ""
        return {
            "pos": "with the trait's pos instructions",
            "neg": "with the trait's neg instructions",
            "prompt": "system prompt, no steering",
            "random": f"{self.control.replace('random', 'random direction ')}{where}, coef {self.coef or 0:g}",
            "unknown": f"setting not known ({self.vector})",
            "unsteered": "unsteered",
            "steered": f"{vector_name(self.vector)}{where}, coef {self.coef or 0:g}{under}",
        }[self.kind]


@dataclass(frozen=True)
class Curve:
    """One vector at one layer: its settings by coefficient (with the unsteered one), and its random directions'."""

    vector: str
    layer: int | None
    pole: str
    points: list[Shown]
    randoms: dict[str, list[Shown]]

    def name(self) -> str:
        return vector_name(self.vector) + place(self.layer) + (f", under {self.pole} instructions" if self.pole else "")


@dataclass
class Study:
    """Everything about one trait of one model, as one judge saw it."""

    trait: str
    model: str
    judge: str
    version: str
    tables: list[Table]
    settings: list[Shown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of_kind(self, *kinds: str) -> list[Shown]:
        return [setting for setting in self.settings if setting.kind in kinds]

    @property
    def title(self) -> str:
        """The trait, and what tells this study from another of the same trait."""
        known = [
            text for text in (self.model and f"of {self.model}", self.version and f"{self.version} questions") if text
        ]
        return ", ".join([self.trait, *known])

    def curves(self) -> list[Curve]:
        """One for each vector and layer that was steered, by vector, then layer."""
        groups: dict[tuple[str, str, int | None], list[Shown]] = {}
        for setting in self.of_kind("steered"):
            groups.setdefault((setting.pole, setting.vector, setting.layer), []).append(setting)
        found = []
        for (pole, vector, layer), steered in sorted(groups.items(), key=lambda item: (*item[0][:2], item[0][2] or 0)):
            base = self.of_kind(pole or "unsteered")
            points = sorted([*base, *steered], key=lambda one: one.coef or 0)
            randoms: dict[str, list[Shown]] = {}
            for setting in self.of_kind("random"):
                if setting.layer == layer and setting.matched in ("", vector):
                    randoms.setdefault(setting.control, []).append(setting)
            found.append(Curve(vector, layer, pole, points, randoms))
        return found

    def frontier(self) -> dict[str, Shown]:
        """kind -> its setting with the highest mean trait at mean coherence >= MIN_COHERENCE, where there is one.

        The best of many is chosen on the answers that it is scored by, so it flatters; random directions are chosen in
        the same way.
        """
        best = {}
        for kind in ("steered", "random", "prompt", "unsteered"):
            least = MIN_COHERENCE if kind in ("steered", "random") else 0.0  # the others are no choice among settings
            found = frontier(((s, s.score.mean, s.coherence.mean) for s in self.of_kind(kind)), least)
            if found is not None:
                best[kind] = found[0]
        return best


def vector_name(path: str) -> str:
    """The name of the vector's file without its ending, or of the direction's; of several together, all of them."""
    return TOGETHER.join(Path(one).stem for one in path.split(TOGETHER)) if path else "no vector"


def place(layer: Any) -> str:
    """Where a vector is added, after its name; a direction of weights has no layer."""
    return " in the weights" if layer is None else f", layer {layer}"


def studies(tables: Sequence[Table]) -> list[Study]:
    """The tables by trait, model, judge and question version.

    A table that does not say one of these joins the only study of its trait that fits, or stays alone.
    """
    groups: dict[tuple, list[Table]] = {}
    for table in sorted(tables, key=lambda one: -len(_identity(one))):  # those that say most come first
        own = _identity(table)
        fitting = [
            key for key in groups if key[0] == table.trait and all(dict(key[1:]).get(k) == v for k, v in own.items())
        ]
        key = fitting[0] if len(fitting) == 1 and own else (table.trait, *own.items())
        groups.setdefault(key, []).append(table)
    found = []
    for key, members in groups.items():
        identity = dict(key[1:])
        model, judge, version = (str(identity.get(name, "")) for name in _SHARED)
        study = Study(key[0], model, judge, version, sorted(members, key=lambda one: one.name))
        study.settings = _settings(study)
        study.notes += _notes(study)
        found.append(study)
    return sorted(found, key=lambda one: (one.trait, not one.model, one.model, one.judge, not one.curves()))


def _identity(table: Table) -> dict[str, str]:
    """What the table's sidecar says of what its study is; a trait's instructions make the extract study."""
    found = {name: table.settings.get(name) for name in _SHARED}
    found["model"] = found["model"] or table.sidecar.get("model")
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def _settings(study: Study) -> list[Shown]:
    """The study's settings, each once; rows of one setting in several tables are pooled, copies counted once."""
    import pandas as pd

    parts: dict[tuple, list[tuple[Table, pd.DataFrame]]] = {}
    for table in study.tables:
        rows = table.rows.copy()
        unknown = rows["coef"].isna() & (rows["control"] == "") & (rows["pole"] == "")
        rows.loc[unknown, "vector"] = table.name  # tables that say nothing are not mixed
        by_setting: Any = rows.groupby(SETTING, dropna=False, sort=False)
        for key, group in by_setting:
            parts.setdefault(tuple("" if value != value else value for value in key), []).append((table, group))
    found = []
    for key, members in parts.items():
        kept = _without_copies(members, study)
        rows = pd.concat([group for _, group in kept], ignore_index=True)
        rows["sample"] = rows.groupby("question", sort=False).cumcount()
        pole, control, vector, matched, layer, coef = key
        intervals = [cluster_bootstrap_mean(rows[name].to_numpy(), rows["question"].tolist()) for name in _SCORES]
        numbers = (None if layer == "" else int(layer), None if coef == "" else float(coef))
        shown = Shown(pole, control, vector, matched, *numbers, rows, *intervals)
        if len(kept) > 1:
            names = ", ".join(table.name for table, _ in kept)
            study.notes.append(f"'{shown.name()}' is in {len(kept)} tables ({names}); their rows are taken together.")
        found.append(shown)
    order = ("pos", "neg", "unsteered", "prompt", "steered", "random", "unknown")
    return sorted(
        found, key=lambda one: (order.index(one.kind), one.vector, one.layer or 0, one.control, one.coef or 0)
    )


_SCORES = ("score", "coherence")


def _without_copies(members: list[tuple[Table, pd.DataFrame]], study: Study) -> list[tuple[Table, pd.DataFrame]]:
    """The members whose answers and scores no earlier one has exactly."""
    kept: list[tuple[Table, pd.DataFrame]] = []
    for table, rows in members:
        content = rows[["question", "answer", *_SCORES]].reset_index(drop=True)
        copy = next((t for t, r in kept if r[list(content)].reset_index(drop=True).equals(content)), None)
        if copy is None:
            kept.append((table, rows))
        else:
            study.notes.append(f"{len(rows)} rows of {table.name} are also in {copy.name}; they are counted once.")
    return kept


def _notes(study: Study) -> list[str]:
    """What a reader must know before believing the study's numbers."""
    notes = []
    steered = study.of_kind("steered")
    if steered and not study.of_kind("random", "prompt"):
        notes.append(
            "No control is here: an effect without one says little, because any vector of that length may move the "
            "scores. Run the same with --control random (and prompt)."
        )
    elif steered and not study.of_kind("random"):
        notes.append("No random directions are here; run the same with --control random to see what any vector does.")
    if steered and not study.of_kind("unsteered"):
        notes.append("No unsteered run is here (coef 0), so a shift cannot be read off.")
    for setting in study.settings:
        notes += _setting_notes(study, setting)
    failed = sum(n for table in study.tables if isinstance(n := table.sidecar.get("n_failed"), int))
    if failed:
        notes.append(
            f"{failed} judge calls failed; the command that wrote the table asks only for those when run again."
        )
    if study.judge and study.judge == study.model:
        notes.append("The judge is the model itself, so read the answers too.")
    for name in _COMPARABLE:
        values = {str(table.settings[name]) for table in study.tables if name in table.settings}
        if len(values) > 1:
            notes.append(f"The tables differ in {name}: {', '.join(sorted(values))}.")
    return notes + [f"{table.name}: {note}." for table in study.tables for note in table.notes]


def _setting_notes(study: Study, setting: Shown) -> Iterable[str]:
    missing = [
        f"{interval.n} of {len(setting.rows)} answers are scored for {name}"
        for name, interval in ((study.trait, setting.score), ("coherence", setting.coherence))
        if interval.n < len(setting.rows)
    ]
    if missing:
        yield f"{setting.name()}: {', '.join(missing)}."
    if setting.score.n_clusters == 1:
        yield f"{setting.name()}: one question only, so there is no interval."


def side_by_side(study: Study, most: int = 12) -> tuple[list[tuple[str, list[Shown]]], int]:
    """(heading, settings whose answers stand beside each other) for each curve, and how many curves were left out."""
    shared = study.of_kind("unsteered", "prompt")
    groups = []
    for curve in study.curves():
        randoms = curve.randoms.get(min(curve.randoms, default=""), [])
        strongest = [max(randoms, key=lambda one: one.coef or 0)] if randoms else []
        prompt = [one for one in shared if one.kind == "prompt"]
        groups.append((curve.name(), [*curve.points, *strongest, *prompt]))
    instructed = study.of_kind("pos", "neg")
    if instructed:
        groups.append(("with and without the trait's instructions", instructed))
    if not groups:
        groups.append(("all settings", [*shared, *study.of_kind("random", "unknown")]))
    return groups[:most], max(0, len(groups) - most)


def spread(n: int, most: int) -> list[int]:
    """At most `most` of the positions 0 to n - 1, evenly apart, with both ends."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def text_or_missing(value: Any) -> str:
    """A score for a reader."""
    return "not scored" if value is None or np.isnan(value) else f"{value:.0f}"
