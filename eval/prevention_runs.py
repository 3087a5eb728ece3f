"""Finished training runs that a comparison reads: their configs, what training.json says, and whether they compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_vectors.training_config import (
    AnySteering,
    LoraSteeringConfig,
    SteeringConfig,
    TrainingConfig,
    load_training_config,
)
from persona_vectors.training_run import RECORD, key_settings

ABOUT_STEERING = ("steering_config", "enable_steering_during_training", "inoculation_prompt")


@dataclass(frozen=True)
class Trained:
    """A finished run: its config file, the config in it, and its training.json."""

    path: str
    config: TrainingConfig
    record: dict[str, Any]

    @property
    def folder(self) -> str:
        return self.config.output_dir

    @property
    def loss(self) -> tuple[float, float] | None:
        """The held-out loss before and after, both unsteered; None where training.json has none."""
        found = self.record.get("held_out_loss") or {}
        return (found["first"], found["last"]) if {"first", "last"} <= set(found) else None

    @property
    def is_random(self) -> bool:
        """Whether it was trained with a random direction in the vector's place."""
        return self.config.steering is not None and self.config.steering.random_control is not None

    @property
    def label(self) -> str:
        """What tells it from the others: `random direction 1`, `ablate`, `inoculation`."""
        steering = self.config.steering
        if steering is not None:
            return f"random direction {steering.random_control}" if self.is_random else steering.type
        return "inoculation" if self.config.inoculation_prompt is not None else Path(self.folder).name


def read_trained(path: str) -> Trained:
    """The finished run of a config file.

    Raises:
        ValueError: one line: no such config, not trained yet, not to the end, or trained from another config.
    """
    config = load_training_config(path)
    record_path = Path(config.output_dir) / RECORD
    if not record_path.is_file():
        raise ValueError(f"{config.output_dir} is not trained yet; python training.py {path}")
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{record_path} is not JSON ({error}); python training.py {path} --overwrite") from None
    if not isinstance(record, dict) or record.get("state") != "finished":
        raise ValueError(f"{config.output_dir} is not trained to the end; python training.py {path} goes on with it")
    known = record.get("key", {}).get("settings", {})
    if changed := _differing(key_settings(config), known):
        raise ValueError(
            f"{config.output_dir} was trained with other {', '.join(changed)} than {path} says; "
            f"python training.py {path} --overwrite"
        )
    return Trained(path, config, record)


def check_comparable(plain: Trained, steered: Trained, controls: Sequence[Trained]) -> None:
    """Refuses, with a ValueError, runs whose comparison would say nothing about steering in training."""
    if plain.config.steering is not None:
        raise ValueError(f"{plain.path} steers in training; --config is the plain finetuning")
    if steered.config.steering is None:
        raise ValueError(
            f"{steered.path} does not steer in training; give a config with enable_steering_during_training"
        )
    runs = [plain, steered, *controls]
    for number, run in enumerate(runs):
        for before in runs[:number]:
            _refuse_same(before, run)
        _refuse_other_start(plain, run)
    _refuse_changed_vectors(runs[1:])


def check_trait(steered: Trained, trait: str) -> None:
    """Refuses, with a ValueError, to score a trait other than the one steered with, as the file's sidecar names it."""
    from persona_vectors.files import read_sidecar
    from persona_vectors.training_weights import sidecar_of

    steering = steered.config.steering
    is_weights = isinstance(steering, LoraSteeringConfig)
    for path in steering.paths if steering else []:
        made_for = (sidecar_of if is_weights else read_sidecar)(path).get("trait")
        if made_for is not None and made_for != trait:
            what = "direction of weights" if is_weights else "vector"
            raise ValueError(f"{steered.path} steers with {path}, a {what} of {made_for}; --trait is {trait}")


def _refuse_same(before: Trained, run: Trained) -> None:
    if Path(before.folder).resolve() == Path(run.folder).resolve():
        raise ValueError(f"{before.path} and {run.path} have one output_dir, {run.folder}; give runs of their own")
    if key_settings(before.config) == key_settings(run.config):
        raise ValueError(f"{run.path} trains just as {before.path} does, so comparing them says nothing; leave one out")


def _refuse_other_start(plain: Trained, run: Trained) -> None:
    """Another model or other data than the plain run's: by content, as it was when they were trained."""
    if _key(run, "model") != _key(plain, "model") or run.config.model != plain.config.model:
        raise ValueError(
            f"{run.path} trains {run.config.model} and {plain.path} {plain.config.model}; expected the same model"
        )
    data, own = (_data(one) for one in (plain, run))
    if data != own:
        raise ValueError(
            f"{run.path} trains on {', '.join(run.config.training_files)} and {plain.path} on "
            f"{', '.join(plain.config.training_files)}, or its content has changed between them; expected the same data"
        )


def _refuse_changed_vectors(runs: Sequence[Trained]) -> None:
    from persona_vectors.files import sha256_of_file
    from persona_vectors.training_weights import steered_files

    for run in runs:
        steering = run.config.steering
        files = steered_files(steering) if steering else []
        if steering and not files:
            raise ValueError(f"no adapter in {steering.paths[0]}, with which {run.path} was trained")
        for path in files:
            if not Path(path).is_file():
                what = "direction" if isinstance(steering, LoraSteeringConfig) else "vector file"
                raise ValueError(f"no {what} at {path}, with which {run.path} was trained")
            if sha256_of_file(path) != _key(run, "files").get(path):
                raise ValueError(
                    f"{path} is not the file any more with which {run.folder} was trained; "
                    f"python training.py {run.path} --overwrite"
                )


def other_settings(plain: Trained, runs: Sequence[Trained]) -> list[str]:
    """A note for each run that differs from the plain one in more than what is compared."""
    notes = []
    own = key_settings(plain.config)
    for run in runs:
        differs = _differing(key_settings(run.config), own)
        if more := [name for name in differs if name not in ABOUT_STEERING]:
            notes.append(f"{run.path} differs from {plain.path} in {', '.join(more)}, too: not in steering alone.")
        notes += [
            f"{vector['path']} was made from {vector['made_from']}, not from the model that {run.path} trains."
            for vector in [*run.record.get("vectors", []), *run.record.get("directions", [])]
            if vector.get("same_model") is False
        ]
    return notes


def single_push(steering: AnySteering) -> tuple[str, int, float] | None:
    """(vector file, layer, coefficient) of training that adds one vector at one layer; None for anything else."""
    if (
        not isinstance(steering, SteeringConfig)
        or steering.type != "steer"
        or steering.random_control is not None
        or not single_place(steering)
    ):
        return None
    return steering.paths[0], steering.layers[0], steering.coefs[0]  # pyright: ignore


def single_place(steering: AnySteering) -> tuple[str, int] | None:
    """(vector file, layer) where one vector acts at one layer as it stands in its file; None otherwise."""
    if isinstance(steering, LoraSteeringConfig):
        return None
    if len(steering.paths) > 1 or steering.layers == "all" or len(steering.layers) > 1 or steering.incremental:
        return None
    return steering.paths[0], int(steering.layers[0])


def _differing(settings: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """The names of the settings that are not the same; one that is missing counts as not used."""
    return [name for name in dict.fromkeys([*settings, *others]) if settings.get(name) != others.get(name)]


def _key(run: Trained, part: str) -> Any:
    return run.record.get("key", {}).get(part, {})


def _data(run: Trained) -> list[str]:
    """The content of the data files, in order."""
    files = [*run.config.training_files, *([run.config.test_file] if run.config.test_file else [])]
    return [_key(run, "files").get(path, "") for path in files]
