"""What steering does in a training step, measured at every block: in the forward pass, in the recomputation of gradient
checkpointing, and in evaluation, where it must do nothing.

Each block's output is read before and after whatever hooks the steerer has put on it, so a steerer that acts nowhere,
twice, elsewhere, or in one of the two passes only, is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from persona_vectors.blocks import decoder_blocks, hidden_of

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""of a change, relative to its size or, where rounding is coarser, to that of the hidden state"""


@dataclass(frozen=True)
class Expected:
    """What must happen at the output of one block.

    Attributes:
        kind: add, ablate or cap.
        vector: (d_model,); for add the whole change, coef·v, of all vectors together.
        coef: 1, or the share of the component that ablation takes.
        floor, ceiling: of a cap, in units of h·v/|v|.
    """

    kind: Literal["add", "ablate", "cap"]
    vector: Float[Tensor, " d_model"]
    coef: float = 1.0
    floor: float | None = None
    ceiling: float | None = None


@dataclass
class Reading:
    """The calls of each block, in order: its outputs before and after the hooks."""

    calls: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)


@contextmanager
def read_around(model: nn.Module) -> Iterator[Reading]:
    """Outputs of every block before and after the hooks that are on it when the context opens."""
    reading = Reading()
    handles = []

    def before(block: int):
        def read(_module: nn.Module, _args: tuple, output: Any) -> None:
            hidden = hidden_of(output).detach()
            reading.calls.setdefault(block, []).append((hidden, hidden))

        return read

    def after(block: int):
        def read(_module: nn.Module, _args: tuple, output: Any) -> None:
            first, _ = reading.calls[block].pop()
            reading.calls[block].append((first, hidden_of(output).detach()))

        return read

    try:
        for index, block in enumerate(decoder_blocks(model)):
            handles.append(block.register_forward_hook(before(index), prepend=True))
            handles.append(block.register_forward_hook(after(index)))
        yield reading
    finally:
        for handle in handles:
            handle.remove()


def check_step(reading: Reading, expected: dict[int, Expected], n_calls: int) -> dict[str, Any]:
    """The receipt of one micro-batch: calls, largest relative error and mean relative change of each steered block.

    Args:
        reading: of one training step on one micro-batch.
        expected: block index -> what must happen there; at every other block nothing may.
        n_calls: 1, or 2 with gradient checkpointing, whose backward pass runs the blocks again.

    Raises:
        ValueError: one line, saying at which block what was measured and what was expected.
    """
    blocks: dict[str, Any] = {}
    for block, calls in sorted(reading.calls.items()):
        if len(calls) != n_calls:
            raise ValueError(
                f"training receipt: block {block} ran {len(calls)} times in the first step; expected {n_calls} (forward"
                f"{' and recomputation' if n_calls == 2 else ''}), so steering in training cannot be vouched for"
            )
        for name, (before, after) in zip(("forward", "recomputation"), calls, strict=False):
            error = _error(before, after, expected.get(block), f"block {block}, {name}")
            if block in expected:
                layer = blocks.setdefault(f"layer {block + 1}", {"calls": len(calls)})
                layer |= {f"{name}_error": error, "mean_relative_change": _relative(before, after)}
    if missing := sorted(set(expected) - set(reading.calls)):
        raise ValueError(f"training receipt: block {missing[0]} did not run in the first step; it was to be steered")
    return {"layers": blocks, "calls": n_calls}


def receipt_lines(receipt: Mapping[str, Any]) -> list[str]:
    """How much the steering changes, in words, with a note where that is more than what it is added to."""
    if not receipt["layers"] and "modules" not in receipt:
        return []
    sizes = [one["mean_relative_change"] for one in receipt["layers"].values()]
    what = [f"the hidden state at {', '.join(receipt['layers'])}"] if sizes else []
    if modules := receipt.get("modules"):
        sizes.append(modules["mean_relative_change"])
        what.append(f"the outputs of {modules['n']} modules")
    ends = " to ".join(dict.fromkeys(f"{size:.2g}" for size in (min(sizes), max(sizes))))
    note = "note: what is added is larger than what it is added to, and may drown it; use a smaller coefficient"
    return [
        f"training receipt: steering changes {' and '.join(what)} by {ends} of its size",
        *([note] if max(sizes) > 1 else []),
    ]


def check_untouched(reading: Reading) -> None:
    """Refuses, with a ValueError, an evaluation in which anything changed a block's output."""
    for block, calls in sorted(reading.calls.items()):
        for before, after in calls:
            _error(before, after, None, f"block {block}, evaluation")
    if not reading.calls:
        raise ValueError("training receipt: no block ran in the evaluation")


def _error(before: Tensor, after: Tensor, expected: Expected | None, place: str) -> float:
    """The largest deviation from what was expected, relative; a ValueError where it is too large."""
    if expected is None:
        if not torch.equal(before, after):
            raise ValueError(f"training receipt: {place}: its output was changed, and nothing was to act there")
        return 0.0
    vector = expected.vector.to(before.device, torch.float32)
    change = (after.float() - before.float()).flatten(0, -2)  # (tokens, d_model)
    sizes = before.float().flatten(0, -2).norm(dim=-1)  # (tokens,)
    if expected.kind == "add":
        wrong = (change - vector).norm(dim=-1)
        # the change cannot be more exact than the steps in which the hidden state itself is stored
        scale = torch.maximum(vector.norm().expand_as(sizes), sizes * torch.finfo(before.dtype).eps * 100)
        got, wanted = change.mean(0).norm(), vector.norm()
    else:
        unit = vector / vector.norm()
        wanted_along = _bounded(before.float().flatten(0, -2) @ unit, expected)
        got_along = after.float().flatten(0, -2) @ unit
        beside = change - (change @ unit)[:, None] * unit
        wrong, scale = (got_along - wanted_along).abs() + beside.norm(dim=-1), sizes
        got, wanted = got_along.abs().mean(), wanted_along.abs().mean()
    error = float((wrong / scale).max())
    if not error <= TOLERANCE.get(before.dtype, 1e-2):
        raise ValueError(
            f"training receipt: {place}: {expected.kind} is off by {error:.2g} of its size "
            f"(measured {float(got):.4g}, expected {float(wanted):.4g}); training would not be steered as asked"
        )
    return error


def _relative(before: Tensor, after: Tensor) -> float:
    """|change| / |hidden state| of a token, mean over tokens."""
    change, size = ((after.float() - before.float()).norm(dim=-1), before.float().norm(dim=-1))
    return float((change / size.clamp_min(torch.finfo(torch.float32).tiny)).mean())


def _bounded(along: Float[Tensor, " tokens"], expected: Expected) -> Float[Tensor, " tokens"]:
    """What the component along the vector must be afterwards."""
    if expected.kind == "ablate":
        return along * (1 - expected.coef)
    bounded = along if expected.floor is None else along.clamp(min=expected.floor)
    bounded = bounded if expected.ceiling is None else bounded.clamp(max=expected.ceiling)
    return along + expected.coef * (bounded - along)


def blocks_expected(steps: Sequence[tuple[int, Expected]]) -> dict[int, Expected]:
    """One expectation a block: several additions at a block are one, by their sum.

    Raises:
        ValueError: several ablations or caps at one block, whose joint effect has no simple form to check.
    """
    found: dict[int, Expected] = {}
    for block, step in steps:
        if block not in found:
            found[block] = step
        elif step.kind == found[block].kind == "add":
            found[block] = Expected("add", found[block].vector + step.vector)
        else:
            raise ValueError(
                f"{step.kind} with several vectors at layer {block + 1} cannot be checked; use one a layer"
            )
    return found
