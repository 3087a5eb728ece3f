"""Directions of weights merged into a model in place, `W' = W + sum(coef * D)`, and taken out again bit for bit."""

from __future__ import annotations

import math
import operator
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from persona_vectors.blocks import model_label, unwrap
from persona_vectors.weight_direction import WeightDirection
from persona_vectors.weight_files import Direction, as_direction, content_stamp
from persona_vectors.weight_hooks import Placed, find_modules, has_floats, is_transposed, place

_mergers: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[LoRAMerger]]] = weakref.WeakKeyDictionary()
"""module -> the mergers that changed it, the last one last: each one's copy is of what the one before it made"""


@dataclass(frozen=True)
class _Backup:
    """What a merge touches of one module, as it was before."""

    module: Any
    weight: nn.Parameter
    original: Tensor
    """a copy of the weight; of a tied one the parameter itself, which is never written to"""
    is_tied: bool
    bias: nn.Parameter | None

    def restore(self) -> None:
        """The module has its parameters again, with their bits."""
        if self.is_tied:
            self.module.weight = self.weight
        else:
            self.weight.data.copy_(self.original)
        self.module.bias = self.bias


class LoRAMerger:
    """Adds directions to a model's weights in place, and takes them out again bit for bit.

    A second merge replaces the first: the weights are always `original + sum(coef * D)`, from one copy of the modules
    that a direction changes, kept until `restore_original_weights`. As a context manager it restores at the end.

    Several mergers of a module are restored last one first.

    A weight that is tied to another module's (an output head that is the embedding) is untied while merged, so that
    only the named module changes. A module without a bias gets one while a direction with biases is merged.

    Args:
        model: a causal language model with floating-point weights; PEFT, torch.compile, sharding may wrap it.
        backup_device: where copies are kept; by default where the weights are. "cpu" spares GPU memory.
    """

    def __init__(self, model: nn.Module, backup_device: str | None = None):
        self.model = model
        self._device = backup_device
        self._backups: dict[str, _Backup] = {}
        self._directions: list[WeightDirection] = []
        self._placed: dict[str, Placed] = {}
        self._shared: set[int] = set()
        self._read: dict[str, tuple[object, WeightDirection]] = {}
        """path -> stamp of its files and what was read of them, of the last merge's paths"""

    @torch.no_grad()
    def merge_lora_diff(
        self, lora_diff: Direction | Sequence[Direction], coefficient: float | Sequence[float] = 1.0
    ) -> int:
        """The number of modules that now carry `coefficient * lora_diff`, in place of what was merged before.

        Args:
            lora_diff: a direction, or its adapter folder or `.pt` file; or several of them. In a sweep the same one is
                read, cast and placed once; a file that is written again meanwhile is read again.
            coefficient: a number, or one a direction. With 0 the weights are the original ones, to the bit.

        Raises:
            ValueError: another model's direction, a weight that is not floating-point, a coefficient or a result that
                is not finite; the weights are then the original ones. Or another merger has changed a module since.
        """
        self._check_last()
        try:
            given = _parts(lora_diff, coefficient)
            parts = list(zip(self._directions_of([one for one, _ in given]), [coef for _, coef in given], strict=True))
            modules: dict[str, nn.Module] = {}
            for direction, _ in parts:
                modules |= find_modules(self.model, direction)
            acting = [(direction, coef) for direction, coef in parts if coef]
            self._place([direction for direction, _ in acting], modules)
            for name in set(self._backups) - set(self._placed):
                self._restore(name)
            coefs = torch.tensor([coef for _, coef in acting])
            for name, placed in self._placed.items():
                self._merge(name, placed, coefs)
        except BaseException:
            self.restore_original_weights()
            raise
        return len(modules)

    def _directions_of(self, given: Sequence[Direction]) -> list[WeightDirection]:
        """The directions, of which those of the last merge's paths are not read again."""
        before, self._read = self._read, {}
        found = []
        for one in given:
            if not isinstance(one, WeightDirection):
                path, stamp = str(one), content_stamp(one)
                known = self._read.get(path) or before.get(path)
                self._read[path] = known if known and known[0] == stamp else (stamp, as_direction(one))
                one = self._read[path][1]
            found.append(one)
        return found

    def _place(self, directions: list[WeightDirection], modules: dict[str, nn.Module]) -> None:
        """Makes `_placed` the directions' factors, unless it is that already."""
        if not self._backups:
            self._shared = _shared_parameters(self.model)
        if len(directions) == len(self._directions) and all(map(operator.is_, directions, self._directions)):
            return
        self._directions, self._placed = [], {}
        names = dict.fromkeys(name for direction in directions for name in direction.modules)
        for name in names:
            self._check_writable(name, modules[name])
        self._placed = {name: place(name, modules[name], directions) for name in names}
        self._directions = directions

    def _merge(self, name: str, placed: Placed, coefs: Float[Tensor, " k"]) -> None:
        module: Any = placed.module
        if name not in self._backups:
            backup = self._back_up(module)
            _mergers.setdefault(module, []).append(weakref.ref(self))
            self._backups[name] = backup
        kept = self._backups[name]
        if kept.is_tied and module.weight is kept.weight:
            module.weight = nn.Parameter(torch.empty_like(kept.weight), requires_grad=kept.weight.requires_grad)
        weight, original = module.weight, kept.original.to(module.weight.device)
        coefs = coefs.to(weight.device)
        A, B = placed.A, (placed.B * coefs[placed.owner]).to(weight.dtype)
        torch.addmm(original, *((A.T, B.T) if is_transposed(module) else (B, A)), out=weight.data)
        if placed.biases is not None:
            added = (coefs @ placed.biases.float()).to(weight.dtype)
            total = added if kept.bias is None else kept.bias.detach() + added
            module.bias = nn.Parameter(total, requires_grad=False)
        if _may_overflow(A, B) and not torch.isfinite(weight.data).all():
            raise ValueError(f"{name} is not finite with the direction merged at this coefficient; use a smaller one")

    def _check_writable(self, name: str, module: Any) -> None:
        weight = getattr(module, "weight", None)
        if not has_floats(module) or module.weight.is_meta:
            stored = "packed" if weight is None else "offloaded" if weight.is_meta else weight.dtype
            raise ValueError(
                f"{name} of {model_label(self.model)} is {stored}, and nothing can be added to it; load it whole and "
                'unquantised, or use LoRASteerer(mode="dynamic")'
            )

    def _back_up(self, module: Any) -> _Backup:
        weight = module.weight
        tied = id(weight) in self._shared
        original = weight.detach() if tied else weight.detach().to(self._device or weight.device, copy=True)
        return _Backup(module, weight, original, tied, module.bias)

    def _restore(self, name: str) -> None:
        kept = self._backups.pop(name)
        kept.restore()
        _mergers[kept.module].pop()

    def _check_last(self) -> None:
        """Refuses, with a ValueError, to write to a module that another merger has changed since."""
        for name, kept in self._backups.items():
            while (last := _mergers[kept.module][-1]()) is None:  # a merger that is gone and did not restore
                _mergers[kept.module].pop()
            if last is not self:
                raise ValueError(
                    f"{name} of {model_label(self.model)} was merged by another LoRAMerger since; restore that one "
                    "first, or merge several directions with one merger"
                )

    @torch.no_grad()
    def restore_original_weights(self) -> None:
        """Every weight has the bits it had before the first merge, and the copies are gone.

        Raises:
            ValueError: another merger has changed a module since, and is to be restored first; nothing is changed.
        """
        self._check_last()
        for name in list(self._backups):
            self._restore(name)
        self._directions, self._placed = [], {}

    def __enter__(self) -> LoRAMerger:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.restore_original_weights()


