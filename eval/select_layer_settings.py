"""What `eval.select_layer` samples: each layer's vector and the increments of all layers, beside random directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eval.model_utils import Added, Steering, load_vector_for
from eval.sweep import check_once, random_seed
from persona_vectors.blocks import check_layer
from persona_vectors.files import read_sidecar
from persona_vectors.models import fingerprint, load_config, resolve_model
from persona_vectors.statistics import random_directions
from persona_vectors.vectors import load_vectors

Kind = Literal["unsteered", "layer", "incremental"]
MOST_LAYERS = 8


@dataclass(frozen=True)
class Place:
    """Where and along what is steered: one line of a figure, over its coefficients.

    Attributes:
        layer: hidden_states index; None for all layers, and unsteered.
        control: "" for the vector itself, random1 ... for random directions of the same norm.
    """

    kind: Kind
    layer: int | None = None
    control: str = ""

    @property
    def name(self) -> str:
        """`layer 3`, `all layers`, `unsteered`."""
        return {"layer": f"layer {self.layer}", "incremental": "all layers"}.get(self.kind, "unsteered")


@dataclass(frozen=True, eq=False)
class Setting:
    """A place with its coefficient; coef 0 adds nothing."""

    place: Place
    coef: float
    added: Added


def spread_layers(n_layers: int, most: int = MOST_LAYERS) -> list[int]:
    """At most `most` of 1..n_layers, evenly apart, with both ends."""
    steps = min(n_layers, most)
    return sorted({round(1 + i * (n_layers - 1) / max(1, steps - 1)) for i in range(steps)})


def increments(vectors: Float[Tensor, "layers d_model"]) -> Float[Tensor, "n_layers d_model"]:
    """v_L - v_(L-1) for L = 1..n_layers; they telescope: their sum is v_n - v_0."""
    return torch.diff(vectors, dim=0)


def check_lists(layers: Sequence[int], coefs: Sequence[float], model: str) -> None:
    """Refuses, with a ValueError, layers that the model has not and coefficients that push nowhere."""
    n_layers, label = load_config(model).num_hidden_layers, resolve_model(model).label
    check_once("layers", layers)
    check_once("coefs", coefs)
    if not layers or not coefs:
        raise ValueError("--layers and --coefs need at least one number each")
    for layer in layers:
        check_layer(layer, n_layers, label)
    bad = [coef for coef in coefs if not (math.isfinite(coef) and coef > 0)]
    if bad:
        raise ValueError(f"--coefs must be above 0, they push towards the trait; got {bad[0]:g}")


def check_origin(path: str, model: str, trait: str) -> None:
    """Refuses a vector that its sidecar says is of another trait or another model."""
    told = read_sidecar(path)
    if told.get("trait") not in (None, trait):
        raise ValueError(f"{path} is a vector of {told['trait']}; --trait is {trait}")
    made_from = told.get("model")
    if isinstance(made_from, dict) and made_from.get("fingerprint", fingerprint(model)) != fingerprint(model):
        raise ValueError(
            f"{path} was made from another model ({made_from.get('name')}) than {model}; make it again with python "
            "generate_vec.py"
        )


def expand(
    model: str,
    trait: str,
    path: str,
    *,
    layers: Sequence[int],
    coefs: Sequence[float],
    incremental: bool,
    n_random: int,
    seed: int,
    positions: str,
) -> list[Setting]:
    """Unsteered, then each layer's vector by each coefficient and its random directions; increments of all layers last.

    A random direction is the same at every coefficient, and the one that a sweep with this seed uses.

    Raises:
        ValueError: a file that does not fit the model, or a vector that is zero where it is wanted.
    """
    found = [Setting(Place("unsteered"), 0.0, None)]
    for layer in layers:
        vector = load_vector_for(model, path, layer)
        drawn = _random_like(vector, n_random, random_seed(seed, trait, layer, Path(path).name))
        for number, direction in enumerate([vector, *drawn]):
            place = Place("layer", layer, f"random{number}" if number else "")
            found += [Setting(place, coef, Steering(direction, layer, coef, positions)) for coef in coefs]
    if incremental:
        steps = {layer: step for layer, step in enumerate(increments(load_vectors(path)), start=1) if step.any()}
        for number, pushes in enumerate([steps, *_random_steps(steps, trait, path, n_random, seed)]):
            place = Place("incremental", control=f"random{number}" if number else "")
            found += [Setting(place, coef, _together(pushes, coef, positions)) for coef in coefs]
    return found


def _random_like(vector: Tensor, n: int, seed: int) -> list[Tensor]:
    """Random directions of the vector's norm; each a tensor of its own, not a view on all of them."""
    return [one.clone() for one in random_directions(n, len(vector), float(vector.norm()), seed)]


def _random_steps(
    steps: dict[int, Tensor], trait: str, path: str, n_random: int, seed: int
) -> Iterator[dict[int, Tensor]]:
    """Random increments: at every layer a random direction of the norm of its increment."""
    name = f"{Path(path).name} increment"  # other directions than those beside the single layers
    drawn = {
        layer: _random_like(step, n_random, random_seed(seed, trait, layer, name)) for layer, step in steps.items()
    }
    for number in range(n_random):
        yield {layer: own[number] for layer, own in drawn.items()}


def _together(pushes: dict[int, Tensor], coef: float, positions: str) -> tuple[Steering, ...]:
    return tuple(Steering(vector, layer, coef, positions) for layer, vector in pushes.items())
