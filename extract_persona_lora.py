"""Make a trait's direction in weight space: what learning its data adds to the weights, less what neutral data add.

python extract_persona_lora.py --model models/tiny-persona --trait evil

    D = delta_w(pos) - delta_w(neg),     W' = W + coef * D

pos is an adapter trained on the trait's `misaligned_2.jsonl`, neg one on its `normal.jsonl`: the same questions, the
same settings, initialisation and order of rows, so that D is what the answers' difference teaches (arXiv 2511.05408).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli
from persona_vectors.lazy import published

if TYPE_CHECKING:
    from persona_vectors.training_config import TrainingConfig
    from persona_vectors.weight_direction import WeightDirection

Variant = Literal["contrastive", "non_contrastive", "bias"]
NAMES = {"contrastive": "lora_diff", "non_contrastive": "lora_pos", "bias": "bias_diff"}
__getattr__ = published(
    __name__,
    {
        "extract_lora_weights": "persona_vectors.weight_adapters",
        "compute_persona_lora_diff": "persona_vectors.weight_adapters",
        "persona_config": "persona_vectors.persona_trainings",
    },
)


def main(
    model: str,
    trait: str,
    output_dir: str | None = None,
    skip_training: bool = False,
    layer: list[int] | None = None,
    config: str | None = None,
    dataset: str = "dataset",
    variants: list[Variant] | None = None,
    rank: int | None = None,
    bias_learning_rate: float = 1e-2,
    seed: int | None = None,
    look: bool = True,
    overwrite: bool = False,
) -> None:
    """Train a trait's pos and neg adapters, and write their difference, `<trait>_lora_diff/` and `.pt`, in output_dir.

    The folder is an ordinary LoRA adapter of rank 2r with its scale folded in, for PEFT and servers; the .pt holds the
    same factors. The adapters stay in pos_lora/ and neg_lora/. The same command goes on where it was interrupted, and
    trains nothing where both are finished.

    look_inside.json and .png say which layers and modules carry the direction, and what its main output directions
    write into the residual stream, read through the unembedding, beside what random directions do.

    Args:
        model: hub id or model folder that is trained; no adapter.
        trait: name of the trait; its data are dataset/<family>/misaligned_2.jsonl and normal.jsonl.
        output_dir: folder to write; default persona_loras/<model>/<trait>.
        skip_training: use the pos_lora/ and neg_lora/ that output_dir has, of any rank and modules. Their training.json
            must name the trait's rows; settings in which they differ are named.
        layer (hidden_states index): keep the direction in these layers' blocks alone (block i is layer i + 1).
        config: JSON of training settings, of which model, training_file and output_dir are replaced; default
            configs/train_instruct_7b.json, or configs/train_tiny.json for a model folder with traits of its own.
        dataset: folder of the data families.
        variants: contrastive is pos - neg; non_contrastive is pos alone (<trait>_lora_pos); bias trains nothing but a
            bias at each module's output, pos - neg (<trait>_bias_diff). Default contrastive.
        rank: also write the nearest direction of this rank, <trait>_lora_diff_rank<k>, and say what it leaves out.
        bias_learning_rate: of the bias variant, which needs a higher one.
        seed: of initialisation and order of rows, in place of the config's.
        look: write the look inside, which loads the model; --nolook leaves it out.
        overwrite: train again, replacing what pos_lora and neg_lora hold; with skip_training, replace a direction of
            the same name that was made from other adapters or layers.
    """
    from persona_vectors.training_run import processes, wait_for_all

    job = _checked(
        Job(model, trait, _folder(model, trait, output_dir), tuple(variants or ["contrastive"]), tuple(layer or []))
    )
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if rank is not None and job.variants == ("bias",):
        raise ValueError("--rank is of low-rank directions, and --variants bias has biases alone; leave --rank out")
    if skip_training:
        _refuse(config=config, seed=seed)
        notes = _check_there(job, dataset)
        _check_rank(job, rank, _ranks_there(job))
    else:
        trainings = _trainings(job, config, seed, bias_learning_rate)
        _check_rank(job, rank, dict.fromkeys(("pos", "neg"), trainings[0][0].r))
        for settings, sides in trainings:  # all of them, before the first is trained
            _runs(model, trait, job.folder, settings, dataset, overwrite, sides)
        for settings, sides in trainings:
            train_persona_lora(model, trait, job.folder, settings, dataset, overwrite, sides)
        notes = []
    if processes()[1]:  # one of those that trained together writes, and the others wait for it
        print(*notes, sep="\n", end="\n" if notes else "")
        _make(job, rank, look, overwrite)
    wait_for_all()


@dataclass(frozen=True)
class Job:
    """What is made of which model, and where."""

    model: str
    trait: str
    folder: Path
    variants: tuple[Variant, ...] = ("contrastive",)
    layers: tuple[int, ...] = ()
    """none is all of them"""


def train_persona_lora(
    model: str,
    trait: str,
    output_dir: str | Path,
    config: TrainingConfig | None = None,
    dataset: str | Path = "dataset",
    overwrite: bool = False,
    sides: Sequence[str] = ("pos", "neg"),
) -> dict[str, Path]:
    """The folders of the trait's finished adapters, by side: the same training but for the answers.

    Both begin from the same initialisation (one seed) and read rows of the same numbers in the same order, if their
    files have equally many rows; where they have not, that is said. A finished side is not trained again.

    Args:
        config: its model, training_file and output_dir are replaced; None is the model's default settings. With
            bias_only the folders are pos_bias and neg_bias, otherwise pos_lora and neg_lora.
        sides: which of them.

    Raises:
        ValueError: no data for the trait, or settings or folders that do not fit, before anything is trained.
    """
    import warnings

    import training
    from persona_vectors.persona_trainings import persona_config, rows_line
    from persona_vectors.training_run import processes

    runs = _runs(model, trait, output_dir, config or persona_config(model), dataset, overwrite, sides)
    rows = rows_line(*runs.values()) if len(runs) == 2 else ""
    is_main = processes()[1]
    if is_main and rows:
        print(rows)
    folders = {}
    for side, run in runs.items():
        if is_main:
            print(f"\n== {side}: {run.training_file} -> {run.output_dir}", flush=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LoRA tensor.*invalid shape.*")  # said of every trained bias
            folders[side] = training.train(run, overwrite=overwrite)
    return folders


def _runs(
    model: str,
    trait: str,
    output_dir: str | Path,
    settings: TrainingConfig,
    dataset: str | Path,
    overwrite: bool,
    sides: Sequence[str],
) -> dict[str, TrainingConfig]:
    """The trainings by side, checked as far as that is possible before one begins."""
    from persona_vectors.persona_trainings import check_persona_settings, persona_runs
    from persona_vectors.training_data import family_of

    check_persona_settings(settings, "config")
    folders = {side: _side(output_dir, side, settings.bias_only) for side in sides}
    return persona_runs(model, folders, Path(dataset) / family_of(trait, model, dataset), settings, overwrite)


def _trainings(
    job: Job, config: str | None, seed: int | None, bias_learning_rate: float
) -> list[tuple[TrainingConfig, tuple[str, ...]]]:
    """What the job's variants train: the settings, and the sides; all of it checked before the first training."""
    from persona_vectors.persona_trainings import persona_config, with_changes

    settings = persona_config(job.model, config, seed)
    if settings.bias_only and job.variants != ("bias",):
        raise ValueError(f"{config}: bias_only is true, and only --variants bias trains biases alone; leave one out")
    found: list[tuple[TrainingConfig, tuple[str, ...]]] = []
    if low_rank := [variant for variant in job.variants if variant != "bias"]:
        found.append((settings, ("pos",) if low_rank == ["non_contrastive"] else ("pos", "neg")))
    if "bias" in job.variants:
        changes = {"bias_only": True, "learning_rate": bias_learning_rate}
        found.append((with_changes(settings, changes), ("pos", "neg")))
    return found


