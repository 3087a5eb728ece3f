"""What extract_persona_lora writes of a direction: its adapter folder and .pt, a truncated one, and the look inside."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona_vectors.files import provenance, read_sidecar, write_bytes_atomic, write_json_atomic
from persona_vectors.models import resolve_model
from persona_vectors.persona_trainings import has_own_traits, own_judge
from persona_vectors.traits import load_trait
from persona_vectors.weight_direction import WeightDirection, norm, norms, truncate
from persona_vectors.weight_files import save_adapter, save_factors

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""what its --max-lora-rank takes"""


def write_direction(direction: WeightDirection, folder: Path, look: Path) -> None:
    """Writes the adapter folder and `<folder>.pt`, and prints what they are.

    The record has `sides` and `layers`, and `all_layers`, the numbers to print of the direction before it was
    restricted. Files of the same name that were made from other adapters or layers are named, and a look inside them
    at `look` (.json and .png) is taken away.
    """
    if _say_other(folder, direction):
        for ending in (".json", ".png"):
            look.with_name(f"{look.name}{ending}").unlink(missing_ok=True)
    _save(direction, folder)
    told = direction.record["all_layers"]
    whole = ", ".join(f"{name.replace('_', ' of ')} {value:.4g}" for name, value in told.items())
    print(
        f"saved {folder}/ and .pt: {len(direction.modules)} modules, rank {direction.rank}"
        f"{', biases' if direction.has_bias else ''}, norm {norm(direction):.4g} (all layers: {whole})"
    )


def write_truncated(direction: WeightDirection, folder: Path, rank: int) -> None:
    """Writes the nearest direction of a rank, `<folder>_rank<k>`, and prints what that leaves out."""
    kept, residuals = truncate(direction, rank)
    worst = max(residuals, key=lambda name: residuals[name])
    left = [residuals[name] * size for name, size in norms(direction).items()]
    total = sum(size**2 for size in left) ** 0.5 / norm(direction)
    residual = {"total": total, "worst_module": worst, "worst": residuals[worst], "by_module": residuals}
    short = folder.with_name(f"{folder.name}_rank{rank}")
    _save(replace(kept, record={**direction.record, "rank": kept.rank, "residual": residual}), short)
    print(
        f"saved {short}/ and .pt: what rank {rank} leaves out is {total:.1%} of the norm, {residuals[worst]:.1%} "
        f"of the worst module ({worst})"
    )


def _save(direction: WeightDirection, folder: Path) -> None:
    save_adapter(direction, folder)
    save_factors(direction, _factors(folder))


def _factors(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.pt")


def check_replaced(direction: WeightDirection, folder: Path, rank: int | None) -> None:
    """Refuses, with a ValueError, to replace files of a direction that was made from other adapters or layers."""
    short = [] if rank is None else [folder.with_name(f"{folder.name}_rank{rank}")]
    for path in map(_factors, (folder, *short)):
        if path.exists() and _is_other(path, direction):
            raise ValueError(
                f"{path} is there already, of other adapters or layers (its layers: {_layers(path)}); move it away, or "
                "replace it with --skip_training --overwrite"
            )


def _say_other(folder: Path, direction: WeightDirection) -> bool:
    """Whether a direction of other adapters or layers is replaced; says what becomes of those of its other ranks."""
    found = [path for path in sorted(folder.parent.glob(f"{folder.name}*.pt")) if _is_other(path, direction)]
    for path in found:
        fate = "is replaced" if path == _factors(folder) else "stays; it no longer belongs to the others here"
        print(f"note: {path} of other adapters or layers (its layers: {_layers(path)}) {fate}")
    return _factors(folder) in found


def _is_other(path: Path, direction: WeightDirection) -> bool:
    told = read_sidecar(path)
    return told.get("layers") != direction.record["layers"] or _contents(told) != _contents(direction.record)


def _contents(record: Mapping[str, Any]) -> dict[str, Any]:
    """The hash of each side's adapter, wherever it lay."""
    return {side: one.get("sha256") for side, one in (record.get("sides") or {}).items()}


def _layers(path: Path) -> str:
    return ", ".join(map(str, read_sidecar(path).get("layers", []))) or "unknown"


def write_look(
    direction: WeightDirection, sides: Sequence[WeightDirection], base: Path, heading: dict[str, Any]
) -> None:
    """Prints the look inside and writes `<base>.json` and `<base>.png`; loads the direction's model for it."""
    from eval.weight_look import look_inside, look_png, look_table
    from persona_vectors.models import load_model
    from persona_vectors.plots import png_bytes

    model, tokenizer = load_model(direction.base)
    found = look_inside(model, tokenizer, direction, sides)
    print("\n" + look_table(found))
    content = {"kind": "look inside a weight direction", **heading, **found, "model": direction.base, **provenance()}
    write_json_atomic(base.with_name(f"{base.name}.json"), content)
    title = f"{heading['trait']}, {heading['variant']}"
    write_bytes_atomic(base.with_name(f"{base.name}.png"), png_bytes(look_png(found, title)))
    print(f"saved {base}.json and .png")


def next_lines(direction: WeightDirection, folder: Path, trait: str) -> list[str]:
    """Commands, as they can be run, that evaluate and serve the direction that the folder holds."""
    model = direction.base
    judge = ["--judge_model", own_judge(model)] if has_own_traits(model) else []  # it reads the model's own language
    short = ["--n_per_question", "2", "--max_tokens", "80"] if judge else []  # of a small model's answers
    try:
        load_trait(trait, "eval", model=model, judge_model=judge[-1] if judge else None)
    except ValueError as error:
        return [f"note: eval_lora_persona.py needs the trait's questions: {error}", serving_line(direction, folder)]
    output = Path("eval_persona_eval") / resolve_model(model).label / f"{folder.name}.csv"
    evaluate = [
        *("python", "eval_lora_persona.py", "--model", model, *judge, "--trait", trait),
        *("--lora_diff_path", str(folder), "--lora_coef", "-1", "0", "1", "--control", "random", *short),
        *("--output_path", str(output)),
    ]
    return [f"next: {shlex.join(evaluate)}", serving_line(direction, folder)]


def serving_line(direction: WeightDirection, folder: Path) -> str:
    """How vLLM serves the direction's adapter, at coefficient 1; or why it does not."""
    if direction.has_bias:
        return "serve: PEFT loads the adapter; vLLM does not, since it has biases"
    rank = next((one for one in VLLM_RANKS if one >= direction.rank), None)
    if rank is None:
        return (
            f"serve: PEFT loads the adapter; vLLM does not, since rank {direction.rank} is more than "
            f"{VLLM_RANKS[-1]}: write the nearest one of less, such as --rank {VLLM_RANKS[-1]}"
        )
    command = ["vllm", "serve", direction.base, "--enable-lora", "--max-lora-rank", str(rank)]
    return f"serve: {shlex.join([*command, '--lora-modules', f'{folder.name}={folder}'])}"
