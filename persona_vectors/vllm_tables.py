"""The steering of a running batch as tables of fixed size, so that a compiled graph never changes.

Each steerable layer has tables with a row for each thing that is being done; row 0 does nothing. One buffer, shared by
all layers, names the row of every token of the batch. Before a step the host writes that buffer; the graph looks rows
up and holds nothing of any request.

A row does at one layer, with h a token's hidden state:

    h <- h + c_k * (clamp(h.u_k, low_k, high_k) - h.u_k) * u_k     for k = 1..projections (ablate, cap)
    h <- h + delta                                                 (all that is added)

which is every sequence of add, ablate and cap: what is added before a projection passes to its end as it is, with the
projection's bounds moved by its component along u. vLLM is not imported here.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_vectors.vllm_spec import Spec, Step, at_class

VectorAt = Callable[[str, int], Float[Tensor, " d_model"]]
"""The float32 vector of a name at a layer."""


@dataclass(frozen=True)
class Program:
    """What one row does at one layer.

    Attributes:
        projections: (unit vector (d_model,), coef, low, high) each, in order.
        delta: (d_model,), added after them.
    """

    projections: tuple[tuple[Tensor, float, float, float], ...]
    delta: Float[Tensor, " d_model"]


def program_of(steps: Sequence[Step], vector_at: VectorAt) -> Program:
    """The steps of one layer, in order, as projections and one sum; computed in float64, returned in float32."""
    delta: Tensor | None = None
    projections = []
    for step in steps:
        vector = vector_at(step.vector, step.layer).double().cpu()
        if delta is None:
            delta = torch.zeros_like(vector)
        if step.kind == "add":
            delta = delta + step.coef * vector
            continue
        unit = vector / vector.norm()
        low, high = (0.0, 0.0) if step.kind == "ablate" else (step.floor, step.ceiling)
        moved = float(delta @ unit)
        bounds = (-math.inf if low is None else low - moved, math.inf if high is None else high - moved)
        projections.append((unit.float(), step.coef, *bounds))
    assert delta is not None, "a program of no steps"
    return Program(tuple(projections), delta.float())


class LayerTables:
    """The rows of one layer, on the model's device."""

    def __init__(self, n_rows: int, d_model: int, projections: int, dtype: torch.dtype, device: torch.device):
        self.delta = torch.zeros(n_rows, d_model, dtype=dtype, device=device)
        self.units = [torch.zeros(n_rows, d_model, dtype=torch.float32, device=device) for _ in range(projections)]
        self.numbers = [self._unbounded(n_rows, device) for _ in range(projections)]  # (rows, 3): coef, low, high

    @staticmethod
    def _unbounded(n_rows: int, device: torch.device) -> Float[Tensor, "rows 3"]:
        return torch.tensor([0.0, -math.inf, math.inf], device=device).repeat(n_rows, 1)

    def write(self, row: int, program: Program | None) -> None:
        """Makes the row do what the program says, or nothing."""
        self.delta[row] = 0.0 if program is None else program.delta.to(self.delta)
        for k, (units, numbers) in enumerate(zip(self.units, self.numbers, strict=True)):
            if program is not None and k < len(program.projections):
                unit, *rest = program.projections[k]
                units[row] = unit.to(units)
                numbers[row] = torch.tensor(rest).to(numbers)
            else:
                units[row] = 0.0
                numbers[row] = self._unbounded(1, numbers.device)[0]

    def apply(
        self, hidden: Float[Tensor, "tokens d_model"], residual: Tensor | None, rows: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens d_model"]:
        """`hidden` with each token's row done to the stream it is part of (hidden, or hidden + residual)."""
        for units, numbers in zip(self.units, self.numbers, strict=True):
            unit, (coef, low, high) = units.index_select(0, rows), numbers.index_select(0, rows).unbind(1)
            stream = hidden.float() if residual is None else hidden.float() + residual.float()
            along = (stream * unit).sum(-1)
            change = coef * (torch.minimum(torch.maximum(along, low), high) - along)
            hidden = hidden + (change[:, None] * unit).to(hidden.dtype)
        return hidden + self.delta.index_select(0, rows)


@dataclass
class _Request:
    prompt_len: int
    spec: Spec
    rows: dict[str, int] = field(default_factory=dict)  # token class -> row
    """Empty while preempted."""


class SteeringRows:
    """Which table row every token of the batch uses.

    Rows are named by what they do, so requests that do the same share one, and a row is written again only when its
    place is needed for another. A running request needs at most three rows (prompt, its last token, response), so
    1 + 3 * (most running requests) rows are always enough.

    Args:
        n_rows: rows of the tables, row 0 among them.
        write: called with a row and the steps it is to do from now on.
    """

    def __init__(self, n_rows: int, write: Callable[[int, Spec], None]):
        self._write = write
        self._requests: dict[str, _Request] = {}
        self._row_of: dict[Spec, int] = {}
        self._users: dict[Spec, int] = {}
        self._idle: OrderedDict[Spec, None] = OrderedDict()  # written, used by no request: longest idle first
        self._fresh = list(range(n_rows - 1, 0, -1))

    def start(self, request: str, prompt_len: int, spec: Spec) -> None:
        """A request begins or, after preemption, begins again."""
        self.stop(request)
        if spec:
            self._requests[request] = _Request(prompt_len, spec)
            self.resume(request)

    def resume(self, request: str) -> None:
        """Gives a preempted request its rows back; nothing for one that has them, or is not steered."""
        known = self._requests.get(request)
        if known is not None and not known.rows:
            known.rows = {token_class: self._acquire(at_class(known.spec, token_class)) for token_class in "PBG"}

    def pause(self, request: str) -> None:
        """A request is preempted: its rows may go to others."""
        known = self._requests.get(request)
        if known is not None and known.rows:
            for token_class in known.rows:
                self._release(at_class(known.spec, token_class))
            known.rows = {}

    def stop(self, request: str) -> None:
        """A request is over."""
        self.pause(request)
        self._requests.pop(request, None)

    @property
    def n_used(self) -> int:
        """Rows that some request uses."""
        return len(self._users)

    @property
    def any_running(self) -> bool:
        return bool(self._requests)

    def _acquire(self, steps: Spec) -> int:
        if not steps:
            return 0
        if steps not in self._row_of:
            if self._fresh:
                row = self._fresh.pop()
            elif self._idle:
                row = self._row_of.pop(self._idle.popitem(last=False)[0])
            else:
                raise RuntimeError(f"all {len(self._users)} steering rows are in use; more requests run than declared")
            self._write(row, steps)
            self._row_of[steps] = row
        self._idle.pop(steps, None)
        self._users[steps] = self._users.get(steps, 0) + 1
        return self._row_of[steps]

    def _release(self, steps: Spec) -> None:
        if not steps:
            return
        self._users[steps] -= 1
        if not self._users[steps]:
            del self._users[steps]
            self._idle[steps] = None

    def of_tokens(
        self, requests: Iterable[str], n_scheduled: Iterable[int], n_computed: Iterable[int], out: np.ndarray
    ) -> bool:
        """Writes into `out` the row of every token of the batch, request by request; True if any is not 0.

        Args:
            n_scheduled: tokens of each request in this step.
            n_computed: its tokens before them.
            out: (tokens,) integers.
        """
        out[:] = 0
        place, steered = 0, False
        for request, n_tokens, first in zip(requests, n_scheduled, n_computed, strict=True):
            n_tokens, first = int(n_tokens), int(first)
            known = self._requests.get(request)
            if known is not None:
                last = known.prompt_len - 1 - first  # where the last prompt token lies in this step
                own = out[place : place + n_tokens]
                own[: max(0, last)] = known.rows["P"]
                own[max(0, last + 1) :] = known.rows["G"]
                if 0 <= last < n_tokens:
                    own[last] = known.rows["B"]
                steered = True
            place += n_tokens
        return steered
