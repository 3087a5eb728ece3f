"""What determines a steered conversation's answers, apart from its words: one immutable value, changed by copying."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from eval.model_utils import Added, Steering
from eval.sweep import TOGETHER, check_once, random_seed
from persona_vectors.blocks import check_layer
from persona_vectors.interventions import check_positions
from persona_vectors.models import load_config, resolve_model
from persona_vectors.statistics import random_directions

if TYPE_CHECKING:
    from persona_vectors.vector_files import VectorFile


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides which vectors fit it; known without its weights."""

    label: str
    n_layers: int
    d_model: int


@dataclass(frozen=True, eq=False)
class Part:
    """A file's vector at one layer, added to every answer with a coefficient of its own."""

    file: VectorFile
    layer: int
    coef: float

    @property
    def line(self) -> str:
        return f"{self.coef:g} * {self.file.path.name} at layer {self.layer}"


@dataclass(frozen=True, eq=False)
class Settings:
    """What determines the answers: `strength * vector` is added at `layer`, and each of `added` at its own.

    Attributes:
        trait: what the vector is of; names the examples, and seeds the random direction.
        strength: the coefficient whose answer the conversation goes on with.
        compared: coefficients that are answered beside it.
        control: a random direction of the vector's norm is added in its place.

    Raises:
        ValueError: one line for whatever does not fit the model or makes no sense.
    """

    shape: ModelShape
    file: VectorFile
    trait: str
    layer: int
    strength: float
    compared: tuple[float, ...] = ()
    added: tuple[Part, ...] = ()
    positions: str = "response"
    control: bool = False
    seed: int = 0
    temperature: float = 0.7
    max_tokens: int = 100
    system_prompt: str = ""

    def __post_init__(self) -> None:
        check_vector(self.file, self.layer, self.shape)
        for part in self.added:
            check_vector(part.file, part.layer, self.shape)
        check_positions(self.positions)
        check_once("strengths", self.compared)
        numbers = (self.strength, *self.compared, *(part.coef for part in self.added), self.temperature)
        unusable = [number for number in numbers if not math.isfinite(number)]
        if unusable:
            raise ValueError(f"{unusable[0]} is not a finite number")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1; got {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0; got {self.temperature:g}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0; got {self.seed}")

    @property
    def strengths(self) -> tuple[float, ...]:
        """Every coefficient that is answered, lowest first."""
        return tuple(sorted({*self.compared, self.strength}))

    @cached_property
    def vector(self) -> Float[Tensor, " d_model"]:
        """The file's own at the layer, or the random direction in its place."""
        own = self.file.vectors[self.layer]
        if not self.control:
            return own
        seed = random_seed(self.seed, self.trait, self.layer, self.file.path.name)
        return random_directions(1, len(own), float(own.norm()), seed)[0].clone()

    def steering(self, strength: float) -> Added:
        """What is added to an answer at this strength; what meets at one layer is summed there."""
        by_layer: dict[int, list[tuple[float, Tensor]]] = {}
        if strength:
            by_layer[self.layer] = [(strength, self.vector)]
        for part in self.added:
            by_layer.setdefault(part.layer, []).append((part.coef, part.file.vectors[part.layer]))
        found = []
        for layer, parts in sorted(by_layer.items()):
            coef, vector = parts[0] if len(parts) == 1 else (1.0, sum_of(parts))
            if coef and vector.any():
                found.append(Steering(vector, layer, float(coef), self.positions))
        return tuple(found) if len(found) > 1 else next(iter(found), None)

    def names_at(self, layer: int) -> str:
        """The files that are added at a layer."""
        own = [self.file.path.name] if layer == self.layer else []
        return TOGETHER.join([*own, *(part.file.path.name for part in self.added if part.layer == layer)])

    def record(self) -> dict[str, Any]:
        """The settings for a transcript or sidecar; what is in the files stands beside each answer, as a hash."""
        return {
            "vector": _described(self.file),
            "trait": self.trait,
            "layer": self.layer,
            "strength": self.strength,
            "compared": list(self.compared),
            "added": [{"vector": _described(part.file), "layer": part.layer, "coef": part.coef} for part in self.added],
            "positions": self.positions,
            "control": "random" if self.control else None,
            "seed": self.seed,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "system_prompt": self.system_prompt,
        }

    def lines(self) -> list[str]:
        """What is set, for a person."""
        shown = " ".join(f"{one:g}" for one in self.strengths)
        several = f"side by side {shown}; " if len(self.strengths) > 1 else ""
        what = f"a random direction of {self.file.path.name}'s norm" if self.control else self.file.path.name
        return [
            f"vector: {what} ({self.trait}) at layer {self.layer} of {self.shape.n_layers}, {self.positions} tokens",
            f"strength: {several}the conversation goes on with {self.strength:g}",
            *(f"added to every answer: {number}. {part.line}" for number, part in enumerate(self.added, start=1)),
            f"seed {self.seed}, temperature {self.temperature:g}, at most {self.max_tokens} tokens an answer",
            f"system prompt: {self.system_prompt or '(none)'}",
        ]


def sum_of(parts: Sequence[tuple[float, Tensor]]) -> Float[Tensor, " d_model"]:
    """The sum of coef * vector."""
    total = parts[0][0] * parts[0][1]
    for coef, vector in parts[1:]:
        total = total + coef * vector
    return total


def shape_of(model_name: str) -> ModelShape:
    """The shape by the model's config, without its weights."""
    config = load_config(model_name)
    return ModelShape(resolve_model(model_name).label, config.num_hidden_layers, config.hidden_size)


def check_vector(file: VectorFile, layer: int, shape: ModelShape) -> None:
    """Refuses, with a ValueError, a file of another width, and a layer that the model or the file does not have."""
    if file.d_model != shape.d_model:
        raise ValueError(
            f"{file.path} has vectors of width {file.d_model}; {shape.label} has {shape.d_model}: use vectors made "
            "from this model"
        )
    check_layer(layer, shape.n_layers, shape.label)
    if layer not in file.vectors:
        raise ValueError(f"{file.path} has no vector at layer {layer}; it has layers {_spans(file.layers)}")


def parse_layer(text: str) -> int:
    """The number of `15` or `layer_15`."""
    number = text.strip().removeprefix("layer_")
    if not number.isdecimal():
        raise ValueError(f"layer {text!r} is not a layer; expected a hidden_states index such as 15 or layer_15")
    return int(number)


def _described(file: VectorFile) -> dict[str, Any]:
    return {"path": str(file.path), "numbering": file.numbering}


def _spans(layers: Sequence[int]) -> str:
    """`1 to 4, 7` of 1, 2, 3, 4, 7."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)
