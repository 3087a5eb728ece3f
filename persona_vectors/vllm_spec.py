"""What a request asks vLLM to do to its hidden states, as plain data: parsed, checked, and named for the prefix cache.

A request's steering is a list of steps, as JSON:

    [{"vector": "evil", "layer": 20, "coef": 2.0, "positions": "response"},
     {"vector": "evil", "layer": [16, 17], "kind": "cap", "ceiling": 4.0, "positions": "all"}]

`layer` is a hidden_states index (several: the step at each of them); `kind` is add (default), ablate or cap,
`positions` response (default), prompt or all, and `floor` and `ceiling` bound a cap, all as in
`persona_vectors.interventions`. Steps on one layer act in the order given. A step of coef 0 is left out, so its request
is an unsteered one.

vLLM is not imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from persona_vectors.interventions import KINDS, POSITIONS, check_bounds

KEY = "steering"
"""Under this name the JSON travels in a request's `extra_args`."""

_FIELDS = ("vector", "layer", "coef", "positions", "kind", "floor", "ceiling")
_CLASSES = {"all": "PBG", "prompt": "PB", "response": "BG"}


@dataclass(frozen=True)
class Step:
    """One thing done to one layer's output while a request is computed.

    Attributes:
        vector: name of the vector in the engine: the content hash once resolved.
        layer: hidden_states index.
    """

    vector: str
    layer: int
    coef: float = 1.0
    positions: str = "response"
    kind: str = "add"
    floor: float | None = None
    ceiling: float | None = None


Spec = tuple[Step, ...]


def parse_spec(raw: Any) -> Spec:
    """The steps of a request, lowest layer first and otherwise as given; () where it is not steered.

    Args:
        raw: the list of steps, its JSON text, or None.

    Raises:
        ValueError: one line that names the step and what is wrong with it.
    """
    if raw is None or raw == "":
        return ()
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"steering is not JSON: {error}") from error
    if isinstance(raw, Mapping):
        raw = [raw]
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise ValueError(f"steering must be a list of steps; got {type(raw).__name__}")
    steps = [step for number, entry in enumerate(raw) for step in _steps(number, entry)]
    return tuple(sorted((step for step in steps if step.coef != 0), key=lambda step: step.layer))


def _steps(number: int, entry: Any) -> list[Step]:
    """One step for each layer that the entry names."""
    where = f"steering step {number}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be an object with vector and layer; got {type(entry).__name__}")
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        raise ValueError(f"{where} has unknown field {unknown[0]!r}; have {', '.join(_FIELDS)}")
    vector, layers = entry.get("vector"), entry.get("layer")
    if not isinstance(vector, str) or not vector:
        raise ValueError(f"{where} needs the name of a vector; got {vector!r}")
    layers = layers if isinstance(layers, list | tuple) else [layers]
    if not layers or any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise ValueError(f"{where} needs a layer, a whole number or several; got {entry.get('layer')!r}")
    bounds = {name: _number(where, name, entry.get(name)) for name in ("floor", "ceiling")}
    coef = _number(where, "coef", entry.get("coef", 1.0))
    if coef is None:
        raise ValueError(f"{where} has coef null; expected a number")
    step = Step(vector, 0, coef, entry.get("positions", "response"), entry.get("kind", "add"), **bounds)
    _check_kind(where, step)
    return [replace(step, layer=layer) for layer in layers]


def _number(where: str, name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond every float
        pass
    raise ValueError(f"{where} has {name} {repr(value)[:40]}; expected a finite number")


def _check_kind(where: str, step: Step) -> None:
    if step.positions not in POSITIONS:
        raise ValueError(f"{where} has positions {step.positions!r}; expected {', '.join(POSITIONS)}")
    if step.kind not in KINDS:
        raise ValueError(f"{where} has kind {step.kind!r}; expected {', '.join(KINDS)}")
    if step.kind != "cap" and (step.floor is not None or step.ceiling is not None):
        raise ValueError(f"{where} has floor or ceiling, which belong to kind cap; got kind {step.kind}")
    if step.kind == "cap":
        try:
            check_bounds(step.floor, step.ceiling)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def spec_text(spec: Spec) -> str:
    """The JSON of the steps: what `parse_spec` reads, the same text for the same steps."""
    return json.dumps([{k: v for k, v in asdict(step).items() if v is not None} for step in spec], sort_keys=True)


def at_class(spec: Spec, token_class: str) -> Spec:
    """The steps that act on a class of tokens: P the prompt without its last token, B that one, G what follows."""
    return tuple(step for step in spec if token_class in _CLASSES[step.positions])


def block_key(spec: Spec, prompt_len: int, start: int, end: int) -> str | None:
    """What steering adds to the prefix cache's name of the tokens start..end-1; None where none of them is steered.

    Keys and values of a token depend on the steering of it and of what comes before it. Names of blocks are chained, so
    naming in each the steps of its own tokens is enough, and a prompt that is steered from its last token on shares all
    blocks before with an unsteered one.
    """
    runs: list[tuple[int, Spec]] = []  # (tokens, steps)
    edges = ((start, min(end, prompt_len - 1), "P"), (max(start, prompt_len - 1), min(end, prompt_len), "B"))
    for first, last, token_class in (*edges, (max(start, prompt_len), end, "G")):
        if last <= first:
            continue
        steps = at_class(spec, token_class)
        if runs and runs[-1][1] == steps:
            runs[-1] = (runs[-1][0] + last - first, steps)
        else:
            runs.append((last - first, steps))
    if not any(steps for _, steps in runs):
        return None
    return "steering-" + hashlib.sha256(repr(runs).encode()).hexdigest()
