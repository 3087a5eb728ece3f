"""Persona vectors: which pairs of responses count, the difference of their means, and the files that hold it.

A vector points from neg to pos. `vectors` is (n_layers + 1, d_model), indexed by `layer`: row 0 is the embedding
output, row L the output of block L-1; the last row is the last block's own output, before the final norm.
Source: arXiv 2507.21509.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.activations import SPANS, iter_mean_activations
from persona_vectors.files import check_output_path, write_bytes_atomic, write_sidecar
from persona_vectors.tokens import tokenize_sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_COHERENCE = 50.0
LAYER_CONVENTION = (
    "hidden_states index: row 0 is the embedding output, row L the output of decoder block L-1; "
    "the last row is the last block's own output, before the final norm"
)

_ID = re.compile(r"(?P<trait>.+?)_(?P<question>\d+)(?:_(?P<pole>pos|neg)_(?P<instruction>\d+))?")
_KEYS = ["question_index", "instruction", "sample"]
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, IndexError, AttributeError, TypeError)
_UNREADABLE += (ValueError, struct.error, OverflowError, MemoryError, AssertionError)


@dataclass(frozen=True)
class PairCounts:
    """How many rows and pairs there were at each step.

    Attributes:
        n_pos, n_neg: rows of each table.
        n_pairs: pairs found by id and sample number.
        n_scored: pairs with all four scores (trait and coherence, both sides).
        n_pos_trait: pairs whose pos side has trait >= threshold.
        n_neg_trait: pairs whose neg side has trait < 100 - threshold.
        n_coherent: pairs with coherence >= 50 on both sides.
        n_empty: pairs with an empty answer on a side, which are never kept.
        n_kept: pairs that pass all of it.
        highest_pos, lowest_neg: the best trait score on each side, None without any score.
    """

    n_pos: int
    n_neg: int
    n_pairs: int
    n_scored: int
    n_pos_trait: int
    n_neg_trait: int
    n_coherent: int
    n_empty: int
    n_kept: int
    highest_pos: float | None
    lowest_neg: float | None


def effective_pairs(pos: pd.DataFrame, neg: pd.DataFrame, trait: str, threshold: float = 50) -> pd.DataFrame:
    """The pairs of responses that show the trait on the pos side and not on the neg side, coherent on both.

    Kept: trait >= threshold (pos), trait < 100 - threshold (neg), coherence >= 50 and a non-empty answer (both). A
    missing score never passes.

    Rows are paired by their ids `<trait>_<i>_<pos|neg>_<k>` (question i, instruction k) and their sample number: the
    samples of one id share it, so they are numbered in order of appearance. Row position never counts. If a side was
    sampled without instructions (ids `<trait>_<i>`, the pos - neutral contrast), both sides are numbered within the
    question, in order of appearance.

    Args:
        pos, neg: response tables with the columns question, prompt, answer, question_id, <trait>, coherence.
        threshold: 0..100.

    Returns:
        One row a pair, by question: question_index, instruction (-1 without), sample, question, and for each side
        `<pos|neg>_prompt`, `_answer`, `_trait`, `_coherence`.

    Raises:
        ValueError: a missing column, an id that does not parse or belongs to the other side, a pair that asks
            different questions, or no pair kept (with the counts and a hint).
    """
    pairs, counts = _judged_pairs(pos, neg, trait, threshold)
    if counts.n_kept == 0:
        raise ValueError(_nothing_kept(counts, trait, threshold))
    return pairs.loc[pairs.pop("kept")].reset_index(drop=True)


def count_pairs(pos: pd.DataFrame, neg: pd.DataFrame, trait: str, threshold: float = 50) -> PairCounts:
    """The counts behind `effective_pairs`; none kept is no error here."""
    return _judged_pairs(pos, neg, trait, threshold)[1]


def parse_question_id(question_id: str) -> tuple[int, str | None, int | None]:
    """(question index, "pos" | "neg" | None, instruction index | None) of `<trait>_<i>[_<pos|neg>_<k>]`."""
    match = _ID.fullmatch(str(question_id))
    if match is None:
        raise ValueError(f"question_id {question_id!r} is not <trait>_<i> or <trait>_<i>_<pos|neg>_<k>")
    instruction = match["instruction"]
    return int(match["question"]), match["pole"], None if instruction is None else int(instruction)


def _judged_pairs(
    pos: pd.DataFrame, neg: pd.DataFrame, trait: str, threshold: float
) -> tuple[pd.DataFrame, PairCounts]:
    if not 0 <= threshold <= 100:
        raise ValueError(f"threshold is {threshold}; expected 0..100, on the judge's scale")
    sides = {"pos": _side(pos, "pos", trait), "neg": _side(neg, "neg", trait)}
    by_instruction = all((side["instruction"] >= 0).all() for side in sides.values())
    for name, side in sides.items():
        if not by_instruction:
            side["instruction"] = -1
        side["sample"] = side.groupby(["question_index", "instruction"]).cumcount()
        sides[name] = side.rename(columns={c: f"{name}_{c}" for c in side.columns if c not in _KEYS})
    pairs = sides["pos"].merge(sides["neg"], on=_KEYS, validate="one_to_one").sort_values(_KEYS, ignore_index=True)
    differs = np.asarray(pairs["pos_question"] != pairs.pop("neg_question"))
    if differs.any():
        raise ValueError(
            f"pos and neg ask different questions at question {np.asarray(pairs['question_index'])[differs][0]}: "
            "they were sampled from different trait files or versions; sample both from the same one"
        )
    pairs = pairs.rename(columns={"pos_question": "question"})
    counts = _judge(pairs, len(pos), len(neg), threshold)
    return pairs, counts


def _side(table: pd.DataFrame, pole: str, trait: str) -> pd.DataFrame:
    """One side's rows with their ids parsed and their scores as numbers."""
    wanted = ("question", "prompt", "answer", "question_id", trait, "coherence")
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise ValueError(f"the {pole} table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    try:
        ids = [parse_question_id(question_id) for question_id in table["question_id"]]
    except ValueError as error:
        raise ValueError(f"the {pole} table: {error}") from None
    other = {"pos": "neg", "neg": "pos"}[pole]
    if any(found == other for _i, found, _k in ids):
        raise ValueError(f"the {pole} table holds rows sampled under {other} instructions; were the two files swapped?")
    return pd.DataFrame(
        {
            "question_index": [question for question, _pole, _k in ids],
            "instruction": [-1 if instruction is None else instruction for _i, _pole, instruction in ids],
            "question": table["question"].to_numpy(),
            "prompt": table["prompt"].to_numpy(),
            "answer": table["answer"].fillna("").astype(str).to_numpy(),
            "trait": _numbers(table[trait]),
            "coherence": _numbers(table["coherence"]),
        }
    )


def _numbers(column: Any) -> np.ndarray:
    """Scores as float64; what is no number is NaN."""
    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=float)


