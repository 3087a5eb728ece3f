"""The tables of a run and their sidecars: what they are called, when one may be replaced, and what is written.

Each table's sidecar holds the arguments of a run of just its settings, so that a table is replaced by a run of the same
settings only, in whatever form it was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval.finished_scores import judge_identity
from eval.model_utils import WeightSteering
from eval.projected_files import PROJECTIONS, read_cells
from eval.sweep import Grid, Output, Setting, Study
from eval.sweep_answers import Answered
from eval.sweep_receipts import Receipts
from eval.sweep_summary import SETTING, described, summarise, sweep_findings, sweep_table
from judge import JudgeOptions
from persona_vectors.files import (
    check_sidecar,
    provenance,
    read_sidecar,
    sidecar_path,
    write_csv_atomic,
    write_json_atomic,
    write_sidecar,
)
from persona_vectors.locks import locked
from persona_vectors.models import fingerprint
from persona_vectors.responses import TEXT_COLUMNS
from persona_vectors.store import content_key
from persona_vectors.weight_direction import norm

if TYPE_CHECKING:
    from persona_vectors.statistics import Interval

NO_ANSWER_DEPENDS_ON = (
    *("output_path", "overwrite", "batch_process", "max_concurrent_judges", "max_requests_per_minute"),
    *("min_coherence", "one_file_per_setting", "capture"),
)


def study_arguments(arguments: Mapping[str, Any], trait: str, grid: Grid) -> dict[str, Any]:
    """The arguments of a run of this trait alone, without those that change no answer and no score."""

    def as_given(values: Sequence[Any]) -> Any:
        return list(values) if len(values) > 1 else next(iter(values), None)

    kept = {name: value for name, value in arguments.items() if name not in NO_ANSWER_DEPENDS_ON}
    own = {"trait": trait, "coef": as_given(grid.coefs), "layer": as_given(grid.layers)}
    own |= {"vector_path": as_given(grid.vectors), "control": as_given(grid.controls)}
    return kept | own | {"n_random": grid.n_random if "random" in grid.controls else None}


def plan_outputs(
    output_path: Path, settings: list[Setting], arguments: Mapping[str, Any], one_file_per_setting: bool
) -> list[Output]:
    """The tables to write: one of all settings at `output_path`, or one a setting at names beside it.

    Names: `<stem>_coef0.csv` unsteered, `<stem>_layer3_coef1.csv`, `<stem>_random1_layer3_coef1.csv`,
    `<stem>_prompt.csv`; with several vectors, `<stem>_<vector's stem>_layer3_coef1.csv`. Each is exactly what a run of
    that setting alone would write.

    Raises:
        ValueError: two settings whose files would have one name.
    """
    if not one_file_per_setting:
        alone = _arguments_of(settings[0], arguments) if len(settings) == 1 else dict(arguments)
        return [Output(output_path, list(range(len(settings))), alone)]
    many_vectors = len({setting.vector for setting in settings if setting.vector}) > 1
    paths = [output_path.with_name(_file_name(output_path, setting, many_vectors)) for setting in settings]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(
            f"two settings would be written to {twice[0]}; give vectors other file names, or leave one out"
        )
    return [
        Output(path, [place], _arguments_of(setting, arguments))
        for place, (path, setting) in enumerate(zip(paths, settings, strict=True))
    ]


def _file_name(output_path: Path, setting: Setting, many_vectors: bool) -> str:
    parts = [output_path.stem]
    if setting.control:
        parts.append(setting.control)
    elif many_vectors and setting.vector:
        parts.append(Path(setting.vector).stem)
    if setting.layer is not None:
        parts.append(f"layer{setting.layer}")
    if setting.control != "prompt":
        parts.append(f"coef{setting.coef:.12g}")
    return "_".join(parts) + output_path.suffix


def _arguments_of(setting: Setting, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run of this setting alone."""
    return {
        **arguments,
        "coef": setting.coef,
        "layer": setting.layer,
        "vector_path": setting.vector or setting.matched or None,
        "control": setting.control or None,
        "n_random": arguments["n_random"] if setting.matched else None,
    }


def check_outputs(outputs: Sequence[Output], vectors: Iterable[str]) -> None:
    """Refuses tables that would be written over one another or over a vector file."""
    taken = Counter(path for output in outputs for path in (output.path.resolve(), sidecar_path(output.path).resolve()))
    twice = [path for path, count in taken.items() if count > 1]
    if twice:
        raise ValueError(f"two tables would be written to {twice[0].name}; give other names")
    lost = {Path(vector).resolve() for vector in vectors} & set(taken)
    if lost:
        raise ValueError(f"--output_path {lost.pop()} is a vector file and would be replaced; give another path")
    for output in outputs:
        check_sidecar(output.path)


def sidecar_records(
    studies: Iterable[Study], model: str, judge_model: str, judge: JudgeOptions | None = None
) -> list[list[dict[str, Any]]]:
    """For each study and output what its sidecar says before the run: arguments, and what is in the files behind them
    (by hash)."""
    files = {"model_fingerprint": fingerprint(model), "judge": judge_identity(judge_model, judge)}
    return [[_record(study, output, files) for output in study.outputs] for study in studies]


def _record(study: Study, output: Output, files: Mapping[str, Any]) -> dict[str, Any]:
    settings = [study.settings[place] for place in output.places]
    prompted = study.prompted if any(setting.control == "prompt" for setting in settings) else ()
    asked = [[q.id, *q.paraphrases, q.system] for q in (*study.questions, *prompted)]
    only = settings[0].steering if len(settings) == 1 else None
    content = {
        "questions": content_key("questions", questions=asked),
        "judge_prompts": study.questions[0].judge_prompts,
        **files,
        "steering": (only.key() if only else None) if len(settings) == 1 else _directions(settings),
        "temperature": study.questions[0].temperature,
    }
    return {"settings": {**output.arguments, "content": content_key("settings", **content)}, **content}


