"""Projections of training rows on persona vectors, and how far they lie from the model's own answers: one pass for all.

With a(y) the mean activation of an answer y to a row's prompt, y' what the model itself answers (the mean over its
samples), p the prompt's last token, and a vector v that points towards the trait, the kinds of value are

    raw      a(y) . v/|v|
    base     a(y') . v/|v|
    delta_p  (a(y) - a(y')) . v/|v|, the projection difference of arXiv 2507.21509, section 5
    cheap    (a(y) - a(p)) . v/|v|, which needs no answer of the model

All of them, on all vectors at all layers, come from one pass over the rows' answers and the model's own, in which a
prompt is read once for all of its answers. Nothing of a row is kept but its values; means over rows are running sums.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from persona_vectors.activations import iter_mean_activations
from persona_vectors.blocks import check_layer
from persona_vectors.models import load_config, resolve_model
from persona_vectors.projection import unit
from persona_vectors.tokens import TokenizedSample, render_prompt, tokenize_sample
from persona_vectors.training_data import ROLES, numbered_rows
from persona_vectors.vectors import load_vector, load_vectors

if TYPE_CHECKING:
    from eval.finished_answers import Engine
    from persona_vectors.store import Store

KINDS = ("delta_p", "raw", "base", "cheap")
Key = tuple[str, str]
"""(kind, name of the column)"""

_TERMS: dict[str, tuple[tuple[bool, str, float], ...]] = {
    "raw": ((False, "response_avg", 1.0),),
    "base": ((True, "response_avg", 1.0),),
    "delta_p": ((False, "response_avg", 1.0), (True, "response_avg", -1.0)),
    "cheap": ((False, "response_avg", 1.0), (False, "prompt_last", -1.0)),
}
"""A kind as a sum of means: (of the model's own answer?, span, sign)."""

_CHUNK = 1024  # answers handed to the engine at once: equal prompts stand together, and tokens do not pile up

EMPTY, LONG, NO_BASE = "empty answer", "longer than the model's context", "the model's own answer is empty"


@dataclass(frozen=True)
class DataRow:
    """One conversation: the row of a JSONL file as it was read, and the line (from 1) it stands on."""

    file: str
    line: int
    content: dict[str, Any]

    @cached_property
    def messages(self) -> list[dict[str, str]]:
        """The prompt's turns, then the last assistant turn; what comes after it is left out."""
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in self.content["messages"]]
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        return turns[: last + 1]

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]

    @property
    def question(self) -> str:
        """What the user said before the answer; equal for questions that differ in case, white space or system."""
        asked = " ".join(turn["content"] for turn in self.messages[:-1] if turn["role"] != "system")
        return " ".join(asked.casefold().split())

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class Column:
    """A vector to project on: `vector` is the row `layer` (a hidden_states index) of the file at `path`."""

    name: str
    vector: Float[Tensor, " d_model"]
    layer: int
    path: str


@dataclass(frozen=True)
class OwnAnswers:
    """How the model's own answers are sampled: `n` a row, each from a random stream of its own."""

    max_tokens: int = 1000
    n: int = 1
    temperature: float = 1.0
    seed: int = 0


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


def read_rows(paths: str | Path | Sequence[str | Path]) -> list[DataRow]:
    """The rows of JSONL files `{"messages": [{"role", "content"}, ...]}`, in order; blank lines are no rows.

    A row may have no system turn, several turns, an empty answer, and further keys.

    Raises:
        ValueError: no such file, no rows, or a line that is no conversation with an assistant's turn after a turn it
            answers; names file and line.
    """
    several = [paths] if isinstance(paths, (str, Path)) else paths
    return [
        DataRow(str(path), line, _checked(content, f"{path}, line {line}"))
        for path in several
        for line, content in numbered_rows(path)
    ]


def _checked(content: dict[str, Any], place: str) -> dict[str, Any]:
    messages = content.get("messages")
    if not isinstance(messages, list) or not messages:
        keys = ", ".join(sorted(content)[:6]) or "none"
        raise ValueError(
            f'{place}: no list of messages (keys: {keys}); expected {{"messages": [{{"role", "content"}}, ...]}}'
        )
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            got = repr(message.get("role")) if isinstance(message, dict) else f"a {type(message).__name__}"
            raise ValueError(f"{place}: message {number} has the role {got}; expected {', '.join(ROLES)}")
        text = message.get("content")
        if not isinstance(text, str):
            raise ValueError(f"{place}: message {number} has content of type {type(text).__name__}; expected text")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{place}: message {number} has half a character (a lone surrogate)")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles[1:]:
        raise ValueError(f"{place}: no assistant turn that answers another (roles: {', '.join(roles)})")
    return content


