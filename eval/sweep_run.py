"""A run of studies from the first receipt to the last line: how every command that samples settings ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.finished_answers import Engine
from eval.sweep import Setting, Study
from eval.sweep_answers import Answered, Sampling, answered
from eval.sweep_files import write_study
from eval.sweep_receipts import Receipts
from eval.sweep_summary import finding_lines, summary_lines
from persona_vectors import cli
from persona_vectors.judging import failure_line
from persona_vectors.store import Store


def run_studies(
    engine: Engine,
    store: Store,
    studies: Sequence[Study],
    records: Sequence[Sequence[Mapping[str, Any]]],
    how: Sampling,
    min_coherence: float,
) -> None:
    """Measures the steerings, samples and judges what is missing, writes every table, and says what was found.

    Args:
        records: what each output's sidecar says before the run (`sweep_files.sidecar_records`).

    Raises:
        ValueError: a steering that does not do what it says; a judge that gave no score at all.
        cli.Unfinished: judge calls that failed, after everything else was written.
    """
    receipts = Receipts(engine, store, studies)
    found = answered(engine, store, studies, how, before_sampling=lambda: say(receipts.take()))
    say(receipts.earlier())
    for study, record, settings in zip(studies, records, found, strict=True):
        findings = write_study(study, record, settings, receipts, min_coherence)
        _report(study, settings, findings)
    _check_scores(studies, found)


def _report(study: Study, found: Sequence[Answered], findings: dict[str, Any]) -> None:
    """Where the tables are and what was found."""
    say(str(output.path) for output in study.outputs)
    say(summary_lines(found[0], study.trait) if len(found) == 1 else finding_lines(findings, study.trait))
    say(_missing_controls(study.settings))


def _missing_controls(settings: Sequence[Setting]) -> list[str]:
    """What steered scores have to be held against and these settings lack, and the flags that add it."""
    steered = [one for one in settings if one.steering is not None]
    if not steered:
        return []
    coef = "--lora_coef" if steered[0].weight_steering is not None else "--coef"
    coefs = " ".join(dict.fromkeys(f"{one.coef:g}" for one in steered))
    ways = {
        "unsteered run": (any(one.is_baseline for one in settings), f"{coef} 0 {coefs}"),
        "random directions": (any(one.control for one in steered), "--control random"),
    }
    missing = {name: flag for name, (there, flag) in ways.items() if not there}
    if not missing:
        return []
    return [f"note: no {' and no '.join(missing)} to hold this against; {' '.join(missing.values())} adds them"]


def _check_scores(studies: Sequence[Study], found: Sequence[Sequence[Answered]]) -> None:
    """Says, with an error, what the tables lack: judge calls that failed, and a judge that gave no score at all."""
    failures = dict(enumerate(why for settings in found for one in settings for why in one.failures))
    if failures:
        total = sum(2 * len(one.table) for settings in found for one in settings)  # trait and coherence
        paths = ", ".join(str(study.path) for study in studies)
        raise cli.Unfinished(
            f"{failure_line(failures, total)}: run the same command again; until then {paths} has gaps"
        )
    for study, settings in zip(studies, found, strict=True):
        names = (study.trait, "coherence")
        unscored = [name for name in names if not any(one.table[name].notna().any() for one in settings)]
        if unscored:
            total = sum(len(one.table) for one in settings)
            raise ValueError(
                f"the judge gave no {' and no '.join(unscored)} score for any of {total} answers; read some in "
                f"{study.outputs[0].path}, and check that --judge_model answers the trait's eval_prompt with a number"
            )


def say(lines: Iterable[str]) -> None:
    """Prints the lines at once."""
    for line in lines:
        print(line, flush=True)
