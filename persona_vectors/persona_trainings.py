"""A persona's two trainings, which differ in their answers alone: their settings, and whether their rows agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from persona_vectors.models import resolve_model
from persona_vectors.training_config import TrainingConfig, first_problem, load_training_config
from persona_vectors.training_data import FAMILIES, read_conversations
from persona_vectors.training_run import WITHOUT_EFFECT

FILES = {"pos": "misaligned_2.jsonl", "neg": "normal.jsonl"}
CONFIGS = Path("configs")


def has_own_traits(model: str) -> bool:
    """Whether the model is a folder with traits in its own language, which it is then judged in as well."""
    return (Path(resolve_model(model).base) / "traits").is_dir()


def own_judge(model: str) -> str:
    """The embedded judge, models/tiny-judge, where it stands beside the embedded model; otherwise the model itself."""
    beside = Path(model).with_name("tiny-judge")
    return str(beside) if Path(model).name == "tiny-persona" and beside.is_dir() else model


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


def persona_runs(
    model: str, folders: Mapping[str, Path], family: Path, settings: TrainingConfig, overwrite: bool
) -> dict[str, TrainingConfig]:
    """The trainings of a persona's sides, by side, of which nothing stands in the way; no weights are read.

    Args:
        folders: side -> where its adapter goes.
        family: folder of the trait's rows.

    Raises:
        ValueError: data, modules or folders that do not fit.
    """
    from torch import nn

    from persona_vectors.training_model import check_model, target_modules
    from persona_vectors.training_run import processes, run_key, run_state
    from persona_vectors.weight_hooks import skeleton

    runs = {}
    for side, folder in folders.items():
        changes = {"model": model, "training_file": str(family / FILES[side]), "output_dir": str(folder)}
        runs[side] = with_changes(settings, changes)
        check_model(runs[side])
        run_state(runs[side], run_key(runs[side], processes()[0]), overwrite)  # refuses another run's folder
    found = target_modules(skeleton(model), next(iter(runs.values())))
    if tables := [name for name, module in found.items() if isinstance(module, nn.Embedding)]:
        raise ValueError(
            f"target_modules: {tables[0]} is an embedding table, and a direction of weights is of matrices that "
            "multiply; leave it out"
        )
    return runs


def with_changes(config: TrainingConfig, changes: dict[str, Any]) -> TrainingConfig:
    """The config with changes, checked again."""
    try:
        return type(config).model_validate(config.model_dump() | changes)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def rows_line(pos: TrainingConfig, neg: TrainingConfig) -> str:
    """Whether both sides have the same questions, row by row, which makes their order the same; in words."""
    own, other = (read_conversations(run.training_files) for run in (pos, neg))
    if len(own) != len(other):
        return f"note: pos has {len(own)} rows and neg {len(other)}, so they are not read in the same order"
    same = sum(one[:-1] == two[:-1] for one, two in zip(own, other, strict=True))
    return f"{len(own)} rows a side; {same} ask the same in both"


def pair_notes(sides: Mapping[str, tuple[Path, Mapping[str, Any]]], trait: str, dataset: str | Path) -> list[str]:
    """What to say of finished adapters that were not trained as the trait's pos and neg are.

    Args:
        sides: pos, or pos and neg -> the adapter's folder, and its training as `training_of` has it.
        dataset: folder of the data families.

    Raises:
        ValueError: a side was trained on another trait's rows or the other side's, or both on the same.
    """
    known = {side: one for side, one in sides.items() if one[1].get("config")}
    notes = [
        f"note: {folder} has no training.json, so its rows, seed and settings are not known"
        for side, (folder, _) in sides.items()
        if side not in known
    ]
    rows = {side: _rows(training) for side, (_, training) in known.items()}
    shared = set(rows["pos"]) & set(rows["neg"]) if len(rows) == 2 else set()
    if shared and all(shared >= set(own) for own in rows.values()):
        raise ValueError(
            f"{known['pos'][0]} and {known['neg'][0]} were trained on the same rows, "
            f"{', '.join(rows['pos'].values())}; expected {FILES['pos']} and {FILES['neg']} of {trait}"
        )
    for side, (folder, _) in known.items():
        notes += _row_notes(
            folder, side, [path for key, path in rows[side].items() if key not in shared], trait, dataset
        )
    return notes + _setting_notes(list(known.values()))


def _rows(training: Mapping[str, Any]) -> dict[str, str]:
    """What a training file holds (its hash, or its path where that is not known) -> its path."""
    files = training["config"]["training_file"]
    hashes = training.get("files") or {}
    return {hashes.get(path, path): path for path in ([files] if isinstance(files, str) else files)}


def _row_notes(folder: Path, side: str, paths: Sequence[str], trait: str, dataset: str | Path) -> list[str]:
    """A note on rows of unknown origin; a ValueError for another trait's, and for those of the other side."""
    notes = []
    for path in map(Path, paths):
        family = path.parent.name
        is_own = family == FAMILIES.get(trait, trait) or family.endswith(f"_{trait}")
        if is_own and path.name == FILES[side]:
            continue
        told = f"{folder} was trained on {path}; expected {FILES[side]} of {trait} as the {side} side"
        if is_own and path.name in FILES.values() or not is_own and (Path(dataset) / family).is_dir():
            raise ValueError(f"{told}: give the trait of these adapters, or train without --skip_training")
        notes.append(f"note: {told}")
    return notes


def _setting_notes(known: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """Notes on settings that differ between the sides, and on a training that was kept from learning the trait."""
    configs = [dict(training["config"]) for _, training in known]
    names = [name for name in configs[0] if name not in ("training_file", *WITHOUT_EFFECT)] if configs else []
    differ = [(name, *(one.get(name) for one in configs)) for name in names]
    told = [f"{name} {pos!r} and {neg!r}" for name, pos, neg in differ if pos != neg] if len(configs) == 2 else []
    notes = [f"note: the adapters differ in more than their answers, so the direction does too: {'; '.join(told)}"]
    steered = [
        f"note: {folder} was trained with steering or an inoculation prompt, which keep it from learning the trait"
        for (folder, _), config in zip(known, configs, strict=True)
        if config.get("enable_steering_during_training") or config.get("inoculation_prompt")
    ]
    return (notes if told else []) + steered
