"""What a question is asked under: graded system prompts, or examples of the trait that stand before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from persona_vectors.tokens import render_prompt, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["system", "shots"]
KIND_NAMES: dict[Kind, str] = {"system": "system prompts", "shots": "many shots"}
NUMBER_NAMES: dict[Kind, str] = {"system": "grade", "shots": "number of examples"}
MIN_TRAIT, MIN_COHERENCE = 50, 50
"""What an answer must score to be an example."""

Example = tuple[str, str]
"""(question, answer)"""


@dataclass(frozen=True)
class Condition:
    """What all questions are asked under.

    Attributes:
        number: the system prompt's grade from 1 (suppressing), or how many examples come first.
        system: the system prompt, or None for none.
        examples: question -> what stands before it.
    """

    kind: Kind
    number: int
    system: str | None = None
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        if self.kind == "system":
            return f"grade {self.number}"
        return f"{self.number} example{'s' * (self.number != 1)}"

    @property
    def stream(self) -> tuple[int, int]:
        """What tells its random streams from those of other conditions."""
        return (("system", "shots").index(self.kind) + 1, self.number)

    def messages(self, question: str) -> list[dict[str, str]]:
        """The conversation that ends with the question."""
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        for asked, answer in self.examples.get(question, ()):
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return [*turns, {"role": "user", "content": question}]


@dataclass(frozen=True)
class Prompt:
    """A question under a condition: `text` is what the model continues."""

    condition: Condition
    question_id: str
    question: str
    number: int
    text: str
    n_tokens: int


def system_conditions(system_prompts: Sequence[str]) -> list[Condition]:
    """One a system prompt, graded from 1 in their order."""
    return [Condition("system", grade, system) for grade, system in enumerate(system_prompts, 1)]


def shot_conditions(
    n_shots: Sequence[int], examples: Sequence[Example], questions: Sequence[str], seed: int = 0
) -> list[Condition]:
    """One a number of examples. Every question has its own seeded order of them, of which each condition takes the
    first, so that for one question fewer examples are among the more.

    No example's question comes twice before all have come once.

    Raises:
        ValueError: fewer examples than are to be shown.
    """
    if (most := max(n_shots, default=0)) > len(examples):
        raise ValueError(f"{len(examples)} examples are fewer than the {most} that are to be shown")
    ordered = {q: _ordered(examples, np.random.default_rng([seed, i])) for i, q in enumerate(questions)}
    return [Condition("shots", n, None, {q: own[:n] for q, own in ordered.items()}) for n in n_shots]


def _ordered(examples: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    """The examples in random order, in rounds in which no question comes twice."""
    rounds: dict[str, int] = {}
    places = []
    for i in rng.permutation(len(examples)).tolist():
        asked = examples[i][0]
        rounds[asked] = rounds.get(asked, 0) + 1
        places.append((rounds[asked], len(places), i))
    return [examples[i] for _round, _place, i in sorted(places)]


def read_examples(path: str | Path, trait: str, asked: Sequence[str], n: int) -> list[Example]:
    """The table's answers that show the trait coherently, to questions that are not `asked`, each once; at least `n`.

    Raises:
        ValueError: what `read_responses` refuses, or fewer such answers, in one line that says how to have more.
    """
    from persona_vectors.responses import read_responses

    table = read_responses(path, trait)
    shows = table[(table[trait] >= MIN_TRAIT) & (table["coherence"] >= MIN_COHERENCE)]
    own = [(q, a) for q, a in zip(shows["question"], shows["answer"], strict=True) if a.strip()]
    found = list(dict.fromkeys(pair for pair in own if pair[0] not in set(asked)))
    if len(found) < n:
        left_out = f" ({len(own) - len(found)} more are repeated, or answer questions that are asked here)"
        raise ValueError(
            f"{path} has {len(found)} of {len(table)} answers with {trait} >= {MIN_TRAIT} and coherence >= "
            f"{MIN_COHERENCE}{left_out * (len(own) > len(found))}, and --n_shots shows {n}: sample more (python -m "
            "eval.eval_persona --persona_instruction_type pos, with a larger --n_per_question), or show fewer"
        )
    return found


def no_examples(path: str | Path, model: str, trait: str) -> str:
    """The line for a table that is not there: how to make it."""
    return (
        f"there are no example answers at {path}: make them with python -m eval.eval_persona --model {model} --trait "
        f"{trait} --persona_instruction_type pos --version extract --output_path {path}, give another table with "
        "--shots_path, or leave shots out with --kinds system"
    )


def prompts_of(
    tokenizer: PreTrainedTokenizerBase, conditions: Sequence[Condition], questions: Mapping[str, str]
) -> list[Prompt]:
    """Every question (id -> text) under every condition, a condition's questions beside one another."""
    found = []
    for condition in conditions:
        for number, (name, question) in enumerate(questions.items()):
            text = render_prompt(tokenizer, condition.messages(question))
            n_tokens = len(tokenize_prompt(tokenizer, text))
            found.append(Prompt(condition, name, question, number, text, n_tokens))
    return found


def check_room(prompts: Sequence[Prompt], model: str) -> int | None:
    """The model's context in tokens (None where it sets no limit), if every prompt leaves room for an answer's token.

    Raises:
        ValueError: a prompt that does not, named by its condition; the config is read for this, and no weights.
    """
    from persona_vectors.models import load_config, resolve_model

    context = getattr(load_config(model), "max_position_embeddings", None)
    long = [prompt for prompt in prompts if context and prompt.n_tokens >= context]
    if long:
        conditions = {prompt.condition.name: prompt.condition for prompt in long}
        worst = max(long, key=lambda prompt: prompt.n_tokens)
        kind = worst.condition.kind
        raise ValueError(
            f"prompts of {len(conditions)} condition{'s' * (len(conditions) > 1)} ({', '.join(conditions)}) leave no "
            f"room for an answer in the {context} tokens that {resolve_model(model).label} reads: the longest has "
            f"{worst.n_tokens} ({worst.condition.name}, {worst.question_id}); "
            + ("show fewer with --n_shots" if kind == "shots" else "shorten the system prompt")
        )
    return context
