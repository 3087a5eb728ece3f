"""Caps with thresholds from a calibration run: how far along an axis ordinary answers go, and bounds taken from it.

    found = calibrate(model, samples, {20: axis[20][None]})
    cap = make_cap("assistant_axis", {20: axis[20]}, {20: found[20][:, 0]}, floor_percentile=25)

A floor at a percentile of what ordinary answers show keeps every token at least so far along the axis; tokens within
bounds are left bit for bit as they are (`persona_vectors.interventions.cap`). Source: arXiv 2601.10387.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from persona_vectors.blocks import check_layer
from persona_vectors.drift import project_tokens
from persona_vectors.files import (
    append_to_sidecar,
    read_sidecar,
    sha256_of_file,
    sidecar_path,
    write_bytes_atomic,
    write_json_atomic,
    write_sidecar,
)
from persona_vectors.interventions import check_bounds, check_positions
from persona_vectors.models import fingerprint, load_config
from persona_vectors.tokens import TokenizedSample
from persona_vectors.traits import read_json
from persona_vectors.vectors import load_vector
from persona_vectors.vllm_spec import Spec, parse_spec

FORMAT = "persona-cap/1"
CAP_FILE = "cap.json"
_CAP_KEYS = ("name", "vectors", "vectors_sha256", "model", "model_fingerprint")
QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
"""Percentiles of the calibration that are written down."""

Calibration = dict[int, Float[np.ndarray, "tokens vectors"]]
"""Layer -> projections of ordinary answers' tokens on each vector there."""


@dataclass(frozen=True, eq=False)
class CapStep:
    """A cap at one layer, in units of the projection h.v/|v|; a bound that is None does not bind."""

    layer: int
    vector: Float[Tensor, " d_model"]
    floor: float | None
    ceiling: float | None

    def bounds(self) -> str:
        """`floor 1.2`, `ceiling 3.4`, or both."""
        found = [("floor", self.floor), ("ceiling", self.ceiling)]
        return ", ".join(f"{name} {bound:.4g}" for name, bound in found if bound is not None)


@dataclass(frozen=True, eq=False)
class Cap:
    """One cap, at one or several layers.

    Attributes:
        note: what a reader must know of it beside; "" for nothing.
    """

    name: str
    positions: str
    steps: tuple[CapStep, ...]
    note: str = ""


def calibrate(
    model: nn.Module,
    samples: Sequence[TokenizedSample],
    directions: Mapping[int, Float[Tensor, "vectors d_model"]],
    *,
    progress: bool = False,
) -> Calibration:
    """The projection of every answer token of ordinary answers, on each vector at each layer.

    Raises:
        ValueError: no answer token at all, or what `project_tokens` refuses.
    """
    values = project_tokens(model, [sample.ids for sample in samples], directions, progress=progress)
    if not any(sample.response_len for sample in samples):
        raise ValueError("the calibration has no answer with tokens; sample some more")
    spoken = [own[sample.prompt_len :] for own, sample in zip(values, samples, strict=True)]
    return {layer: np.concatenate([own[:, at].numpy() for own in spoken]) for at, layer in enumerate(directions)}


def make_cap(
    name: str,
    vectors: Mapping[int, Float[Tensor, " d_model"]],
    calibration: Mapping[int, Float[np.ndarray, " tokens"]],
    *,
    floor_percentile: float | None = None,
    ceiling_percentile: float | None = None,
    positions: str = "all",
) -> Cap:
    """A cap whose bounds at each layer are those percentiles of the calibration there.

    Raises:
        ValueError: neither percentile, one outside 0..100, or a floor above the ceiling.
    """
    for flag, percentile in (("floor", floor_percentile), ("ceiling", ceiling_percentile)):
        if percentile is not None and not 0 <= percentile <= 100:
            raise ValueError(f"{flag}_percentile is {percentile:g}; expected 0 to 100")
    check_bounds(floor_percentile, ceiling_percentile)
    check_positions(positions)
    steps = []
    for layer, vector in sorted(vectors.items()):
        bounds = [
            None if percentile is None else float(np.percentile(calibration[layer], percentile))
            for percentile in (floor_percentile, ceiling_percentile)
        ]
        steps.append(CapStep(layer, vector, *bounds))
    return Cap(name, positions, tuple(steps))


