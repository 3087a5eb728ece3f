"""What a quick extraction says: a line a layer, sentences, and the files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from eval.quick_extract import Asked, Plan, Reading
from persona_vectors.files import (
    read_sidecar,
    write_bytes_atomic,
    write_csv_atomic,
    write_json_atomic,
    write_sidecar,
)
from persona_vectors.models import fingerprint
from persona_vectors.quality import N_RANDOM
from persona_vectors.separation import HOW, LayerSeparation, Separations, band
from persona_vectors.vector_files import read_vector_file
from persona_vectors.vectors import LAYER_CONVENTION, SIGNS


def head(reading: Reading, found: Separations) -> str:
    """What the numbers rest on, in one line."""
    n_instructions = reading.pairs["instruction"].nunique()
    n_pairs = len(reading.tables["pos"])
    kept = "" if reading.counts is None else f" of {n_pairs} kept by the judge"
    return (
        f"{reading.name}: {found.n_questions} questions under {n_instructions} pairs of instructions, {found.n_pairs} "
        f"pairs of answers{kept}; AUC and separation held out by question; random: 95th percentile of {N_RANDOM} "
        "random directions"
    )


def layer_lines(found: Separations) -> list[str]:
    """A line a layer: AUC and separation as published, held out, with what stands beside them."""
    lines = []
    for one in found.layers:
        best = "  <- Best layer" if one is found.best and len(found.layers) > 1 else ""
        lines.append(f"Layer {one.layer}: {layer_numbers(one)}{best}")
    return lines


def layer_numbers(one: LayerSeparation) -> str:
    """AUC and separation with what stands beside them."""
    if one.auc is None:
        return f"no AUC, norm {one.quality.norm:.3g}"
    separation, random = (f"{value:.2f}" if value is not None else "none" for value in (one.separation, one.random_95))
    return (
        f"AUC = {one.auc.mean:.3f}, Separation = {separation}  (AUC [{one.auc.low:.2f}, {one.auc.high:.2f}], random "
        f"{one.quality.auc_random_95:.3f}, in sample {one.quality.auc_in_sample:.3f}; separation random {random})"
    )


def sentences(found: Separations) -> list[str]:
    """What was found, and how far to trust it."""
    if found.best is None:
        return [f"no {name}: {why}" for name, why in found.missing.items()]
    said = [verdict(found.best, len(found.layers)), chance_sentence(found.best)]
    if found.chosen_auc is not None and len(found.layers) > 1:
        said.append(
            f"the best of {len(found.layers)} layers is flattered by its choice; chosen for each fold on the others "
            f"alone, it has AUC {found.chosen_auc:.3f}"
        )
    own = found.best.quality
    if own.split_half is not None and own.split_half_corrected is not None:
        said.append(
            f"directions from halves of the questions have a cosine of {own.split_half:.2f}; from as many as all, "
            f"{own.split_half_corrected:.2f} (Spearman-Brown)"
        )
    return said + [f"no {name}: {why}" for name, why in found.missing.items()]


def verdict(best: LayerSeparation, n_layers: int) -> str:
    """The published band, of the held-out AUC, or why it means nothing here."""
    assert best.auc is not None
    where = f"layer {best.layer}" + (", the best" if n_layers > 1 else "")
    value = f"{where}: held-out AUC {best.auc.text(2)}"
    if best.beats_random:
        return f"{value}, {band(best.auc.mean)}"
    plain = (
        f"{value}; random directions reach {best.quality.auc_random_95:.2f} at their 95th percentile, which is not "
        f"below that interval, so the band ({band(best.auc.mean)})"
    )
    if best.separation is None or best.random_95 is None or best.separation <= best.random_95:
        return f"{plain} means nothing: the vector separates no better than a random direction may"
    return (
        f"{plain} means little. Separation tells more: {best.separation:.1f}, above the random directions' 95th "
        f"percentile of {best.random_95:.1f}"
    )


def chance_sentence(best: LayerSeparation) -> str:
    """What labels that mean nothing give."""
    reach = "no more than chance" if (best.p or 1) > 0.05 else "more than chance"
    return (
        f"with pos and neg swapped at random within pairs the AUC is {best.permuted_mean:.2f} on average, "
        f"{best.permuted_95:.2f} at its 95th percentile (p {best.p:.3f}, {reach})"
    )


def write_vectors_npz(path: Path, vectors: Mapping[int, Float[Tensor | np.ndarray, " d_model"]]) -> Path:
    """The published file: `layer_<L>_vector` (d_model,) float32 and `layer_<L>_vector_norm`."""
    arrays: dict[str, np.ndarray] = {}
    for layer, vector in vectors.items():
        own = np.asarray(vector, dtype=np.float32)
        arrays[f"layer_{layer}_vector"] = own
        arrays[f"layer_{layer}_vector_norm"] = np.asarray(np.linalg.norm(own.astype(np.float64)), dtype=np.float32)
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    return write_bytes_atomic(path, content.getvalue())


def write_files(asked: Asked, work: Plan, reading: Reading, found: Separations) -> tuple[list[Path], list[str]]:
    """The vectors with their sidecar, the analysis by layer, and the answers: (the files written, what to say).

    A calibration of the file that is replaced stays where the vectors are the same.

    Raises:
        ValueError: a vector that is zero: both sides are the same.
    """
    base = reading.plan.base
    zero = [one.layer for one in found.layers if one.quality.norm == 0]
    if zero:
        raise ValueError(f"{reading.name}: the vector at layer {zero[0]} is zero: pos and neg answers are the same")
    means = (reading.pos.double().mean(0) - reading.neg.double().mean(0)).float()  # (layers, d_model)
    by_layer = dict(zip(work.layers, means, strict=True))
    kept, notes = _calibration(_beside(base, "_vectors.npz"), by_layer)
    vectors = write_vectors_npz(_beside(base, "_vectors.npz"), by_layer)
    told = record(asked, work, reading, found)
    write_sidecar(vectors, told | kept)
    analysis = write_json_atomic(
        _beside(base, "_analysis.json"), {f"layer_{one.layer}": one.record() for one in found.layers}
    )
    both = pd.concat([table.assign(pole=pole) for pole, table in reading.tables.items()], ignore_index=True)
    answers = write_csv_atomic(both, _beside(base, "_answers.csv"))
    write_sidecar(answers, told | {"kind": "answers of a quick extraction"})
    return [vectors, analysis, answers], notes


def _calibration(path: Path, vectors: Mapping[int, Float[Tensor, " d_model"]]) -> tuple[dict[str, Any], list[str]]:
    """({"calibration": what the sidecar of the file has}, nothing to say), or ({}, why it is dropped).

    The grouping of a batch moves the last digits, so vectors are the same up to rounding.
    """
    told = read_sidecar(path).get("calibration") if path.is_file() else None
    if told is None:
        return {}, []
    before = read_vector_file(path).vectors
    same = [
        layer
        for layer in (one["layer"] for one in told["layers"])
        if layer in vectors
        and layer in before
        and (vectors[layer] - before[layer]).norm() < 1e-4 * before[layer].norm()
    ]
    if len(same) == len(told["layers"]):
        return {"calibration": told}, []
    return {}, [f"{path.name}: the vectors are others than those that were calibrated; the calibration is dropped"]


def _beside(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)


def record(asked: Asked, work: Plan, reading: Reading, found: Separations) -> dict[str, Any]:
    """What the sidecar says: how the vectors were made, from what, and how good they are."""
    trait = reading.plan.trait
    return {
        "kind": "persona vectors",
        "trait": trait.name,
        "method": "mean_diff",
        "span": "response_avg",
        "contrast": "pos_neg",
        "sign": SIGNS["pos_neg"],
        "layers": LAYER_CONVENTION,
        "layer_numbers": work.layers,
        "norms": {str(one.layer): round(one.quality.norm, 6) for one in found.layers},
        "arguments": asdict(asked),
        "model": {
            "name": asked.model_name,
            "revision": getattr(work.engine.model.config, "_commit_hash", None),
            "fingerprint": fingerprint(asked.model_name),
            "dtype": str(work.engine.model.dtype).removeprefix("torch."),
        },
        "engine": work.engine.label,
        "pairs": {"n_asked": len(reading.tables["pos"]), "n_read": found.n_pairs, "n_questions": found.n_questions}
        | ({} if reading.counts is None else asdict(reading.counts)),
        "trait_files": trait.source,
        "trait_hash": trait.hash,
        "prompts": {
            "instruction": [one.model_dump() for one in trait.instruction],
            "questions": reading.plan.questions,
        },
        "best_layer": found.best and found.best.layer,
        "best_layer_auc_nested": found.chosen_auc,
        "said": sentences(found),
        "how": HOW,
    }


def table_cells(found: Separations) -> tuple[Sequence[str], list[list[str]]]:
    """(headings, a row a layer) for the page."""
    columns = ["layer", "AUC, held out [95%]", "random: mean, 95th", "swapped labels: mean, 95th, p"]
    columns += ["separation (random 95th)", "split-half, corrected", "norm (/ answer)", "AUC in sample"]
    rows = []
    for one in found.layers:
        own = one.quality
        rows.append(
            [
                f"{one.layer}{' (best)' if one is found.best else ''}",
                "none" if one.auc is None else one.auc.text(3),
                _some(own.auc_random, own.auc_random_95),
                _some(one.permuted_mean, one.permuted_95, one.p),
                f"{_some(one.separation)} ({_some(one.random_95)})",
                _some(own.split_half_corrected),
                f"{own.norm:.3g} ({_some(own.relative_norm)})",
                _some(own.auc_in_sample),
            ]
        )
    return columns, rows


def _some(*values: float | None) -> str:
    return ", ".join("-" if value is None else f"{value:.3f}" for value in values)
