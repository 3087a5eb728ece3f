"""Write vectors for other tools, and theirs as ours; `persona_vectors/convert_formats.py` has the table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors import convert_gguf
from persona_vectors import convert_torch as dictionaries
from persona_vectors.blocks import block_index
from persona_vectors.convert import ModelShape, Source
from persona_vectors.convert_formats import BOUNDED, Format
from persona_vectors.convert_torch import Bounds
from persona_vectors.files import check_output_path, sha256_of_file, sidecar_path, write_bytes_atomic, write_sidecar
from persona_vectors.vectors import write_vectors

_OWN_KEYS = ("file", "command", "versions", "git_commit", "python", "created", "shape", "layers", "norms", "converted")


def check_target(path: str | Path, format: Format, source: Source) -> Path:
    """`path`, if a file of that format can be written there.

    Raises:
        ValueError: another ending, or the source's own file, its sidecar or a cap's vectors would be replaced.
    """
    path = check_output_path(path, [".gguf"] if format == "gguf" else [".pt"])
    own = [source.file.path]
    if source.file.path.suffix == ".json":
        own.append(source.file.path.parent / source.told["vectors"])
    taken = {one.resolve() for file in own for one in (file, sidecar_path(file))}
    if {path.resolve(), sidecar_path(path).resolve()} & taken:
        raise ValueError(f"{path} would replace {' or '.join(map(str, own))} or its sidecar; give another name")
    return path


def write_target(
    path: Path,
    format: Format,
    source: Source,
    layers: Sequence[int],
    *,
    coef: float = 1.0,
    shape: ModelShape | None = None,
) -> tuple[list[Path], list[str]]:
    """The files written, and what a reader must know: the vectors of `layers` as a file of `format`, with a sidecar.

    Args:
        coef: kept beside the vectors by lm-eval, multiplied into them by the others.
        shape: of the model; gguf and lm-eval need it, and so does a cap of ours.

    Raises:
        ValueError: no model where one is needed, bounds missing where the format is all about them, or a coefficient
            of 0 or beside bounds.
    """
    vectors = {layer: source.file.vectors[layer] for layer in layers}
    bounds = _bounds(format, source, layers, coef)
    if bounds and format == "ours":
        _check_cap(path, shape)
    said = _said(format, source, layers, shape)
    n_layers = shape.n_layers if shape else source.file.layers[-1]
    record = _record(format, source, layers, coef, bounds)
    if format == "ours":
        write_vectors(path, own_rows(vectors, n_layers, coef), record)
        return [path, *([_own_cap(path, vectors, bounds, shape, record)] if bounds and shape else [])], said
    scaled = vectors if format == "lm-eval" else {layer: coef * vector for layer, vector in vectors.items()}
    write_bytes_atomic(path, _content(format, scaled, bounds, coef, n_layers, path.stem, shape))
    write_sidecar(path, record)
    return [path], said


def own_rows(vectors: Mapping[int, Tensor], n_layers: int, coef: float = 1.0) -> Float[Tensor, "layers d_model"]:
    """Our tensor, (n_layers + 1, d_model): coef times each vector, and zero at every other layer."""
    rows = torch.zeros(n_layers + 1, len(next(iter(vectors.values()))))
    for layer, vector in vectors.items():
        rows[layer] = coef * vector
    return rows


def block_list_name(model_name: str) -> str:
    """What a model's list of blocks is called from its base model (`layers`, `h`, ...), which is how lm-eval names its
    hookpoints; no weights are read.

    Raises:
        ValueError: an adapter, whose modules have other names once it is loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from persona_vectors.blocks import decoder_blocks
    from persona_vectors.models import load_config, resolve_model

    source = resolve_model(model_name)
    if source.adapter is not None:
        raise ValueError(f"{model_name} is an adapter; lm-eval's hookpoints are those of a base or merged model")
    load_config(model_name)  # says in one line what is wrong with the model
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source.base))
    blocks = decoder_blocks(model)
    return next(name for name, module in model.base_model.named_modules() if module is blocks)


def _content(
    format: Format,
    vectors: Mapping[int, Tensor],
    bounds: Mapping[int, Bounds],
    coef: float,
    n_layers: int,
    name: str,
    shape: ModelShape | None,
) -> bytes:
    """The bytes of a file of another tool, by its own numbers."""
    blocks = {block_index(layer): vector.contiguous() for layer, vector in vectors.items()}
    limits = {block_index(layer): bound for layer, bound in bounds.items()}
    if format == "gguf":
        return convert_gguf.gguf_bytes(blocks, _needed(shape, format).model_type)
    if format == "assistant-axis":
        content = dictionaries.assistant_axis_content(blocks, n_layers)
    elif format == "capping":
        content = dictionaries.capping_content(blocks, limits, name)
    elif format == "steering-vectors":
        content = dictionaries.steering_vectors_content(blocks)
    else:
        block_list = block_list_name(_needed(shape, format).name)
        content = dictionaries.lm_eval_content(blocks, coef, block_list, limits)
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _needed(shape: ModelShape | None, format: Format) -> ModelShape:
    if shape is None:
        raise ValueError(f"{format} needs --model_name: the file says which model it is for")
    return shape


