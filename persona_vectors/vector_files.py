"""Vector files of every kind that this toolkit reads: which layers they hold, and by which convention.

| file | holds |
|---|---|
| `.pt` | one tensor (n_layers + 1, d_model), row = layer (`persona_vectors/vectors.py`) |
| `.npz` | `layer_<L>_vector` (quick_persona_extract.py), or `layer_<L>` (persona_vector_analysis.py), (d_model,) each |
| `.safetensors` | the same names, or one tensor (n_layers + 1, d_model) |

L is a hidden_states index: the output of block L-1. A file whose numbers count blocks from 0 is read with
`numbering="block"`, which adds 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.blocks import layer_of_block
from persona_vectors.files import read_sidecar
from persona_vectors.vectors import load_vectors

Numbering = Literal["hidden_states", "block"]

SUFFIXES = (".pt", ".npz", ".safetensors")
_NAME = re.compile(r"layer_(\d+)(?:_vector)?")


@dataclass(frozen=True, eq=False)
class VectorFile:
    """A direction at each of some layers.

    Attributes:
        vectors: layer (hidden_states index) -> (d_model,) float32, lowest first; layers whose vector is zero are left
            out.
        numbering: how the file's own numbers were read.
        sidecar: what the `.json` beside it says; {} without one.
    """

    path: Path
    vectors: dict[int, Float[Tensor, " d_model"]]
    numbering: Numbering
    sidecar: dict[str, Any]

    @property
    def layers(self) -> list[int]:
        return list(self.vectors)

    @property
    def d_model(self) -> int:
        return len(next(iter(self.vectors.values())))

    @property
    def line(self) -> str:
        """What was read, in one line."""
        own = "the file's own numbers" if self.numbering == "hidden_states" else "the file's block numbers plus 1"
        first, last = self.layers[0], self.layers[-1]
        several = f"layers {first} to {last}" if len(self.layers) > 1 else f"layer {first}"
        return f"{self.path}: {several} of width {self.d_model}; layer L is the output of block L-1 ({own})"


def read_vector_file(path: str | Path, numbering: Numbering = "hidden_states") -> VectorFile:
    """The vectors of a `.pt`, `.npz` or `.safetensors` file. No code in the file is ever executed.

    Raises:
        ValueError: no such file, another kind of file, no vectors in it, vectors of different widths, NaN, or all zero.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is of another kind"
        raise ValueError(f"vector file {path} {what}; expected a file ending in {', '.join(SUFFIXES)}")
    found = _rows(load_vectors(path)) if path.suffix == ".pt" else _named(path, _arrays(path))
    return vector_file(path, found, numbering)


def vector_file(path: Path, found: Mapping[int, Tensor], numbering: Numbering) -> VectorFile:
    """`found`, by the numbers that stand in the file, as a direction at each of some layers.

    Raises:
        ValueError: vectors of different widths, NaN, or all zero.
    """
    layer_of = layer_of_block if numbering == "block" else int
    widths = {tuple(vector.shape) for vector in found.values()}
    if len(widths) > 1 or any(len(shape) != 1 for shape in widths):
        raise ValueError(f"{path} holds vectors of shapes {sorted(widths)}; expected one width, (d_model,) each")
    bad = [layer for layer, vector in found.items() if not torch.isfinite(vector).all()]
    if bad:
        raise ValueError(f"{path} holds NaN or infinite numbers at layer {bad[0]}; make the vectors again")
    vectors = {layer_of(number): found[number] for number in sorted(found) if found[number].any()}
    if not vectors:
        raise ValueError(f"every vector in {path} is zero; there is no direction in it")
    return VectorFile(path, vectors, numbering, read_sidecar(path))


def _arrays(path: Path) -> Mapping[str, Tensor]:
    """The named arrays of a file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.asarray(arrays[name], dtype=np.float32)) for name in arrays.files}
    except (BadZipFile, SafetensorError, ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged or not plain numbers (nothing in it was executed): {error}") from None


def _named(path: Path, arrays: Mapping[str, Tensor]) -> dict[int, Tensor]:
    matches = {name: match for name in arrays if (match := _NAME.fullmatch(name))}
    if matches:
        return {int(match[1]): arrays[name].float() for name, match in matches.items()}
    if len(arrays) == 1 and (only := next(iter(arrays.values()))).ndim == 2:
        return _rows(only.float())
    raise ValueError(
        f"{path} holds {', '.join(list(arrays)[:4]) or 'nothing'}; expected layer_<L>_vector or layer_<L>, one a "
        "layer, or one array (n_layers + 1, d_model)"
    )


def _rows(vectors: Float[Tensor, "layers d_model"]) -> dict[int, Tensor]:
    return dict(enumerate(vectors))