def save_cap(
    cap: Cap,
    folder: str | Path,
    *,
    vector_path: str | Path,
    model_name: str,
    calibration: Mapping[int, Float[np.ndarray, " tokens"]],
    record: Mapping[str, Any],
) -> Path:
    """`cap.json` in the folder, with the vectors beside it (`<name>.pt`) and sidecars: all that others need.

    `eval.drift --cap`, and `eval.serve --vectors FOLDER --default_steering FOLDER/cap.json`, load it. The vectors keep
    the sidecar that they have where they come from, with a note that they were copied.

    Args:
        record: how it was calibrated (percentiles, answers).

    Raises:
        ValueError: a cap called `cap`.
    """
    check_cap_name(cap.name)
    vectors = Path(folder) / f"{cap.name}.pt"
    if not vectors.exists() or not vectors.samefile(vector_path):
        write_bytes_atomic(vectors, Path(vector_path).read_bytes())
        write_json_atomic(sidecar_path(vectors), read_sidecar(vector_path))  # the copy is what the original is
        append_to_sidecar(vectors, "copied", {"from": Path(vector_path).name, "for": CAP_FILE})
    made = {"model": model_name, "model_fingerprint": fingerprint(model_name)}
    vectors_from = {"vectors": vectors.name, "vectors_sha256": sha256_of_file(vectors)}
    found = {str(layer): _described(own) for layer, own in calibration.items()}
    content = {"format": FORMAT, "name": cap.name, **made, **vectors_from}
    steering = [_step(cap, step) for step in cap.steps]
    path = Path(folder) / CAP_FILE
    write_json_atomic(path, {**content, "steering": steering, "calibration": {**record, "layers": found}})
    write_sidecar(path, {**made, **vectors_from})
    return path


def check_cap_name(name: str) -> None:
    """Refuses, with a ValueError, a cap whose vectors' sidecar (`<name>.json`) would take the place of cap.json."""
    if f"{name}.json" == CAP_FILE:
        raise ValueError(f"vectors called {name}.pt have {CAP_FILE} as their sidecar, which is the cap itself; rename")


def _step(cap: Cap, step: CapStep) -> dict[str, Any]:
    """The step as `persona_vectors.vllm_spec` and the server read it."""
    bounds = {name: bound for name in ("floor", "ceiling") if (bound := getattr(step, name)) is not None}
    return {"vector": cap.name, "layer": step.layer, "kind": "cap", "positions": cap.positions, **bounds}


def _described(values: Float[np.ndarray, " tokens"]) -> dict[str, Any]:
    quantiles = {f"{q:g}": float(value) for q, value in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}
    numbers = {"n_tokens": len(values), "mean": float(values.mean()), "std": float(values.std())}
    return {**numbers, "percentiles": quantiles}


def load_cap(path: str | Path, model_name: str) -> Cap:
    """The cap of a `cap.json`, checked against the model's config; no weights are read.

    Raises:
        ValueError: what `read_cap` refuses, or a model of another shape.
    """
    path = Path(path)
    content, spec = read_cap(path)
    vectors, config = path.parent / content["vectors"], load_config(model_name)
    steps = []
    for step in spec:
        try:
            check_layer(step.layer, config.num_hidden_layers, model_name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        vector = load_vector(vectors, step.layer, config.hidden_size, config.num_hidden_layers)
        steps.append(CapStep(step.layer, vector, step.floor, step.ceiling))
    cap = Cap(content["name"], spec[0].positions, tuple(steps))
    if content["model_fingerprint"] != fingerprint(model_name):
        return replace(cap, note=f"{path} was calibrated on {content['model']}, not on {model_name} as it is now")
    return cap


def read_cap(path: str | Path) -> tuple[dict[str, Any], Spec]:
    """(content, steps) of a `cap.json` whose vectors stand beside it as they were calibrated; no model is needed.

    Raises:
        ValueError: another kind of file, a step that is no cap, or vectors that are missing or others than those that
            were calibrated.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no cap at {path}; make one with python -m eval.capping")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no cap ({FORMAT}); python -m eval.capping writes one")
    if missing := [key for key in _CAP_KEYS if not content.get(key) or not isinstance(content[key], str)]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, a text; calibrate again")
    try:
        spec = parse_spec(content.get("steering"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; calibrate again") from None
    odd = [step for step in spec if step.kind != "cap" or step.vector != content["name"]]
    if odd or not spec:
        found = f"has a step of kind {odd[0].kind} with vector {odd[0].vector}" if odd else "lacks steering"
        raise ValueError(f"{path} {found}; expected steps of kind cap with vector {content['name']}: calibrate again")
    if len(positions := sorted({step.positions for step in spec})) > 1:
        raise ValueError(f"{path} caps {' and '.join(positions)} tokens; expected one of them: calibrate again")
    vectors = path.parent / content["vectors"]
    if not vectors.is_file() or sha256_of_file(vectors) != content["vectors_sha256"]:
        raise ValueError(f"{path} is calibrated for {vectors}, which is missing or was changed; calibrate again")
    return content, spec
