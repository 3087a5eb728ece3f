"""Persona vectors: the difference of the means of pairs of responses, and the files that hold it.

A vector points from neg to pos. `vectors` is (n_layers + 1, d_model), indexed by `layer`: row 0 is the embedding
output, row L the output of block L-1; the last row is the last block's own output, before the final norm.
Source: arXiv 2507.21509.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.activations import SPANS, Means, iter_mean_activations
from persona_vectors.blocks import hidden_size, num_layers
from persona_vectors.files import check_output_path, check_sidecar, write_bytes_atomic, write_sidecar
from persona_vectors.pairs import Contrast, PairCounts, count_pairs, effective_pairs, parse_question_id
from persona_vectors.tokens import TokenizedSample, tokenize_sample

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYER_CONVENTION = (
    "hidden_states index: row 0 is the embedding output, row L the output of decoder block L-1; "
    "the last row is the last block's own output, before the final norm"
)

SIGNS: dict[Contrast, str] = {
    "pos_neg": "mean(pos) - mean(neg): points from neg to pos",
    "pos_neutral": "mean(pos) - mean(neutral): points from neutral to pos",
}
__all__ = [  # pairs are a vector's first step, so their names stand here too
    "PairCounts",
    "count_pairs",
    "effective_pairs",
    "parse_question_id",
    "Extraction",
    "extract_pairs",
    "pair_samples",
    "reduce_pairs",
    "persona_vectors_from_pairs",
    "vector_path",
    "check_vector_paths",
    "save_vectors",
    "write_vectors",
    "load_vectors",
    "load_vector",
    "load_plain",
]

_EXPECTED = "expected a tensor (n_layers + 1, d_model) as generate_vec.py writes it"
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, IndexError, AttributeError, TypeError)
_UNREADABLE += (ValueError, struct.error, OverflowError, MemoryError, AssertionError)


@dataclass(frozen=True)
class Extraction:
    """What one pass over the answers gives.

    Attributes:
        vectors: span -> mean(pos) - mean(neg), (n_layers + 1, d_model), of all pairs.
        pos, neg: response_avg of the pairs that were to be kept, in that order: (n_kept, n_layers + 1, d_model).
        residual_norms: (n_layers + 1,): mean norm of response_avg, over all pairs and both sides.
    """

    vectors: dict[str, Float[Tensor, "layers d_model"]]
    pos: Float[Tensor, "n_kept layers d_model"]
    neg: Float[Tensor, "n_kept layers d_model"]
    residual_norms: Float[Tensor, " layers"]


def extract_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: pd.DataFrame,
    *,
    keep: Sequence[int] = (),
    token_budget: int | None = None,
    progress: bool = False,
) -> Extraction:
    """The vectors of the pairs, (n_layers + 1, d_model) for each of the three spans, and what stands behind them.

    Vectors point from neg to pos. Sums run in float64. Each answer is read once; nothing of a sample is kept but the
    response_avg of the pairs named in `keep`.

    Args:
        pairs: from `effective_pairs`.
        keep: row numbers of `pairs`, each once.
    """
    samples = pair_samples(tokenizer, pairs)
    batches = iter_mean_activations(model, samples, token_budget=token_budget, progress=progress)
    return reduce_pairs(batches, len(pairs), (num_layers(model) + 1, hidden_size(model)), keep)


def pair_samples(tokenizer: PreTrainedTokenizerBase, pairs: pd.DataFrame) -> list[TokenizedSample]:
    """Each pair's pos answer with its prompt, then each pair's neg answer: twice as many samples as pairs."""
    prompts = [*pairs["pos_prompt"], *pairs["neg_prompt"]]
    answers = [*pairs["pos_answer"], *pairs["neg_answer"]]
    return [tokenize_sample(tokenizer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def reduce_pairs(
    batches: Iterable[tuple[list[int], Means]], n_pairs: int, shape: tuple[int, int], keep: Sequence[int] = ()
) -> Extraction:
    """What `extract_pairs` says, of the means of `pair_samples`, each row once and in any order.

    Args:
        shape: (n_layers + 1, d_model) of the model.
    """
    place = {row + side: i + len(keep) * bool(side) for side in (0, n_pairs) for i, row in enumerate(keep)}
    kept = torch.empty(2 * len(keep), *shape)
    sums: dict[str, Tensor] = {}
    norms = torch.zeros(shape[0], dtype=torch.float64)
    for rows, means in batches:
        sign = torch.tensor([1.0 if row < n_pairs else -1.0 for row in rows], dtype=torch.float64)
        for span, values in means.items():
            sums[span] = sums.get(span, 0) + torch.einsum("n,nld->ld", sign, values.double())
        norms += means["response_avg"].norm(dim=-1).double().sum(0)
        wanted = [i for i, row in enumerate(rows) if row in place]
        kept[[place[rows[i]] for i in wanted]] = means["response_avg"][wanted]
    vectors = {span: (sums[span] / n_pairs).float() for span in SPANS}
    return Extraction(vectors, kept[: len(keep)], kept[len(keep) :], (norms / (2 * n_pairs)).float())


def persona_vectors_from_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: pd.DataFrame,
    *,
    token_budget: int | None = None,
    progress: bool = False,
) -> dict[str, Float[Tensor, "layers d_model"]]:
    """The vectors of `extract_pairs` alone: nothing is kept per sample."""
    return extract_pairs(model, tokenizer, pairs, token_budget=token_budget, progress=progress).vectors


def vector_path(folder: str | Path, trait: str, span: str) -> Path:
    """Where a vector file stands: `<folder>/<trait>_<span>_diff.pt`."""
    return Path(folder) / f"{trait}_{span}_diff.pt"


def check_vector_paths(folder: str | Path, trait: str, spans: Iterable[str] = SPANS) -> None:
    """Returns if the trait's vectors may be written there, with their sidecars.

    Raises:
        ValueError: a path that is a folder or lies under a file, or a `.json` beside it that is no sidecar.
        OSError: a folder that may not be written to.
    """
    for span in spans:
        check_sidecar(check_output_path(vector_path(folder, trait, span)))


def save_vectors(
    folder: str | Path,
    trait: str,
    vectors: Mapping[str, Float[Tensor, "layers d_model"]],
    provenance: Mapping[str, Any],
    counts: PairCounts | None = None,
    contrast: Contrast = "pos_neg",
) -> list[Path]:
    """The files written, one a span: a bare float32 tensor, and beside it a `.json` saying how it was made.

    Raises:
        ValueError: nothing is written if a vector has the wrong shape, NaN or infinite entries, if response_avg is
            zero at some layer (both sides are the same), or if `check_vector_paths` refuses.
    """
    check_vector_paths(folder, trait, vectors)
    for span, tensor in vectors.items():
        _check_vectors(tensor, f"{trait} {span}")
        if span == "response_avg" and (tensor.norm(dim=-1) == 0).any():
            raise ValueError(
                f"{trait} {span} is zero at some layer: pos and neg answers are the same; sample them anew"
            )
    paths = []
    for span, tensor in vectors.items():
        record = {
            "kind": "persona vectors",
            "trait": trait,
            "span": span,
            "contrast": contrast,
            "sign": SIGNS[contrast],
            **({"pairs": asdict(counts)} if counts else {}),
            **provenance,
        }
        path = write_vectors(vector_path(folder, trait, span), tensor, record)
        paths.append(path)
    return paths


def write_vectors(path: Path, tensor: Float[Tensor, "layers d_model"], record: Mapping[str, Any]) -> Path:
    """The path, now a bare float32 tensor, with a `.json` beside it: `record`, shape, layers and norms.

    Raises:
        ValueError: the `.json` is there and is no sidecar; nothing is written.
    """
    check_sidecar(path)
    content = io.BytesIO()  # in memory first: torch reports a full disk as a RuntimeError of its own
    torch.save(tensor.float().contiguous().clone(), content)
    write_bytes_atomic(path, content.getvalue())
    norms = [round(float(norm), 6) for norm in tensor.norm(dim=-1)]
    write_sidecar(path, {**record, "shape": list(tensor.shape), "layers": LAYER_CONVENTION, "norms": norms})
    return path


def load_vectors(path: str | Path) -> Float[Tensor, "layers d_model"]:
    """The vectors in a `.pt` file, float32, (n_layers + 1, d_model). No code in the file is ever executed.

    Raises:
        ValueError: no such file, a file that is not one plain tensor, or a tensor of another shape or kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{_no_file(path)}; make vectors with python generate_vec.py")
    if path.suffix != ".pt":
        raise ValueError(f"vector file {path} ends in {path.suffix or 'nothing'}; {_EXPECTED}, ending in .pt")
    tensor = load_plain(path, _EXPECTED)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path} holds a {type(tensor).__name__}; {_EXPECTED}")
    _check_vectors(tensor, str(path))
    return tensor.detach().float()


