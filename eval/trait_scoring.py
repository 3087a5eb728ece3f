"""A questionnaire's items put to a model under one condition after another, and scored by the likelihood of options.

Likelihoods go by way of the store, so a run that was interrupted goes on. A score is of one trait under one condition:
unsteered, steered, steered along a random direction, or under system prompts that ask for a trait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from activation_steer import ActivationSteerer
from eval.finished_answers import Engine
from eval.model_utils import Steering
from persona_vectors.blocks import block_index
from persona_vectors.option_likelihood import Choice, SteerPass, option_log_likelihoods
from persona_vectors.option_shares import Order, Shares, TraitScore, option_shares, orders_of, trait_score
from persona_vectors.questionnaire import LETTERS, Item, Wording
from persona_vectors.store import Store, content_key
from persona_vectors.tokens import render_prompt, tokenize_sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Scoring = Literal["letter", "text", "open"]
SCORINGS: dict[Scoring, str] = {
    "letter": "options listed in four orders, answered by a letter: probability of A, B, C and D",
    "text": "options listed in four orders, answered in the words of one: mean log-likelihood of its tokens",
    "open": "the question alone, each option as its answer: mean log-likelihood of its tokens; no order to choose",
}
_UNORDERED: tuple[Order, ...] = ((0, 1, 2, 3),)


@dataclass(frozen=True, eq=False)
class Condition:
    """What the model is under while it is asked.

    Attributes:
        name: for tables.
        kind: unsteered; steered; random, a direction beside it of the same norm; told, system prompts ask for it.
        systems: system prompts; item i is asked under the one numbered i, and so on round.
        control: the number of a random direction.
    """

    name: str
    kind: Literal["unsteered", "steered", "random", "told"] = "unsteered"
    steering: Steering | None = None
    systems: tuple[str, ...] = ()
    control: int | None = None


@dataclass(frozen=True)
class Asking:
    """How items are put."""

    wording: Wording
    scoring: Scoring
    seed: int = 0
    overwrite: bool = False
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Scored:
    """One trait under one condition: the score, and the shares of each of its items' options."""

    condition: Condition
    items: Sequence[Item]
    shares: Shares
    score: TraitScore


@dataclass(frozen=True)
class Row:
    """One prompt with the options in the order that it has them in; for letters, the letters."""

    prompt: str
    options: tuple[str, ...]


def rows_of(
    tokenizer: PreTrainedTokenizerBase, item: Item, number: int, asking: Asking, systems: Sequence[str] = ()
) -> tuple[list[Row], tuple[Order, ...]]:
    """The item's prompts, one an order, and the orders."""
    orders = _UNORDERED if asking.scoring == "open" else orders_of(item, asking.seed)
    system = [{"role": "system", "content": systems[number % len(systems)]}] if systems else []
    rows = []
    for order in orders:
        placed = tuple(item.responses[option] for option in order)
        told = {"question": item.question, **dict(zip(LETTERS, placed, strict=True))}
        content = getattr(asking.wording, asking.scoring).format(**told)
        prompt = render_prompt(tokenizer, [*system, {"role": "user", "content": content}])
        rows.append(Row(prompt, tuple(LETTERS) if asking.scoring == "letter" else placed))
    return rows, orders


def score(
    engine: Engine, store: Store, items: Sequence[Item], conditions: Sequence[Condition], asking: Asking
) -> list[list[Scored]]:
    """For each condition the score of each trait that the items are of, in the order of their first items.

    Raises:
        ValueError: a tokenizer that cannot write the letters, an item that does not fit the model's context.
    """
    found = []
    for condition in conditions:
        asked = [rows_of(engine.tokenizer, item, i, asking, condition.systems) for i, item in enumerate(items)]
        rows = [row for own, _ in asked for row in own]
        values = iter(_log_scores(engine, store, rows, condition, asking))
        log_scores = np.array([[next(values) for _ in own] for own, _ in asked])  # (n_items, n_orders, 4)
        found.append(_by_trait(items, condition, log_scores, [orders for _, orders in asked], asking))
    return found


def _by_trait(
    items: Sequence[Item],
    condition: Condition,
    log_scores: np.ndarray,
    orders: Sequence[Sequence[Order]],
    asking: Asking,
) -> list[Scored]:
    scored = []
    for trait in dict.fromkeys(item.trait for item in items):
        rows = [i for i, item in enumerate(items) if item.trait == trait]
        own = [items[i] for i in rows]
        placed = [orders[i] for i in rows]
        shares = option_shares(log_scores[rows], placed, labels=asking.scoring == "letter")
        n_asked = len(rows) * len(placed[0])
        scored.append(Scored(condition, own, shares, trait_score(own, shares, n_asked, asking.seed)))
    return scored


def _log_scores(
    engine: Engine, store: Store, rows: Sequence[Row], condition: Condition, asking: Asking
) -> list[list[float]]:
    """log P of each row's letters, or the mean log-likelihood of its options' tokens."""
    keys = row_keys(engine, rows, condition.steering)
    known: dict[str, list[float]] = {} if asking.overwrite else store.get_many(keys)
    todo = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
    if todo:
        names = list(todo)
        choices = [choice_of(engine.tokenizer, row) for row in todo.values()]
        steer = None if condition.steering is None else steer_pass(engine.model, condition.steering)
        batches = option_log_likelihoods(engine.model, choices, steer=steer, progress=asking.progress)
        for numbers, sums in batches:
            means = [
                [total / len(option) for total, option in zip(own, choices[number].options, strict=True)]
                for number, own in zip(numbers, sums, strict=True)
            ]
            values = sums if asking.scoring == "letter" else means
            finished = {names[number]: own for number, own in zip(numbers, values, strict=True)}
            store.put_many(finished, kind="option_scores", source=engine.name)
            known |= finished
    return [known[key] for key in keys]


def row_keys(engine: Engine, rows: Iterable[Row], steering: Steering | None) -> list[str]:
    """The store's key of each row: everything that its likelihoods depend on."""
    shared: dict[str, Any] = {**engine.key(), "steering": None if steering is None else steering.key()}
    return [content_key("option_scores", **shared, prompt=row.prompt, options=list(row.options)) for row in rows]


def choice_of(tokenizer: PreTrainedTokenizerBase, row: Row) -> Choice:
    """The row as token ids.

    Raises:
        ValueError: a letter that the tokenizer cannot write, or two that it writes alike.
    """
    samples = [tokenize_sample(tokenizer, row.prompt, option) for option in row.options]
    prompt_len = samples[0].prompt_len
    options = tuple(sample.ids[prompt_len:] for sample in samples)
    if row.options == tuple(LETTERS):
        unknown = tokenizer.unk_token_id
        if len(set(options)) < 4 or not all(options) or any(unknown in ids for ids in options if unknown is not None):
            raise ValueError("this tokenizer cannot write the letters A to D apart; use --scoring text or open")
    return Choice(samples[0].ids[:prompt_len], options)


def steer_pass(model: PreTrainedModel, steering: Steering) -> SteerPass:
    """What `option_log_likelihoods` takes to steer every pass: the steerer is told where each row's prompt ends."""

    def steer(prompt_lens: Sequence[int]) -> AbstractContextManager:
        return made(prompt_lens=list(prompt_lens))

    made = partial(
        ActivationSteerer,
        model,
        steering.vector,
        coeff=steering.coef,
        layer_idx=block_index(steering.layer),
        positions=steering.positions,
    )
    return steer