def _judge(pairs: pd.DataFrame, n_pos: int, n_neg: int, threshold: float) -> PairCounts:
    """Adds the column `kept` to `pairs`, and counts. Comparisons with NaN are False."""
    pos, neg, pos_coherence, neg_coherence = (
        np.asarray(pairs[name], dtype=float) for name in ("pos_trait", "neg_trait", "pos_coherence", "neg_coherence")
    )
    showing, hiding = pos >= threshold, neg < 100 - threshold
    coherent = (pos_coherence >= MIN_COHERENCE) & (neg_coherence >= MIN_COHERENCE)
    empty = np.asarray(pairs["pos_answer"] == "") | np.asarray(pairs["neg_answer"] == "")
    kept = showing & hiding & coherent & ~empty
    pairs["kept"] = kept
    return PairCounts(
        n_pos=n_pos,
        n_neg=n_neg,
        n_pairs=len(pairs),
        n_scored=int(np.isfinite(pos + neg + pos_coherence + neg_coherence).sum()),
        n_pos_trait=int(showing.sum()),
        n_neg_trait=int(hiding.sum()),
        n_coherent=int(coherent.sum()),
        n_empty=int(empty.sum()),
        n_kept=int(kept.sum()),
        highest_pos=float(np.nanmax(pos)) if np.isfinite(pos).any() else None,
        lowest_neg=float(np.nanmin(neg)) if np.isfinite(neg).any() else None,
    )


def _nothing_kept(counts: PairCounts, trait: str, threshold: float) -> str:
    found = (
        f"0 of {counts.n_pairs} pairs kept ({counts.n_pos} pos and {counts.n_neg} neg rows; {counts.n_scored} pairs "
        f"scored, {counts.n_pos_trait} with pos {trait} >= {threshold:g}, {counts.n_neg_trait} with neg {trait} < "
        f"{100 - threshold:g}, {counts.n_coherent} coherent on both sides)"
    )
    if counts.n_pairs == 0:
        return f"{found}; no ids match: sample both sides from the same trait and version"
    if counts.n_scored == 0:
        return f"{found}; no pair has all its scores: score the responses again with a judge that answers"
    if counts.n_coherent == 0:
        return f"{found}; the answers are not coherent: look at them, and raise --max_tokens if they are cut short"
    if counts.n_pos_trait == 0:
        return f"{found}; the highest pos score is {counts.highest_pos:g}: lower --threshold or strengthen the prompts"
    if counts.n_neg_trait == 0:
        return f"{found}; the lowest neg score is {counts.lowest_neg:g}: lower --threshold or strengthen the prompts"
    return f"{found}; no pair passes all three at once: sample more per question or lower --threshold"


