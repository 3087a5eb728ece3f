"""Make a trait's direction in weight space: what learning its data adds to the weights, less what neutral data add.

python extract_persona_lora.py --model models/tiny-persona --trait evil

    D = delta_w(pos) - delta_w(neg),     W' = W + coef * D

pos is an adapter trained on the trait's `misaligned_2.jsonl`, neg one on its `normal.jsonl`: the same questions, the
same settings, initialisation and order of rows, so that D is what the answers' difference teaches (arXiv 2511.05408).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from persona_vectors.training_config import TrainingConfig
    from persona_vectors.weight_direction import WeightDirection

Variant = Literal["contrastive", "non_contrastive", "bias"]
NAMES = {"contrastive": "lora_diff", "non_contrastive": "lora_pos", "bias": "bias_diff"}
FILES = {"pos": "misaligned_2.jsonl", "neg": "normal.jsonl"}
CONFIGS = Path("configs")
ROUNDING = 1e-6  # of equal changes' difference, whose square is 0 but for the last bits


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
        skip_training: use the pos_lora/ and neg_lora/ that output_dir has, of any rank and modules.
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
        overwrite: train again, replacing what pos_lora and neg_lora hold.
    """
    job = _checked(
        Job(model, trait, _folder(model, trait, output_dir), tuple(variants or ["contrastive"]), tuple(layer or []))
    )
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if skip_training:
        _refuse(config=config, seed=seed, overwrite=overwrite)
        _check_there(job)
    else:
        settings = persona_config(model, config, seed)
        for kind in dict.fromkeys(variant == "bias" for variant in job.variants):
            changes = {"bias_only": True, "learning_rate": bias_learning_rate} if kind else {}
            train_persona_lora(model, trait, job.folder, _with(settings, changes), dataset, overwrite)
    for variant in job.variants:
        direction = _direction(job, variant)
        folder = _write(job, variant, direction, rank)
        if look:
            _look(job, variant, direction)
        print(
            f"next: python eval_lora_persona.py --model {model} --trait {trait} --lora_diff_path {folder} "
            f"--lora_coef -1 0 1 --output_path eval_persona_eval/{Path(model).name}/{folder.name}.csv"
        )


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
) -> dict[str, Path]:
    """The folders of the trait's finished adapters, {"pos", "neg"}: the same training but for the answers.

    Both begin from the same initialisation (one seed) and read rows of the same numbers in the same order, if their
    files have equally many rows; where they have not, that is said. A finished side is not trained again.

    Args:
        config: its model, training_file and output_dir are replaced; None is the model's default settings. With
            bias_only the folders are pos_bias and neg_bias, otherwise pos_lora and neg_lora.

    Raises:
        ValueError: no data for the trait, or settings or folders that do not fit, before anything is trained.
    """
    import warnings

    import training
    from persona_vectors.training_data import family_of
    from persona_vectors.training_model import check_model
    from persona_vectors.training_run import processes, run_key, run_state

    settings = config or persona_config(model)
    family = Path(dataset) / family_of(trait, model, dataset)
    runs = {}
    for side, file in FILES.items():
        changes = {"model": model, "training_file": str(family / file)}
        runs[side] = _with(settings, {**changes, "output_dir": str(_side(output_dir, side, settings.bias_only))})
    _compare_rows(runs)
    for run in runs.values():
        check_model(run)
        run_state(
            run, run_key(run, processes()[0]), overwrite
        )  # refuses another run's folder before the first side is trained
    folders = {}
    for side, run in runs.items():
        print(f"\n== {side}: {run.training_file} -> {run.output_dir}", flush=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LoRA tensor.*invalid shape.*")  # said of every trained bias
            folders[side] = training.train(run, overwrite=overwrite)
    return folders


def extract_lora_weights(adapter: str | Path) -> WeightDirection:
    """What a finished adapter adds to its base: `scale * B @ A` of each module, with the hash of its file.

    Raises:
        ValueError: no adapter there, or one whose change of the weights is not low-rank alone.
    """
    from persona_vectors.files import sha256_of_file
    from persona_vectors.weight_files import load_adapter

    folder = Path(adapter)
    direction = load_adapter(folder)
    weights = next(path for name in ("safetensors", "bin") if (path := folder / f"adapter_model.{name}").exists())
    return replace(direction, record={"adapter": str(folder), "sha256": sha256_of_file(weights)})


def compute_persona_lora_diff(pos: WeightDirection | str | Path, neg: WeightDirection | str | Path) -> WeightDirection:
    """`delta_w(pos) - delta_w(neg)`, exactly, at rank r+ + r-: points from neg to pos.

    The two may differ in rank, scale and modules; a module that one does not change counts as 0 there.

    Raises:
        ValueError: they belong to different base models, or a module's shape differs, or the difference is zero.
    """
    from persona_vectors.weight_direction import cosine, difference, norm

    sides = {"pos": pos, "neg": neg}
    pos, neg = (extract_lora_weights(one) if isinstance(one, (str, Path)) else one for one in (pos, neg))
    if not _same_model(pos.base, neg.base):
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


def persona_config(model: str, path: str | None = None, seed: int | None = None) -> TrainingConfig:
    """The training settings of a persona's adapters: the file's, or the model's default ones.

    Raises:
        ValueError: settings that do not train an adapter of low-rank changes alone on conversations.
    """
    from persona_vectors.models import resolve_model
    from persona_vectors.training_config import load_training_config

    own = (Path(resolve_model(model).base) / "traits").is_dir()
    file = Path(path) if path else CONFIGS / ("train_tiny.json" if own else "train_instruct_7b.json")
    config = load_training_config(file)
    wrong = {
        "loss": config.loss != "sft",
        "is_peft": not config.is_peft,
        "lora_bias": config.lora_bias != "none",
        "push_to_hub": config.push_to_hub,
    }
    if named := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(
            f"{file}: {named[0]} is {getattr(config, named[0])!r}; a persona's two adapters need loss sft, is_peft "
            "true, lora_bias none, push_to_hub false"
        )
    return config if seed is None else _with(config, {"seed": seed})


def _with(config: TrainingConfig, changes: dict[str, Any]) -> TrainingConfig:
    """The config with changes, checked again."""
    from pydantic import ValidationError

    try:
        return type(config).model_validate(config.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))} {first['msg']}; got {first['input']}"[:300]) from None


