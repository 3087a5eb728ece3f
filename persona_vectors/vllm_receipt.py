"""What steering was seen to do inside a running vLLM engine: measured by its probe, on prefill and decode.

A request with the steering is computed with the probe on three of its tokens: the last but one and the last of the
prompt, and the first of the answer. At every steerable layer what was changed is held against what
`persona_vectors.interventions` makes of the same hidden states, and elsewhere nothing may change.
The model is the engine's own; there is no second one. vLLM is imported when a receipt is taken.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors import interventions
from persona_vectors.vllm_catalog import Catalog
from persona_vectors.vllm_probe import PROBE_KEY
from persona_vectors.vllm_spec import KEY, Spec, Step, at_class, spec_text

Run = Callable[[Sequence[int], Any], Awaitable[None]]
"""Computes a prompt under sampling parameters, to its end."""

Rpc = Callable[[str], Awaitable[Any]]
"""What the first worker returns for a method of `SteeringWorker`."""

_CLASSES = "PBG"
_NAMES = {"P": "a prompt token", "B": "the last prompt token", "G": "an answer token"}


@dataclass(frozen=True)
class Measured:
    """What a spec was seen to do at one layer.

    Attributes:
        expected: mean norm of the change that was asked for, over the tokens that are steered there.
        prefill, decode: what was seen of it, along what was asked for; 0 where those tokens are not steered.
        relative_error: the largest |seen - asked| / |asked| of a steered token.
        tolerance: what rounding to the model's dtype can make of that at most.
        hidden_norm: mean norm of the hidden states that are steered there, before it; without the prompt's last token
            where it is the only one of the prompt, because some models park a norm there that is far from all others.
    """

    layer: int
    expected: float
    prefill: float
    decode: float
    relative_error: float
    tolerance: float
    hidden_norm: float


async def measure(
    run: Run, rpc: Rpc, catalog: Catalog, ids: Sequence[int], spec: Spec, dtype: torch.dtype
) -> list[Measured]:
    """What the engine was seen to do at each layer that the spec (resolved) names, lowest first.

    Args:
        ids: a prompt of at least two tokens.
        dtype: of the model's hidden states.

    Raises:
        ValueError: nothing, too much or something else is done there, or anything elsewhere.
    """
    if len(ids) < 2:
        raise ValueError(f"a steering receipt needs a prompt of two tokens or more; got {len(ids)}")
    places = {len(ids) - 2: "P", len(ids) - 1: "B", len(ids): "G"}
    await rpc("steering_probed")  # forgets what was read before
    await run(ids, _params(spec, list(places)))
    readings = {places[one["position"]]: _states(one, catalog.d_model) for one in await rpc("steering_probed")}
    _check_finite(readings)
    missing = [_NAMES[token_class] for token_class in _CLASSES if token_class not in readings]
    if missing == [_NAMES["G"]]:
        raise ValueError("steering receipt: the answer's logits become NaN; lower the coefficient")
    if missing:
        raise ValueError(f"steering receipt: vLLM computed the prompt without its probe at {', '.join(missing)}")
    found = []
    for layer in sorted({step.layer for step in spec}):
        own = tuple(step for step in spec if step.layer == layer)
        found.append(_at_layer(own, layer, {c: readings[c][layer] for c in _CLASSES}, catalog, dtype))
    _check_elsewhere(spec, readings)
    return found


async def check_engine(
    run: Run, rpc: Rpc, catalog: Catalog, ids: Sequence[int], dtype: torch.dtype
) -> dict[str, list[Measured]]:
    """What each vector of the catalog was seen to do at every steerable layer, added with coef 1; for a start-up.

    Raises:
        ValueError: an engine that does not do what it says; it must not be used.
    """
    found = {}
    for name, own in (catalog.names or {own: own for own in catalog.vectors}).items():
        layers = [layer for layer in catalog.layers if catalog.at(own, layer).any()]
        spec = tuple(Step(own, layer, 1.0, "all") for layer in layers)
        try:
            found[name] = await measure(run, rpc, catalog, ids, catalog.resolve(spec), dtype) if spec else []
        except ValueError as error:
            raise ValueError(f"vector {name}: {error}") from error
    return found


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits: the offline engine's, which works in a notebook, too."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("an offline engine's coroutine waited for something")


def _params(spec: Spec, positions: Sequence[int]) -> Any:
    from vllm import SamplingParams

    args = {PROBE_KEY: json.dumps(list(positions)), **({KEY: spec_text(spec)} if spec else {})}
    return SamplingParams(
        temperature=0.0, max_tokens=2, min_tokens=2, detokenize=False, skip_reading_prefix_cache=True, extra_args=args
    )


def _states(reading: Mapping[str, Any], d_model: int) -> dict[int, Float[Tensor, "2 d_model"]]:
    """Layer -> the stream before and after steering."""
    flat = torch.from_numpy(np.frombuffer(reading["states"], dtype=np.float32).copy())
    return dict(zip(reading["layers"], flat.reshape(len(reading["layers"]), 2, d_model), strict=True))


def _at_layer(steps: Spec, layer: int, states: Mapping[str, Tensor], catalog: Catalog, dtype: torch.dtype) -> Measured:
    seen: dict[str, tuple[float, float]] = {}
    errors, bounds = [0.0], [0.0]
    for token_class, (before, after) in states.items():
        own = at_class(steps, token_class)
        asked = _expected(own, before, catalog).double() - before  # squares of what float32 holds may not be in it
        change = after.double() - before
        what = f"steering receipt: layer {layer} at {_NAMES[token_class]}"
        norm, error = float(asked.norm()), float((change - asked).norm())
        # one rounding to dtype for every step, of a number as large as the state or the change
        bound = 2 * (len(own) + 1) * torch.finfo(dtype).eps * (float(before.double().norm()) + norm)
        if not error <= bound:
            along = float(change @ asked) / norm if norm else 0.0
            raise ValueError(
                f"{what}: {along:.4g} of the {norm:.4g} asked for was seen along it, and the change is off by "
                f"{error:.3g} where rounding makes {bound:.2g} at most"
            )
        if own and norm:
            seen[token_class] = norm, float(change @ asked) / norm
            errors.append(error / norm)
            bounds.append(bound / norm)
    if at_class(steps, "P") + at_class(steps, "B") + at_class(steps, "G") and not seen and steps[0].kind == "add":
        raise ValueError(f"steering receipt: layer {layer}: nothing is changed by {len(steps)} steps")
    where = [token_class for token_class in states if at_class(steps, token_class)]
    where = where[1:] if where[0] == "B" and len(where) > 1 else where
    return Measured(
        layer=layer,
        expected=_mean([norm for norm, _ in seen.values()]),
        prefill=_mean([along for token_class, (_, along) in seen.items() if token_class != "G"]),
        decode=seen["G"][1] if "G" in seen else 0.0,
        relative_error=max(errors),
        tolerance=max(bounds),
        hidden_norm=_mean([float(states[token_class][0].norm()) for token_class in where]),
    )


def _expected(steps: Spec, before: Float[Tensor, " d_model"], catalog: Catalog) -> Float[Tensor, " d_model"]:
    """What the interventions that Hugging Face models are steered with make of a hidden state."""
    hidden = before[None]
    for step in steps:
        vector = catalog.at(step.vector, step.layer)
        if step.kind == "ablate":
            hidden = interventions.ablate(hidden, vector, None, step.coef)
        elif step.kind == "cap":
            hidden = interventions.cap(hidden, vector, step.floor, step.ceiling, None, step.coef)
        else:
            hidden = interventions.add(hidden, vector, step.coef)
    return hidden[0]


def _check_finite(readings: Mapping[str, Mapping[int, Tensor]]) -> None:
    for token_class, layers in readings.items():
        for layer, states in layers.items():
            if not torch.isfinite(states).all():
                raise ValueError(
                    f"steering receipt: layer {layer} at {_NAMES[token_class]}: hidden states become NaN or infinite; "
                    "lower the coefficient"
                )


def _check_elsewhere(spec: Spec, readings: Mapping[str, Mapping[int, Tensor]]) -> None:
    steered = {(token_class, step.layer) for token_class in _CLASSES for step in at_class(spec, token_class)}
    for token_class, layers in readings.items():
        for layer, (before, after) in layers.items():
            if (token_class, layer) not in steered and not torch.equal(before, after):
                raise ValueError(
                    f"steering receipt: layer {layer} changes at {_NAMES[token_class]}, where nothing was asked for"
                )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
