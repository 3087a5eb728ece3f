"""The files of the assistant axis: responses as JSON and vectors as a `.pt` dict, each with a sidecar saying how made.

Responses are keyed by `json.dumps([persona, question])`; vectors are persona -> `(d_model,)`, as published.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors.files import check_output_path, check_sidecar, write_bytes_atomic, write_json_atomic, write_sidecar

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Place = tuple[str, str]
"""(persona, question)."""


def model_slug(model_name: str) -> str:
    """The model's name as files have it: `org/model-name` -> `model-name`, of a folder its last part."""
    name = Path(model_name.replace("\\", "/").rstrip("/")).name
    return name if name.strip(".") else Path(model_name).resolve().name


def save_responses(
    responses: Mapping[Place, str], filepath: str | Path, record: Mapping[str, Any] | None = None
) -> Path:
    """The path, now a JSON object, `json.dumps([persona, question])` to answer; the sidecar has counts and `record`.

    Raises:
        ValueError: nothing to write, an answer that is no text, or a JSON file of something else where the sidecar
            goes.
    """
    path = check_output_path(filepath, [".json"])
    check_sidecar(path)
    if not responses:
        raise ValueError(f"there are no responses to write to {path}")
    if bad := [place for place, text in responses.items() if not isinstance(text, str)]:
        raise ValueError(f"the answer of {bad[0]} is no text; nothing was written")
    write_json_atomic(path, {json.dumps(list(place), ensure_ascii=False): text for place, text in responses.items()})
    counts = Counter(name for name, _ in responses)
    write_sidecar(path, {"kind": "persona responses", "n_answers": dict(counts), **(record or {})})
    return path


def load_responses(filepath: str | Path) -> dict[Place, str]:
    """(persona, question) -> answer, from a file as `save_responses` writes it, with or without a sidecar.

    Raises:
        ValueError: no such file, or what is in it is not so; one line.
    """
    from persona_vectors.traits import read_json

    path = Path(filepath)
    if not path.is_file():
        raise ValueError(f"there is no file {path} of responses; make one with python example.py")
    content = read_json(path)
    expected = 'expected a JSON object, "[\\"persona\\", \\"question\\"]" to answer'
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; {expected}")
    return {_place(key, text, f"{path}: {expected}"): text for key, text in content.items()}


def _place(key: str, text: Any, expected: str) -> Place:
    try:
        place = json.loads(key)
    except json.JSONDecodeError:
        place = None
    pair = isinstance(place, list) and len(place) == 2 and all(isinstance(part, str) for part in place)
    if not pair or not isinstance(text, str):
        raise ValueError(f"{expected}; got {key[:60]!r}" + (f" to a {type(text).__name__}" if pair else ""))
    assert isinstance(place, list)
    return place[0], place[1]


def content_hash(responses: Mapping[Place, str]) -> str:
    """sha256 (hex) of who said what to which question, the order left aside."""
    items = sorted([*place, text] for place, text in responses.items())
    return hashlib.sha256(json.dumps(items, separators=(",", ":")).encode()).hexdigest()


def save_persona_vectors(
    persona_vectors: Mapping[str, Float[Tensor, " d_model"]],
    filepath: str | Path,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """The path, now a dict persona -> float32 (d_model,), with a `.json` beside it: names, norms and `record`.

    Raises:
        ValueError: no vectors, vectors of different shapes, or NaN, or a JSON file of something else (such as answers)
            where the sidecar goes; nothing is written.
    """
    import torch

    path = check_output_path(filepath, [".pt"])
    check_sidecar(path)
    _check_vectors(persona_vectors, str(path))
    content = io.BytesIO()  # in memory first: torch reports a full disk as a RuntimeError of its own
    torch.save({name: v.detach().cpu().float().contiguous().clone() for name, v in persona_vectors.items()}, content)
    write_bytes_atomic(path, content.getvalue())
    norms = {name: round(float(vector.norm()), 6) for name, vector in persona_vectors.items()}
    what = {"kind": "persona means", "formula": "mean over answers of the mean over each answer's tokens"}
    write_sidecar(path, {**what, **(record or {}), "norms": norms})
    return path


def load_persona_vectors(filepath: str | Path) -> dict[str, Float[Tensor, " d_model"]]:
    """Persona -> (d_model,), float32, of a `.pt` dict. No code in the file is ever executed.

    Raises:
        ValueError: no such file, or one that is no dict of vectors of one width.
    """
    import torch

    from persona_vectors.vectors import load_plain

    path = Path(filepath)
    if not path.is_file():
        raise ValueError(f"there is no file {path} of persona vectors; make one with python example.py")
    expected = "expected a dict, persona to tensor (d_model,)"
    content = load_plain(path, expected)
    if not isinstance(content, dict) or not all(isinstance(vector, torch.Tensor) for vector in content.values()):
        raise ValueError(f"{path} holds a {type(content).__name__}; {expected}")
    _check_vectors(content, str(path))
    return {str(name): vector.detach().float() for name, vector in content.items()}


def _check_vectors(vectors: Mapping[str, Tensor], where: str) -> None:
    import torch

    shapes = {tuple(vector.shape) for vector in vectors.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"{where}: vectors have shapes {sorted(shapes)}; expected one width, (d_model,) each")
    if next(iter(shapes)) == (0,):
        raise ValueError(f"{where}: vectors have no numbers; expected (d_model,) each")
    if other := {name: str(vector.dtype) for name, vector in vectors.items() if not vector.is_floating_point()}:
        name, dtype = next(iter(other.items()))
        raise ValueError(f"{where}: the vector of {name} is of {dtype}; expected floats; make the vectors again")
    bad = [name for name, vector in vectors.items() if not torch.isfinite(vector).all()]
    if bad:
        raise ValueError(f"{where}: NaN or infinite numbers in {', '.join(bad)}; make the vectors again")
