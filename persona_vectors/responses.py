"""Response tables: which question, under which system prompt, was answered how, and how the judge scored it.

Columns, as published: `question, prompt, answer, question_id, <trait>, coherence`. Ids: `<trait>_<i>` without an
instruction, `<trait>_<i>_<pos|neg>_<k>` under the k-th instruction of that pole; samples of one id share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from persona_vectors.tokens import render_prompt
from persona_vectors.traits import Trait, system_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLES = ("pos", "neg")
TEXT_COLUMNS = ("question", "prompt", "answer", "question_id")


@dataclass(frozen=True)
class PromptRow:
    """One answer to be sampled.

    Attributes:
        question: what the user asks.
        question_index: the question's place in the trait file: rows that share it are one cluster in the statistics.
        question_id: the published id.
        system: the system prompt, or None for none.
        stream: what seeds the row's random stream together with the run's seed: (question, instruction, sample).
    """

    question: str
    question_index: int
    question_id: str
    system: str | None
    stream: tuple[int, int, int]

    def messages(self) -> list[dict[str, str]]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.question}]


def prompt_rows(
    trait: Trait, *, pole: str | None = None, assistant_name: str | None = None, n_per_question: int = 1
) -> list[PromptRow]:
    """The rows of a run: every question, under every instruction of `pole` (or none), `n_per_question` times.

    Without `assistant_name` the assistant is called by the trait for pos and "helpful" for neg, as published.
    """
    if pole is not None and pole not in POLES:
        raise ValueError(f"persona_instruction_type must be pos or neg, got {pole}")
    if n_per_question < 1:
        raise ValueError(f"n_per_question must be at least 1, got {n_per_question}")
    systems: list[str | None] = [None]
    if pole is not None:
        name = assistant_name or (trait.name if pole == "pos" else "helpful")
        systems = [system_prompt(name, getattr(pair, pole)) for pair in trait.instruction]
    return [
        PromptRow(
            question=question,
            question_index=i,
            question_id=f"{trait.name}_{i}" if pole is None else f"{trait.name}_{i}_{pole}_{k}",
            system=system,
            stream=(i, k, sample),
        )
        for i, question in enumerate(trait.questions)
        for k, system in enumerate(systems)
        for sample in range(n_per_question)
    ]


def render_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[PromptRow]) -> list[str]:
    """The text of each row's prompt, ending where the answer starts."""
    return [render_prompt(tokenizer, row.messages()) for row in rows]


def response_table(
    rows: Sequence[PromptRow],
    prompts: Sequence[str],
    answers: Sequence[str],
    scores: Mapping[str, Sequence[float | None]],
) -> pd.DataFrame:
    """The published table; a score that could not be had is empty."""
    table = pd.DataFrame(
        {
            "question": [row.question for row in rows],
            "prompt": list(prompts),
            "answer": list(answers),
            "question_id": [row.question_id for row in rows],
        }
    )
    for name, values in scores.items():
        table[name] = pd.Series(list(values), dtype="float64")
    return table


def read_responses(path: str | Path, trait: str) -> pd.DataFrame:
    """The table at `path`, its columns checked.

    Raises:
        ValueError: no such file, no rows, or a missing column, naming the columns it has.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no response file at {path}; write one with python -m eval.eval_persona")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV table: {error}") from error
    wanted = (*TEXT_COLUMNS, trait, "coherence")
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise ValueError(f"{path} has no rows; run python -m eval.eval_persona again")
    for name in (trait, "coherence"):
        table[name] = [_score(value, f"{path}, data row {row + 1}: {name}") for row, value in enumerate(table[name])]
    return table


def _score(value: object, where: str) -> float:
    """The score as a float, NaN for an empty cell."""
    if value == "":
        return float("nan")
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"{where} is {value!r}, expected a number or nothing") from None
