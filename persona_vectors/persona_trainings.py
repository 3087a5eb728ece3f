"""A persona's two trainings, which differ in their answers alone: their settings, and whether their rows agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from persona_vectors.models import resolve_model
from persona_vectors.training_config import TrainingConfig, load_training_config
from persona_vectors.training_data import read_conversations

FILES = {"pos": "misaligned_2.jsonl", "neg": "normal.jsonl"}
CONFIGS = Path("configs")


def has_own_traits(model: str) -> bool:
    """Whether the model is a folder with traits in its own language, which it is then judged in as well."""
    return (Path(resolve_model(model).base) / "traits").is_dir()


def persona_config(model: str, path: str | None = None, seed: int | None = None) -> TrainingConfig:
    """The training settings of a persona's adapters: the file's, or the model's default ones.

    Raises:
        ValueError: settings that `check_persona_settings` refuses.
    """
    file = Path(path) if path else CONFIGS / ("train_tiny.json" if has_own_traits(model) else "train_instruct_7b.json")
    config = load_training_config(file)
    check_persona_settings(config, str(file))
    return config if seed is None else with_changes(config, {"seed": seed})


def check_persona_settings(config: TrainingConfig, of: str) -> None:
    """Refuses, with a ValueError, settings that do not train an adapter of low-rank changes alone on conversations.

    Training that is steered, or told to show the trait, learns less of it, so it leaves another direction.
    """
    wrong = {
        "loss": config.loss != "sft",
        "is_peft": not config.is_peft,
        "lora_bias": config.lora_bias != "none",
        "push_to_hub": config.push_to_hub,
    }
    if named := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(
            f"{of}: {named[0]} is {getattr(config, named[0])!r}; a persona's two adapters need loss sft, is_peft "
            "true, lora_bias none, push_to_hub false"
        )
    if config.steering is not None or config.inoculation_prompt is not None:
        key = "inoculation_prompt" if config.steering is None else "enable_steering_during_training"
        raise ValueError(
            f"{of}: {key} is given, which keeps a training from learning the trait, and the direction is what it "
            f"learns; leave out {key if config.steering is None else f'{key} and steering_config'}, or give a config "
            "without it"
        )


def with_changes(config: TrainingConfig, changes: dict[str, Any]) -> TrainingConfig:
    """The config with changes, checked again."""
    try:
        return type(config).model_validate(config.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))} {first['msg']}; got {first['input']}"[:300]) from None


def rows_line(pos: TrainingConfig, neg: TrainingConfig) -> str:
    """Whether both sides have the same questions, row by row, which makes their order the same; in words."""
    own, other = (read_conversations(run.training_files) for run in (pos, neg))
    if len(own) != len(other):
        return f"note: pos has {len(own)} rows and neg {len(other)}, so they are not read in the same order"
    same = sum(one[:-1] == two[:-1] for one, two in zip(own, other, strict=True))
    return f"{len(own)} rows a side; {same} ask the same in both"