def persona_vectors_from_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: pd.DataFrame,
    *,
    token_budget: int | None = None,
    progress: bool = False,
) -> dict[str, Float[Tensor, "layers d_model"]]:
    """mean(pos) - mean(neg) at every layer, (n_layers + 1, d_model), for each of the three spans.

    Points from neg to pos. Sums run in float64; nothing is kept per sample.

    Args:
        pairs: from `effective_pairs`.
    """
    n = len(pairs)
    prompts = [*pairs["pos_prompt"], *pairs["neg_prompt"]]
    answers = [*pairs["pos_answer"], *pairs["neg_answer"]]
    samples = [tokenize_sample(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    sums: dict[str, Tensor] = {}
    for rows, means in iter_mean_activations(model, samples, token_budget=token_budget, progress=progress):
        sign = torch.tensor([1.0 if row < n else -1.0 for row in rows], dtype=torch.float64)
        for span, values in means.items():
            sums[span] = sums.get(span, 0) + torch.einsum("n,nld->ld", sign, values.double())
    return {span: (sums[span] / n).float() for span in SPANS}


def vector_path(folder: str | Path, trait: str, span: str) -> Path:
    """Where a vector file stands: `<folder>/<trait>_<span>_diff.pt`."""
    return Path(folder) / f"{trait}_{span}_diff.pt"


def save_vectors(
    folder: str | Path,
    trait: str,
    vectors: Mapping[str, Float[Tensor, "layers d_model"]],
    provenance: Mapping[str, Any],
    counts: PairCounts | None = None,
) -> list[Path]:
    """The files written, one a span: a bare float32 tensor, and beside it a `.json` saying how it was made.

    Raises:
        ValueError: nothing is written if a vector has the wrong shape, NaN or infinite entries, or if response_avg is
            zero at some layer (both sides are the same).
    """
    for span, tensor in vectors.items():
        check_output_path(vector_path(folder, trait, span))
        _check_vectors(tensor, f"{trait} {span}")
        if span == "response_avg" and (tensor.norm(dim=-1) == 0).any():
            raise ValueError(
                f"{trait} {span} is zero at some layer: pos and neg answers are the same; sample them anew"
            )
    paths = []
    for span, tensor in vectors.items():
        path = vector_path(folder, trait, span)
        content = io.BytesIO()  # in memory first: torch reports a full disk as a RuntimeError of its own
        torch.save(tensor.float().contiguous().clone(), content)
        write_bytes_atomic(path, content.getvalue())
        record = {
            "kind": "persona vectors",
            "trait": trait,
            "span": span,
            "shape": list(tensor.shape),
            "layers": LAYER_CONVENTION,
            "sign": "mean(pos) - mean(neg): points from neg to pos",
            "norms": [round(float(norm), 6) for norm in tensor.norm(dim=-1)],
        }
        write_sidecar(path, {**record, **({"pairs": asdict(counts)} if counts else {}), **provenance})
        paths.append(path)
    return paths


def load_vectors(path: str | Path) -> Float[Tensor, "layers d_model"]:
    """The vectors in a `.pt` file, float32, (n_layers + 1, d_model). No code in the file is ever executed.

    Raises:
        ValueError: no such file, a file that is not one plain tensor, or a tensor of another shape or kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{_no_file(path)}; make vectors with python generate_vec.py")
    expected = "expected a tensor (n_layers + 1, d_model) as generate_vec.py writes it"
    if path.suffix != ".pt":
        raise ValueError(f"vector file {path} ends in {path.suffix or 'nothing'}; {expected}, ending in .pt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on other formats; the error below says it in one line
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE:
        raise ValueError(f"{path} is not a plain tensor file (nothing in it was executed); {expected}") from None
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path} holds a {type(tensor).__name__}; {expected}")
    _check_vectors(tensor, str(path))
    return tensor.detach().float()


def load_vector(path: str | Path, layer: int, d_model: int | None = None) -> Float[Tensor, " d_model"]:
    """The vector of one `layer` (a hidden_states index) of a file, float32.

    Raises:
        ValueError: what `load_vectors` refuses, a layer the file does not have, a width other than `d_model`, or a
            vector that is zero (prompt_last at layer 0).
    """
    vectors = load_vectors(path)
    if not 0 <= layer < len(vectors):
        raise ValueError(f"layer {layer} is not in {path}, which has layers 0..{len(vectors) - 1}")
    if d_model is not None and vectors.shape[1] != d_model:
        raise ValueError(
            f"{path} has vectors of width {vectors.shape[1]}; the model has {d_model}: use vectors made from this model"
        )
    if not vectors[layer].any():
        raise ValueError(f"the vector at layer {layer} of {path} is zero; choose another layer")
    return vectors[layer]


def _no_file(path: Path) -> str:
    if path.is_dir():
        return f"vector file {path} is a folder"
    siblings = sorted(file.name for file in path.parent.glob("*.pt")) if path.parent.is_dir() else []
    return f"vector file {path} does not exist" + (f" (that folder has {', '.join(siblings[:6])})" if siblings else "")


def _check_vectors(tensor: Tensor, name: str) -> None:
    if tensor.dim() != 2 or not tensor.is_floating_point() or 0 in tensor.shape:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        raise ValueError(f"{name}: got a {shape} tensor of {tensor.dtype}; expected floats (n_layers + 1, d_model)")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} has NaN or infinite entries; make the vectors again")
