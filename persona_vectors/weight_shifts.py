"""What a finetuning changed, module by module: an adapter's factors, or a full checkpoint read as it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from persona_vectors.models import resolve_model
from persona_vectors.weight_deltas import Pair, linear_modules, open_pair, squared
from persona_vectors.weight_direction import LowRank, WeightDirection
from persona_vectors.weight_files import load_adapter, load_direction
from persona_vectors.weight_hooks import skeleton


@dataclass(frozen=True, eq=False)
class Dense:
    """A full finetuning's change of one module: its weight as (d_out, d_in), or of another shape, and its bias."""

    weight: Tensor | None
    bias: Tensor | None = None

    def squared(self) -> float:
        return sum(squared(one) for one in (self.weight, self.bias) if one is not None)


@dataclass(frozen=True)
class AdapterShift:
    """What an adapter adds to its base."""

    name: str
    direction: WeightDirection

    def entries(self) -> dict[str, int]:
        """Each module that it changes, and how many weights that has."""
        return {name: int(np.prod(one.shape)) for name, one in self.direction.modules.items()}

    def shape(self, module: str) -> tuple[int, ...]:
        return self.direction.modules[module].shape

    def blocks(self, module: str) -> Iterator[tuple[slice, LowRank]]:
        """The change of all the module's rows."""
        yield slice(None), self.direction.modules[module]


@dataclass(frozen=True)
class CheckpointShift:
    """What a full finetuning changed: read when it is asked for."""

    name: str
    pair: Pair
    transposed: frozenset[str]
    """modules whose weight is stored (d_in, d_out)"""

    def entries(self) -> dict[str, int]:
        """Each module, and how many weights it has."""
        found: dict[str, int] = {}
        for name in self.pair.names:
            module = _module(name)
            found[module] = found.get(module, 0) + int(np.prod(self.pair.shape(name)))
        return found

    def shape(self, module: str) -> tuple[int, ...]:
        shape = self.pair.shape(self._weight(module) or f"{module}.bias")
        return shape[::-1] if module in self.transposed else shape

    def blocks(self, module: str) -> Iterator[tuple[slice, Dense]]:
        """Rows of the module's change, and which: some at a time (a transposed weight whole), then the bias alone.

        A block is overwritten by the next one.
        """
        own, bias = self._weight(module), f"{module}.bias"
        if own and module in self.transposed:
            yield slice(None), Dense(self.pair.delta(own).T)
        elif own:
            for rows, delta in self.pair.blocks(own):
                yield rows, Dense(delta)
        if bias in self.pair.names:
            yield slice(None), Dense(None, self.pair.delta(bias))

    def _weight(self, module: str) -> str | None:
        return next((name for name in (f"{module}.weight", module) if name in self.pair.original.parameters), None)


def _module(parameter: str) -> str:
    """The module of a parameter; one that is neither weight nor bias stands for itself."""
    head, _, part = parameter.rpartition(".")
    return head if part in ("weight", "bias") else parameter


Shift = AdapterShift | CheckpointShift


def open_shift(finetuned: str | Path | WeightDirection, original: str | None = None) -> Shift:
    """What a finetuning changed: an adapter's folder, a direction, its `.pt`, or a full model beside its original.

    Raises:
        ValueError: nothing there, or a full model without an original, or one that is no finetuning of it.
    """
    if isinstance(finetuned, WeightDirection):
        return AdapterShift(str(finetuned.record.get("adapter", "direction")), finetuned)
    name, path = str(finetuned), Path(finetuned)
    if path.suffix == ".pt" or (path / "adapter_config.json").is_file():
        return AdapterShift(name, load_direction(path))
    source = resolve_model(name)
    if source.adapter is not None:
        return AdapterShift(name, load_adapter(source.adapter))
    if original is None:
        raise ValueError(f"{name} is a full model, whose change is known beside its original only; give original")
    transposed = frozenset(name for name, way in linear_modules(skeleton(original)).items() if way)
    return CheckpointShift(name, open_pair(original, name), transposed)
