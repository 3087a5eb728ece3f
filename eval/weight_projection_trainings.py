"""What the models that are projected share with a direction's own trainings: the random start of their A, and rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_vectors.weight_adapters import direction_trainings, shared_rows, training_of

Training = Mapping[str, Any]
"""`config` and `files` (path -> sha256) of a training, as `training_of` has them; None where they are not known."""


def shared_notes(models: Mapping[str, str], directions: Mapping[str, str]) -> list[str]:
    """What to say of models that were trained from a direction's seed, or on its rows; both are name -> path.

    Seeds and files are those of training.json and of the direction's sidecar; what has no record has no note.
    """
    trained = _trained(models)
    notes = []
    for direction, path in directions.items():
        if alike := of_one_seed(models, path):
            seeds = sorted({str(trained[name]["config"]["seed"]) for name in alike})
            notes.append(
                f"trained from the seed of direction {direction} ({', '.join(seeds)}): {', '.join(alike)}. LoRA "
                "trainings of one seed share their random A, so these cosines are on another scale, which the random "
                "directions beside them do not show, and cannot be compared with those of models of other seeds"
            )
        rows = {name: shared_rows(own.get("files") or {}, path) for name, own in trained.items()}
        if told := [f"{name} ({', '.join(files)})" for name, files in rows.items() if files]:
            notes.append(f"trained on rows that direction {direction} was made from: {'; '.join(told)}")
    return notes


def of_one_seed(models: Mapping[str, str], direction: str) -> list[str]:
    """The models (name -> path) that were trained from the seed of the direction (its path)."""
    sides = direction_trainings(direction)
    return [name for name, own in _trained(models).items() if any(_same_start(own, side) for side in sides)]


def _trained(models: Mapping[str, str]) -> dict[str, Training]:
    return {name: training_of(_run_folder(Path(path))) for name, path in models.items()}


def _run_folder(model: Path) -> Path:
    """Where the model's training.json would be."""
    return model.parent if model.name.startswith("checkpoint-") else model


def _same_start(own: Training, side: Training) -> bool:
    """Whether both begin from the same random A: torch draws it module by module, so sizes and modules count too."""
    starts = [_start(one.get("config")) for one in (own, side)]
    return starts[0] is not None and starts[0] == starts[1]


def _start(config: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    """None of an unknown training, and of one without a random A."""
    if not config or config.get("seed") is None or config.get("is_peft") is False or config.get("bias_only"):
        return None
    return config["seed"], config.get("r"), sorted(config.get("target_modules") or [])