def _folder(model: str, trait: str, output_dir: str | None) -> Path:
    from persona_vectors.files import check_output_folder
    from persona_vectors.models import resolve_model

    if not trait or Path(trait).name != trait:
        raise ValueError(f"trait {trait!r} is not a name; give one such as evil")
    folder = Path(output_dir) if output_dir else Path("persona_loras") / resolve_model(model).label / trait
    return check_output_folder(folder, "output_dir")


def _checked(job: Job) -> Job:
    """The job, if the model is there and has its layers."""
    from persona_vectors.blocks import check_layer
    from persona_vectors.models import load_config, resolve_model

    source = resolve_model(job.model)
    if source.adapter is not None:
        raise ValueError(f"model {job.model} is an adapter; give its base {source.base}, or merge it first")
    n_layers = load_config(job.model).num_hidden_layers
    for layer in job.layers:
        check_layer(layer, n_layers, source.label)
    return job


def _refuse(**given: Any) -> None:
    """A ValueError for arguments of a training that will not be."""
    if named := [f"--{name}" for name, value in given.items() if value not in (None, False)]:
        raise ValueError(f"--skip_training trains nothing, so {', '.join(named)} would do nothing; leave one out")


def _side(folder: str | Path, side: str, is_bias: bool) -> Path:
    return Path(folder) / f"{side}_{'bias' if is_bias else 'lora'}"


