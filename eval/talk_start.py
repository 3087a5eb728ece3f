"""Where a steered conversation starts: the vector's trait, its layer and its coefficients, and why those."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.talk_prompts import OPENINGS
from eval.talk_settings import ModelShape, check_vector, parse_layer
from persona_vectors.traits import available_traits, canonical_name

if TYPE_CHECKING:
    from persona_vectors.vector_files import Numbering, VectorFile

_NAME = re.compile(r"(?:layer_)?(\d+)")

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclass(frozen=True)
class Calibrated:
    """What `python -m eval.calibrate` confirmed for a vector: the coefficient kept and the range, at one layer.

    Attributes:
        limit: what holds within the range, in words.
    """

    layer: int
    coef: float
    range: tuple[float, float]
    limit: str = "answers stay coherent"

    @property
    def strengths(self) -> tuple[float, ...]:
        """Five: 0, both ends of the range, and half of each, or the coefficient where it lies before the upper end."""
        low, high = self.range
        up = {self.coef if 0 < self.coef < high else high / 2, high}
        down = {low / 2, low} if low < 0 else {min(up) / 2, (min(up) + high) / 2}
        return tuple(sorted({0.0, *up, *down}))

    @property
    def line(self) -> str:
        low, high = self.range
        return f"calibrated there: coefficient {self.coef:g}; {self.limit} from {low:g} to {high:g}"


@dataclass(frozen=True)
class Start:
    """The layer taken, the calibration that holds there (None without one), and what to say of both."""

    layer: int
    calibrated: Calibrated | None
    lines: tuple[str, ...]


def start(file: VectorFile, shape: ModelShape, target: str | None = None, analysis: str | None = None) -> Start:
    """The layer of a file to start at: the one asked for, the best of the analysis asked for, the calibrated one, the
    best of the analysis beside the file, or the middle one of the file.

    Calibration comes before an analysis nobody named: it measured steering, an AUC only says that a layer separates.

    Raises:
        ValueError: a layer that the file or the model does not have, or an analysis without one.
    """
    found = calibration_of(file)
    beside = None if analysis else analysis_beside(file.path)
    if target is not None:
        layer, why = parse_layer(target), "as asked"
    elif analysis is not None:
        layer, why = best_layer(Path(analysis), file.numbering)
    elif found is not None:
        layer, why = found.layer, "the calibrated one"
    elif beside is not None:
        layer, why = best_layer(beside, file.numbering)
    else:
        layer, why = _middle(file, shape), "the middle of the file's; no analysis or calibration names a better one"
    check_vector(file, layer, shape)
    lines = [f"layer {layer} of {shape.n_layers}: {why}"]
    if found is not None and found.layer == layer:
        lines.append(found.line)
    elif found is not None:
        lines.append(f"its calibration is for layer {found.layer} and says nothing here")
        found = None
    else:
        lines += _kept_nothing(file)
    return Start(layer, found, tuple(lines))


def calibration_of(file: VectorFile) -> Calibrated | None:
    """What the file's sidecar says under `calibration`; None where nothing was found to hold."""
    told = file.sidecar.get("calibration")
    if not isinstance(told, dict) or told.get("layer") is None or told.get("coef") is None:
        return None
    low, high = told.get("range") or (0.0, told["coef"])
    found = Calibrated(int(told["layer"]), float(told["coef"]), (float(low), float(high)))
    match told.get("limits"):
        case {"criterion": "kl", "max_kl": most}:
            return replace(found, limit=f"p95 token KL to the unsteered model is at most {most:g} nats")
        case {"criterion": "coherence", "min_coherence": least}:
            return replace(found, limit=f"mean coherence is at least {least:g}")
    return found


def _kept_nothing(file: VectorFile) -> list[str]:
    """What to say of a calibration that kept no coefficient."""
    told = file.sidecar.get("calibration")
    if not isinstance(told, dict) or told.get("layer") is None:
        return []
    return [
        f"its calibration kept no coefficient: at layer {told['layer']} none was seen to leave answers coherent and to "
        "do more than random directions do"
    ]


def analysis_beside(path: Path) -> Path | None:
    """The analysis that was written with a vector file: `X_vectors.npz` has `X_analysis.json`,
    `persona_vectors_<trait>.npz` has `analysis_results_<trait>.json`."""
    names = [path.stem.removesuffix("_vectors") + "_analysis.json"]
    if path.stem.startswith("persona_vectors_"):
        names.append(path.stem.replace("persona_vectors_", "analysis_results_", 1) + ".json")
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def best_layer(path: Path, numbering: Numbering = "hidden_states") -> tuple[int, str]:
    """(layer, why) by an analysis: its `best_layer`, else the layer of the highest `auc`.

    Raises:
        ValueError: no such file, or a file that names no layer.
    """
    if not path.is_file():
        raise ValueError(f"analysis file {path} does not exist; give the _analysis.json of quick_persona_extract.py")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(told, dict):
        raise ValueError(f"{path} holds a {type(told).__name__}; expected an object with a layer's auc under layer_<L>")
    shift = 1 if numbering == "block" else 0
    if told.get("best_layer") is not None:
        return parse_layer(str(told["best_layer"])) + shift, f"best_layer of {path}"
    layers = _layers(told) or _layers(told.get("layers"))
    merits = {
        number + shift: (one["auc"], one.get("separation") or 0.0)
        for number, one in layers.items()
        if isinstance(one.get("auc"), (int, float)) and number + shift > 0  # the embeddings cannot be steered
    }
    if not merits:
        raise ValueError(f"{path} names no layer: expected best_layer, or an auc under layer_<L>")
    best = max(merits, key=lambda layer: merits[layer])
    return best, f"the highest AUC, {merits[best][0]:.3f}, of {path}"


def _layers(told: Any) -> dict[int, Mapping[str, Any]]:
    """Layer -> what an analysis says of it, of an object with keys `layer_<L>`."""
    if not isinstance(told, Mapping):
        return {}
    named = ((_NAME.fullmatch(key), one) for key, one in told.items() if isinstance(one, Mapping))
    return {int(match[1]): one for match, one in named if match}


def _middle(file: VectorFile, shape: ModelShape) -> int:
    there = [layer for layer in file.layers if 1 <= layer <= shape.n_layers]
    return there[len(there) // 2] if there else file.layers[0]


def trait_of(file: VectorFile, model_name: str) -> str:
    """The trait that a vector is of, by its sidecar or by the names that our commands give to files."""
    if file.sidecar.get("trait"):
        return canonical_name(str(file.sidecar["trait"]))
    stem = file.path.stem
    for ending in ("_vectors", "_response_avg_diff", "_prompt_avg_diff", "_prompt_last_diff"):
        stem = stem.removesuffix(ending)
    known = {*OPENINGS, *available_traits("eval", model_name)}
    named = [trait for trait in known if f"_{canonical_name(stem)}".endswith(f"_{trait}")]
    label = model_name.strip("/").replace("/", "_")
    return max(named, key=len, default=canonical_name(stem.removeprefix(f"{label}_")))


def origin_lines(file: VectorFile, model_name: str) -> list[str]:
    """A note where the sidecar says that the vector was made from another model's activations."""
    from persona_vectors.models import fingerprint

    made_from = file.sidecar.get("model")
    if not isinstance(made_from, dict) or made_from.get("fingerprint") in (None, fingerprint(model_name)):
        return []
    return [f"note: {file.path.name} was made from {made_from.get('name')}, not from {model_name}"]
