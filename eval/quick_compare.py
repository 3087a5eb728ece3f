"""What the quick extractions in a folder say of one another: best layers by trait and model, and cosines of vectors.

Traits of one model are compared at the layer that is best for most of them; models each at its own best layer, where
their vectors have one width. Beside each cosine stands what random directions of that width give.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persona_vectors.files import read_sidecar
from persona_vectors.projection import cosine
from persona_vectors.separation import band
from persona_vectors.statistics import random_directions
from persona_vectors.vector_files import VectorFile, read_vector_file

N_RANDOM = 400


@dataclass(frozen=True, eq=False)
class Extracted:
    """One quick extraction as its files hold it.

    Attributes:
        best_layer: None where no AUC could be had.
        rows: layer -> what `_analysis.json` says of it.
    """

    model: str
    trait: str
    path: Path
    file: VectorFile
    rows: dict[int, dict[str, Any]]
    best_layer: int | None

    @property
    def best(self) -> dict[str, Any]:
        return {} if self.best_layer is None else self.rows[self.best_layer]

    @property
    def beats_random(self) -> bool:
        """As `LayerSeparation.beats_random`."""
        low, random = self.best.get("auc_low"), self.best.get("auc_random_95")
        return low is not None and random is not None and low > random

    def table_row(self) -> dict[str, Any]:
        """The line of the table: everything of the best layer, held out, beside its controls."""
        own, auc = self.best, self.best.get("auc")
        beside = "" if self.beats_random else ", not surely above random directions"
        return {
            "model": self.model,
            "trait": self.trait,
            "layer": self.best_layer,
            "auc": auc,
            "auc_low": own.get("auc_low"),
            "auc_high": own.get("auc_high"),
            "auc_random_95": own.get("auc_random_95"),
            "separation": own.get("separation"),
            "separation_random_95": own.get("separation_random_95"),
            "split_half": own.get("split_half_spearman_brown"),
            "p": own.get("auc_p"),
            "band": "none" if auc is None else f"{band(auc)}{beside}",
        }


@dataclass(frozen=True)
class Cosines:
    """Cosines among vectors; `chance` is the 95th percentile of |cosine| between random directions of their width."""

    title: str
    names: tuple[str, ...]
    matrix: np.ndarray
    chance: float


def read_folder(folder: str | Path) -> list[Extracted]:
    """Every quick extraction of a folder, by model and trait; what `--methods` wrote beside one is none of its own.

    Raises:
        ValueError: no folder, none in it, or files that do not belong together.
    """
    folder = Path(folder)
    paths = [path for path in sorted(folder.glob("*_vectors.npz")) if _is_extraction(path)]
    if not paths:
        what = "has no *_vectors.npz" if folder.is_dir() else "does not exist"
        raise ValueError(f"{folder} {what}; run python quick_persona_extract.py with --save_dir {folder} first")
    return sorted((_read(path) for path in paths), key=lambda one: (one.model, one.trait))


def _is_extraction(path: Path) -> bool:
    return read_sidecar(path).get("method", "mean_diff") == "mean_diff"


def _read(path: Path) -> Extracted:
    file = read_vector_file(path)
    analysis = path.with_name(f"{path.name.removesuffix('_vectors.npz')}_analysis.json")
    told = file.sidecar
    if not told or not analysis.is_file():
        missing = analysis if told else path.with_suffix(".json")
        raise ValueError(f"{path} has no {missing.name} beside it; extract it again")
    found = json.loads(analysis.read_text(encoding="utf-8"))
    rows = {int(name.removeprefix("layer_")): row for name, row in found.items()}
    if not set(file.layers) <= set(rows):
        raise ValueError(f"{analysis} has layers {sorted(rows)} and {path} {file.layers}; extract it again")
    return Extracted(told["model"]["name"], told["trait"], path, file, rows, told["best_layer"])


def comparisons(found: Sequence[Extracted]) -> list[Cosines]:
    """Cosines between the traits of each model, and between the models of each trait; only where there are two."""
    compared = []
    for model in dict.fromkeys(one.model for one in found):
        own = [one for one in found if one.model == model]
        layer = _common_layer(own)
        if len(own) > 1 and layer is not None:
            names = tuple(one.trait for one in own)
            compared.append(_cosines(f"{model}, layer {layer}: traits", names, [o.file.vectors[layer] for o in own]))
    for trait in dict.fromkeys(one.trait for one in found):
        own = [one for one in found if one.trait == trait and one.best_layer is not None]
        if len(own) > 1 and len({one.file.d_model for one in own}) == 1:
            names = tuple(f"{one.model}, layer {one.best_layer}" for one in own)
            vectors = [one.file.vectors[one.best_layer] for one in own if one.best_layer is not None]
            compared.append(_cosines(f"{trait}: models, each at its best layer", names, vectors))
    return compared


def _common_layer(own: Sequence[Extracted]) -> int | None:
    """Of the layers that all have, the one that is best for most; of equals the highest."""
    shared = set.intersection(*(set(one.file.layers) for one in own))
    votes = Counter(one.best_layer for one in own if one.best_layer in shared)
    return max(shared, key=lambda layer: (votes[layer], layer)) if shared else None


def _cosines(title: str, names: tuple[str, ...], vectors: Sequence[torch.Tensor]) -> Cosines:
    matrix = np.array([[float(cosine(a[None], b)[0]) for b in vectors] for a in vectors])
    drawn = random_directions(N_RANDOM, len(vectors[0]))
    chance = (drawn[: N_RANDOM // 2] * drawn[N_RANDOM // 2 :]).sum(1).abs().numpy()
    return Cosines(title, names, matrix, float(np.quantile(chance, 0.95)))
