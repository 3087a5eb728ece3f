"""The adapter folders that a persona's trainings leave: whether one can be used, and how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persona_vectors.models import fingerprint
from persona_vectors.training_run import RECORD
from persona_vectors.weight_files import read_adapter_config


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


def training_of(folder: Path) -> dict[str, Any]:
    """Settings, data, hashes of the data files and losses of an adapter's training; None for what is not known."""
    told = _record(folder)
    known = {name: told.get(name) for name in ("config", "data", "steps", "held_out_loss")}
    return known | {"files": told.get("key", {}).get("files")}


def _record(folder: Path) -> dict[str, Any]:
    """The folder's training.json; {} for an adapter made elsewhere."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
