"""Training rows as a model reads them: prompts and answers as tokens, which rows cannot be read, and the model's own
answers to the same prompts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.data_rows import DataRow
from eval.finished_answers import answers_of
from eval.row_sums import Answer
from persona_vectors.models import load_config, resolve_model
from persona_vectors.tokens import render_prompt, tokenize_sample

if TYPE_CHECKING:
    from eval.finished_answers import Engine
    from persona_vectors.store import Store

EMPTY, LONG = "empty answer", "longer than the model's context"


@dataclass(frozen=True)
class OwnAnswers:
    """How the model's own answers are sampled: `n` a row, each from a random stream of its own."""

    max_tokens: int = 1000
    n: int = 1
    temperature: float = 1.0
    seed: int = 0


def own_answers(
    engine: Engine, rows: Sequence[DataRow], own: OwnAnswers, *, store: Store, progress: bool = True
) -> list[list[str]]:
    """The model's own `own.n` answers to each row's prompt (all turns before the last assistant turn), by the store.

    A random stream belongs to the prompt, how often the file had it before, and the sample's number: a row keeps its
    answers in a file that was mixed, filtered or sorted, and rows of different files with the same prompt share them,
    so that files over the same questions are compared with common random numbers.
    """
    prompts = [prompt_of(engine, row) for row in rows]
    seen: Counter[tuple[str, str]] = Counter()
    streams = []
    for row, prompt in zip(rows, prompts, strict=True):
        number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8])
        streams += [(own.seed, number, seen[row.file, prompt], k) for k in range(own.n)]
        seen[row.file, prompt] += 1
    answers = answers_of(
        engine,
        [prompt for prompt in prompts for _ in range(own.n)],
        streams,
        max_tokens=own.max_tokens,
        temperature=own.temperature,
        steerings=[None] * len(streams),
        store=store,
        progress=progress,
    )
    return [answers[i * own.n : (i + 1) * own.n] for i in range(len(rows))]


def prompt_of(engine: Engine, row: DataRow) -> str:
    """All turns before the last assistant turn, rendered; a ValueError names the row."""
    try:
        return render_prompt(engine.tokenizer, row.messages[:-1])
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None


def to_answer(engine: Engine, row: int, prompt: str, text: str, **of_own: Any) -> Answer:
    """The text as an answer to be read; one of white space alone has no tokens."""
    sample = tokenize_sample(engine.tokenizer, prompt, text if text.strip() else "")
    answer = Answer(row, False, 1.0, np.array(sample.ids, dtype=np.int32), sample.prompt_len)
    return replace(answer, **of_own)


def context_of(model: str) -> int | None:
    """Tokens of prompt and answer that the model's config allows; None where it sets no limit."""
    return getattr(load_config(model), "max_position_embeddings", None)


def why_left_out(model: str, rows: Sequence[DataRow], given: Sequence[Answer], *, skip_long: bool) -> list[str | None]:
    """Why each row cannot be read, None where it can."""
    context = context_of(model)
    long = [i for i, answer in enumerate(given) if context and len(answer.ids) > context]
    if long and not skip_long:
        shown = "; ".join(f"{rows[i].place} ({len(given[i].ids)} tokens)" for i in long[:5])
        more = f" and {len(long) - 5} more" if len(long) > 5 else ""
        raise ValueError(
            f"longer than the {context} tokens that {resolve_model(model).label} reads: {shown}{more}; shorten them, "
            "or leave such rows out (--skip_long)"
        )
    found: list[str | None] = [None if answer.n_tokens else EMPTY for answer in given]
    for i in long:
        found[i] = LONG
    if None not in found:
        counts = ", ".join(f"{n} {reason}" for reason, n in Counter(found).items())
        raise ValueError(f"none of the {len(rows)} rows can be read ({rows[0].file}): {counts}")
    return found
