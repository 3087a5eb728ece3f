"""Finetuned models against directions of weights: which models there are, what is checked, and a record of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.weight_projection_trainings import of_one_seed, shared_notes
from persona_vectors.blocks import check_layer
from persona_vectors.files import sha256_of_file
from persona_vectors.models import fingerprint, load_config, resolve_model, unfinished_note
from persona_vectors.weight_direction import WeightDirection
from persona_vectors.weight_files import adapter_weights, load_direction
from persona_vectors.weight_hooks import find_modules, skeleton
from persona_vectors.weight_projection import Part, Projection, project
from persona_vectors.weight_shifts import AdapterShift, Shift, open_shift

Record = dict[str, Any]
ALONE = (
    "one model alone: any finetuning of this kind shares more with a direction that was trained than random directions "
    "do, so a cosine beyond theirs is no sign of the trait; put a model that was finetuned on plain data beside it "
    "(--finetuned_models_dir)"
)


def compute_single_projection(
    original_model: str,
    finetuned_model: str,
    lora_diff_path: str,
    layers: Sequence[int] | None = None,
    n_random: int = 20,
    seed: int = 0,
) -> Record:
    """One model's projection on one direction, as `cal_weight_projection.py` writes it.

    Raises:
        ValueError: see `compute_projection_dataset`.
    """
    models = {label_of(finetuned_model): finetuned_model}
    records, _notes = compute_projection_dataset(original_model, models, lora_diff_path, layers, n_random, seed)
    return records[0]


def compute_projection_dataset(
    original_model: str,
    finetuned_models: str | Mapping[str, str],
    lora_diff_path: str | Sequence[str],
    layers: Sequence[int] | None = None,
    n_random: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> tuple[list[Record], list[str]]:
    """A record of every model and direction, and notes: what could not be checked, and what trainings share.

    Args:
        finetuned_models: a folder of models (see `find_models`), or names and paths.
        lora_diff_path: adapter folders or `.pt` files of directions.

    Raises:
        ValueError: models or directions that are missing, zero, of another model, or have nothing in common.
    """
    models = find_models(finetuned_models)[0] if isinstance(finetuned_models, str) else dict(finetuned_models)
    paths = [lora_diff_path] if isinstance(lora_diff_path, str) else list(lora_diff_path)
    return project_opened(open_all(original_model, models, paths, layers), n_random, seed, progress)


@dataclass(frozen=True)
class Opened:
    """Models and directions that were found to belong together, before anything is projected.

    Attributes:
        models: name -> path.
        paths: those of the directions, in their order.
        sources: what is read -> a hash of its content.
    """

    original: str
    models: Mapping[str, str]
    paths: Sequence[str]
    layers: Sequence[int] | None
    directions: Mapping[str, WeightDirection]
    shifts: Mapping[str, Shift]
    notes: list[str]
    sources: Mapping[str, str]


def open_all(
    original_model: str, models: Mapping[str, str], lora_diff_path: Sequence[str], layers: Sequence[int] | None = None
) -> Opened:
    """What `project_opened` projects, with all of it checked and hashed.

    Raises:
        ValueError: models or directions that are missing, or of another model.
    """
    paths = list(dict.fromkeys(lora_diff_path))
    directions = load_directions(paths)
    notes = check_original(original_model, directions, layers)
    shifts = {name: open_shift(path, original_model) for name, path in models.items()}
    notes += check_shifts(original_model, shifts)
    notes += filter(None, map(unfinished_note, models.values()))
    notes += shared_notes(models, dict(zip(directions, paths, strict=True)))
    sources = {path: _hash(path) for path in (original_model, *models.values(), *paths)}
    return Opened(original_model, models, paths, layers, directions, shifts, notes, sources)


def project_opened(
    opened: Opened, n_random: int = 20, seed: int = 0, progress: bool = False
) -> tuple[list[Record], list[str]]:
    """A record of every model and direction, and notes.

    Raises:
        ValueError: a direction that is zero, or has nothing in common with a model.
    """
    models, layers, notes = opened.models, opened.layers, list(opened.notes)
    found = project(opened.shifts, opened.directions, layers=layers, n_random=n_random, seed=seed, progress=progress)
    alike = {name: of_one_seed(models, path) for name, path in zip(opened.directions, opened.paths, strict=True)}
    records = []
    for (model, direction), one in found.items():
        told: Record = {"model_name": model, "model_path": models[model], "direction": direction}
        told["shares_seed"] = model in alike[direction]
        records.append({**told, "layers": None if layers is None else list(layers), **_numbers(one)})
        if one.cosine is None:
            notes.append(f"{model} has the weights of {opened.original}{_at(layers)}, so its cosine is not defined")
    if len(models) == 1:
        notes.append(ALONE)
    return records, list(dict.fromkeys(notes))


def _at(layers: Sequence[int] | None) -> str:
    return "" if layers is None else f" at layer {', '.join(map(str, layers))}"


def _hash(path: str) -> str:
    """Of a file, or of an adapter's weights, the sha256, which needs no base; of a full model its fingerprint."""
    if Path(path).is_file():
        return sha256_of_file(path)
    adapter = Path(path) if (Path(path) / "adapter_config.json").is_file() else resolve_model(path).adapter
    return fingerprint(path) if adapter is None else sha256_of_file(adapter_weights(adapter))


