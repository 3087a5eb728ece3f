"""The answers and the capability of every model of a comparison, by the published commands and their store."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.commands import run_command
from eval.prevention_rows import Row, Score, make_row
from eval.prevention_runs import Trained, single_place, single_push

if TYPE_CHECKING:
    import pandas as pd

    from eval.prevention import Asked


@dataclass
class Sampled:
    """Rows so far, the steering they were sampled under, and the commands that made them.

    Attributes:
        push: (vector file, layer, coefficient) of the steering in training, where it adds one vector at one layer.
        place: (vector file, layer) that is subtracted after training; None where there is no such one.
    """

    base: str
    push: tuple[str, int, float] | None
    place: tuple[str, int] | None
    rows: list[Row] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def models(self, *kinds: str) -> list[str]:
        return list(dict.fromkeys(row.model for row in self.rows if row.kind in kinds))


def sample_all(asked: Asked, plain: Trained, steered: Trained, controls: Sequence[Trained], trait: str) -> Sampled:
    """Every model's answers, judged, in the order in which the rows are shown."""
    steering = steered.config.steering
    assert steering is not None  # checked before
    found = Sampled(plain.config.model, single_push(steering), single_place(steering) if asked.posthoc_coefs else None)
    _say_what_is_left_out(found, asked)
    on = [] if found.push is None else [found.push[2]]
    subtracted = [-float(coef) for coef in asked.posthoc_coefs or []] if found.place else []

    base = _answers(found, asked, trait, "base", plain.config.model, on, found.push, "all")
    own = _answers(found, asked, trait, "finetuned", plain.folder, subtracted, found.place, asked.posthoc_type)
    prevented = _answers(found, asked, trait, "prevented", steered.folder, on, found.push, "all")

    def row(name: str, kind: str, model: str, tables: Mapping[float, pd.DataFrame], coef: float = 0.0, **more: Any):
        at = found.place if kind == "posthoc" else found.push
        where = {"coef": coef, "vector": at[0], "layer": at[1]} if coef and at else {}
        found.rows.append(make_row(name, kind, model, tables[coef], trait, **where, **more))

    row("base", "base", plain.config.model, base)
    row("finetuned", "finetuned", plain.folder, own, loss=plain.loss)
    row("prevented", "prevented", steered.folder, prevented, loss=steered.loss)
    for number, control in enumerate(controls, 1):
        tables = _answers(found, asked, trait, f"control{number}", control.folder, [], None, "all")
        name = f"trained with {control.label}" if control.config.steering else f"also: {control.label}"
        row(name, "random" if control.is_random else "other", control.folder, tables, loss=control.loss)
    for coef in subtracted:
        row(f"finetuned, then {coef:+g} v", "posthoc", plain.folder, own, coef)
    for coef in on:
        row("prevented, vector back on", "back_on", steered.folder, prevented, coef)
        row("base, same vector on", "base_on", plain.config.model, base, coef)
    return found


def _say_what_is_left_out(found: Sampled, asked: Asked) -> None:
    if found.push is None:
        found.notes.append(
            "The vector is not switched back on: that row is for training that adds one vector at one layer."
        )
    if found.place is None and asked.posthoc_coefs:
        found.notes.append(
            "Nothing is steered after training: that row needs a steering_config with one vector at one layer."
        )


def _answers(
    found: Sampled,
    asked: Asked,
    trait: str,
    name: str,
    model: str,
    coefs: Sequence[float],
    at: tuple[Any, ...] | None,
    positions: str,
) -> dict[float, pd.DataFrame]:
    """The model's response tables by coefficient, unsteered (0) and at `coefs`; answers come from the store."""
    from eval import eval_persona
    from persona_vectors.files import sidecar_path
    from persona_vectors.responses import read_responses

    path = Path(asked.output_dir) / "answers" / f"{name}.csv"
    path.unlink(missing_ok=True)
    sidecar_path(path).unlink(missing_ok=True)
    steering: dict[str, Any] = {}
    if coefs and at is not None:
        steering = {"coef": [0.0, *coefs], "vector_path": at[0], "layer": at[1], "steering_type": positions}
    same = {key: getattr(asked, key) for key in _SAME}
    arguments = {"model": model, "output_path": str(path), "version": "eval", **same, **steering}
    found.commands.append(run_command("python -m eval.eval_persona", eval_persona.main, **arguments))
    gc.collect()  # of the model, before the next is loaded
    table = read_responses(path, trait)
    if "coef" not in table:
        return {0.0: table}
    parts = table.groupby(table["coef"].astype(float), sort=False)
    return {float(str(coef)): rows.reset_index(drop=True) for coef, rows in parts}


_SAME = ("trait", "judge_model", "n_per_question", "max_tokens", "seed", "dtype", "device_map", "engine")


def tasks_of(tasks: Sequence[str] | None, model: str) -> list[str]:
    """The tasks asked for; by default the probe for a model that ships its own traits, for others none."""
    from eval.capability_table import PROBE
    from persona_vectors.models import resolve_model

    if tasks is None:
        return [PROBE] if (Path(resolve_model(model).base) / "traits").is_dir() else []
    return [task for task in tasks if task]


def capability_of(asked: Asked, found: Sampled) -> dict[tuple[str, float], dict[str, Score]]:
    """(model, coefficient) -> task -> score, by `eval.capability`."""
    tasks = tasks_of(asked.tasks, found.base)
    if not tasks:
        found.notes.append("Capability was not measured; --tasks mmlu (or another task) measures it.")
        return {}
    scores: dict[tuple[str, float], dict[str, Score]] = {}
    for name, models, kind, at, positions in (
        ("on", found.models("base", "prevented"), "back_on", found.push, "all"),
        ("posthoc", found.models("finetuned"), "posthoc", found.place, asked.posthoc_type),
        ("controls", found.models("random", "other"), "", None, "all"),
    ):
        coefs = list(dict.fromkeys(row.coef for row in found.rows if row.kind == kind))
        steering = {"vector_path": [at[0]], "layer": [at[1]], "steering_type": positions} if coefs and at else {}
        arguments = {"model": models, "tasks": tasks, "coef": [0.0, *coefs], **steering}
        if models:
            for row in _measured(asked, found, name, arguments):
                key = (row["model"], float(row["coef"]))
                scores.setdefault(key, {}).setdefault(row["task"], _score(row))
    return scores


def _measured(asked: Asked, found: Sampled, name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of whole tasks of a run of `eval.capability`, which measures only what it has not measured before."""
    import pandas as pd

    from eval import capability
    from persona_vectors.files import sidecar_path

    path = Path(asked.output_dir) / f"capability_{name}.csv"
    path.unlink(missing_ok=True)
    sidecar_path(path).unlink(missing_ok=True)
    how = {key: getattr(asked, key) for key in ("seed", "dtype", "device_map")}
    given = {**arguments, **how, "output_path": str(path)}
    found.commands.append(run_command("python -m eval.capability", capability.main, **given))
    gc.collect()
    table = pd.read_csv(path, keep_default_na=False)
    rows: list[dict[str, Any]] = table.to_dict("records")  # pyright: ignore
    return [row for row in rows if not row["part"]]


def _score(row: Mapping[str, Any]) -> Score:
    low, high = (None if row[end] == "" else float(row[end]) for end in ("low", "high"))
    return Score(str(row["metric"]), float(row["value"]), low, high)
