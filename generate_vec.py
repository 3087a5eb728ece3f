"""Make persona vectors from judged responses under a trait's pos and neg instructions.

python generate_vec.py --model_name models/tiny-persona --trait impolite --save_dir persona_vectors/tiny-persona \
    --pos_path eval_persona_extract/tiny-persona/impolite_pos_instruct.csv \
    --neg_path eval_persona_extract/tiny-persona/impolite_neg_instruct.csv
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from torch import Tensor


def main(
    model_name: str,
    pos_path: str,
    neg_path: str,
    trait: str,
    save_dir: str,
    threshold: float = 50,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
) -> None:
    """Write `<trait>_{prompt_avg,response_avg,prompt_last}_diff.pt`: mean(pos) - mean(neg) at every layer.

    Each file is a float32 tensor (n_layers + 1, d_model), row = hidden_states index; beside it a .json says how it was
    made. Both tables come from `python -m eval.eval_persona` with --persona_instruction_type pos and neg.

    Args:
        model_name: hub id, model folder or adapter folder; the model that wrote the responses.
        pos_path: CSV of responses under the trait's pos instructions.
        neg_path: CSV of responses under its neg instructions (or under none).
        trait: name of the trait, which is the column of its scores.
        save_dir: folder for the vectors.
        threshold (0-100): a pair counts if pos scores at least this and neg less than 100 minus this.
        dtype: precision of the model; auto is the checkpoint's own on CUDA, float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
    """
    from persona_vectors.models import load_model, resolve_model
    from persona_vectors.responses import read_responses
    from persona_vectors.vectors import count_pairs, effective_pairs, persona_vectors_from_pairs, save_vectors

    resolve_model(model_name)
    _check_folder(save_dir)
    pos, neg = read_responses(pos_path, trait), read_responses(neg_path, trait)
    pairs = effective_pairs(pos, neg, trait, threshold)
    counts = count_pairs(pos, neg, trait, threshold)
    print(
        f"{trait}: kept {counts.n_kept} of {counts.n_pairs} pairs at threshold {threshold:g}; {counts.n_scored} scored"
    )

    model, tokenizer = load_model(model_name, dtype=dtype, device_map=device_map)
    vectors = persona_vectors_from_pairs(model, tokenizer, pairs, progress=True)
    arguments = {"model_name": model_name, "pos_path": pos_path, "neg_path": neg_path, "trait": trait}
    arguments |= {"save_dir": save_dir, "threshold": threshold, "dtype": dtype, "device_map": device_map}
    record = {"arguments": arguments} | _origin(model_name, model, {"pos": pos_path, "neg": neg_path})
    paths = save_vectors(save_dir, trait, vectors, record, counts)
    print(_norms(vectors["response_avg"]))
    print("saved " + ", ".join(str(path) for path in paths))
    if counts.n_kept < 10:
        print(f"note: {counts.n_kept} pairs is few; a direction from so few pairs is noisy")


def _check_folder(save_dir: str) -> None:
    """A ValueError if vectors cannot be written there; nothing is created."""
    ancestor = next(path for path in (Path(save_dir).absolute(), *Path(save_dir).absolute().parents) if path.exists())
    if not ancestor.is_dir():
        raise ValueError(f"save_dir {save_dir} is or lies under {ancestor}, a file; give a folder")


def _origin(model_name: str, model: Any, tables: dict[str, str]) -> dict[str, Any]:
    """What the vectors were made from: the model with its revision and content, and the two tables."""
    from persona_vectors.files import sha256_of_file
    from persona_vectors.models import fingerprint

    return {
        "model": {
            "name": model_name,
            "revision": getattr(model.config, "_commit_hash", None),
            "fingerprint": fingerprint(model_name),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "inputs": {side: {"path": path, "sha256": sha256_of_file(path)} for side, path in tables.items()},
    }


def _norms(vectors: Tensor) -> str:
    """The length of the vector at a few layers from first to last."""
    last = len(vectors) - 1
    layers = sorted({0, last // 4, last // 2, 3 * last // 4, last})
    return "norm of response_avg " + ", ".join(f"layer {layer}: {float(vectors[layer].norm()):.3g}" for layer in layers)


if __name__ == "__main__":
    cli.run(main)
