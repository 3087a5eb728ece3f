"""Projections of training rows on persona vectors, and how far they lie from the model's own answers: one pass for all.

With a(y) the mean activation of an answer y to a row's prompt, y' what the model itself answers (the mean over its
samples), p the prompt's last token, and a vector v that points towards the trait, the kinds of value are

    raw      a(y) . v/|v|
    base     a(y') . v/|v|
    delta_p  (a(y) - a(y')) . v/|v|, the projection difference of arXiv 2507.21509, section 6
    cheap    (a(y) - a(p)) . v/|v|, which needs no answer of the model

All of them, on all vectors at all layers, come from one pass over the rows' answers and the model's own, in which a
prompt is read once for all of its answers. Nothing of a row is kept but its values; means over rows are running sums.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.data_rows import DataRow, read_rows
from eval.row_answers import OwnAnswers, context_of, own_answers, prompt_of, to_answer, why_left_out
from eval.row_sums import TERMS, Answer, Sums, needs_own, sums_of
from persona_vectors.blocks import check_layer
from persona_vectors.models import load_config, resolve_model
from persona_vectors.projection import unit
from persona_vectors.vectors import load_vector, load_vectors

if TYPE_CHECKING:
    from eval.finished_answers import Engine
    from persona_vectors.store import Store

__all__ = ["KINDS", "NO_BASE", "Column", "DataRow", "OwnAnswers", "Reading", "load_columns"]
__all__ += ["Sampled", "mean_change", "own_answers", "read", "read_rows", "read_sampled", "row_values", "sample_rows"]

KINDS = tuple(TERMS)
Key = tuple[str, str]
"""(kind, name of the column)"""
NO_BASE = "the model's own answer is empty"


@dataclass(frozen=True)
class Column:
    """A vector to project on: `vector` is the row `layer` (a hidden_states index) of the file at `path`."""

    name: str
    vector: Float[Tensor, " d_model"]
    layer: int
    path: str


@dataclass(frozen=True)
class Reading:
    """What one pass over rows gives.

    Attributes:
        values: (kind, column) -> a value a row, None where the row has none.
        changes: (kind, layer) -> (n_groups, d_model): the mean over a group's rows of what the kind projects, NaN for
            a group without such rows. Its projection on a vector is the mean of the group's values.
        left_out: why a row has no value, or (NO_BASE) none that needs the model's own answer; None where it has all.
        own_answers: the model's own answers to each row's prompt; none where they were not needed.
    """

    values: dict[Key, list[float | None]]
    changes: dict[tuple[str, int], Float[Tensor, "n_groups d_model"]]
    left_out: list[str | None]
    own_answers: list[list[str]]


@dataclass(frozen=True)
class Sampled:
    """Rows that can be read: `given` are their answers, `texts` the model's own to the rows that are not left out."""

    columns: Sequence[Column]
    kinds: tuple[str, ...]
    layers: Sequence[int]
    prompts: list[str]
    given: list[Answer]
    left_out: list[str | None]
    texts: dict[int, list[str]]


def load_columns(model: str, vector_paths: Sequence[str], layers: Sequence[int]) -> list[Column]:
    """Every vector x layer, named `<file's stem>_layer<L>`, checked against the model's config: no weights are read.

    Raises:
        ValueError: a file that holds no vectors or those of another model, a layer that the model does not have, a zero
            vector, two files of one name, or nothing to project on.
    """
    if not vector_paths or not layers:
        raise ValueError("nothing to project on: give at least one vector file and one layer")
    config, label = load_config(model), resolve_model(model).label
    needed = (config.num_hidden_layers + 1, config.hidden_size)
    columns, origin = [], {}
    for path in dict.fromkeys(map(str, vector_paths)):
        stem, shape = Path(path).stem, tuple(load_vectors(path).shape)
        if Path(origin.setdefault(stem, path)).resolve() != Path(path).resolve():
            raise ValueError(f"{origin[stem]} and {path} would have the same name; rename one of them")
        if shape != needed:
            raise ValueError(f"{path} has vectors of shape {shape}; {label} needs {needed}: use vectors of this model")
        for layer in dict.fromkeys(layers):
            check_layer(layer, config.num_hidden_layers, label, steering=False)
            columns.append(Column(f"{stem}_layer{layer}", load_vector(path, layer), layer, path))
    return columns


