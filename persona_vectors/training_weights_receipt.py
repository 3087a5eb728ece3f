"""What a direction of weights does in a training step, measured at every linear module: in the forward pass, in the
recomputation of gradient checkpointing, and in evaluation, where it must do nothing.

Each module's output is read before and after whatever hooks stand on it and compared with `coef * (x A^T) B^T` from the
factors themselves, so a direction that acts nowhere, twice, elsewhere, or in one of the two passes only, is seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from persona_vectors.training_receipt import TOLERANCE
from persona_vectors.weight_direction import LowRank, WeightDirection, layer_of
from persona_vectors.weight_hooks import find_modules

RECEIPT = "training receipt"
SHARE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""by how much the share of the change that arrives may differ from 1"""
COARSE_SHARE = 0.1
"""of 16-bit outputs, whose rounding swallows what is below half a step"""


@dataclass(frozen=True)
class Change:
    """One call of one module.

    Attributes:
        error: the largest error of a token's change, relative to its size or, where rounding is coarser, to the output.
        share: `<got, wanted> / |wanted|^2` over all tokens; 1 where it cannot be told for smallness.
        size: `|wanted| / |output|` over all tokens.
    """

    error: float
    share: float
    size: float
    dtype: torch.dtype


@dataclass
class ModuleReading:
    """What hooks did to the outputs of linear modules.

    Attributes:
        expected: module of the direction -> its change, coefficients folded in.
        calls: module of the direction -> its calls, in order.
        touched: other modules whose output was changed.
        n_read: how many calls were compared.
    """

    expected: Mapping[str, LowRank]
    calls: dict[str, list[Change]] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)
    n_read: int = 0


@contextmanager
def read_modules(model: nn.Module, change: WeightDirection | None, acts: bool = True) -> Iterator[ModuleReading]:
    """Compares every linear module's output before and after the hooks that are on it when the context opens.

    Args:
        change: the direction, coefficients folded in. None reads nothing.
        acts: `x A^T B^T` more is expected at its modules; False: nothing, as in evaluation.
    """
    reading = ModuleReading(change.modules if change is not None and acts else {})
    handles = []
    if change is not None:
        targets = {id(module): name for name, module in find_modules(model, change).items()}
        for name, module in model.named_modules():
            if id(module) in targets or isinstance(module, nn.Linear):
                handles += _read_one(reading, targets.get(id(module), name), module, acts and id(module) in targets)
    try:
        yield reading
    finally:
        for handle in handles:
            handle.remove()


def _read_one(reading: ModuleReading, name: str, module: nn.Module, acts: bool) -> list[Any]:
    """The two hooks that read one module."""
    first: list[Tensor] = []

    def before(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        first.append(output.detach())

    def after(_module: nn.Module, args: tuple, output: Tensor) -> None:
        was, now = first.pop(), output.detach()
        reading.n_read += 1
        if acts:
            reading.calls.setdefault(name, []).append(_compare(args[0].detach(), was, now, reading.expected[name]))
        elif was.data_ptr() != now.data_ptr() and not torch.equal(was, now):
            reading.touched.append(name)

    return [module.register_forward_hook(before, prepend=True), module.register_forward_hook(after)]


@torch.no_grad()
def _compare(x: Tensor, before: Tensor, after: Tensor, change: LowRank) -> Change:
    dtype = torch.promote_types(before.dtype, torch.float32)
    step = torch.finfo(before.dtype).eps
    tiny = torch.finfo(dtype).tiny
    with torch.autocast(x.device.type, enabled=False):
        A, B = (factor.to(x.device, dtype) for factor in (change.A, change.B))
        wanted = (x.to(dtype) @ A.T) @ B.T  # (..., d_out)
        wanted = wanted if change.bias is None else wanted + change.bias.to(x.device, dtype)
        got = after.to(dtype) - before.to(dtype)
        sizes, outputs = wanted.norm(dim=-1), before.to(dtype).norm(dim=-1)
        # a change cannot be more exact than the steps in which the output itself is stored
        scale = torch.maximum(sizes, outputs * step * 100).clamp_min(tiny)
        error = float(((got - wanted).norm(dim=-1) / scale).max())
        total, output = float(sizes.norm()), float(outputs.norm())
        told = total > output * step / 8
        share = float((got * wanted).sum(dim=-1).sum()) / total**2 if told else 1.0
    return Change(error, share, total / max(output, tiny), before.dtype)


def check_modules(reading: ModuleReading, n_calls: int, of: str = RECEIPT) -> dict[str, Any]:
    """The receipt of one micro-batch: how many modules were changed, by how much, and the largest relative error.

    Args:
        n_calls: 1, or 2 with gradient checkpointing, whose backward pass runs the blocks again.
        of: what an error begins with.

    Raises:
        ValueError: one line, saying at which module what was measured and what was expected.
    """
    _refuse_touched(reading, "first step", of)
    worst: dict[str, float] = {}
    for name in reading.expected:
        calls = reading.calls.get(name, [])
        wanted = n_calls if layer_of(name) is not None else 1
        if len(calls) != wanted:
            raise ValueError(
                f"{of}: {name} ran {len(calls)} times in the first step; expected {wanted}, so the "
                "direction's part in training cannot be vouched for"
            )
        for when, call in zip(("forward", "recomputation"), calls, strict=False):
            _refuse_wrong(call, f"{of}: {name}, {when}")
            worst[f"{when}_error"] = max(call.error, worst.get(f"{when}_error", 0.0))
    if not reading.expected:
        return {}
    sizes = [call.size for calls in reading.calls.values() for call in calls]
    return {"modules": {"n": len(reading.expected), **worst, "mean_relative_change": sum(sizes) / len(sizes)}}


def _refuse_wrong(call: Change, place: str) -> None:
    if not math.isfinite(call.error):
        name = str(call.dtype).removeprefix("torch.")
        raise ValueError(f"{place}: with the change the output overflows {name} (NaN or infinite); use a smaller coef")
    if not call.error <= TOLERANCE.get(call.dtype, 1e-2):
        raise ValueError(
            f"{place}: the output's change is off by {call.error:.2g} of its size; the model would not be steered as "
            "asked"
        )
    if not abs(call.share - 1) <= SHARE.get(call.dtype, COARSE_SHARE):
        name = str(call.dtype).removeprefix("torch.")
        raise ValueError(
            f"{place}: {call.share:.0%} of the direction's change of {call.size:.2g} of the output "
            f"arrives in {name}; use dtype float32, or a larger coef"
        )


def check_modules_untouched(reading: ModuleReading) -> None:
    """Refuses, with a ValueError, an evaluation in which a hook changed a module's output."""
    _refuse_touched(reading, "evaluation", RECEIPT)
    if not reading.n_read:
        raise ValueError("training receipt: no linear module ran in the evaluation")


def _refuse_touched(reading: ModuleReading, when: str, of: str) -> None:
    if reading.touched:
        raise ValueError(f"{of}: {reading.touched[0]}, {when}: its output was changed, and nothing was to act there")
