"""Vector files of every kind give the same layers, and damaged ones say what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from persona_vectors.vector_files import read_vector_file


@pytest.fixture
def vectors() -> torch.Tensor:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows[0] = 0.0
    return rows


def _write(kind: str, folder: Path, vectors: torch.Tensor) -> Path:
    path = folder / f"kind.{kind.split()[0]}"
    if kind == "pt":
        torch.save(vectors, path)
    elif kind == "npz quick":
        arrays = {f"layer_{layer}_vector": row.numpy() for layer, row in enumerate(vectors)}
        norms = {f"layer_{layer}_vector_norm": np.float32(row.norm()) for layer, row in enumerate(vectors)}
        np.savez(path, allow_pickle=False, **arrays, **norms)
    elif kind == "npz analysis":
        np.savez(path, allow_pickle=False, **{f"layer_{layer}": row.numpy() for layer, row in enumerate(vectors)})
    elif kind == "safetensors named":
        save_file({f"layer_{layer}": row.clone() for layer, row in enumerate(vectors)}, path)
    else:
        save_file({"vectors": vectors}, path)
    return path


@pytest.mark.parametrize("kind", ["pt", "npz quick", "npz analysis", "safetensors named", "safetensors one"])
def test_every_kind_holds_the_same_layers(kind: str, tmp_path: Path, vectors: torch.Tensor):
    found = read_vector_file(_write(kind, tmp_path, vectors))
    assert found.layers == [1, 2, 3, 4] and found.d_model == 8  # layer 0 is zero
    assert all(torch.equal(found.vectors[layer], vectors[layer]) for layer in found.layers)
    assert "layers 1 to 4 of width 8" in found.line


@pytest.mark.parametrize("kind", ["pt", "npz quick"])
def test_block_numbers_are_one_lower(kind: str, tmp_path: Path, vectors: torch.Tensor):
    path = _write(kind, tmp_path, vectors)
    found = read_vector_file(path, numbering="block")
    assert found.layers == [2, 3, 4, 5] and torch.equal(found.vectors[2], vectors[1])
    assert "block numbers plus 1" in found.line


def test_the_sidecar_comes_with_it(tmp_path: Path, vectors: torch.Tensor):
    path = _write("pt", tmp_path, vectors)
    path.with_suffix(".json").write_text('{"trait": "evil"}')
    assert read_vector_file(path).sidecar == {"trait": "evil"}


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_a_damaged_file_is_refused_in_one_line(suffix: str, tmp_path: Path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"not what it says")
    with pytest.raises(ValueError, match="damaged") as caught:
        read_vector_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"other": np.zeros(3)}, "expected layer_<L>_vector"),
        ({"layer_1": np.ones(3), "layer_2": np.ones(4)}, "one width"),
        ({"layer_1": np.ones((2, 3))}, "one width"),
        ({"layer_1": np.zeros(3)}, "every vector"),
        ({"layer_7": np.array([1.0, np.nan])}, "layer 7"),
    ],
)
def test_what_is_no_direction_is_refused(arrays: dict, said: str, tmp_path: Path):
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    with pytest.raises(ValueError, match=said):
        read_vector_file(tmp_path / "x.npz")


def test_pickles_are_never_run(tmp_path: Path):
    np.savez(tmp_path / "x.npz", layer_1=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="nothing in it was executed"):
        read_vector_file(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["nothing.npz", "words.txt", "."])
def test_no_such_file(name: str, tmp_path: Path):
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(ValueError, match="expected a file ending in"):
        read_vector_file(tmp_path / name)
