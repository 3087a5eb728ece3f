"""Vectors between this toolkit and other tools: the same direction at the same place, whatever the file calls it
(`persona_vectors/convert_formats.py` has the table).

Ours numbers hidden states: layer 0 is the embedding output, layer L the output of block L-1. All others number blocks
from 0, have no embedding output, and change a block's output: their B is our layer B + 1. That step is taken here, by
`layer_of_block` on reading and `block_index` on writing. A coefficient means the same everywhere, since none of these
tools normalises the vector that it adds. Nothing in a file is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors import convert_gguf
from persona_vectors import convert_torch as dictionaries
from persona_vectors.blocks import layer_of_block
from persona_vectors.convert_formats import APPLIED_TOGETHER, FORMATS, Format
from persona_vectors.convert_torch import Bounds, Found
from persona_vectors.files import read_sidecar
from persona_vectors.vector_files import SUFFIXES, VectorFile, read_vector_file, vector_file
from persona_vectors.vectors import load_plain

Vectors = Mapping[int, Float[Tensor, " d_model"]]

_MALFORMED = (KeyError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True)
class ModelShape:
    """What a conversion needs to know of a model, all from its config."""

    name: str
    n_layers: int
    d_model: int
    model_type: str


@dataclass(frozen=True, eq=False)
class Source:
    """The vectors of a file of any format, by layer (hidden_states index).

    Attributes:
        coefs: layer -> the coefficient that the file keeps beside the vector; {} for most formats.
        bounds: layer -> floor and ceiling of the projection on the vector; {} unless the file caps.
        told: what else the file says.
    """

    format: Format
    file: VectorFile
    coefs: dict[int, float] = field(default_factory=dict)
    bounds: dict[int, Bounds] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


def model_shape(name: str) -> ModelShape:
    """The shape of a model, by its config; no weights are read."""
    from persona_vectors.models import load_config

    config = load_config(name)
    return ModelShape(name, config.num_hidden_layers, config.hidden_size, config.model_type)


def read_source(
    path: str | Path, format: Format | None = None, *, name: str | None = None, shape: ModelShape | None = None
) -> Source:
    """The vectors of a file, of the format given or of the only one that it can be.

    Args:
        name: which vector or experiment, where a file holds several.
        shape: of the model that the vectors are for: they must fit it, and it tells our tensor from a bare axis.

    Raises:
        ValueError: no such file, a damaged or ambiguous one, NaN, or vectors that do not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"vector file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    content = _content(path) if path.suffix in (".pt", ".pth") else None
    format = "ours" if path.suffix == ".json" else format or _format_of(path, content, shape)
    if path.suffix == ".json":
        source = _own_cap(path, shape)
    elif format == "ours":
        source = Source(format, read_vector_file(path))
    else:
        found = _found(path, format, content, name)
        source = Source(
            format,
            vector_file(path, found.blocks, "block"),
            {layer_of_block(block): coef for block, coef in found.coefs.items()},
            {layer_of_block(block): bound for block, bound in found.bounds.items()},
            found.told,
        )
    if shape is not None:
        check_fits(source.file, shape)
    return source


def check_fits(file: VectorFile, shape: ModelShape) -> None:
    """Refuses, with a ValueError, vectors of another width than the model's, or at layers that it does not have."""
    if file.d_model != shape.d_model:
        raise ValueError(f"{file.path} has vectors of width {file.d_model}; {shape.name} has {shape.d_model}")
    if (last := file.layers[-1]) > shape.n_layers:
        raise ValueError(f"{file.path} has a vector at layer {last}; {shape.name} has layers 0..{shape.n_layers}")