def _bounds(format: Format, source: Source, layers: Sequence[int], coef: float) -> dict[int, Bounds]:
    """The bounds that go into the file: all of the layers', or none."""
    if coef == 0 or coef != coef:
        raise ValueError(f"--coef {coef:g} leaves no direction in the file")
    bounds = {layer: source.bounds[layer] for layer in layers if layer in source.bounds}
    if format not in BOUNDED:
        return {}
    if format == "capping" and not source.bounds:
        raise ValueError(
            f"{source.file.path} has no thresholds; make a cap with python -m eval.capping and convert its cap.json"
        )
    if bounds and len(bounds) < len(layers):
        raise ValueError(f"{source.file.path} caps some layers and adds at others; choose one kind with --layers")
    if bounds and coef != 1:
        raise ValueError(f"--coef {coef:g} is for vectors that are added; {source.file.path} caps")
    return bounds


def _said(format: Format, source: Source, layers: Sequence[int], shape: ModelShape | None) -> list[str]:
    """What the file does not hold of the source, or holds by assumption."""
    said = []
    if source.bounds and format not in BOUNDED:
        said.append(f"the thresholds are left out: {format} holds vectors to add")
    if format == "gguf" and len(layers) > 1:
        said.append(
            "its readers add at all of these layers at once, where the commands here steer one; --layers chooses"
        )
    if format == "capping" and any(source.bounds[layer][0] is not None for layer in layers):
        said.append("their cap is a ceiling: a floor along v is written as a ceiling along -v")
    if source.told.get("positions", "all") != "all" and format != "ours":
        said.append(f"the cap acts on {source.told['positions']} tokens; {format} acts on every token")
    if coefs := {source.coefs[layer] for layer in layers if layer in source.coefs}:
        said.append(
            f"the coefficient beside the vectors is not in them; steer with {', '.join(map(str, sorted(coefs)))}"
        )
    if shape is None and format in ("ours", "assistant-axis"):
        last = source.file.layers[-1]
        said.append(f"taken for a model of {last} layers, the last in the file; --model_name makes it sure")
    n_layers = shape.n_layers if shape else source.file.layers[-1]
    if format == "ours" and (zero := [str(row) for row in range(n_layers + 1) if row not in layers]):
        said.append(f"rows that are zero, because they are not in the file: {', '.join(zero)}")
    return said


def _record(
    format: Format, source: Source, layers: Sequence[int], coef: float, bounds: Mapping[int, Bounds]
) -> dict[str, Any]:
    """The sidecar: what was said of the source, which stays true, and how it was converted."""
    carried = {key: one for key, one in source.file.sidecar.items() if key not in _OWN_KEYS}
    if coef != 1 and "sign" in carried:
        carried["sign"] = f"{coef:g} times the vector that is {carried['sign']}"
    own = "layer L is the output of block L-1 (hidden_states index, 0 = embedding output)"
    theirs = "block B, counted from 0, is layer B+1"
    numbered = {"from": own if source.format == "ours" else theirs, "to": own if format == "ours" else theirs}
    return {
        "kind": "persona vectors",
        **carried,
        "converted": {
            "from": source.file.path.name,
            "sha256": sha256_of_file(source.file.path),
            "formats": {"from": source.format, "to": format},
            "numbers": numbered,
            "layers": list(layers),
            "coef": coef,
            **({"coefs": {str(layer): one for layer, one in source.coefs.items()}} if source.coefs else {}),
            **({"bounds": {str(layer): list(one) for layer, one in bounds.items()}} if bounds else {}),
            **({"told": source.told} if source.told else {}),
        },
    }


def _check_cap(path: Path, shape: ModelShape | None) -> None:
    """Refuses, with a ValueError, a cap whose model is not known, or one in the place of another."""
    from persona_vectors.capping import check_cap_name

    check_cap_name(path.stem)
    if shape is None:
        raise ValueError("the file caps, and a cap of ours says which model it is for: give --model_name")
    if (cap := path.parent / "cap.json").exists():
        raise ValueError(f"{cap} is there already; give another folder")


def _own_cap(
    path: Path,
    vectors: Mapping[int, Tensor],
    bounds: Mapping[int, Bounds],
    shape: ModelShape,
    record: Mapping[str, Any],
) -> Path:
    """The `cap.json` beside the vectors."""
    from persona_vectors.capping import Cap, CapStep, save_cap

    cap = Cap(path.stem, "all", tuple(CapStep(layer, one, *bounds[layer]) for layer, one in vectors.items()))
    return save_cap(cap, path.parent, vector_path=path, model_name=shape.name, calibration={}, record=record)