def _folder(model: str, trait: str, output_dir: str | None) -> Path:
    from persona_vectors.models import resolve_model

    if not trait or Path(trait).name != trait:
        raise ValueError(f"trait {trait!r} is not a name; give one such as evil")
    folder = Path(output_dir) if output_dir else Path("persona_loras") / resolve_model(model).label / trait
    ancestor = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not ancestor.is_dir():
        raise ValueError(f"output_dir {folder} is or lies under {ancestor}, a file; give a folder")
    return folder


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


def _check_there(job: Job) -> None:
    """A ValueError for an adapter that is missing, unfinished, or of another model than the job's."""
    from persona_vectors.models import fingerprint
    from persona_vectors.weight_files import read_adapter_config

    for folder in dict.fromkeys(path for variant in job.variants for path in _sides(job, variant)):
        if not (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"--skip_training needs the adapter {folder}, which is not there; run without --skip_training"
            )
        base = str(read_adapter_config(folder).get("base_model_name_or_path") or "")
        if not _same_model(base, job.model):
            raise ValueError(f"{folder} is an adapter of {base or 'an unnamed model'}; expected one of {job.model}")
        told = _training(folder)
        if told.get("state", "finished") != "finished":
            raise ValueError(f"the training of {folder} was interrupted; run without --skip_training to go on with it")
        trained_on = told.get("key", {}).get("model")
        if trained_on is not None and trained_on != fingerprint(job.model):
            raise ValueError(f"{job.model} has changed since {folder} was trained on it; train again with --overwrite")


def _same_model(one: str, other: str) -> bool:
    """Whether two names mean models of the same content."""
    from persona_vectors.models import fingerprint

    if one == other:
        return True
    try:
        return fingerprint(one) == fingerprint(other)
    except (ValueError, OSError):
        return False


def _training(folder: Path) -> dict[str, Any]:
    """How the adapter was trained, as its folder says; {} for one made elsewhere."""
    import json

    path = folder / "training.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _compare_rows(runs: dict[str, TrainingConfig]) -> None:
    """Says whether both sides have the same questions, row by row, which makes their order the same."""
    from persona_vectors.training_data import read_conversations

    pos, neg = (read_conversations(run.training_files) for run in runs.values())
    if len(pos) != len(neg):
        print(f"note: pos has {len(pos)} rows and neg {len(neg)}, so they are not read in the same order")
        return
    same = sum(one[:-1] == other[:-1] for one, other in zip(pos, neg, strict=True))
    print(f"{len(pos)} rows a side; {same} ask the same in both")