def _directions(settings: Iterable[Setting]) -> list[dict[str, Any]]:
    """Every vector and random direction that is added, once."""
    settings = list(settings)
    found = {id(own.vector): s for s in settings if (own := s.vector_steering) is not None}
    weights = {id(own.direction): (s, own) for s in settings if (own := s.weight_steering) is not None}
    return [_weights(setting, own) for setting, own in weights.values()] + [
        {
            **{"vector": setting.vector, "control": setting.control, "matched": setting.matched},
            **{"layer": setting.layer, "positions": own.positions},
            "norm": float(own.vector.norm()),
            "sha256": own.key()["vector"],
        }
        for setting in found.values()
        if (own := setting.vector_steering) is not None
    ]


def _weights(setting: Setting, steering: WeightSteering) -> dict[str, Any]:
    """A direction of the weights, as `_directions` has it."""
    names = {"vector": setting.vector, "control": setting.control, "matched": setting.matched}
    content = {name: value for name, value in steering.key().items() if name != "coef"}
    return {**names, "norm": norm(steering.direction), **content}


def refuse_other_settings(outputs: Iterable[Output], records: Iterable[Mapping[str, Any]]) -> None:
    """An existing table is replaced only by a run of the same settings, or when asked to."""
    for output, record in zip(outputs, records, strict=True):
        if not output.path.exists():
            continue
        before, settings = read_sidecar(output.path).get("settings"), record["settings"]
        if before is None:
            raise ValueError(
                f"{output.path} exists and has no sidecar that says how it was made; pass --overwrite or another path"
            )
        changed = [name for name in settings if name != "content" and before.get(name) != settings[name]]
        if before != settings:
            what = f"with other {', '.join(changed)}" if changed else "from other trait, vector, model or judge files"
            raise ValueError(f"{output.path} holds a run {what}; pass --overwrite or another --output_path")
        try:
            read_cells(output.path)
        except ValueError as error:
            raise ValueError(f"{error}; pass --overwrite to write it anew, or another --output_path") from None


def write_study(
    study: Study,
    records: Sequence[Mapping[str, Any]],
    found: Sequence[Answered],
    receipts: Receipts,
    min_coherence: float,
) -> dict[str, Any]:
    """What the settings showed (`sweep`, `steerability`, `frontier`), after all tables and sidecars are written.

    Settings in files of their own have `<stem>_sweep.json` beside them, for what they showed together.
    """
    findings = sweep_findings(found, study.trait, min_coherence)
    for output, record in zip(study.outputs, records, strict=True):
        chosen = [found[place] for place in output.places]
        shown = findings if len(chosen) > 1 else {"summary": _summary(chosen[0], study.trait)}
        failed = {"n_failed": sum(len(one.failures) for one in chosen)}
        own = receipts.record([one.setting for one in chosen])
        _write(output.path, sweep_table(chosen), {**record, **shown, **failed, **own})
    if len(study.outputs) > 1:
        files = {"files": [output.path.name for output in study.outputs]}
        write_json_atomic(study.path.with_name(f"{study.path.stem}_sweep.json"), {**files, **findings, **provenance()})
    return findings


def _summary(one: Answered, trait: str) -> dict[str, dict[str, Any]]:
    """Interval and counts of trait and coherence, as the sidecar of one setting has them."""
    found = summarise(one.table, trait).items()
    return {name: {**described(interval), **_counts(interval, one.table)} for name, interval in found}


def _counts(interval: Interval, table: pd.DataFrame) -> dict[str, int]:
    return {"n_scored": interval.n, "n_total": len(table), "n_questions": interval.n_clusters}


def _write(path: Path, table: pd.DataFrame, record: Mapping[str, Any]) -> None:
    """The table with the columns that were added to it since, and its sidecar.

    The sidecar stands there before the table, without its hash: a run that is killed between the two left a table of
    its own settings, and the same command goes on.
    """
    with locked(path):
        before = read_sidecar(path)
        added = _columns_added_since(path, table, before)
        kept = {PROJECTIONS: before[PROJECTIONS]} if PROJECTIONS in before and len(added.columns) else {}
        check_sidecar(path)
        write_json_atomic(sidecar_path(path), {**record, **kept, "file": {"name": path.name}, **provenance()})
        write_csv_atomic(pd.concat([table, added], axis=1), path)
        write_sidecar(path, {**record, **kept})


def _columns_added_since(path: Path, table: pd.DataFrame, sidecar: Mapping[str, Any]) -> pd.DataFrame:
    """Columns that somebody added to the file at `path`, if it holds the same answers to the same prompts.

    Projections, and what its user added: not what the run that wrote it did, which may be scores of another trait. The
    sidecar says which is which; where it does not, as in a file that is no table, a column is not kept.
    """
    none = pd.DataFrame(index=table.index)
    try:
        header, rows = read_cells(path) if path.exists() else ([], [])
    except ValueError:
        return none
    asked = zip(table["prompt"], table["answer"], strict=True)
    if [(row.get("prompt"), row.get("answer")) for row in rows] != list(asked):
        return none
    projected = {name for entry in sidecar.get(PROJECTIONS, []) for name in entry["columns"]}
    own = {*TEXT_COLUMNS, *sidecar["judge_prompts"], *SETTING} if "judge_prompts" in sidecar else set(header)
    added = [name for name in header if (name in projected or name not in own) and name not in table]
    return pd.DataFrame({name: [row[name] for row in rows] for name in added}, index=table.index)
