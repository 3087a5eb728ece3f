"""The vectors of a training run's steering block: read and checked against the model's config, without its weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.blocks import check_layer
from persona_vectors.files import read_sidecar
from persona_vectors.models import fingerprint, load_config, resolve_model
from persona_vectors.statistics import random_directions
from persona_vectors.training_config import SteeringConfig
from persona_vectors.vectors import load_vectors


def check_vectors(model: str, steering: SteeringConfig) -> None:
    """Refuses, with a ValueError, vectors or layers that do not fit the model: its config is read, not its weights."""
    for path in steering.paths:
        vectors = vectors_for(model, path, steering)
        for layer, vector in vectors.items():
            if not vector.any() and steering.type != "steer":
                raise ValueError(f"the vector at layer {layer} of {path} is zero; {steering.type} needs a direction")


def vectors_for(model: str, path: str, steering: SteeringConfig) -> dict[int, Float[Tensor, " d_model"]]:
    """The file's vector at each layer of the block; of incremental ones, what is added there."""
    shape, label = load_config(model), resolve_model(model).label
    layers = range(1, shape.num_hidden_layers + 1) if steering.layers == "all" else steering.layers
    for layer in layers:
        check_layer(layer, shape.num_hidden_layers, label)
    _refuse_weights(path, steering)
    vectors = load_vectors(path)
    wanted = (shape.num_hidden_layers + 1, shape.hidden_size)
    if tuple(vectors.shape) != wanted:
        raise ValueError(
            f"{path} has vectors of shape {tuple(vectors.shape)}; {label} needs {wanted}: use vectors of this model"
        )
    lower = [layer - 1 for layer in layers]
    chosen = vectors[list(layers)] - (vectors[lower] if steering.incremental else 0)
    if steering.random_control is not None:
        chosen = _random_like(chosen, list(layers), steering.random_control)
    return dict(zip(layers, chosen, strict=True))


def _refuse_weights(path: str, steering: SteeringConfig) -> None:
    """A ValueError for a direction of weights, or another tool's LoRA file, in the place of vectors."""
    found = Path(path)
    names: list[str] = ["lora_A"] if (found / "adapter_config.json").is_file() else []
    if found.suffix == ".pt" and found.is_file():
        try:
            content = torch.load(found, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError):  # `load_vectors` says what it is
            return
        names = [str(name) for name in content] if isinstance(content, dict) else []
    if "modules" in names or any("lora_" in name for name in names):
        raise ValueError(
            f'{path} is a direction of weights, not vectors; for it use {{"type": "lora", "lora_path": ..., '
            f'"coef": 1.0}}, whose coef > 0 prevents (got type {steering.type}, steering_coef {steering.coefs[0]:g})'
        )


def _random_like(
    vectors: Float[Tensor, "layers d_model"], layers: list[int], number: int
) -> Float[Tensor, "layers d_model"]:
    """A random direction of each vector's norm: the control that says whether the direction matters."""
    return torch.stack(
        [
            random_directions(1, len(vector), float(vector.norm()), seed=1000 * number + layer)[0]
            for vector, layer in zip(vectors, layers, strict=True)
        ]
    )


def vector_record(path: str, model: str) -> dict[str, Any]:
    """Which model a vector file was made from, as its sidecar says, and whether it is the one that was trained."""
    made_from = read_sidecar(path).get("model", {})
    same = made_from.get("fingerprint") == fingerprint(model) if made_from else None
    return {"path": path, "made_from": made_from.get("name"), "same_model": same}
