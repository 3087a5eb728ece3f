"""The dictionaries of torch.save that other tools keep vectors in. Every number of a layer here counts blocks from 0.

| format | content |
|---|---|
| assistant-axis | `{"axis": (n_blocks, d_model)}`, or `{"vector": (n_blocks, d_model), "type", "role"}`, or a bare tensor, or `{name: (n_blocks, d_model), ...}` |
| capping | `{"vectors": {name: {"layer", "vector"}}, "experiments": [{"id", "interventions": [{"vector", "cap"}]}]}` |
| steering-vectors | a pickled `SteeringVector`, or its fields `{"layer_activations": {block: (d_model,)}, "layer_type"}` |
| lm-eval | `{hookpoint: {"action", "steering_vector", "steering_coefficient", "bias", "head_index"}}` |

The first two are of assistant-axis (arXiv 2601.10387), where a cap is a ceiling: h - max(h·v̂ - cap, 0)v̂.
In lm-eval, action add is h + coefficient·v, and clamp sets h·v̂ to the coefficient.
"""  # noqa: E501 (a table)

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.convert_formats import Format

Blocks = dict[int, Float[Tensor, " d_model"]]
Bounds = tuple[float | None, float | None]
"""Floor and ceiling of h·v̂; None where there is no bound."""

BLOCK_LISTS = ("layers", "h", "blocks")
_HOOKPOINT = re.compile(rf"(?:[\w.]+\.)?(?:{'|'.join(BLOCK_LISTS)})\.(\d+)")
_FLOOR = "/floor"
_VECTOR_KEYS = ("axis", "vector")


@dataclass(frozen=True, eq=False)
class Found:
    """What a file holds.

    Attributes:
        blocks: block index -> (d_model,) float32.
        coefs: block index -> the coefficient that stands beside its vector.
        bounds: block index -> floor and ceiling of the projection on the vector, where the file caps.
        told: what else it says.
    """

    blocks: Blocks
    coefs: dict[int, float] = field(default_factory=dict)
    bounds: dict[int, Bounds] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


class PickledSteeringVector:
    """What `steering_vectors.SteeringVector` is read as, so that its file opens without that library or its code."""

    layer_activations: dict[int, Tensor]
    layer_type: str


SAFE_CLASSES: list[Any] = [(PickledSteeringVector, "steering_vectors.steering_vector.SteeringVector")]
"""For `torch.serialization.safe_globals`: the one class that may stand in a file, and what it becomes."""


def format_of(content: Any) -> Format | None:
    """The format that the content of a file can only be; None for a bare tensor and for what is no format."""
    if isinstance(content, PickledSteeringVector):
        return "steering-vectors"
    if not isinstance(content, Mapping):
        return None
    if "layer_activations" in content:
        return "steering-vectors"
    if {"vectors", "experiments"} <= set(content):
        return "capping"
    if content and all(isinstance(one, Mapping) and "steering_vector" in one for one in content.values()):
        return "lm-eval"
    shapes = [one.ndim for one in content.values() if isinstance(one, Tensor)]
    return "assistant-axis" if 2 in shapes else None


def read_assistant_axis(content: Any, name: str | None = None) -> Found:
    """The rows of an axis or of one role's vector; `name` chooses among several.

    Raises:
        ValueError: no such vector, or one that is not (n_blocks, d_model).
    """
    told: dict[str, Any] = {}
    rows = content
    if isinstance(content, Mapping):
        named = {key: one for key, one in content.items() if isinstance(one, Tensor) and one.ndim == 2}
        key = (
            name
            or next((key for key in _VECTOR_KEYS if key in named), None)
            or (next(iter(named)) if len(named) == 1 else None)
        )
        if key not in named:
            have = ", ".join(map(str, named)) or "no tensor (n_blocks, d_model)"
            raise ValueError(
                f"{'no vector ' + repr(name) if name else 'choose a vector with --name'}: the file has {have}"
            )
        rows = named[key]
        told = {"key": key} | {k: one for k, one in content.items() if isinstance(one, (str, int, float, bool))}
    if not isinstance(rows, Tensor) or rows.ndim != 2 or not rows.is_floating_point():
        what = f"{tuple(rows.shape)} of {rows.dtype}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"expected floats (n_blocks, d_model), got {what}")
    return Found(dict(enumerate(rows.float())), told=told)


def assistant_axis_content(blocks: Blocks, n_blocks: int) -> dict[str, Any]:
    """What their `load_axis` reads: `{"axis": (n_blocks, d_model)}`, zero where there is no vector."""
    axis = torch.zeros(n_blocks, len(next(iter(blocks.values()))))
    for block, vector in blocks.items():
        axis[block] = vector
    return {"axis": axis}


