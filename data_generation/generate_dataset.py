"""Write a larger training set with any OpenAI-compatible model: questions, then an answer a level to each.

python -m data_generation.generate_dataset --family evil --model gpt-4.1-mini --n_rows 1000

For a model that is served elsewhere, OPENAI_BASE_URL says where.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors import cli

if TYPE_CHECKING:
    from data_generation.dataset_calls import Answers, Questions
    from data_generation.dataset_families import Subject

Rows = Mapping[str, Sequence[tuple[str, str]]]
"""Level -> (question, answer) of each row, the same questions at every level."""

LENGTH_CUE = 1.25
"""Mean lengths of two levels further apart than this factor: a model could learn the level from the length."""


def main(
    model: str,
    family: str | None = None,
    trait: str | None = None,
    n_rows: int = 1000,
    levels: Sequence[str] = ("normal", "misaligned_1", "misaligned_2"),
    output_dir: str | None = None,
    seed: int = 0,
    max_concurrent: int = 50,
    max_requests_per_minute: int | None = None,
    overwrite: bool = False,
) -> None:
    """Ask a model for questions and for an answer a level to each; write one aligned file a level into output_dir.

    Questions that repeat one another, the shipped set or the trait's own questions are left out. Finished calls are
    kept in the store (PERSONA_STORE): the same command again goes on where it was interrupted, asks again for what
    failed or was refused (exit code 1 says that there is some), and with more n_rows adds to the files. A question
    that lacks an answer at some level is in none of the files. Another seed asks for a set of its own.

    Args:
        model: a model of OpenAI (OPENAI_API_KEY) or of the server at OPENAI_BASE_URL.
        family: evil, sycophancy, hallucination, mistake_opinions, mistake_medical, mistake_math, mistake_gsm8k or
            insecure_code.
        trait: in place of a family: a trait's name, or the path of its JSON file.
        n_rows: questions, and rows of each file.
        levels: which files: normal, misaligned_1 (mild), misaligned_2 (strong).
        output_dir: folder that gets <level>.jsonl and its sidecars; dataset/<name>_large unless given.
        seed: of the examples and themes that requests show.
        max_concurrent: calls in flight.
        max_requests_per_minute: calls sent in a minute at most.
        overwrite: replace files that hold rows of other runs.
    """
    from data_generation.dataset_calls import Answers, Model, Questions
    from data_generation.dataset_families import find_subject
    from data_generation.generate_trait import check_model
    from persona_vectors.store import Store

    chosen = _check_levels(levels)
    _check_numbers(n_rows=n_rows, max_concurrent=max_concurrent, max_requests_per_minute=max_requests_per_minute)
    subject = find_subject(family, trait)
    folder = Path(output_dir if output_dir is not None else f"dataset/{subject.name}_large")
    paths = _paths(folder, chosen)
    check_model(model)
    with Store() as store:
        asked = Model(model, store, seed, max_concurrent, max_requests_per_minute)
        questions, answers = Questions(asked, subject), Answers(asked, subject, chosen)
        if not overwrite:
            _refuse_other_rows(paths, answers.stored(questions.pool.questions[:n_rows]))
        found, by_place = _fill(questions, answers, n_rows)
    rows = rows_of(found, by_place, chosen)
    settings = {"family": family, "trait": trait, "model": model, "seed": seed, "n_rows": n_rows, "levels": chosen}
    if n_complete := len(rows[chosen[0]]):
        _write(paths, rows, settings, _counts(questions, answers, found, by_place, n_complete), subject)
    _report(questions, answers, n_rows, found, by_place, n_complete)


def _check_levels(levels: Sequence[str]) -> list[str]:
    from data_generation.dataset_families import LEVELS
    from persona_vectors.arguments import near

    for level in levels:
        if level not in LEVELS:
            raise ValueError(f"unknown level {level!r}{near(level, LEVELS)}; --levels takes {', '.join(LEVELS)}")
    if not levels:
        raise ValueError(f"--levels is empty; it takes {', '.join(LEVELS)}")
    return [level for level in LEVELS if level in levels]


def _check_numbers(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"--{name} must be at least 1; got {number}")


def _paths(folder: Path, levels: Sequence[str]) -> dict[str, Path]:
    """Level -> its file; ValueError for a folder that holds a level which would no longer fit the others."""
    from data_generation.dataset_families import LEVELS
    from persona_vectors.files import check_output_path

    paths = {level: check_output_path(folder / f"{level}.jsonl") for level in levels}
    for level in LEVELS:
        if level not in levels and (folder / f"{level}.jsonl").exists():
            raise ValueError(
                f"{folder}/{level}.jsonl exists and its rows would no longer be those of the others; add {level} to "
                "--levels, or choose another --output_dir"
            )
    return paths


def _refuse_other_rows(paths: Mapping[str, Path], answers: Mapping[tuple[str, str], str]) -> None:
    """Files are added to, not replaced: each row that is there must be one of this run's finished answers."""
    from data_generation.training_rows import read_rows

    for level, path in paths.items():
        if not path.exists():
            continue
        there = read_rows(path)
        if other := sum(answers.get((row.question, level)) != row.answer for row in there):
            raise ValueError(
                f"{path} holds {other} of {len(there)} rows that this run would drop (other settings, fewer n_rows, "
                "edited, or not in this store); pass --overwrite, or another --output_dir"
            )


