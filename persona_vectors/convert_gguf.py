"""GGUF control vectors, which llama.cpp and repeng add to the residual stream.

A file has `general.architecture` = controlvector, `controlvector.model_hint` (a transformers model_type),
`controlvector.layer_count` (how many directions) and one float32 tensor `direction.<B>` of (d_model,) a block. B is the
index of the block, from 0, to whose output it is added: llama.cpp stores direction.B at row B - 1 of a buffer and reads
row B - 1 at block B, and repeng wraps block B. llama.cpp refuses a whole file with a direction.0, so the output of the
first block, which is layer 1, cannot be steered from such a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ARCHITECTURE = "controlvector"
FIRST_BLOCK = 1
_PREFIX = "direction."


def read_gguf(path: Path) -> tuple[dict[int, Float[Tensor, " d_model"]], dict[str, Any]]:
    """Block index -> direction (float32), and what the file's header says.

    Raises:
        ValueError: not a GGUF file, a model rather than a control vector, or directions that llama.cpp refuses.
    """
    gguf = _gguf()
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a GGUF file: {error}") from None
    fields = {key: one.contents() for key, one in reader.fields.items() if not key.startswith("GGUF.")}
    if (kind := fields.get("general.architecture")) != ARCHITECTURE:
        raise ValueError(f"{path} is a GGUF file of architecture {kind!r}; expected {ARCHITECTURE!r}")
    directions = {}
    for tensor in reader.tensors:
        number = tensor.name.removeprefix(_PREFIX)
        if not tensor.name.startswith(_PREFIX) or not number.isdecimal():
            raise ValueError(f"{path} has a tensor {tensor.name!r}; expected {_PREFIX}<block>")
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32 or tensor.data.ndim != 1:
            raise ValueError(
                f"{path}: {tensor.name} is {tensor.tensor_type.name} {tensor.shape}; expected F32 (d_model,)"
            )
        directions[int(number)] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))  # a copy: data is mapped
    return directions, {key: one for key, one in fields.items() if isinstance(one, (str, int, float, bool))}


def gguf_bytes(blocks: Mapping[int, Float[Tensor, " d_model"]], model_hint: str) -> bytes:
    """The content of a control vector file.

    Raises:
        ValueError: a block below the first that llama.cpp steers.
    """
    gguf = _gguf()
    if low := [block for block in blocks if block < FIRST_BLOCK]:
        raise ValueError(f"llama.cpp steers blocks from {FIRST_BLOCK}; got {low[0]}")
    with tempfile.TemporaryDirectory() as folder:  # the writer takes a path; the file takes its place in one step later
        file = Path(folder) / "vector.gguf"
        writer = gguf.GGUFWriter(file, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(blocks))
        for block, vector in sorted(blocks.items()):
            writer.add_tensor(f"{_PREFIX}{block}", vector.numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise ValueError("GGUF files need gguf: pip install 'persona-vectors-toolkit[gguf]'") from None
    return gguf
