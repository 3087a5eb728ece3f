"""What is measured of the rows of every file: projections in one pass, and a judge's scores of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from eval.data_rows import DataRow, read_rows
from eval.row_answers import EMPTY
from eval.row_projections import Column, OwnAnswers, read_sampled, sample_rows
from eval.screen_auc import N_RANDOM
from eval.screen_rule import Values
from persona_vectors.statistics import random_directions

if TYPE_CHECKING:
    from eval.finished_answers import Engine
    from eval.finished_scores import Estimate
    from judge import JudgeOptions
    from persona_vectors.store import Store

Kind = Literal["delta_p", "raw", "cheap", "judge"]
JUDGE = "judge"
NO_SCORE, LONG_FOR_JUDGE = "the judge gave no score", "longer than the judge's context"


@dataclass(frozen=True)
class Criterion:
    """What rows are compared by: a kind of projection on a column, or the judge (`column` is then None)."""

    name: str
    kind: Kind
    column: Column | None = None


@dataclass(frozen=True)
class Judge:
    """Who scores answers, and by which prompt."""

    model: str
    trait: str
    template: str
    options: JudgeOptions | None = None


@dataclass(frozen=True)
class Measured:
    """A file's rows and what was measured of them.

    Attributes:
        values: criterion -> a value a row, NaN where it has none.
        reasons: why a row lacks a value; "" where it has all.
        own: the model's own answers to each row's prompt, where they were needed.
        random: criterion -> (n_rows, N_RANDOM) projections on random directions; for levels alone.
    """

    path: str
    rows: list[DataRow]
    values: Values
    reasons: list[str]
    own: list[list[str]]
    random: dict[str, Float[np.ndarray, "n_rows n_random"]] = field(default_factory=dict)


def criteria_of(kinds: Sequence[Kind], columns: Sequence[Column]) -> list[Criterion]:
    """Every kind on every column, named by the kind alone where there is one column; the judge once."""
    found = []
    for kind in dict.fromkeys(kinds):
        if kind == JUDGE:
            found.append(Criterion(JUDGE, kind))
        else:
            names = {one.name: kind if len(columns) == 1 else f"{kind}_{one.name}" for one in columns}
            found += [Criterion(names[one.name], kind, one) for one in columns]
    return found


def read_files(paths: Sequence[str]) -> dict[str, list[DataRow]]:
    """The rows of each file; a file that is named twice is read once."""
    files: dict[str, list[DataRow]] = {}
    for path in paths:
        key = file_key(path)
        if key not in files:
            files[key] = read_rows(path)
    return files


def file_key(path: str | Path) -> str:
    """The same for two spellings of one path."""
    return str(Path(path).resolve())


def shown_question(row: DataRow) -> str:
    """The last user turn before the answer, as a judge is told it; of a row without one, the turn before the answer."""
    asked = [turn["content"] for turn in row.messages[:-1] if turn["role"] == "user"]
    return asked[-1] if asked else row.messages[-2]["content"]


def project_rows(
    engine: Engine,
    files: Mapping[str, list[DataRow]],
    levels: Sequence[str],
    criteria: Sequence[Criterion],
    own: OwnAnswers,
    *,
    store: Store,
    seed: int,
) -> dict[str, Measured]:
    """File -> its rows with their projections; of levels also on random directions.

    Levels are read in a pass of their own, because nobody needs all rows on 200 directions. What has to be sampled is
    sampled before both.

    Raises:
        ValueError: what `row_projections.read` refuses.
    """
    columns = list({c.column.name: c.column for c in criteria if c.column is not None}.values())
    kinds = list(dict.fromkeys(c.kind for c in criteria if c.column is not None))
    found: dict[str, Measured] = {}
    ready = []
    for keys in ([key for key in files if key not in levels], [key for key in files if key in levels]):
        if keys:
            controls = _random_columns(columns, seed) if keys[0] in levels else []
            rows = [row for key in keys for row in files[key]]
            sampled = sample_rows(engine, rows, [*columns, *controls], kinds, own, store=store, skip_long=True)
            ready.append((keys, controls, sampled))
    for keys, controls, sampled in ready:
        reading = read_sampled(engine, sampled)
        start = 0
        for key in keys:
            part = slice(start, start + len(files[key]))
            start = part.stop
            values, random = {}, {}
            for one in criteria:
                if one.column is not None:
                    values[one.name] = _numbers(reading.values[one.kind, one.column.name][part])
                    names = [c.name for c in controls if c.layer == one.column.layer]
                    if names:
                        random[one.name] = np.stack(
                            [_numbers(reading.values[one.kind, name][part]) for name in names], axis=1
                        )
            reasons = [why or "" for why in reading.left_out[part]]
            found[key] = Measured(files[key][0].file, files[key], values, reasons, reading.own_answers[part], random)
    return found


def _random_columns(columns: Sequence[Column], seed: int) -> list[Column]:
    """The control of each layer; a projection does not depend on the norm of what is projected on."""
    found = []
    for layer in dict.fromkeys(column.layer for column in columns):
        directions = random_directions(N_RANDOM, len(columns[0].vector), 1.0, seed)
        found += [Column(f"random{i}_layer{layer}", one, layer, "") for i, one in enumerate(directions)]
    return found


def _numbers(values: Sequence[float | None]) -> Float[np.ndarray, " n"]:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def judge_rows(
    judge: Judge,
    files: Mapping[str, list[DataRow]],
    *,
    store: Store,
    on_estimate: Callable[[Estimate], None] | None = None,
) -> dict[str, Measured]:
    """File -> its rows with the judge's score of the answer to the last user turn.

    NaN for an empty answer, and for one that a local judge's context does not hold.

    Raises:
        JudgeError: calls that failed; those that did not are in the store.
    """
    from eval.finished_scores import scores_of

    answered = [(key, i) for key, rows in files.items() for i, row in enumerate(rows) if row.answer.strip()]
    items = [(shown_question(files[key][i]), files[key][i].answer) for key, i in answered]
    fits = _fitting(judge, items)
    scores = scores_of(
        judge.model,
        judge.template,
        [item for item, fit in zip(items, fits, strict=True) if fit],
        store=store,
        options=judge.options,
        progress=f"judging {judge.trait}",
        on_estimate=on_estimate,
    )
    values = {key: np.full(len(rows), np.nan) for key, rows in files.items()}
    reasons = {key: [EMPTY] * len(rows) for key, rows in files.items()}
    left = iter(scores)
    for (key, i), fit in zip(answered, fits, strict=True):
        score = next(left) if fit else None
        values[key][i] = np.nan if score is None else score
        reasons[key][i] = LONG_FOR_JUDGE if not fit else NO_SCORE if score is None else ""
    return {
        key: Measured(rows[0].file, rows, {JUDGE: values[key]}, reasons[key], [[] for _ in rows])
        for key, rows in files.items()
    }


def _fitting(judge: Judge, items: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether a local judge can read each item; a served judge says so itself."""
    from judge import fill_prompt, is_local_judge
    from persona_vectors.label_odds import label_tree
    from persona_vectors.models import load_config, load_tokenizer
    from persona_vectors.tokens import render_prompt, tokenize_prompt

    if not is_local_judge(judge.model):
        return [True] * len(items)
    context = getattr(load_config(judge.model), "max_position_embeddings", None)
    tokenizer = load_tokenizer(judge.model)
    room = None if context is None else context - label_tree(tokenizer, "0_100").depth

    def length(item: tuple[str, str]) -> int:
        message = {"role": "user", "content": fill_prompt(judge.template, *item)}
        return len(tokenize_prompt(tokenizer, render_prompt(tokenizer, [message])))

    return [room is None or length(item) <= room for item in items]


def together(criteria: Sequence[Criterion], *measured: Measured) -> Measured:
    """One file's rows with all that was measured of them, the criteria in their order."""
    values = {name: own for one in measured for name, own in one.values.items()}
    reasons = [
        "; ".join(dict.fromkeys(filter(None, several))) for several in zip(*(m.reasons for m in measured), strict=True)
    ]
    own = next((one.own for one in measured if any(one.own)), measured[0].own)
    random = {name: matrix for one in measured for name, matrix in one.random.items()}
    ordered = {one.name: values[one.name] for one in criteria}
    return Measured(measured[0].path, measured[0].rows, ordered, reasons, own, random)
