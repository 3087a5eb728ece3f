"""Role adherence: how far an answer plays the role it was given, as a judge says in one word.

Only answers that fully play a role say what activations look like in that role; the others are a mixture of the role
and the assistant (arXiv 2601.10387). The assistant's own personas are no roles, and none of their answers is judged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from persona_vectors.judging import fill_prompt
from persona_vectors.persona_files import Place
from persona_vectors.personas import ASSISTANT_PERSONAS, PersonaSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Adherence = Literal["fully", "somewhat", "none"]
LABELS: tuple[Adherence, ...] = get_args(Adherence)
LEAST_MASS = 0.25
"""Least probability that must lie on the three words; below it the judge said something else, and there is no label."""

Labels = Mapping[Place, Adherence | None]
"""(persona, question) -> label; None where the judge gave none."""


def role_prompts(
    cast: PersonaSet, responses: Mapping[Place, str], assistant_personas: Sequence[str] = ASSISTANT_PERSONAS
) -> dict[Place, str]:
    """(persona, question) -> what a judge is asked of that answer; of the roles alone."""
    return {
        (persona, question): fill_prompt(
            cast.role_prompt.replace("{role}", re.sub(r"([{}])", r"\1\1", cast.role(persona))), question, answer
        )
        for (persona, question), answer in responses.items()
        if persona in cast.personas and persona not in assistant_personas
    }


def other_roles(
    cast: PersonaSet,
    responses: Mapping[Place, str],
    assistant_personas: Sequence[str] = ASSISTANT_PERSONAS,
    most: int = 3,
) -> dict[Place, str]:
    """The control: answers of each role as if another one had given them, at most `most` a role.

    A judge that reads the role calls few of them `fully`. The other role stands half the cast away, since neighbours
    may be alike.
    """
    by_role: dict[str, list[tuple[str, str]]] = {name: [] for name in cast.personas if name not in assistant_personas}
    for (persona, question), text in responses.items():
        if persona in by_role and len(by_role[persona]) < most:
            by_role[persona].append((question, text))
    names = [name for name, own in by_role.items() if own]
    return {
        (names[(number + len(names) // 2) % len(names)], question): text
        for number, name in enumerate(names)
        for question, text in by_role[name]
    }


def tells_roles_apart(own: Labels, others: Labels, level: float = 0.05) -> tuple[bool, str]:
    """(whether the judge says `fully` more often of answers in their own role than in another's, the two shares).

    By Fisher's exact test, one-sided: at this level a judge that does not read the role passes one time in 20.
    """
    from scipy.stats import fisher_exact

    counts = [(sum(label == "fully" for label in labels.values()), len(labels)) for labels in (own, others)]
    table = [[n_fully, n - n_fully] for n_fully, n in counts]
    shares = " and of ".join(
        f"{n_fully} of {n} {which}"
        for (n_fully, n), which in zip(counts, ("answers", "answers given by another role (the control)"), strict=True)
    )
    return float(fisher_exact(table, alternative="greater").pvalue) < level, f"`fully` is said of {shares}"  # pyright: ignore


def local_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    on_batch: Callable[[Mapping[str, Adherence | None]], None] | None = None,
    progress: bool = False,
) -> list[Adherence | None]:
    """The likeliest of the three words as the model's answer to each prompt, from its own probabilities.

    None where the three together have less than LEAST_MASS of them. Nothing is generated.

    Args:
        on_batch: told prompt -> label of each batch as soon as it is read.

    Raises:
        ValueError: a prompt longer than the model's context.
    """
    import math

    from persona_vectors.option_likelihood import Choice, option_log_likelihoods
    from persona_vectors.tokens import render_prompt, tokenize_prompt, tokenize_sample

    choices: list[Choice] = []
    for text in prompts:
        prompt = render_prompt(tokenizer, [{"role": "user", "content": text}])
        n = len(ids := tokenize_prompt(tokenizer, prompt))
        choices.append(Choice(tuple(ids), tuple(tokenize_sample(tokenizer, prompt, word).ids[n:] for word in LABELS)))
    labels: list[Adherence | None] = [None] * len(choices)
    for rows, found in option_log_likelihoods(model, choices, progress=progress):
        for row, values in zip(rows, found, strict=True):
            odds = dict(zip(LABELS, map(math.exp, values), strict=True))
            labels[row] = max(odds, key=odds.__getitem__) if sum(odds.values()) >= LEAST_MASS else None
        if on_batch is not None:
            on_batch({prompts[row]: labels[row] for row in rows})
    return labels


def label_of(text: str) -> Adherence | None:
    """The first word of a judge's reply, if it is one of the three; otherwise None."""
    words = re.findall(r"[a-z]+", text.rpartition("</think>")[2].lower())
    return next((label for label in LABELS if words[:1] == [label]), None)


def playing(responses: Mapping[Place, str], labels: Labels, keep: Sequence[Adherence] = ("fully",)) -> dict[Place, str]:
    """The responses whose label is one of `keep`, and those that have no entry: the assistant's own."""
    return {place: text for place, text in responses.items() if place not in labels or labels[place] in keep}


def adherence_counts(labels: Labels) -> dict[str, dict[str, int]]:
    """Persona -> how many of its answers are fully, somewhat, none, and unjudged."""
    found: dict[str, Counter[str]] = {}
    for (persona, _), label in labels.items():
        found.setdefault(persona, Counter())[label or "unjudged"] += 1
    return {persona: {name: n[name] for name in (*LABELS, "unjudged")} for persona, n in found.items()}
