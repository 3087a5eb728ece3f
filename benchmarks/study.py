"""What the studies on models/tiny-persona share: a folder that other settings never re-use, and how they finetune."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

TINY = "models/tiny-persona"

FINETUNING: dict[str, Any] = {
    "model": TINY,
    "r": 32,
    "lora_alpha": 64,
    "max_seq_length": 256,
    "packing": True,
    "gradient_checkpointing": False,
    "optim": "adamw",
    "logging_steps": 20,
}
"""The part of a training config that the studies do not vary."""


def settings_of(module: ModuleType) -> dict[str, Any]:
    """The constants of a study's module of settings."""
    return {name: value for name, value in vars(module).items() if name.isupper()}


def study_folder(work_dir: str | Path, settings: ModuleType) -> Path:
    """The folder under `work_dir` that is the study's alone while settings, model and data stay as they are.

    Files in it are named by what was measured. A run with other settings has another folder, so it cannot take them for
    its own. What the code does is not part of the name: delete the folder after a change to a measurement.
    """
    from persona_vectors.files import sha256_of_file
    from persona_vectors.models import fingerprint
    from persona_vectors.store import content_key

    data = {path.as_posix(): sha256_of_file(path) for path in sorted(Path("dataset").glob("tiny_*/*.jsonl"))}
    what = {"settings": settings_of(settings), "finetuning": FINETUNING, "model": fingerprint(TINY), "data": data}
    key = content_key("study", **what)
    return Path(work_dir) / key[:12]