def _shared_parameters(model: nn.Module) -> set[int]:
    """The ids of parameters that several modules have, such as an output head that is the embedding."""
    counts = Counter(id(own) for module in unwrap(model).modules() for own in module.parameters(recurse=False))
    return {key for key, count in counts.items() if count > 1}


def _may_overflow(A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"]) -> bool:
    """Whether a weight + B @ A could leave the dtype's range: a bound without a pass over the weight."""
    if not len(A):
        return False
    factor, rank = float(B.abs().max()), len(A)
    largest = factor * max(1.0, rank * float(A.abs().max()))
    return not largest < torch.finfo(A.dtype).max / 4  # weights themselves are far below that


def _parts(
    lora_diff: Direction | Sequence[Direction], coefficient: float | Sequence[float]
) -> list[tuple[Direction, float]]:
    """Each direction, as it was given, with its coefficient.

    Raises:
        ValueError: another number of coefficients, or one that is not finite.
    """
    given = [lora_diff] if isinstance(lora_diff, (WeightDirection, str, Path)) else list(lora_diff)
    coefs = [float(coefficient)] * len(given) if isinstance(coefficient, (int, float)) else list(coefficient)
    if len(coefs) != len(given) or not given:
        raise ValueError(f"{len(coefs)} coefficients for {len(given)} directions; give one number, or one each")
    if wrong := [coef for coef in coefs if not math.isfinite(coef)]:
        raise ValueError(f"coefficient {wrong[0]} is not finite")
    return [(one, float(coef)) for one, coef in zip(given, coefs, strict=True)]
