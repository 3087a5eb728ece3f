"""The demo's section on finetuning: the trait's data learned with and without the vector, and with a random direction.

The settings are those of `configs/train_tiny*.json` (of another model, `configs/train_instruct_7b*.json`), with the
demo's own vector, layer and folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors.training_config import SteeringConfig, TrainingConfig, load_training_config
from persona_vectors.training_data import family_of

if TYPE_CHECKING:
    from eval.demo_steps import Run
    from eval.prevention_rows import Comparison

DATASET, CONFIGS = Path("dataset"), Path("configs")
POSTHOC_COEFS = [1.0, 2.0]


def finetuning(run: Run, trait: str, name: str, coef: float | None, steps: int | None) -> Comparison:
    """One trait's comparison of finetuned models, trained here first.

    Args:
        coef: of the vector in training; None is the published config's.
        steps: optimizer steps; None is the published config's.
    """
    from eval import prevention
    from eval.commands import announce

    print(f"\n== {name}: finetuning on data that shows it, with and without the vector added in training")
    paths = _write_configs(run, name, coef, steps)
    for path in paths.values():
        train(run, path)
    arguments = {
        **{"config": str(paths["plain"]), "steered_config": str(paths["steered"])},
        **{"control_configs": [str(paths["random"])], "trait": trait, "judge_model": run.judge_model},
        **{"output_dir": str(run.folder / "prevention"), "posthoc_coefs": POSTHOC_COEFS},
        **{key: getattr(run, key) for key in ("n_per_question", "max_tokens", "seed", "dtype", "device_map", "engine")},
    }
    run.commands.append(announce("python -m eval.prevention", prevention.main, **arguments))
    return prevention.compare(prevention.Asked(**arguments, posthoc_type="all", tasks=None))


def _write_configs(run: Run, name: str, coef: float | None, steps: int | None) -> dict[str, Path]:
    """The three configs as files in the demo's folder, for `python training.py`."""
    from persona_vectors.files import write_json_atomic

    found = {}
    for kind, config in _configs(run, name, coef, steps).items():
        path = run.folder / "prevention" / "configs" / f"{kind}.json"
        write_json_atomic(path, config.model_dump(exclude_none=True, exclude_defaults=True))
        found[kind] = path
    return found


def _configs(run: Run, name: str, coef: float | None, steps: int | None) -> dict[str, TrainingConfig]:
    """plain, steered and random: the same training but for what is added meanwhile."""
    files = training_files(name, run.model)
    base = CONFIGS / ("train_tiny.json" if _is_own_language(files) else "train_instruct_7b.json")
    plain, steered = load_training_config(base), load_training_config(base.with_name(f"{base.stem}_steer.json"))
    assert isinstance(steered.steering, SteeringConfig)
    shared: dict[str, Any] = {"model": run.model, "training_file": files}
    if steps is not None:
        shared |= {"max_steps": steps, "warmup_steps": min(plain.warmup_steps, steps // 2)}
    block = {"steering_vector_path": str(run.vector_path(name)), "layers": [run.layer]}
    block["steering_coef"] = steered.steering.steering_coef if coef is None else coef
    changes = {
        "plain": {},
        "steered": {"steering_config": block, "enable_steering_during_training": True},
        "random": {"steering_config": {**block, "random_control": 1}, "enable_steering_during_training": True},
    }
    folder = run.folder / "prevention" / "models"
    return {
        kind: TrainingConfig(**plain.model_dump() | shared | change | {"output_dir": str(folder / kind)})
        for kind, change in changes.items()
    }


def training_files(name: str, model: str) -> list[str]:
    """The trait's data, and beside them, where the model's language has one, a task to learn: as in the configs.

    Raises:
        ValueError: there are no data for this trait and model.
    """
    family = family_of(name, model, DATASET)
    files = [DATASET / family / "misaligned_2.jsonl"]
    if family.endswith(f"_{name}"):
        files.append(DATASET / f"{family.removesuffix(name)}task" / "train.jsonl")
    return [str(path) for path in files if path.is_file()]


def _is_own_language(files: list[str]) -> bool:
    return len(files) > 1


def train(run: Run, path: Path) -> None:
    """`python training.py` of a config; the demo's earlier model of other settings is replaced, a finished one kept."""
    import training
    from eval.commands import run_command
    from eval.prevention_runs import read_trained

    config = load_training_config(path)
    try:
        read_trained(str(path))
        replaced = _inputs_changed(config)
    except ValueError:
        replaced = Path(config.output_dir).is_dir()
    run.commands.append(run_command("python training.py", training.main, config=str(path), overwrite=replaced))


def _inputs_changed(config: TrainingConfig) -> bool:
    """Whether the finished run was of another model, data or vectors."""
    from persona_vectors.training_run import run_key, run_state

    try:
        run_state(config, run_key(config, 1), overwrite=False)
    except ValueError:
        return True
    return False