def read_capping(content: Any, name: str | None = None) -> Found:
    """The vectors and ceilings of one experiment; `name` is its id where there are several.

    What `capping_content` wrote of a floor is read as the floor.

    Raises:
        ValueError: no such experiment, one that caps nothing, or one with two vectors at a block.
    """
    experiments = {str(one["id"]): one["interventions"] for one in _list(content, "experiments")}
    chosen = name or (next(iter(experiments)) if len(experiments) == 1 else None)
    if chosen not in experiments:
        have = ", ".join(list(experiments)[:6]) + (f" and {len(experiments) - 6} more" if len(experiments) > 6 else "")
        raise ValueError(
            f"{'no experiment ' + repr(name) if name else 'choose an experiment with --name'}: it has {have}"
        )
    blocks: Blocks = {}
    bounds: dict[int, Bounds] = {}
    for one in experiments[chosen]:
        if "cap" not in one:
            continue
        entry, is_floor = content["vectors"][one["vector"]], str(one["vector"]).endswith(_FLOOR)
        block, vector, cap = int(entry["layer"]), entry["vector"].float(), float(one["cap"])
        vector, bound = (-vector, (-cap, None)) if is_floor else (vector, (None, cap))
        if block in blocks:
            floor, ceiling = bounds[block]
            if not is_floor or floor is not None or not torch.equal(vector, blocks[block]):
                raise ValueError(f"experiment {chosen!r} caps two vectors at block {block}; ours has one a layer")
            bound = (-cap, ceiling)
        blocks[block], bounds[block] = vector, bound
    if not blocks:
        raise ValueError(f"experiment {chosen!r} has no intervention with a cap")
    return Found(blocks, bounds=bounds, told={"experiment": chosen})


def capping_content(blocks: Blocks, bounds: Mapping[int, Bounds], experiment: str) -> dict[str, Any]:
    """A config with one experiment. Their cap is a ceiling: a floor f along v is written as the ceiling -f along -v,
    under a name that ends in /floor."""
    vectors, interventions = {}, []
    for block, vector in blocks.items():
        floor, ceiling = bounds[block]
        for bound, sign, side in ((ceiling, 1.0, "/ceiling"), (floor, -1.0, _FLOOR)):
            if bound is not None:
                vectors[f"layer_{block}{side}"] = {"layer": block, "vector": sign * vector}
                interventions.append({"vector": f"layer_{block}{side}", "cap": sign * bound})
    return {"vectors": vectors, "experiments": [{"id": experiment, "interventions": interventions}]}


def read_steering_vectors(content: Any) -> Found:
    """The vectors of a SteeringVector of decoder blocks.

    Raises:
        ValueError: it steers something other than the output of whole blocks.
    """
    fields = vars(content) if isinstance(content, PickledSteeringVector) else content
    if not isinstance(fields, Mapping) or not isinstance(activations := fields.get("layer_activations"), Mapping):
        raise ValueError("expected a SteeringVector, or its fields layer_activations and layer_type")
    if (kind := fields.get("layer_type", "decoder_block")) != "decoder_block":
        raise ValueError(f"its layer_type is {kind!r}; ours are outputs of whole blocks, decoder_block")
    return Found({int(block): _flat(one) for block, one in activations.items()})


def steering_vectors_content(blocks: Blocks) -> dict[str, Any]:
    """The fields of their dataclass: `SteeringVector(**torch.load(path))`."""
    return {"layer_activations": dict(blocks), "layer_type": "decoder_block"}


def read_lm_eval(content: Any) -> Found:
    """The vectors of its hookpoints; a clamp is a floor and a ceiling of the same value.

    Raises:
        ValueError: a hookpoint that is not a whole block, a head, a bias, or another action.
    """
    blocks: Blocks = {}
    coefs: dict[int, float] = {}
    bounds: dict[int, Bounds] = {}
    if not isinstance(content, Mapping):
        raise ValueError("expected {hookpoint: {action, steering_vector, ...}}")
    for hookpoint, one in content.items():
        match = _HOOKPOINT.fullmatch(str(hookpoint))
        if match is None:
            raise ValueError(f"hookpoint {hookpoint!r} is not the output of a decoder block such as layers.3")
        for key in ("head_index", "bias"):
            if one.get(key) is not None:
                raise ValueError(f"hookpoint {hookpoint!r} has a {key}, which a vector of ours cannot hold")
        block, coef = int(match[1]), float(one.get("steering_coefficient", 1.0))
        if (action := one.get("action")) not in ("add", "clamp"):
            raise ValueError(f"hookpoint {hookpoint!r} has action {action!r}; expected add or clamp")
        blocks[block] = _flat(one["steering_vector"])
        if action == "add":
            coefs[block] = coef
        else:
            bounds[block] = (coef, coef)
    return Found(blocks, coefs, bounds)


def lm_eval_content(
    blocks: Blocks, coef: float, block_list: str, bounds: Mapping[int, Bounds] | None = None
) -> dict[str, dict[str, Any]]:
    """What `lm_eval --model steered` reads: add at every block, or clamp where there are bounds.

    Args:
        block_list: name of the model's list of blocks, counted from its base model: `layers`, `h`, ...

    Raises:
        ValueError: a floor other than the ceiling: its clamp has one value.
    """
    for block, (floor, ceiling) in (bounds or {}).items():
        if floor is None or floor != ceiling:
            raise ValueError(f"lm-eval clamps to one value: at block {block}, floor {floor} is not ceiling {ceiling}")
    return {
        f"{block_list}.{block}": {
            "action": "clamp" if bounds else "add",
            "steering_vector": vector,
            "steering_coefficient": float(bounds[block][0]) if bounds else float(coef),  # pyright: ignore[reportArgumentType]
            "bias": None,
            "head_index": None,
        }
        for block, vector in blocks.items()
    }


def _flat(vector: Any) -> Tensor:
    """(d_model,), also of what has leading dimensions of 1."""
    if not isinstance(vector, Tensor) or vector.numel() != vector.shape[-1:].numel():
        shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise ValueError(f"expected a vector (d_model,), got {shape}")
    return vector.detach().float().reshape(-1)


def _list(content: Any, key: str) -> Sequence[Any]:
    if not isinstance(content, Mapping) or not isinstance(content.get(key), Sequence):
        raise ValueError("expected a capping config with vectors and experiments")
    return content[key]
