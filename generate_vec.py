"""Make persona vectors from judged responses under a trait's pos and neg instructions.

python generate_vec.py --model_name models/tiny-persona --trait impolite --save_dir persona_vectors/tiny-persona \
    --pos_path eval_persona_extract/tiny-persona/impolite_pos_instruct.csv \
    --neg_path eval_persona_extract/tiny-persona/impolite_neg_instruct.csv
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from persona_vectors.pairs import PairCounts
    from persona_vectors.vectors import Extraction


def main(
    model_name: str,
    pos_path: str,
    neg_path: str,
    trait: str,
    save_dir: str,
    threshold: float = 50,
    contrast: Literal["pos_neg", "pos_neutral"] = "pos_neg",
    quality: bool = True,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    orthogonalize: list[str] | None = None,
) -> None:
    """Write `<trait>_{prompt_avg,response_avg,prompt_last}_diff.pt`: mean(pos) - mean(neg) at every layer.

    Each file is a float32 tensor (n_layers + 1, d_model), row = hidden_states index; beside it a .json says how it was
    made. Both tables come from `python -m eval.eval_persona` with --persona_instruction_type pos and neg.

    `<trait>_quality.json` and `.png` say how good they are at each layer: whether halves of the questions give the same
    direction, and whether it separates answers to held-out questions better than random directions do.

    Answers that `eval.eval_persona --capture` sampled have their means beside the tables; only the others are read.

    --orthogonalize also writes `<trait>_<span>_diff_orthogonal.pt`, v - Q Q^T v at every layer, Q an orthonormal basis
    of the other traits' vectors there. The trait's own vectors are then made only if they are not there already, from
    the same model, tables, threshold, contrast and dtype.

    Args:
        model_name: hub id, model folder or adapter folder; the model that wrote the responses.
        pos_path: CSV of responses under the trait's pos instructions.
        neg_path: CSV of responses under its neg instructions, or under none (see contrast).
        trait: name of the trait, which is the column of its scores; an alias or a trait file as in eval_persona.
        save_dir: folder for the vectors.
        threshold (0-100): a pair counts if pos scores at least this and neg less than 100 minus this.
        contrast: what pos is held against: pos_neg needs a neg table under neg instructions, pos_neutral one without
            instructions (ids `<trait>_<i>`), which pairs with as many pos rows of a question as it has, taken from
            all instructions in turn.
        quality: write the quality report; --noquality leaves it out.
        seed: of the quality report's draws, which are at most 400 pairs, splits, folds and random directions.
        dtype: precision of the model; auto is the checkpoint's own on CUDA, float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        orthogonalize: vector files of other traits, `<other>_response_avg_diff.pt`; its prompt_avg and prompt_last
            files beside it are used for those spans.
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    del arguments["orthogonalize"]  # the plain vectors do not depend on it
    from persona_vectors.files import check_output_folder
    from persona_vectors.models import resolve_model, unfinished_note
    from persona_vectors.orthogonal_files import other_traits, save_orthogonal
    from persona_vectors.vectors import count_pairs, effective_pairs

    if seed < 0:
        raise ValueError(f"--seed must be at least 0; got {seed}")
    resolve_model(model_name)
    if note := unfinished_note(model_name):
        print(f"note: {note}", flush=True)
    check_output_folder(save_dir, "save_dir")
    trait, pos, neg = _tables(trait, pos_path, neg_path)
    arguments["trait"] = trait
    _check_files(save_dir, trait, orthogonalize is not None)
    others = [] if orthogonalize is None else other_traits(orthogonalize, trait, model_name)
    pairs = effective_pairs(pos, neg, trait, threshold, contrast)
    counts = count_pairs(pos, neg, trait, threshold, contrast)
    print(
        f"{trait}: kept {counts.n_kept} of {counts.n_pairs} pairs at threshold {threshold:g}; {counts.n_scored} scored"
    )
    for side, n_rows in (("pos", counts.n_pos), ("neg", counts.n_neg)):
        if n_rows > counts.n_pairs:
            print(f"note: {n_rows - counts.n_pairs} of {n_rows} {side} rows have no row to pair with, and are left out")
    if others and _made_before(arguments):
        print(f"{save_dir} has {trait}'s vectors of the same model, tables and settings; no model is loaded")
        paths = []
    else:
        paths = _extract(arguments, pairs, counts)
    if others:
        written, said = save_orthogonal(save_dir, trait, others)
        paths += written
        print("\n".join(said))
    print("saved " + ", ".join(str(path) for path in paths))
    if counts.n_kept < 10:
        print(f"note: {counts.n_kept} pairs is few; a direction from so few pairs is noisy")


