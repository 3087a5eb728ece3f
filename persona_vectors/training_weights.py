"""Directions in weight space that act in a training run: read and checked without the model's weights.

The factors run beside the modules, so `W + coef * D` acts in training steps alone and is never part of what is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from persona_vectors.files import read_sidecar, sha256_of_file
from persona_vectors.training_config import AnySteering, LoraSteeringConfig
from persona_vectors.weight_direction import WeightDirection, combine, norm, random_like
from persona_vectors.weight_files import load_direction
from persona_vectors.weight_hooks import DynamicWeights, check_fits, find_modules

if TYPE_CHECKING:
    from torch import nn


def check_steering(model: str, steering: AnySteering) -> None:
    """Refuses, with a ValueError, a steering block whose vectors or directions do not fit the model."""
    from persona_vectors.training_vectors import check_vectors

    if isinstance(steering, LoraSteeringConfig):
        check_directions(model, steering)
    else:
        check_vectors(model, steering)


def check_directions(model: str, steering: LoraSteeringConfig) -> None:
    """Refuses, with a ValueError, directions that are not there, are zero, or do not fit the model's modules."""
    check_fits(model, dict(zip(steering.paths, directions_for(steering), strict=True)))


def directions_for(steering: LoraSteeringConfig) -> list[WeightDirection]:
    """The block's directions, in order; of a random control, the random ones in their place."""
    found = [load_direction(path) for path in steering.paths]
    if steering.random_control is None:
        return found
    return [random_like(one, 1000 * steering.random_control + k) for k, one in enumerate(found)]


def steered_files(steering: AnySteering) -> list[str]:
    """The files whose contents decide what the block does."""
    if not isinstance(steering, LoraSteeringConfig):
        return list(steering.paths)
    return [file for path in steering.paths for file in _files_of(Path(path))]


def _files_of(path: Path) -> list[str]:
    """The `.pt` file itself, or the config and the weights in an adapter's folder."""
    if not path.is_dir():
        return [str(path)]
    names = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    return [str(path / name) for name in names if (path / name).exists()]


def direction_record(path: str, model: str) -> dict[str, Any]:
    """Which model and trait a direction was made for, its norm, and whether that is the model that is trained.

    A sidecar names the model by its content; without one the name in the direction is all that is known.
    """
    direction = load_direction(path)
    told = sidecar_of(path).get("model") or {}
    name = told.get("name") or direction.base or None
    same = None if name is None else _is_same(name, told.get("fingerprint"), model)
    trait = sidecar_of(path).get("trait")
    return {"path": path, "trait": trait, "made_from": name, "same_model": same, "norm": norm(direction)}


def sidecar_of(path: str) -> dict[str, Any]:
    """The sidecar of a direction's `.pt`, or of its adapter folder's weights."""
    files = _files_of(Path(path))
    return read_sidecar(files[-1]) if files else {}


def _is_same(name: str, known: str | None, model: str) -> bool:
    from persona_vectors.models import fingerprint

    try:
        return (known or fingerprint(name)) == fingerprint(model)
    except (ValueError, OSError):  # a model that is not here any more
        return name == model


def steering_lines(model: str, steering: AnySteering, training_files: Sequence[str] = ()) -> list[str]:
    """What a run says of its steering before it trains."""
    from persona_vectors.training_vectors import vector_record

    where = "at every token" if isinstance(steering, LoraSteeringConfig) else f"layers {steering.layers}"
    lines = []
    for path, coef in zip(steering.paths, steering.coefs, strict=True):
        number = steering.random_control
        control = "" if number is None else f"random direction {number} of the norm of "
        lines.append(f"{steering.type} in training: {control}{path}, coefficient {coef:g}, {where}")
        if not coef:
            lines.append(f"note: coefficient 0: {path} does nothing, and this run trains as one without it")
        if isinstance(steering, LoraSteeringConfig):
            lines += _direction_notes(path, model, training_files)
        elif (told := vector_record(path, model))["same_model"] is False:
            lines.append(f"note: {path} was made from {told['made_from']}")
    return lines


def _direction_notes(path: str, model: str, training_files: Sequence[str]) -> list[str]:
    """What to say of a direction of another model, or one that was made from rows that are trained on."""
    from persona_vectors.weight_adapters import base_note, shared_rows

    told, notes = direction_record(path, model), []
    if note := base_note(path, load_direction(path).base, model):
        notes.append(note)
    elif told["same_model"] is False:
        notes.append(f"note: {path} was made from {told['made_from']}, which is another model now")
    if shared := shared_rows({file: sha256_of_file(file) for file in training_files}, path):
        notes.append(
            f"note: direction {path} was made from rows that are trained on here ({', '.join(shared)}); one of other "
            "rows is the stricter test of prevention"
        )
    return notes


def steering_records(model: str, steering: AnySteering | None) -> dict[str, list[dict[str, Any]]]:
    """What training.json says of the files that steered: `vectors`, and of a weight block `directions`."""
    from persona_vectors.training_vectors import vector_record

    if isinstance(steering, LoraSteeringConfig):
        return {"vectors": [], "directions": [direction_record(path, model) for path in steering.paths]}
    return {"vectors": [vector_record(path, model) for path in (steering.paths if steering else [])]}


def act_on(
    model: nn.Module, directions: Sequence[WeightDirection], coefs: Sequence[float]
) -> Callable[[], AbstractContextManager[None]]:
    """Opens the steering of one micro-batch: within it the model acts as `W + sum_i coef_i * D_i`.

    The factors are placed when it is first opened, which is when the trainer has put the model where it trains.
    """
    placed: list[DynamicWeights] = []

    def opened() -> AbstractContextManager[None]:
        if not placed:
            placed.append(DynamicWeights(model, directions))
        return placed[0].applied(torch.tensor(list(coefs), dtype=torch.float64))

    find_modules(model, combine([(one, 1.0) for one in directions]))  # refused before the first step
    return opened