def _direction(job: Job, variant: Variant) -> WeightDirection:
    """The variant's direction from its adapters, restricted to the job's layers, with its record."""
    from persona_vectors.models import fingerprint
    from persona_vectors.weight_direction import at_layers, norm

    folders = _sides(job, variant)
    if len(folders) == 2:
        found = compute_persona_lora_diff(*folders)
    else:
        pos = extract_lora_weights(folders[0])
        found = replace(pos, record={"sides": {"pos": dict(pos.record)}, "all_layers": {"norm": norm(pos)}})
    whole = norm(found)
    if job.layers:
        found = at_layers(found, job.layers)
        if not norm(found) > 0:
            raise ValueError(f"the direction is zero at layer {', '.join(map(str, job.layers))}")
        print(f"{variant}: layer {', '.join(map(str, job.layers))} has {norm(found) / whole:.1%} of the norm")
    record = {
        **{"trait": job.trait, "variant": variant, "rank": found.rank, "layers": found.layers},
        **{"model": {"name": job.model, "fingerprint": fingerprint(job.model)}, **found.record},
        "norm": norm(found),
        "training": {path.name: _told(path) for path in folders},
    }
    return replace(found, base=job.model, record=record)


def _told(folder: Path) -> dict[str, Any]:
    """Settings and hashes of an adapter's training, and how long its data were."""
    told = _training(folder)
    return {name: told.get(name) for name in ("config", "data", "steps", "held_out_loss")} | {
        "files": told.get("key", {}).get("files")
    }


def _write(job: Job, variant: Variant, direction: WeightDirection, rank: int | None) -> Path:
    """The direction's adapter folder; it, its .pt, and where a rank is asked for the truncated ones, are written."""
    from persona_vectors.weight_direction import norm, norms, truncate
    from persona_vectors.weight_files import save_adapter, save_factors

    folder = job.folder / f"{job.trait}_{NAMES[variant]}"
    _say_other(folder, direction)
    save_adapter(direction, folder)
    save_factors(direction, folder.with_suffix(".pt"))
    told = direction.record
    whole = ", ".join(f"{name.replace('_', ' of ')} {value:.4g}" for name, value in told["all_layers"].items())
    print(
        f"saved {folder}/ and .pt: {len(direction.modules)} modules, rank {direction.rank}"
        f"{', biases' if direction.has_bias else ''}, norm {norm(direction):.4g} (all layers: {whole})"
    )
    if rank is not None and direction.rank:
        kept, residuals = truncate(direction, rank)
        worst = max(residuals, key=lambda name: residuals[name])
        lost = {name: residuals[name] * size for name, size in norms(direction).items()}
        total = sum(size**2 for size in lost.values()) ** 0.5 / norm(direction)
        residual = {"total": total, "worst_module": worst, "worst": residuals[worst], "by_module": residuals}
        kept = replace(kept, record={**told, "rank": rank, "residual": residual})
        short = folder.with_name(f"{folder.name}_rank{rank}")
        save_adapter(kept, short)
        save_factors(kept, short.with_suffix(".pt"))
        print(
            f"saved {short}/ and .pt: what rank {rank} leaves out is {total:.1%} of the norm, {residuals[worst]:.1%} "
            f"of the worst module ({worst})"
        )
    return folder


def _say_other(folder: Path, direction: WeightDirection) -> None:
    """Says which directions of the same name were made from other adapters or layers, and what becomes of them."""
    from persona_vectors.files import read_sidecar

    for path in sorted(folder.parent.glob(f"{folder.name}*.pt")):
        told = read_sidecar(path)
        if any(told.get(key) != direction.record[key] for key in ("sides", "layers")):
            fate = "is replaced" if path.stem == folder.name else "stays; it no longer belongs to the others here"
            layers = ", ".join(map(str, told.get("layers", []))) or "unknown"
            print(f"note: {path} of other adapters or layers (its layers: {layers}) {fate}")


def _look(job: Job, variant: Variant, direction: WeightDirection) -> None:
    """Prints the look inside and writes it."""
    from eval.weight_look import look_inside, look_png, look_table
    from persona_vectors.files import provenance, write_bytes_atomic, write_json_atomic
    from persona_vectors.models import load_model
    from persona_vectors.plots import png_bytes

    sides = [extract_lora_weights(path) for path in _sides(job, variant)]
    model, tokenizer = load_model(job.model)
    found = look_inside(model, tokenizer, direction, sides)
    print("\n" + look_table(found))
    base = job.folder / ("look_inside" if variant == "contrastive" else f"look_inside_{NAMES[variant]}")
    heading = {"kind": "look inside a weight direction", "trait": job.trait, "variant": variant}
    write_json_atomic(base.with_suffix(".json"), {**heading, **found, "model": job.model, **provenance()})
    write_bytes_atomic(base.with_suffix(".png"), png_bytes(look_png(found, f"{job.trait}, {variant}")))
    print(f"saved {base}.json and .png")


if __name__ == "__main__":
    cli.run(main)