def load_plain(path: str | Path, expected: str) -> Any:
    """What a file of torch.save holds: tensors, numbers, text, lists and dictionaries. No code in it is ever executed.

    Raises:
        ValueError: anything else, saying what was `expected`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on other formats; the error below says it in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it could not be opened, and says which; a damaged file gives an OSError without a name
        raise ValueError(f"{path} is not a plain tensor file (nothing in it was executed); {expected}") from None


def load_vector(
    path: str | Path, layer: int, d_model: int | None = None, n_layers: int | None = None
) -> Float[Tensor, " d_model"]:
    """The vector of one `layer` (a hidden_states index) of a file, float32.

    Raises:
        ValueError: what `load_vectors` refuses, a layer the file does not have, a width other than `d_model`, rows for
            another number of layers than `n_layers`, or a vector that is zero (prompt_last at layer 0).
    """
    vectors = load_vectors(path)
    if not 0 <= layer < len(vectors):
        raise ValueError(f"layer {layer} is not in {path}, which has layers 0..{len(vectors) - 1}")
    if d_model is not None and vectors.shape[1] != d_model:
        raise ValueError(
            f"{path} has vectors of width {vectors.shape[1]}; the model has {d_model}: use vectors made from this model"
        )
    if n_layers is not None and len(vectors) != n_layers + 1:
        raise ValueError(
            f"{path} has {len(vectors)} rows; a model of {n_layers} layers has {n_layers + 1}: use vectors made from it"
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