def load_columns(model: str, vector_paths: Sequence[str], layers: Sequence[int]) -> list[Column]:
    """Every vector x layer, checked against the model's config: no weights are read.

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
        if origin.setdefault(stem, path) != path:
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

    Weights are read when everything has been checked, and an interrupted run samples only what is missing.

    Args:
        groups: the group of each row, 0, 1, ...; one group by default.
        layers: layers of mean changes besides those of the columns.
        skip_long: leave out rows longer than the model's context; otherwise they are an error.

    Raises:
        ValueError: an unknown kind, a column that the model does not have, rows that are too long (named), or no row
            with an answer.
    """
    kinds, layers = tuple(dict.fromkeys(kinds)), sorted({*layers, *(column.layer for column in columns)})
    _check_asked(engine.name, rows, columns, kinds, layers)
    prompts = [_rendered(engine, row) for row in rows]
    samples = [_tokens(tokenize_sample(engine.tokenizer, *pair)) for pair in zip(prompts, _answers(rows), strict=True)]
    left_out = _left_out(engine.name, rows, samples, skip_long=skip_long)
    groups = [0] * len(rows) if groups is None else groups
    needs_own = any(is_own for kind in kinds for is_own, _span, _sign in _TERMS[kind])
    texts: list[list[str]] = [[] for _ in rows]
    if needs_own:
        there = [i for i, reason in enumerate(left_out) if reason is None]
        answers = own_answers(engine, [rows[i] for i in there], own, store=store, progress=progress)
        for i, several in zip(there, answers, strict=True):
            texts[i] = several
    jobs = _jobs(engine, prompts, samples, left_out, texts, kinds)
    if needs_own:
        with_own = {job.row for job in jobs if job.is_own}
        left_out = [reason or (None if i in with_own else NO_BASE) for i, reason in enumerate(left_out)]
    values, changes = _reduced(engine, jobs, left_out, columns, kinds, layers, groups, progress)
    return Reading(values, changes, left_out, texts)


def own_answers(
    engine: Engine, rows: Sequence[DataRow], own: OwnAnswers, *, store: Store, progress: bool = True
) -> list[list[str]]:
    """The model's own `own.n` answers to each row's prompt (all turns before the last assistant turn), by the store.

    A random stream belongs to the prompt, how often the file had it before, and the sample's number: a row keeps its
    answers in a file that was mixed, filtered or sorted, and rows of different files with the same prompt share them,
    so that files over the same questions are compared with common random numbers.
    """
    from eval.finished_answers import answers_of

    prompts = [_rendered(engine, row) for row in rows]
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


@dataclass(frozen=True)
class _Tokens:
    """A sample with its ids as 4 bytes each: python's own integers take nine times as much."""

    ids: np.ndarray  # (seq,) int32
    prompt_len: int

    def sample(self) -> TokenizedSample:
        return TokenizedSample(tuple(self.ids.tolist()), self.prompt_len)


@dataclass(frozen=True)
class _Job:
    """An answer to be read: the row's, or one of the model's own to its prompt, which weighs `share`."""

    row: int
    is_own: bool
    share: float
    tokens: _Tokens


def _tokens(sample: TokenizedSample) -> _Tokens:
    return _Tokens(np.array(sample.ids, dtype=np.int32), sample.prompt_len)


def _answers(rows: Sequence[DataRow]) -> list[str]:
    """The rows' answers; one of white space alone is empty."""
    return [row.answer if row.answer.strip() else "" for row in rows]


def _rendered(engine: Engine, row: DataRow) -> str:
    try:
        return render_prompt(engine.tokenizer, row.messages[:-1])
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None


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


def _left_out(model: str, rows: Sequence[DataRow], samples: Sequence[_Tokens], *, skip_long: bool) -> list[str | None]:
    """Why each row cannot be read, None where it can."""
    context = getattr(load_config(model), "max_position_embeddings", None)
    long = [i for i, sample in enumerate(samples) if context and len(sample.ids) > context]
    if long and not skip_long:
        shown = "; ".join(f"{rows[i].place} ({len(samples[i].ids)} tokens)" for i in long[:5])
        more = f" and {len(long) - 5} more" if len(long) > 5 else ""
        raise ValueError(
            f"longer than the {context} tokens that {resolve_model(model).label} reads: {shown}{more}; shorten them, "
            "or leave such rows out (--skip_long)"
        )
    found: list[str | None] = [EMPTY if len(s.ids) <= s.prompt_len else None for s in samples]
    for i in long:
        found[i] = LONG
    if None not in found:
        counts = ", ".join(f"{n} {reason}" for reason, n in Counter(found).items())
        raise ValueError(f"none of {len(rows)} rows of {rows[0].file} can be read: {counts}")
    return found


