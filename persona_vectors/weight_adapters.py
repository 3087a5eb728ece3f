"""The adapters that a persona's trainings leave: whether one can be used, how it was made, and their difference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona_vectors.files import read_sidecar, sha256_of_file
from persona_vectors.models import fingerprint, resolve_model
from persona_vectors.training_run import RECORD
from persona_vectors.weight_direction import WeightDirection, cosine, difference, norm
from persona_vectors.weight_files import adapter_weights, load_adapter, read_adapter_config

ROUNDING = 1e-6  # of equal changes' difference, whose square is 0 but for the last bits


def check_adapter(folder: Path, model: str) -> None:
    """Refuses, with a ValueError, an adapter that is missing, unfinished, or of another model; reads no weights."""
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"--skip_training needs the adapter {folder}, which is not there; run without --skip_training")
    base = str(read_adapter_config(folder).get("base_model_name_or_path") or "")
    if not same_model(base, model):
        raise ValueError(f"{folder} is an adapter of {base or 'an unnamed model'}; expected one of {model}")
    told = _record(folder)
    if told.get("state", "finished") != "finished":
        raise ValueError(f"the training of {folder} was interrupted; run without --skip_training to go on with it")
    trained_on = told.get("key", {}).get("model")
    if trained_on is not None and trained_on != fingerprint(model):
        raise ValueError(f"{model} has changed since {folder} was trained on it; train again with --overwrite")


def same_model(one: str, other: str) -> bool:
    """Whether two names mean models of the same content."""
    if one == other:
        return True
    try:
        return fingerprint(one) == fingerprint(other)
    except (ValueError, OSError):
        return False


def base_note(what: str, base: str, model: str) -> str | None:
    """What to say of a direction that is not known to be one of the model, or of an adapter's base; None where it is.

    A direction of another model may fit module by module, as between a base model and its chat model.
    """
    if base and any(same_model(base, one) for one in (model, resolve_model(model).base)):
        return None
    return f"note: {what} was made for {base or 'a model it does not name'}, and runs on {model}, whose modules fit it"


def training_of(folder: Path) -> dict[str, Any]:
    """Settings, data, hashes of the data files and losses of an adapter's training; None for what is not known."""
    told = _record(folder)
    known = {name: told.get(name) for name in ("config", "data", "steps", "held_out_loss")}
    return known | {"files": told.get("key", {}).get("files")}


def direction_trainings(direction: str | Path) -> list[dict[str, Any]]:
    """The trainings a direction was made from; of a finetuning that is taken for a direction, its one."""
    is_folder = Path(direction).is_dir()
    told = read_sidecar(Path(direction) / "adapter_model.safetensors" if is_folder else direction).get("training")
    return list(told.values()) if told else [training_of(Path(direction))] if is_folder else []


def shared_rows(files: Mapping[str, str], direction: str | Path) -> list[str]:
    """Those of the data files (path -> sha256) whose rows a direction's own trainings read too."""
    own = {content for training in direction_trainings(direction) for content in (training.get("files") or {}).values()}
    return [path for path, content in files.items() if content in own]


def _record(folder: Path) -> dict[str, Any]:
    """The folder's training.json; {} for an adapter made elsewhere."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def extract_lora_weights(adapter: str | Path) -> WeightDirection:
    """What a finished adapter adds to its base: `scale * B @ A` of each module, with the hash of its file.

    Raises:
        ValueError: no adapter there, or one whose change of the weights is not low-rank alone.
    """
    folder = Path(adapter)
    direction = load_adapter(folder)
    return replace(direction, record={"adapter": str(folder), "sha256": sha256_of_file(adapter_weights(folder))})


def compute_persona_lora_diff(pos: WeightDirection | str | Path, neg: WeightDirection | str | Path) -> WeightDirection:
    """`delta_w(pos) - delta_w(neg)`, exactly, at rank r+ + r-: points from neg to pos.

    The two may differ in rank, scale and modules; a module that one does not change counts as 0 there.

    Raises:
        ValueError: they belong to different base models, or a module's shape differs, or the difference is zero.
    """
    sides = {"pos": pos, "neg": neg}
    pos, neg = (extract_lora_weights(one) if isinstance(one, (str, Path)) else one for one in (pos, neg))
    if not same_model(pos.base, neg.base):
        raise ValueError(
            f"the adapters belong to different models: pos to {pos.base}, neg to {neg.base}; expected one base"
        )
    for name, side in zip(sides, (pos, neg), strict=True):
        if not norm(side) > 0:
            raise ValueError(f"{name} adapter {side.record.get('adapter', '')} changes nothing: its weights are zero")
    found = difference(pos, neg)
    if norm(found) <= ROUNDING * norm(pos):
        raise ValueError("pos and neg changed the weights in the same way, so their difference is zero")
    record = {
        "sides": {"pos": dict(pos.record), "neg": dict(neg.record)},
        "all_layers": {"norm": norm(found), "norm_pos": norm(pos), "norm_neg": norm(neg), "cosine": cosine(pos, neg)},
    }
    return replace(found, record=record)
