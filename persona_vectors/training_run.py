"""A training run's folder: what stands in it, whether it is this run, and from which checkpoint it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from persona_vectors.files import provenance, sha256_of_file, write_json_atomic
from persona_vectors.models import fingerprint
from persona_vectors.training_config import TrainingConfig

RECORD = "training.json"
HALF, HALF_MERGED = ".half", ".merged.half"
"""Folders of an output_dir in which what is being saved, and merged, stands until it is whole."""
FIRST_LOSS = "held_out_loss_before"
WITHOUT_EFFECT = ("output_dir", "logging_steps", "save_steps", "eval_steps", "save_merged", "finetuned_model_id")
WITHOUT_EFFECT += ("push_to_hub", "merge_before_push", "push_to_private")
ADDED_LATER = ("bias_only",)  # counts only where it is used, so that earlier runs stay what they are
_CHECKPOINT_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class RunState:
    """What the output folder holds of this very run.

    Attributes:
        status: new, interrupted or finished.
        checkpoint: where an interrupted run goes on from; None where it must begin again.
    """

    status: Literal["new", "interrupted", "finished"]
    checkpoint: Path | None = None


def run_key(config: TrainingConfig, world: int) -> dict[str, Any]:
    """Everything that determines the weights: settings, and the contents of model, data and vector files."""
    from persona_vectors.training_weights import steered_files

    files = [*config.training_files, *([config.test_file] if config.test_file else [])]
    files += steered_files(config.steering) if config.steering else []
    contents = {path: sha256_of_file(path) for path in files}
    return {"settings": key_settings(config), "files": contents, "model": fingerprint(config.model), "processes": world}


def key_settings(config: TrainingConfig) -> dict[str, Any]:
    """The settings that determine the weights, as training.json has them."""
    settings = {name: value for name, value in config.model_dump().items() if name not in WITHOUT_EFFECT}
    return {name: value for name, value in settings.items() if value or name not in ADDED_LATER}


def run_state(config: TrainingConfig, key: dict[str, Any], overwrite: bool) -> RunState:
    """What the output folder holds of the run.

    Raises:
        ValueError: it holds another run, a model of unknown origin, or a checkpoint that cannot be gone on from, and is
            not to be overwritten.
    """
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file; give a folder")
    record = folder / RECORD
    if overwrite or not folder.exists():
        return RunState("new")
    if not record.exists():
        if any((folder / name).exists() for name in _WEIGHTS) or list(folder.glob("checkpoint-*")):
            raise ValueError(f"output_dir {folder} holds a model without {RECORD}; --overwrite, or give another folder")
        return RunState("new")
    content = json.loads(record.read_text(encoding="utf-8"))
    if content.get("key_sha256") != key_hash(key):
        raise ValueError(
            f"output_dir {folder} holds another run ({_difference(content.get('key', {}), key)}); --overwrite replaces "
            "it, or give another output_dir"
        )
    if content.get("state") == "finished":
        return RunState("finished")
    checkpoint = latest_checkpoint(folder)
    if checkpoint is not None and (checkpoint / "ref").is_dir():  # which is what would be read, for the trained one
        raise ValueError(
            f"{checkpoint} holds a second adapter, ref, as an earlier version wrote it, whose runs lost what they had "
            "learned when they went on; --overwrite trains again, or give another output_dir"
        )
    return RunState("interrupted", checkpoint)


def key_hash(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing in which two runs differ."""
    for name, value in now.get("settings", {}).items():
        old = before.get("settings", {}).get(name)
        if old != value:
            return f"{name} {json.dumps(old)[:60]}, now {json.dumps(value)[:60]}"
    changed = [path for path, content in now["files"].items() if before.get("files", {}).get(path) != content]
    return f"{changed[0]} has changed" if changed else "the model or the number of processes has changed"


def latest_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that is whole: a killed run may leave half of one."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.rpartition("-")[2]
        whole = all((path / name).exists() for name in _CHECKPOINT_FILES) or (path / "pytorch_model_fsdp_0").exists()
        if number.isdigit() and whole and _step_of(path) == int(number):
            found[int(number)] = path
    return found[max(found)] if found else None


def _step_of(checkpoint: Path) -> int | None:
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (ValueError, KeyError, OSError):
        return None


def begin(config: TrainingConfig, key: dict[str, Any], state: RunState) -> None:
    """The folder of a run that begins, emptied of an earlier one, or that goes on."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("checkpoint-*"):
        if state.checkpoint is None or int(path.name.rpartition("-")[2]) > _step_of(state.checkpoint):  # pyright: ignore
            shutil.rmtree(path)
    if state.status == "new":
        for name in (*_WEIGHTS, "adapter_config.json", "config.json"):
            (folder / name).unlink(missing_ok=True)
        for name in ("merged", "ref", HALF, HALF_MERGED):
            shutil.rmtree(folder / name, ignore_errors=True)
    first = first_loss(folder) if state.checkpoint else None
    record = {"state": "started", **_heading(config, key), **provenance()}
    write_json_atomic(folder / RECORD, record | ({FIRST_LOSS: first} if first is not None else {}))


def first_loss(folder: Path) -> float | None:
    """The held-out loss before the first step, as an interrupted run remembers it."""
    if not (folder / RECORD).exists():
        return None
    return json.loads((folder / RECORD).read_text(encoding="utf-8")).get(FIRST_LOSS)


def remember_first_loss(folder: Path, loss: float) -> None:
    """Notes the held-out loss before the first step in the run's record, for a run that goes on from here."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    write_json_atomic(folder / RECORD, record | {FIRST_LOSS: loss})


def finish(config: TrainingConfig, key: dict[str, Any], results: dict[str, Any]) -> Path:
    """The run's sidecar, which says that it is finished, how it was made, and what came of it."""
    record = {"state": "finished", **_heading(config, key), **results, **provenance()}
    return write_json_atomic(Path(config.output_dir) / RECORD, record)


def _heading(config: TrainingConfig, key: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "training", "config": config.model_dump(), "key": key, "key_sha256": key_hash(key)}


def move_in(half: Path, folder: Path) -> None:
    """The files and folders of `half` in `folder`, those by which a model is recognised last; `half` is gone."""
    last = ("adapter_config.json", "config.json")
    for path in sorted(half.iterdir(), key=lambda path: path.name in last):
        if path.is_dir():  # which takes the place of no folder that has files
            shutil.rmtree(folder / path.name, ignore_errors=True)
        os.replace(path, folder / path.name)
    half.rmdir()


def processes() -> tuple[int, bool]:
    """(how many train together, whether this is the one that speaks and writes)."""
    state = _state()
    return state.num_processes, state.is_main_process


def wait_for_all() -> None:
    """Returns when every process has come here."""
    _state().wait_for_everyone()


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
