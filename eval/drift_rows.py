"""What `eval.drift` reads of conversations, and the tables of it: turns, drift, tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from eval.capping_roles import capped
from eval.model_utils import load_vector_for
from eval.text_table import aligned
from eval.transcripts import Transcript
from persona_vectors.capping import Cap
from persona_vectors.drift import project_tokens, slope_interval, slopes, turn_means
from persona_vectors.statistics import Interval, random_directions
from persona_vectors.tokens import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BAND = 95
"""Per cent of the random directions that a control band holds."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at a layer that conversations are projected on."""

    path: str
    layer: int
    vector: Float[Tensor, " d_model"]

    @property
    def name(self) -> str:
        return f"{Path(self.path).stem}, layer {self.layer}"


@dataclass(frozen=True, eq=False)
class Reading:
    """One conversation as it was read.

    Attributes:
        cap: "" or the cap's name, where it was read under one.
        tokens: projection of each token on each direction.
        means: of each turn; NaN for one without tokens.
        random_means: the same on random directions at the direction's layer.
    """

    transcript: Transcript
    turns: Sequence[Turn]
    cap: str
    tokens: Float[np.ndarray, "tokens directions"]
    means: Float[np.ndarray, "turns directions"]
    random_means: Float[np.ndarray, "turns directions n_random"]

    @property
    def name(self) -> str:
        return self.transcript.name + (", under the cap" if self.cap else "")

    @property
    def spoken(self) -> list[int]:
        """The assistant's turns that have tokens."""
        return [i for i, turn in enumerate(self.turns) if turn.role == "assistant" and turn.end > turn.start]

    def changes(self, column: int) -> Float[np.ndarray, "turns n_random"] | None:
        """How far each random direction's projection has gone since the assistant's first turn."""
        if not self.spoken:
            return None
        return self.random_means[:, column] - self.random_means[self.spoken[0], column]

    def band(self, column: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(low, high) by turn: the assistant's first, and how far the middle 95% of random directions go from it."""
        changes = self.changes(column)
        if changes is None:
            return None
        start = self.means[self.spoken[0], column]
        low, high = np.percentile(changes, [(100 - BAND) / 2, (100 + BAND) / 2], axis=1)
        return start + low, start + high


@dataclass(frozen=True)
class Drift:
    """The slope over the assistant's turns of one reading on one direction, beside those of random directions.

    Attributes:
        slope: change of the projection a turn, with Student's interval.
        random: slopes of the random directions.
    """

    slope: Interval
    random: Float[np.ndarray, " n_random"]

    @property
    def above(self) -> float:
        """The share of random directions whose slope is smaller in size."""
        return float((np.abs(self.random) < abs(self.slope.mean)).mean())


def load_directions(model_name: str, paths: Sequence[str], layers: Sequence[int], config: Any) -> list[Direction]:
    """Every vector at every layer, checked against the model's config.

    Raises:
        ValueError: a vector or layer that does not fit the model, nothing given, or two files of one name.
    """
    from persona_vectors.vectors import load_vector

    if not paths or not layers:
        raise ValueError("--vector_path and --layer name nothing; give at least one of each")
    paths, layers = list(dict.fromkeys(paths)), list(dict.fromkeys(layers))
    if len({Path(path).stem for path in paths}) < len(paths):
        raise ValueError("two files of --vector_path have one name, which is what tables call them; rename one")
    found = []
    for path in paths:
        for layer in layers:
            if layer:
                vector = load_vector_for(model_name, path, layer)
            else:  # which is read, but cannot be steered
                vector = load_vector(path, layer, config.hidden_size, config.num_hidden_layers)
            found.append(Direction(path, layer, vector))
    return found


def read_conversations(
    model: PreTrainedModel,
    transcripts: Sequence[Transcript],
    tokenized: Sequence[tuple[tuple[int, ...], tuple[Turn, ...]]],
    directions: Sequence[Direction],
    cap: Cap | None,
    *,
    n_random: int,
    seed: int,
) -> list[Reading]:
    """Each conversation read in one pass, and in a second one under the cap where there is one."""
    layers = list(dict.fromkeys(one.layer for one in directions))
    width = len(directions[0].vector)
    vectors = {}
    for layer in layers:
        own = torch.stack([one.vector for one in directions if one.layer == layer])
        vectors[layer] = torch.cat([own, random_directions(n_random, width, 1.0, seed + layer)])  # (v + n_random, d)
    places = [(layers.index(one.layer), _place(directions, one)) for one in directions]
    n_own = len(vectors[layers[0]]) - n_random
    found = []
    for one, (ids, turns) in zip(tqdm(transcripts, desc="conversations"), tokenized, strict=True):
        for name in ("",) if cap is None else ("", cap.name):
            with capped(model, cap if name else None):
                [values] = project_tokens(model, [ids], vectors)  # (tokens, layers, vectors)
            means = turn_means(values, turns).numpy()
            found.append(
                Reading(
                    transcript=one,
                    turns=turns,
                    cap=name,
                    tokens=np.stack([values[:, at, own].numpy() for at, own in places], axis=1),
                    means=np.stack([means[:, at, own] for at, own in places], axis=1),
                    random_means=np.stack([means[:, at, n_own:] for at, _own in places], axis=1),
                )
            )
    return found


def _place(directions: Sequence[Direction], one: Direction) -> int:
    """The vector's number among those of its layer."""
    return [other.path for other in directions if other.layer == one.layer].index(one.path)


def drift_of(reading: Reading, column: int) -> Drift | None:
    """The drift on one direction; None for fewer than two assistant turns."""
    rows = reading.spoken
    if len(rows) < 2:
        return None
    return Drift(slope_interval(reading.means[rows, column]), slopes(reading.random_means[rows, column]))


def turn_rows(readings: Sequence[Reading], directions: Sequence[Direction]) -> Iterator[dict[str, Any]]:
    """One dict a conversation, reading, direction and turn."""
    for reading in readings:
        for column, direction in enumerate(directions):
            band = reading.band(column)
            for i, turn in enumerate(reading.turns):
                yield {
                    **_of(reading, direction),
                    **{"turn": turn.index + 1, "role": turn.role, "n_tokens": turn.end - turn.start},
                    "projection": _number(reading.means[i, column]),
                    "random_low": None if band is None else _number(band[0][i]),
                    "random_high": None if band is None else _number(band[1][i]),
                }


def drift_rows(readings: Sequence[Reading], directions: Sequence[Direction]) -> Iterator[dict[str, Any]]:
    """One dict a conversation, reading and direction."""
    for reading in readings:
        for column, direction in enumerate(directions):
            drift, rows = drift_of(reading, column), reading.spoken
            row = {**_of(reading, direction), "n_turns": len(rows)}
            if drift is None:
                yield row
                continue
            sizes = np.abs(drift.random)
            yield {
                **row,
                **{"first": reading.means[rows[0], column], "last": reading.means[rows[-1], column]},
                **{"slope": drift.slope.mean, "low": _number(drift.slope.low), "high": _number(drift.slope.high)},
                **{"random_median": float(np.median(sizes)), "random_95": float(np.quantile(sizes, 0.95))},
                "above_random": drift.above,
            }


def token_rows(readings: Sequence[Reading], directions: Sequence[Direction]) -> Iterator[dict[str, Any]]:
    """One dict a token of a content."""
    for reading in readings:
        for turn in reading.turns:
            for place, piece in zip(range(turn.start, turn.end), turn.pieces, strict=True):
                values = {one.name: float(reading.tokens[place, k]) for k, one in enumerate(directions)}
                named = {"transcript": reading.transcript.name, "cap": reading.cap}
                yield {**named, "turn": turn.index + 1, "role": turn.role, "token": piece, "projections": values}


def summary_lines(readings: Sequence[Reading], directions: Sequence[Direction]) -> list[str]:
    """The table of drift for a reader, in aligned columns."""
    return aligned([DRIFT_HEADING, *drift_cells(readings, directions)])


DRIFT_HEADING = [
    "conversation",
    "vector",
    "assistant turns",
    "first",
    "last",
    "slope a turn [95%]",
    "|slope| of random: median, 95th",
    "above random",
]


def drift_cells(readings: Sequence[Reading], directions: Sequence[Direction]) -> list[list[str]]:
    """The rows of `drift_rows` as texts."""
    cells = []
    for reading in readings:
        for column, direction in enumerate(directions):
            drift, rows = drift_of(reading, column), reading.spoken
            name = reading.name
            if drift is None:
                cells.append([name, direction.name, str(len(rows)), "", "", "needs two assistant turns", "", ""])
                continue
            sizes = np.abs(drift.random)
            ends = [f"{reading.means[rows[place], column]:.2f}" for place in (0, -1)]
            random = f"{np.median(sizes):.2f}, {np.quantile(sizes, 0.95):.2f}"
            slope = drift.slope.text(2, sign=True)
            cells.append([name, direction.name, str(len(rows)), *ends, slope, random, f"{drift.above:.0%}"])
    return cells


def _of(reading: Reading, direction: Direction) -> dict[str, Any]:
    named = {"transcript": reading.transcript.name, "cap": reading.cap}
    return {**named, "vector": Path(direction.path).stem, "layer": direction.layer}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