def row_values(
    engine: Engine,
    rows: Sequence[DataRow],
    columns: Sequence[Column],
    kinds: Sequence[str],
    *,
    max_tokens: int,
    n_base: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    store: Store,
    progress: bool = True,
    skip_long: bool = False,
) -> dict[Key, list[float | None]]:
    """(kind, column's name) -> one value a row, in order; see `read`, which also gives means and answers."""
    own = OwnAnswers(max_tokens, n_base, temperature, seed)
    return read(engine, rows, columns, kinds, own, store=store, progress=progress, skip_long=skip_long).values


def mean_change(
    engine: Engine,
    rows: Sequence[DataRow],
    layers: Sequence[int],
    *,
    kind: str = "delta_p",
    max_tokens: int,
    n_base: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    store: Store,
    progress: bool = True,
    skip_long: bool = False,
) -> dict[int, Float[Tensor, " d_model"]]:
    """Layer -> mean over rows of a(y) - a(y'), or of what another kind projects; for controls with random directions.

    `read` gives the same for many groups of rows, beside the values, in one pass.
    """
    own = OwnAnswers(max_tokens, n_base, temperature, seed)
    found = read(engine, rows, [], [kind], own, layers=layers, store=store, progress=progress, skip_long=skip_long)
    return {layer: change[0] for (_kind, layer), change in found.changes.items()}


def read(
    engine: Engine,
    rows: Sequence[DataRow],
    columns: Sequence[Column],
    kinds: Sequence[str],
    own: OwnAnswers,
    *,
    store: Store,
    groups: Sequence[int] | None = None,
    layers: Sequence[int] = (),
    skip_long: bool = False,
    progress: bool = True,
) -> Reading:
    """Values of all kinds on all columns for each row, and the mean changes of groups of rows.

    Weights are read when everything has been checked, and an interrupted run samples only what is missing. Several
    files that are read one after the other are sampled first (`sample_rows`, then `read_sampled`).

    Args:
        groups: the group of each row, 0, 1, ...; one group by default.
        layers: layers of mean changes besides those of the columns.
        skip_long: leave out rows longer than the model's context; otherwise they are an error.

    Raises:
        ValueError: an unknown kind, a column that the model does not have, rows that are too long (named), or no row
            with an answer.
    """
    ready = sample_rows(
        engine, rows, columns, kinds, own, store=store, layers=layers, skip_long=skip_long, progress=progress
    )
    return read_sampled(engine, ready, groups=groups, progress=progress)


def sample_rows(
    engine: Engine,
    rows: Sequence[DataRow],
    columns: Sequence[Column],
    kinds: Sequence[str],
    own: OwnAnswers,
    *,
    store: Store,
    layers: Sequence[int] = (),
    skip_long: bool = False,
    progress: bool = True,
) -> Sampled:
    """The first half of `read`: what was asked for checked, and the model's own answers where a kind needs them."""
    kinds, layers = tuple(dict.fromkeys(kinds)), sorted({*layers, *(column.layer for column in columns)})
    _check_asked(engine.name, rows, columns, kinds, layers)
    prompts = [prompt_of(engine, row) for row in rows]
    given = [to_answer(engine, i, prompts[i], row.answer) for i, row in enumerate(rows)]
    left_out = why_left_out(engine.name, rows, given, skip_long=skip_long)
    texts: dict[int, list[str]] = {}
    if any(map(needs_own, kinds)):
        there = [i for i, reason in enumerate(left_out) if reason is None]
        sampled = own_answers(engine, [rows[i] for i in there], own, store=store, progress=progress)
        texts = dict(zip(there, sampled, strict=True))
    return Sampled(columns, kinds, layers, prompts, given, left_out, texts)


