"""What a screen is asked for, checked before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.row_projections import load_columns
from eval.screen_files import check_outputs, planned
from eval.screen_findings import level_names
from eval.screen_rows import JUDGE, Criterion, Judge, criteria_of, file_key, read_files
from eval.screen_rule import given_rule, top_count
from eval.sweep import check_once
from judge import JudgeOptions, check_judge
from persona_vectors.traits import load_trait

if TYPE_CHECKING:
    from eval.data_rows import DataRow
    from eval.screen import Asked

WAYS = "--threshold X, --reference FILE --percentile P, or --fraction F"
_NOT_SETTINGS = ("overwrite", "output_dir")


def check(asked: Asked) -> tuple[list[Criterion], Judge | None, dict[str, list[DataRow]], dict[str, Any]]:
    """(criteria, the judge, the rows of every file, the settings for sidecars).

    Raises:
        ValueError: one line for whatever is wrong.
    """
    check_once("by", asked.by)
    _check_threshold(asked)
    _check_numbers(asked)
    criteria, judge = _criteria(asked), _judge(asked)
    if asked.threshold is not None:
        given_rule([one.name for one in criteria], asked.combine, asked.threshold)
    settings = {name: value for name, value in asdict(asked).items() if name not in _NOT_SETTINGS}
    inputs = [asked.file_path, *([asked.reference] if asked.reference else []), *(asked.compare or [])]
    _check_levels(asked)
    files = read_files(inputs)
    _check_sizes(asked, len(files[file_key(asked.file_path)]))
    names = planned(asked.action, with_subsets=asked.subsets is not None)
    read = [*inputs, *(asked.vector_path or [])]
    check_outputs(Path(asked.output_dir), names, read, settings, overwrite=asked.overwrite)
    return criteria, judge, files, settings


def _check_threshold(asked: Asked) -> None:
    """Exactly one way to a threshold; for rank none is needed."""
    if (asked.reference is None) != (asked.percentile is None):
        given, missing = ("reference", "percentile") if asked.percentile is None else ("percentile", "reference")
        raise ValueError(f"--{given} needs --{missing}: the threshold is a percentile of the reference rows")
    given = {
        "--threshold": asked.threshold is not None,
        "--reference with --percentile": asked.reference is not None,
        "--fraction": asked.fraction is not None,
    }
    ways = [name for name, is_given in given.items() if is_given]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} are {len(ways)} ways to a threshold; give one: {WAYS}")
    if not ways and asked.action != "rank":
        raise ValueError(f"--action {asked.action} needs a threshold: {WAYS}")
    if asked.percentile is not None and not 0 < asked.percentile < 100:
        raise ValueError(f"--percentile lies between 0 and 100; got {asked.percentile:g}")
    if asked.fraction is not None and not 0 < asked.fraction < 1:
        hint = f"; did you mean {asked.fraction / 100:g}?" if 1 < asked.fraction < 100 else ""
        raise ValueError(f"--fraction is a share between 0 and 1; got {asked.fraction:g}{hint}")


def _check_numbers(asked: Asked) -> None:
    for name in ("max_tokens", "n_base", "judge_samples", "max_concurrent_judges", "subsets"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")


def _criteria(asked: Asked) -> list[Criterion]:
    """Vectors are read here, and checked against the model's config."""
    projected = [kind for kind in asked.by if kind != JUDGE]
    needed = {"model": asked.model, "vector_path": asked.vector_path, "layer": asked.layer}
    if projected:
        if missing := [f"--{name}" for name, value in needed.items() if not value]:
            raise ValueError(f"--by {' '.join(projected)} needs {', '.join(missing)}")
        assert asked.model and asked.vector_path and asked.layer
        return criteria_of(asked.by, load_columns(asked.model, asked.vector_path, asked.layer))
    if extra := [f"--{name}" for name in ("vector_path", "layer") if needed[name]]:
        raise ValueError(f"{', '.join(extra)} given, but --by judge projects nothing; add delta_p, raw or cheap")
    return criteria_of(asked.by, [])


def _judge(asked: Asked) -> Judge | None:
    if JUDGE not in asked.by:
        if asked.judge_model is not None or asked.trait is not None:
            raise ValueError("--judge_model and --trait are for --by judge; add judge to --by, or leave them out")
        return None
    if not asked.judge_model or not asked.trait:
        raise ValueError("--by judge needs --judge_model and --trait")
    options = JudgeOptions(
        asked.judge_mode, asked.judge_samples, asked.max_concurrent_judges, asked.max_requests_per_minute
    )
    check_judge(asked.judge_model, options)
    trait = load_trait(asked.trait, "eval", model=asked.model, judge_model=asked.judge_model)
    return Judge(asked.judge_model, trait.name, trait.eval_prompt, options)


def level_paths(compare: Sequence[str] | None) -> dict[str, str]:
    """Name of each level -> its file."""
    paths = list(compare or [])
    return dict(zip(level_names(paths), paths, strict=True))


def _check_levels(asked: Asked) -> None:
    if asked.compare is None:
        return
    if len({file_key(path) for path in asked.compare}) < max(2, len(asked.compare)):
        raise ValueError(
            f"--compare needs two or more different files, the normal level first; got {' '.join(asked.compare)}"
        )


def _check_sizes(asked: Asked, n: int) -> None:
    if asked.subsets is not None and 2 * asked.subsets > n:
        raise ValueError(
            f"--subsets {asked.subsets} needs {2 * asked.subsets} rows, so that high and low share none; "
            f"{asked.file_path} has {n}"
        )
    if asked.fraction is not None and not 0 < top_count(n, asked.fraction) < n:
        raise ValueError(
            f"--fraction {asked.fraction:g} of {n} rows is {top_count(n, asked.fraction)} rows; expected 1 to {n - 1}"
        )


def inputs_record(asked: Asked, criteria: Sequence[Criterion]) -> Mapping[str, Any]:
    """What the sidecars say of what was read: files, vectors and models by their content."""
    from eval.finished_scores import judge_identity
    from persona_vectors.files import sha256_of_file
    from persona_vectors.models import fingerprint

    paths = [asked.file_path, *([asked.reference] if asked.reference else []), *(asked.compare or [])]
    record: dict[str, Any] = {"inputs": {path: sha256_of_file(path) for path in paths}}
    vectors = dict.fromkeys(one.column.path for one in criteria if one.column is not None)
    if asked.model is not None and vectors:
        record["vectors"] = {path: sha256_of_file(path) for path in vectors}
        record["model_fingerprint"] = fingerprint(asked.model)
    if asked.judge_model is not None:
        record["judge"] = judge_identity(asked.judge_model)
    return record