def label_of(path: str) -> str:
    """A model's or direction's short name: the last part of its path, without `.pt`."""
    return Path(path.rstrip("/")).name.removesuffix(".pt")


def find_models(folder: str) -> tuple[dict[str, str], dict[str, str]]:
    """The models in a folder, name -> path, and why each of its other sub-folders is none.

    A model is an adapter, a full model, or a training folder, whose latest `checkpoint-N` counts.

    Raises:
        ValueError: no such folder, or no model in it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"finetuned_models_dir {folder} is no folder; give one whose sub-folders are models")
    models, skipped = {}, {}
    for path in sorted(Path(folder).iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        try:
            if not (path / "adapter_config.json").is_file():  # an adapter is read without its base
                resolve_model(str(path))
            models[path.name] = str(path)
        except ValueError as error:
            skipped[path.name] = str(error)
    if not models:
        raise ValueError(f"{folder} has no model among its {len(skipped)} sub-folders; expected adapters or models")
    return models, skipped


def load_directions(paths: Sequence[str]) -> dict[str, WeightDirection]:
    """Each direction by its short name, by its path where two share one.

    Raises:
        ValueError: none, or one that cannot be read.
    """
    if not paths:
        raise ValueError("no direction given; give adapter folders or .pt files of extract_persona_lora.py")
    paths = list(dict.fromkeys(paths))
    labels = [label_of(path) for path in paths]
    named = [path if labels.count(label) > 1 else label for path, label in zip(paths, labels, strict=True)]
    return {name: load_direction(path) for name, path in zip(named, paths, strict=True)}


def check_original(original: str, directions: Mapping[str, WeightDirection], layers: Sequence[int] | None) -> list[str]:
    """Notes on directions that do not say they are of this model; its modules' names and shapes are compared.

    Raises:
        ValueError: an adapter, a layer it does not have, or another model's direction.
    """
    source = resolve_model(original)
    if source.adapter is not None:
        raise ValueError(f"original_model {original} is an adapter; give the model that was finetuned: {source.base}")
    for layer in layers or ():
        check_layer(layer, load_config(original).num_hidden_layers, source.label)
    model = skeleton(original)
    for direction in directions.values():
        find_modules(model, direction)
    found = [_of_another(f"direction {name}", one.base, original) for name, one in directions.items()]
    return [note for note in found if note]


def check_shifts(original: str, shifts: Mapping[str, Shift]) -> list[str]:
    """Notes on adapters that do not say they are of this model.

    Raises:
        ValueError: an adapter of another model.
    """
    notes, model = [], skeleton(original)
    for name, shift in shifts.items():
        if isinstance(shift, AdapterShift):
            find_modules(model, shift.direction)
            notes.append(_of_another(f"adapter {name}", shift.direction.base, original))
    return [note for note in notes if note]


def _of_another(what: str, base: str, original: str) -> str | None:
    """A note where it cannot be told that `what` belongs to the original; an error where it does not."""
    if base == original or (base and label_of(base) == label_of(original) and not Path(base).is_dir()):
        return None
    try:
        if not base or not resolve_model(base).is_local or not resolve_model(original).is_local:
            raise ValueError("not here to be compared")
        is_same = fingerprint(base) == fingerprint(original)
    except (ValueError, OSError):
        return f"{what} was made for {base or 'a model it does not name'}; taken as one of {original}"
    if not is_same:
        raise ValueError(f"{what} was made for {base}, whose files are not those of {original}; give its own original")
    return None


def _numbers(one: Projection) -> Record:
    whole, size = one.whole, one.whole.direction**0.5
    layers = one.layer_projections()
    own = {name: part for name, part in one.modules.items() if part.direction > 0}
    cosines = np.abs(one.random_cosines)
    control: Record = {"n_random": len(one.random), "projections": one.random.tolist()}
    if len(cosines):
        control |= {"min": float(cosines.min()), "mean": float(cosines.mean()), "max": float(cosines.max())}
    return {
        "total_projection": one.total,
        "average_projection": one.total / len(layers),
        "cosine": one.cosine,
        "weight_shift_norm": one.norm,
        "direction_norm": size,
        "num_parameters": whole.n_entries,
        "modules_in_common": len(one.common),
        "modules_of_direction": len(own),
        "layer_projections": {_key(layer): value for layer, value in layers.items()},
        "layers_detail": {_key(layer): _part(part, size) for layer, part in one.by_layer().items() if layer in layers},
        "control": control,
        "modules": {name: _part(part, size) for name, part in own.items()},
    }


def _key(layer: int | None) -> str:
    return "outside_blocks" if layer is None else str(layer)


def _part(part: Part, size: float) -> Record:
    """Of a module or layer; its projection is over the whole direction's norm, so that they add up."""
    return {
        "projection": part.product / size,
        "cosine": part.cosine,
        "weight_shift_norm": part.shift**0.5,
        "direction_norm": part.direction**0.5,
    }