def read_sampled(
    engine: Engine, ready: Sampled, *, groups: Sequence[int] | None = None, progress: bool = True
) -> Reading:
    """The second half of `read`: one pass of Hugging Face's model over the rows."""
    columns, kinds, layers, texts, left_out = ready.columns, ready.kinds, ready.layers, ready.texts, ready.left_out
    answers = _to_read(engine, ready.prompts, ready.given, left_out, texts, kinds)
    if any(map(needs_own, kinds)):
        with_own = {answer.row for answer in answers if answer.is_own}
        left_out = [reason or (None if i in with_own else NO_BASE) for i, reason in enumerate(left_out)]
    none = torch.empty(0, load_config(engine.name).hidden_size)
    vectors = {layer: torch.cat([none, *(c.vector[None] for c in columns if c.layer == layer)]) for layer in layers}
    has = {kind: np.array([_has(kind, reason) for reason in left_out]) for kind in kinds}
    n_rows = len(ready.prompts)
    groups = [0] * n_rows if groups is None else groups
    sums = sums_of(engine.model, answers, vectors, has, groups, progress=progress)
    own_texts = [texts.get(i, []) for i in range(n_rows)]
    return Reading(_listed(sums, columns, kinds), sums.changes, left_out, own_texts)


def _check_asked(
    model: str, rows: Sequence[DataRow], columns: Sequence[Column], kinds: Sequence[str], layers: Sequence[int]
) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds {', '.join(unknown) or 'are none'}; expected some of {', '.join(KINDS)}")
    if not rows or not layers:
        raise ValueError(f"{len(rows)} rows and {len(layers)} layers; expected at least one of each")
    names = Counter(column.name for column in columns)
    if twice := [name for name, n in names.items() if n > 1]:
        raise ValueError(f"two columns have the name {twice[0]}")
    config, label = load_config(model), resolve_model(model).label
    for layer in layers:
        check_layer(layer, config.num_hidden_layers, label, steering=False)
    for column in columns:
        if tuple(column.vector.shape) != (config.hidden_size,):
            raise ValueError(
                f"the vector of {column.name} has shape {tuple(column.vector.shape)}; {label} needs "
                f"{(config.hidden_size,)}: use vectors made from this model"
            )
        unit(column.vector)


def _to_read(
    engine: Engine,
    prompts: Sequence[str],
    given: Sequence[Answer],
    left_out: Sequence[str | None],
    own: Mapping[int, Sequence[str]],
    kinds: Sequence[str],
) -> list[Answer]:
    """The answers to be read, those to one prompt beside one another; of the model's own those that have tokens."""
    context = context_of(engine.name)
    reads_given = any(not is_own for kind in kinds for is_own, _span, _sign in TERMS[kind])
    first = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}
    answers = []
    for i in sorted(range(len(prompts)), key=lambda i: first[prompts[i]]):
        if left_out[i] is not None:
            continue
        if reads_given:
            answers.append(given[i])
        read = [to_answer(engine, i, prompts[i], text, is_own=True) for text in own.get(i, ())]
        # A decoded answer can have more tokens than were sampled: those past the context are left out.
        read = [replace(answer, ids=answer.ids[:context]) for answer in read]
        read = [answer for answer in read if answer.n_tokens]
        answers += [replace(answer, share=1 / len(read)) for answer in read]
    return answers


def _has(kind: str, reason: str | None) -> bool:
    """Whether a row that was left out for `reason` has a value of this kind."""
    return reason is None or (reason == NO_BASE and not needs_own(kind))


def _listed(sums: Sums, columns: Sequence[Column], kinds: Sequence[str]) -> dict[Key, list[float | None]]:
    """The values by the columns' names."""
    listed: dict[Key, list[float | None]] = {}
    for kind in kinds:
        place: Counter[int] = Counter()  # of the next column of each layer
        for column in columns:
            numbers = sums.values[kind, column.layer][:, place[column.layer]].tolist()
            listed[kind, column.name] = [None if math.isnan(number) else number for number in numbers]
            place[column.layer] += 1
    return listed