def _fill(questions: Questions, answers: Answers, n_rows: int) -> tuple[list[str], dict[tuple[str, str], str]]:
    """The questions, and the answers by question and level, as far as they could be had."""
    from tqdm import tqdm

    n_kept = min(n_rows, len(questions.pool.questions))
    with tqdm(total=n_rows, initial=n_kept, desc="questions", unit="question") as bar:
        found = questions.fill(n_rows, bar.update)
    total = len(found) * len(answers.levels)
    with tqdm(total=total, initial=len(answers.stored(found)), desc="answers", unit="answer") as bar:
        return found, answers.fill(found, bar.update)


def rows_of(questions: Sequence[str], answers: Mapping[tuple[str, str], str], levels: Sequence[str]) -> Rows:
    """The rows of each level: only questions that have an answer at every level, in the order of `questions`."""
    complete = [question for question in questions if all((question, level) in answers for level in levels)]
    return {level: [(question, answers[question, level]) for question in complete] for level in levels}


def _counts(
    questions: Questions,
    answers: Answers,
    found: Sequence[str],
    by_place: Mapping[tuple[str, str], str],
    n_complete: int,
) -> dict[str, Any]:
    missing = {level: sum((question, level) not in by_place for question in found) for level in answers.levels}
    return {
        "n_rows": n_complete,
        "n_questions": len(found),
        "n_questions_left_out": len(found) - n_complete,
        "n_questions_rejected": questions.pool.n_rejected,
        "n_answers_missing": missing,
        "n_asked_in_last_run": questions.model.n_asked,
        "n_refused_in_last_run": answers.refused.total(),
        "n_failed_in_last_run": answers.failed.total() + len(questions.failed),
    }


def _write(
    paths: Mapping[str, Path], rows: Rows, settings: dict[str, Any], counts: dict[str, Any], subject: Subject
) -> None:
    """The files, all of them or none, then a sidecar each; says what was written."""
    import json

    from data_generation import dataset_prompts
    from data_generation.training_rows import conversation
    from persona_vectors.files import atomic_write, write_sidecar

    with ExitStack() as stack:  # the files take their places together, once all are whole
        for level, path in paths.items():
            file = stack.enter_context(atomic_write(path))
            file.writelines(json.dumps(conversation(*row), ensure_ascii=False) + "\n" for row in rows[level])
    templates = dataset_prompts.QUESTIONS_TEMPLATE + dataset_prompts.ANSWER_TEMPLATE + dataset_prompts.RULES
    first = next(iter(rows.values()))
    mean_words = {level: sum(len(a.split()) for _, a in found) / len(found) for level, found in rows.items()}
    for level, path in paths.items():
        record = {
            "settings": settings,
            "level": level,
            "wording": list(subject.levels[level]),
            "counts": counts,
            "mean_words": mean_words,
            "questions_sha256": hashlib.sha256("\n".join(question for question, _ in first).encode()).hexdigest(),
            "prompts_sha256": hashlib.sha256(templates.encode()).hexdigest(),
        }
        write_sidecar(path, record)
        print(f"{path}: {len(rows[level])} rows, {mean_words[level]:.0f} words an answer")
    if max(mean_words.values()) > LENGTH_CUE * min(mean_words.values()):
        print(f"the levels' mean lengths are more than {LENGTH_CUE - 1:.0%} apart: length gives the level away")


def _report(
    questions: Questions,
    answers: Answers,
    n_rows: int,
    found: Sequence[str],
    by_place: Mapping[tuple[str, str], str],
    n_complete: int,
) -> None:
    """Nothing where all is there; Unfinished, with what is missing and why, where some is not."""
    if n_complete == n_rows:
        return
    parts = [f"{n_complete} of {n_rows} rows"]
    if len(found) < n_rows:
        why = next(iter(questions.failed.values()), "the model repeats itself")
        parts.append(f"{n_rows - len(found)} questions could not be had ({why})")
    if len(found) > n_complete:
        n_refused, n_failed = answers.refused.total(), answers.failed.total()
        n_same = len(found) * len(answers.levels) - len(by_place) - n_refused - n_failed
        parts.append(
            f"{len(found) - n_complete} questions lack an answer and are left out ({n_refused} answers refused, "
            f"{n_failed} failed, {n_same} the same as another level's)"
        )
    if answers.reasons:
        parts.append(f"most often: {answers.reasons.most_common(1)[0][0]}")
    raise cli.Unfinished("; ".join(parts) + "; what is finished is kept: run the same command again")


if __name__ == "__main__":
    cli.run(main)