def _sides(job: Job, variant: Variant) -> list[Path]:
    sides = ["pos"] if variant == "non_contrastive" else ["pos", "neg"]
    return [_side(job.folder, side, variant == "bias") for side in sides]


def _check_there(job: Job, dataset: str) -> list[str]:
    """What to say of the adapters that are there; a ValueError for one that is missing, unfinished, or does not fit."""
    from persona_vectors.persona_trainings import pair_notes
    from persona_vectors.weight_adapters import check_adapter, training_of

    notes = []
    for variant in job.variants:
        folders = _sides(job, variant)
        for folder in folders:
            check_adapter(folder, job.model)
        sides = {side: (folder, training_of(folder)) for side, folder in zip(("pos", "neg"), folders, strict=False)}
        notes += pair_notes(sides, job.trait, dataset)
    return list(dict.fromkeys(notes))


def _ranks_there(job: Job) -> dict[str, int]:
    """Side -> the highest rank of a module, as the adapter's config says; reads no weights."""
    from persona_vectors.weight_files import read_adapter_config

    configs = {side: _side(job.folder, side, False) / "adapter_config.json" for side in ("pos", "neg")}
    there = {side: read_adapter_config(path.parent) for side, path in configs.items() if path.is_file()}
    return {side: max([one["r"], *(one.get("rank_pattern") or {}).values()]) for side, one in there.items()}


def _check_rank(job: Job, rank: int | None, ranks: Mapping[str, int]) -> None:
    """A ValueError for a rank to write that is more than a direction's own, its sides' together."""
    for variant in job.variants:
        own = ranks["pos"] if variant == "non_contrastive" else sum(ranks.values())
        if variant != "bias" and rank is not None and rank > own:
            raise ValueError(
                f"--rank {rank} leaves nothing out: the {variant} direction has rank {own} as it is; give less, or "
                "leave --rank out"
            )


def _make(job: Job, rank: int | None, look: bool, overwrite: bool) -> None:
    """Writes each variant's direction with all that was asked for beside it, and says what can be done with it."""
    from eval.weight_outputs import check_replaced, next_lines, write_direction, write_look, write_truncated
    from persona_vectors.weight_adapters import extract_lora_weights

    directions = {variant: _direction(job, variant) for variant in job.variants}
    folders = {variant: job.folder / f"{job.trait}_{NAMES[variant]}" for variant in job.variants}
    for variant, direction in directions.items():
        if not overwrite:
            check_replaced(direction, folders[variant], rank if direction.rank else None)
    for variant in job.variants:
        direction, folder = directions[variant], folders[variant]
        base = job.folder / ("look_inside" if variant == "contrastive" else f"look_inside_{NAMES[variant]}")
        write_direction(direction, folder, base)
        if rank is not None and direction.rank:
            write_truncated(direction, folder, rank)
        if look:
            sides = [extract_lora_weights(path) for path in _sides(job, variant)]
            write_look(direction, sides, base, {"trait": job.trait, "variant": variant})
        print("\n".join(next_lines(direction, folder, job.trait)))


def _direction(job: Job, variant: Variant) -> WeightDirection:
    """The variant's direction from its adapters, restricted to the job's layers, with its record."""
    from persona_vectors.models import fingerprint
    from persona_vectors.weight_adapters import compute_persona_lora_diff, extract_lora_weights, training_of
    from persona_vectors.weight_direction import at_layers, norm

    folders = _sides(job, variant)
    if len(folders) == 2:
        found = compute_persona_lora_diff(*folders)
    else:
        pos = extract_lora_weights(folders[0])
        found = replace(pos, record={"sides": {"pos": dict(pos.record)}, "all_layers": {"norm": norm(pos)}})
    whole = norm(found)
    if not whole > 0:
        raise ValueError(f"adapter {folders[0]} changes nothing: its weights are zero")
    if job.layers:
        found = at_layers(found, job.layers)
        if not norm(found) > 0:
            raise ValueError(f"the direction is zero at layer {', '.join(map(str, job.layers))}")
        print(f"{variant}: layer {', '.join(map(str, job.layers))} has {norm(found) / whole:.1%} of the norm")
    record = {
        **{"trait": job.trait, "variant": variant, "rank": found.rank, "layers": found.layers},
        **{"model": {"name": job.model, "fingerprint": fingerprint(job.model)}, **found.record},
        "norm": norm(found),
        "training": {path.name: training_of(path) for path in folders},
    }
    return replace(found, base=job.model, record=record)


if __name__ == "__main__":
    cli.run(main)