def choose_layers(source: Source, format: Format, layers: Sequence[int] | None) -> tuple[list[int], list[str]]:
    """The layers of a source that go into a file of `format`, and a line for each that cannot.

    Raises:
        ValueError: a layer asked for that the source does not have or the format cannot hold; or none asked for where
            every layer of the file would be applied together.
    """
    first = {"ours": 0, "gguf": layer_of_block(convert_gguf.FIRST_BLOCK)}.get(format, 1)
    lowest = f"{format} has no layer below {first}: " + (
        "llama.cpp refuses the first block" if first > 1 else "layer 0 is the embedding output, which no block makes"
    )
    if layers is None:
        kept = [layer for layer in source.file.layers if layer >= first]
        if not kept:
            raise ValueError(f"{source.file.path} has only layer {source.file.layers[0]}; {lowest}")
        if format in APPLIED_TOGETHER and len(kept) > 1 and not (source.bounds or source.format in APPLIED_TOGETHER):
            raise ValueError(
                f"{format} applies every layer of a file together; choose with --layers (has {kept[0]} to {kept[-1]})"
            )
        return kept, [f"left out layer {layer}: {lowest}" for layer in source.file.layers if layer < first]
    for layer in layers:
        if layer not in source.file.vectors:
            have = ", ".join(map(str, source.file.layers))
            raise ValueError(f"{source.file.path} has no vector at layer {layer}; it has {have}")
        if layer < first:
            raise ValueError(f"layer {layer} cannot be written: {lowest}")
    return sorted(set(layers)), []


def _content(path: Path) -> Any:
    with torch.serialization.safe_globals(dictionaries.SAFE_CLASSES):
        return load_plain(path, "expected vectors as one of these tools writes them")


def _format_of(path: Path, content: Any, shape: ModelShape | None) -> Format:
    """The only format that a file can be.

    Raises:
        ValueError: it can be several, or none.
    """
    if path.suffix == ".gguf":
        return "gguf"
    if path.suffix in (".npz", ".safetensors"):
        return "ours"
    if (format := dictionaries.format_of(content)) is not None:
        return format
    if isinstance(content, Tensor) and content.ndim == 2:
        rows = len(content)
        if "layers" in read_sidecar(path) or (shape and rows == shape.n_layers + 1):
            return "ours"
        if shape and rows == shape.n_layers:
            return "assistant-axis"
        if shape:
            raise ValueError(
                f"{path} is a tensor of {rows} rows; {shape.name} has {shape.n_layers} blocks: expected "
                f"{shape.n_layers} rows (assistant-axis) or {shape.n_layers + 1} (ours)"
            )
        raise ValueError(
            f"{path} is a tensor of {rows} rows, which may start at the embedding output (ours) or at the first block "
            "(assistant-axis): give --from_format, or --model_name to tell"
        )
    kinds = ", ".join((*SUFFIXES, ".gguf"))
    raise ValueError(f"{path} holds none of the known formats ({', '.join(FORMATS)}; files ending in {kinds})")


def _own_cap(path: Path, shape: ModelShape | None) -> Source:
    """The vectors and bounds of a `cap.json` of eval.capping."""
    from persona_vectors.capping import load_cap, read_cap

    content, _steps = read_cap(path)
    model_name = shape.name if shape else content["model"]
    cap = load_cap(path, model_name)
    vectors = {step.layer: step.vector for step in cap.steps}
    if len(vectors) < len(cap.steps):
        raise ValueError(f"{path} caps a layer twice; other tools' files hold one vector a layer")
    bounds = {step.layer: (step.floor, step.ceiling) for step in cap.steps}
    beside = {"positions": cap.positions, "model": model_name, "vectors": content["vectors"]}
    return Source("ours", vector_file(path, vectors, "hidden_states"), bounds=bounds, told=beside)


def _found(path: Path, format: Format, content: Any, name: str | None) -> Found:
    """What a file of another tool holds, by its own numbers; what is wrong with it names the file."""
    try:
        if format == "gguf":
            directions, told = convert_gguf.read_gguf(path)
            return Found(directions, told=told)
        if content is None:
            raise ValueError(f"a {format} file ends in .pt")
        if format == "assistant-axis":
            return dictionaries.read_assistant_axis(content, name)
        if format == "capping":
            return dictionaries.read_capping(content, name)
        return (dictionaries.read_lm_eval if format == "lm-eval" else dictionaries.read_steering_vectors)(content)
    except _MALFORMED as error:
        raise ValueError(f"{path} is not a {format} file: {type(error).__name__} {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