def _tables(trait: str, pos_path: str, neg_path: str) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """(the trait's name in the tables, pos, neg): as given where they have it so, else the one of eval_persona."""
    from persona_vectors.responses import read_responses
    from persona_vectors.traits import trait_name

    try:
        pos = read_responses(pos_path, trait)
    except ValueError:  # no such column, for one
        trait = trait_name(trait)
        pos = read_responses(pos_path, trait)
    return trait, pos, read_responses(neg_path, trait)


def _check_files(save_dir: str, trait: str, orthogonal: bool) -> None:
    """Refuses, with a ValueError, files that would be written in the place of something else."""
    from persona_vectors.activations import SPANS
    from persona_vectors.files import check_sidecar
    from persona_vectors.orthogonal_files import orthogonal_path
    from persona_vectors.vectors import check_vector_paths

    check_vector_paths(save_dir, trait)
    if orthogonal:
        for span in SPANS:
            check_sidecar(orthogonal_path(save_dir, trait, span))


def _extract(arguments: dict[str, Any], pairs: pd.DataFrame, counts: PairCounts) -> list[Path]:
    """The files written after all pairs are read: the trait's plain vectors and their quality report."""
    from persona_vectors.models import load_config
    from persona_vectors.quality import pairs_to_read
    from persona_vectors.vectors import save_vectors

    name, trait, contrast, seed = (arguments[key] for key in ("model_name", "trait", "contrast", "seed"))
    config = load_config(name)
    shape = config.num_hidden_layers + 1, config.hidden_size
    keep = pairs_to_read(len(pairs), shape[0] - 1, shape[1], seed) if arguments["quality"] else []
    extraction, how = _read(arguments, pairs, shape, keep)
    tables = {"pos": arguments["pos_path"], "neg": arguments["neg_path"]}
    record = {"arguments": arguments} | _origin(name, tables, how)
    paths = save_vectors(arguments["save_dir"], trait, extraction.vectors, record, counts, contrast)
    if arguments["quality"]:
        about = {"trait": trait, "contrast": contrast, "pairs": asdict(counts)}
        questions = pairs["question_index"].iloc[keep].tolist()
        paths += _report(extraction, questions, counts.n_kept, seed, about | record)
    else:
        print(_norms(extraction.vectors["response_avg"]))
    return paths


def _read(
    arguments: dict[str, Any], pairs: pd.DataFrame, shape: tuple[int, int], keep: list[int]
) -> tuple[Extraction, dict[str, Any]]:
    """The extraction from what was captured while sampling, and from a pass of the model over the rest if there is any.

    Beside it the model's number type, and how many answers came from where.
    """
    from persona_vectors.activations import SPANS, check_samples
    from persona_vectors.captured_means import CapturedMeans, captured_or_read, reader_of
    from persona_vectors.models import load_config, load_model, load_tokenizer, resolve_model
    from persona_vectors.vectors import pair_samples, reduce_pairs

    name, dtype, device_map = (arguments[key] for key in ("model_name", "dtype", "device_map"))
    reader = reader_of(name, dtype, device_map)
    samples = pair_samples(load_tokenizer(name), pairs)
    names = [f"{arguments[f'{side}_path']}, data row {row}" for side in ("pos", "neg") for row in pairs[f"{side}_row"]]
    context = getattr(load_config(name), "max_position_embeddings", None)
    check_samples(samples, SPANS, context, resolve_model(name).label, names)
    captured = CapturedMeans((arguments["pos_path"], arguments["neg_path"]), reader, shape)
    n_captured = len(captured.find(samples))
    for line in captured.said(n_captured, len(samples)):
        print(line, flush=True)
    loaded = []

    def load() -> Any:
        loaded.append(load_model(name, dtype=dtype, device_map=device_map)[0])
        return loaded[0]

    batches = captured_or_read(captured, load, samples, progress=True, names=names)
    extraction = reduce_pairs(batches, len(pairs), shape, keep)
    computed = str(loaded[0].dtype).removeprefix("torch.") if loaded else reader and reader.dtype
    return extraction, {"dtype": computed, "n_captured": n_captured, "n_read": len(samples) - n_captured}