def _jobs(
    engine: Engine,
    prompts: Sequence[str],
    samples: Sequence[_Tokens],
    left_out: Sequence[str | None],
    own: Sequence[Sequence[str]],
    kinds: Sequence[str],
) -> list[_Job]:
    """The answers to be read, those to one prompt beside one another."""
    context = getattr(load_config(engine.name), "max_position_embeddings", None)
    needs_row = any(not is_own for kind in kinds for is_own, _span, _sign in _TERMS[kind])
    first = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}
    jobs = []
    for i in sorted(range(len(prompts)), key=lambda i: first[prompts[i]]):
        if left_out[i] is not None:
            continue
        if needs_row:
            jobs.append(_Job(i, False, 1.0, samples[i]))
        read = [_tokens(tokenize_sample(engine.tokenizer, prompts[i], text)) for text in own[i] if text]
        # Tokens of a decoded answer can be more than were sampled: those past the context are left out.
        read = [_Tokens(one.ids[:context], one.prompt_len) for one in read]
        read = [one for one in read if len(one.ids) > one.prompt_len]
        jobs += [_Job(i, True, 1 / len(read), one) for one in read]
    return jobs


def _reduced(
    engine: Engine,
    jobs: Sequence[_Job],
    left_out: Sequence[str | None],
    columns: Sequence[Column],
    kinds: Sequence[str],
    layers: Sequence[int],
    groups: Sequence[int],
    progress: bool,
) -> tuple[dict[Key, list[float | None]], dict[tuple[str, int], Tensor]]:
    """Values and mean changes: sums over the answers, of which one batch's activations are there at a time."""
    of_layer = {layer: [c for c, column in enumerate(columns) if column.layer == layer] for layer in layers}
    directions = {layer: torch.stack([unit(columns[c].vector) for c in at]) for layer, at in of_layer.items() if at}
    n_groups, width = max(groups) + 1, load_config(engine.name).hidden_size
    there = {kind: np.array([_has(kind, reason) for reason in left_out]) for kind in kinds}
    values = {kind: np.where(there[kind][:, None], np.zeros((1, len(columns))), math.nan) for kind in kinds}
    sums = {(kind, layer): torch.zeros(n_groups, width, dtype=torch.float64) for kind in kinds for layer in layers}
    for batch, means in _batches(engine, jobs, layers, kinds, progress):
        rows = np.array([job.row for job in batch], dtype=np.int64)
        group = torch.tensor([groups[row] for row in rows])
        for kind in kinds:
            for is_own, span, sign in _TERMS[kind]:
                weights = np.array([sign * job.share * (job.is_own == is_own) for job in batch]) * there[kind][rows]
                for place, layer in enumerate(layers):
                    activations = means[span][:, place]  # (batch, d_model)
                    sums[kind, layer].index_add_(0, group, torch.tensor(weights)[:, None] * activations.double())
                    if layer in directions:
                        projected = (
                            (activations @ directions[layer].T).double().numpy()
                        )  # (batch, columns of the layer)
                        at = np.ix_(rows, np.array(of_layer[layer]))
                        np.add.at(values[kind], at, weights[:, None] * projected)
    counts = {kind: np.bincount(np.asarray(groups)[has], minlength=n_groups) for kind, has in there.items()}
    changes = {(kind, layer): total / torch.tensor(counts[kind])[:, None] for (kind, layer), total in sums.items()}
    listed = {
        (kind, column.name): [None if math.isnan(value) else value for value in table[:, c].tolist()]
        for kind, table in values.items()
        for c, column in enumerate(columns)
    }
    return listed, changes


def _has(kind: str, reason: str | None) -> bool:
    """Whether a row that was left out for `reason` has a value of this kind."""
    return reason is None or (reason == NO_BASE and not any(is_own for is_own, _span, _sign in _TERMS[kind]))


def _batches(
    engine: Engine, jobs: Sequence[_Job], layers: Sequence[int], kinds: Sequence[str], progress: bool
) -> Iterator[tuple[list[_Job], dict[str, Float[Tensor, "batch layers d_model"]]]]:
    """Batches of answers with their means over the spans that the kinds need."""
    spans = sorted({span for kind in kinds for _is_own, span, _sign in _TERMS[kind]})
    with tqdm(total=len(jobs), desc="reading", unit="answer", disable=not progress) as bar:
        for start in range(0, len(jobs), _CHUNK):
            chunk = jobs[start : start + _CHUNK]
            samples = [job.tokens.sample() for job in chunk]
            for places, means in iter_mean_activations(engine.model, samples, layers, spans):
                yield [chunk[place] for place in places], means
                bar.update(len(places))
