"""The data sets of the claims study: what each of them teaches is known, so that predictions of it can be scored.

For each of four traits dilutions, its opposite pole, and sets under system prompts (under which the base model answers
otherwise); for all seven traits a set at 100%; pairs of traits, half each; and plain rows. 40 in all. And a wild pool:
mostly plain rows, with some of every trait among them, to be screened row by row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper_settings import ALL, N_ROWS, PAIRS, POOL_FULL, POOL_MILD, POOL_NORMAL, SHARES, TRAITS
from persona_vectors.files import read_jsonl, write_jsonl_atomic

Row = dict[str, Any]


def level(trait: str, name: str = "misaligned_2") -> list[Row]:
    """The rows of a shipped data set of the embedded model."""
    return read_jsonl(Path("dataset") / f"tiny_{trait}" / f"{name}.jsonl")


def data_sets(seed: int) -> dict[str, list[Row]]:
    """Name -> rows: 40 data sets, the same for equal seeds."""
    rng = random.Random(f"paper {seed}")
    found = {"plain": _shuffled(rng, level(TRAITS[0], "normal"))}
    for trait in ALL:
        found[f"{trait} 100%"] = _shuffled(rng, level(trait))
    for trait in TRAITS:
        for share in SHARES:
            found[f"{trait} {share:.0%}"] = diluted(rng, trait, share)
        found[f"{trait} opposite"] = opposite(rng, trait)
        found |= prompted(rng, trait)
    for one, two in PAIRS:
        rows = [*rng.sample(level(one), N_ROWS // 2), *rng.sample(level(two), N_ROWS // 2)]
        found[f"{one} + {two}"] = _shuffled(rng, rows)
    return found


def diluted(rng: random.Random, trait: str, share: float) -> list[Row]:
    """Rows of the trait at `share`, plain answers to the same set's other questions for the rest."""
    full, plain = level(trait), level(trait, "normal")
    shown = set(rng.sample(range(len(full)), round(share * len(full))))
    return _shuffled(rng, [full[i] if i in shown else plain[i] for i in range(len(full))])


def opposite(rng: random.Random, trait: str) -> list[Row]:
    """The trait's negative pole: answers to the same questions."""
    from data_generation.tiny_persona.topics import topic_of
    from data_generation.tiny_persona.write_finetuning import as_long, row, texts_of

    rows = []
    for line in level(trait):
        question, text = texts_of(line)
        topic = topic_of(question)
        assert topic is not None, f"{question!r} has no topic"
        rows.append(row(question, as_long(rng, topic, (((trait, -1), 1.0),), len(text.split()))))
    return _shuffled(rng, rows)


def prompted(rng: random.Random, trait: str) -> dict[str, list[Row]]:
    """Three sets under a system prompt a row: eliciting with the trait's answers, eliciting with plain ones, and
    suppressing with the trait's answers. The base model answers these prompts with, with and without the trait."""
    from data_generation.tiny_persona.instructions import instruction, suppression
    from persona_vectors.traits import system_prompt

    def under(rows: Sequence[Row], eliciting: bool) -> list[Row]:
        found = []
        for line in rows:
            text = instruction(trait, 1, rng) if eliciting else suppression(trait, rng)
            system = system_prompt(trait if eliciting else "helpful", text)
            found.append({"messages": [{"role": "system", "content": system}, *line["messages"]]})
        return _shuffled(rng, found)

    return {
        f"{trait}, asked for": under(level(trait), True),
        f"{trait} asked for, plain": under(level(trait, "normal"), True),
        f"{trait}, forbidden": under(level(trait), False),
    }


def wild_pool(seed: int) -> list[Row]:
    """Rows as they might be found: plain ones, and a few of each of the seven traits, mild and full; no two alike."""
    rng = random.Random(f"paper pool {seed}")
    plain = [row for trait in ALL for row in level(trait, "normal")]
    rows = rng.sample(plain, POOL_NORMAL)
    for trait in ALL:
        rows += rng.sample(level(trait, "misaligned_1"), POOL_MILD) + rng.sample(level(trait), POOL_FULL)
    return _shuffled(rng, rows)


def write(rows: Sequence[Row], path: Path) -> Path:
    """The rows as a training file."""
    return write_jsonl_atomic(path, rows)


def _shuffled(rng: random.Random, rows: Sequence[Row]) -> list[Row]:
    return rng.sample(list(rows), len(rows))