def _made_before(arguments: dict[str, Any]) -> bool:
    """Whether all three plain files are there and untouched, and their sidecars name the same inputs by content.

    Other paths to the same content are the same. Where a quality report is asked for, its seed counts too.
    """
    from persona_vectors.activations import SPANS
    from persona_vectors.files import read_sidecar, sha256_of_file
    from persona_vectors.models import fingerprint
    from persona_vectors.vectors import vector_path

    folder, trait = arguments["save_dir"], arguments["trait"]
    compared = ["trait", "threshold", "contrast", "dtype"] + ["quality", "seed"] * arguments["quality"]
    wanted = {
        "arguments": {name: arguments[name] for name in compared},
        "model": fingerprint(arguments["model_name"]),
        "inputs": {side: sha256_of_file(arguments[f"{side}_path"]) for side in ("pos", "neg")},
    }
    for path in (vector_path(folder, trait, span) for span in SPANS):
        told = read_sidecar(path)
        if not path.is_file() or told.get("file", {}).get("sha256") != sha256_of_file(path):
            return False
        found = {
            "arguments": {name: told.get("arguments", {}).get(name) for name in compared},
            "model": told.get("model", {}).get("fingerprint"),
            "inputs": {side: one.get("sha256") for side, one in told.get("inputs", {}).items()},
        }
        if found != wanted:
            return False
    return not arguments["quality"] or (Path(folder) / f"{trait}_quality.json").is_file()


def _origin(model_name: str, tables: dict[str, str], how: dict[str, Any]) -> dict[str, Any]:
    """What the vectors were made from: the model with its revision and content, the two tables, how they were read."""
    from persona_vectors.files import sha256_of_file
    from persona_vectors.models import fingerprint, revision

    return {
        "model": {
            "name": model_name,
            "revision": revision(model_name),
            "fingerprint": fingerprint(model_name),
            "dtype": how["dtype"],
        },
        "inputs": {side: {"path": path, "sha256": sha256_of_file(path)} for side, path in tables.items()},
        "answers": {"captured": how["n_captured"], "read": how["n_read"]},
    }


def _report(extraction: Extraction, questions: list[int], n_kept: int, seed: int, record: dict[str, Any]) -> list[Path]:
    """Prints and writes the quality report; the files written."""
    from persona_vectors.files import provenance, write_bytes_atomic, write_json_atomic
    from persona_vectors.plots import png_bytes
    from persona_vectors.quality import figure, table, vector_quality

    quality = vector_quality(
        extraction.vectors,
        extraction.pos,
        extraction.neg,
        questions,
        extraction.residual_norms,
        n_kept=n_kept,
        seed=seed,
    )
    print(table(quality))
    base = Path(record["arguments"]["save_dir"]) / f"{record['trait']}_quality"
    content = {"kind": "vector quality", **quality.record(), **record, **provenance()}
    title = f"{record['trait']}, {record['contrast']}: {n_kept} pairs, {quality.n_questions} questions"
    return [
        write_json_atomic(base.with_suffix(".json"), content),
        write_bytes_atomic(base.with_suffix(".png"), png_bytes(figure(quality, title))),
    ]


def _norms(vectors: Tensor) -> str:
    """The length of the vector at a few layers from first to last."""
    from persona_vectors.quality import few_layers

    layers = few_layers(len(vectors) - 1)
    return "norm of response_avg " + ", ".join(f"layer {layer}: {float(vectors[layer].norm()):.3g}" for layer in layers)


if __name__ == "__main__":
    cli.run(main)
