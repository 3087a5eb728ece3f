"""A few tokens' hidden states at every steerable layer, before and after steering, read inside vLLM's graph.

This is what a steering receipt is measured with: no second model, no second pass. A request asks for it in its
`extra_args`; the probe serves `N_PLACES` tokens a step. vLLM is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

PROBE_KEY = "steering_probe"
"""A request's `extra_args` under this name: JSON list of the token positions to read, counted from 0."""


N_PLACES = 3


class Probe:
    """Reads the tokens at `places` of the batch in every step, and keeps those that a request asked for."""

    def __init__(self, layers: Sequence[int], d_model: int, device: torch.device):
        self.layers = list(layers)
        self._number = {layer: k for k, layer in enumerate(self.layers)}
        self.places = torch.zeros(N_PLACES, dtype=torch.int64, device=device)
        self.seen = [torch.zeros(2, N_PLACES, d_model, dtype=torch.float32, device=device) for _ in self.layers]
        self._placed = False  # whether places points anywhere but at the first token
        self._wanted: dict[str, set[int]] = {}
        self._now: list[tuple[str, int]] = []
        self._kept: list[dict[str, Any]] = []

    def read(
        self,
        layer: int,
        before: Float[Tensor, "tokens d_model"],
        after: Float[Tensor, "tokens d_model"],
        residual: Tensor | None,
    ) -> None:
        """Called in the graph: the stream at the probed tokens, before and after steering."""
        pair = torch.stack([before.index_select(0, self.places), after.index_select(0, self.places)]).float()
        if residual is not None:
            pair = pair + residual.index_select(0, self.places).float()
        self.seen[self._number[layer]].copy_(pair)

    def learn(self, scheduled: Any) -> None:
        """Takes in new requests that ask to be read."""
        for request in scheduled.finished_req_ids:
            self._wanted.pop(request, None)
        for new in scheduled.scheduled_new_reqs:
            extra = (new.sampling_params.extra_args if new.sampling_params else None) or {}
            if PROBE_KEY in extra:
                self._wanted[new.req_id] = set(json.loads(extra[PROBE_KEY]))

    def fill(self, requests: Sequence[str], n_scheduled: Sequence[int], n_computed: Sequence[int]) -> None:
        """Points the probe at the wanted tokens of this step, as many as it serves."""
        self._now = []
        if not self._wanted and not self._placed:
            return
        places, start = [], 0
        for request, n_tokens, first in zip(requests, n_scheduled, n_computed, strict=True):
            for position in sorted(self._wanted.get(request, ())):
                if first <= position < first + n_tokens and len(places) < N_PLACES:
                    places.append(start + int(position - first))
                    self._now.append((request, position))
            start += int(n_tokens)
        # also when nobody asks any more: the place of a long step lies outside a short one
        self.places.copy_(torch.tensor(places + [0] * (N_PLACES - len(places))))
        self._placed = bool(places)

    def keep(self) -> None:
        """Called after the step: keeps what was read."""
        states = torch.stack(self.seen).cpu() if self._now else None  # (layers, 2, places, d_model)
        for place, (request, position) in enumerate(self._now):
            assert states is not None
            own = states[:, :, place].contiguous().numpy().tobytes()
            self._kept.append({"request": request, "position": position, "states": own})
        self._now = []

    def take(self) -> list[dict[str, Any]]:
        """Every reading since last asked: request, position, and float32 (layers, 2, d_model) as bytes."""
        kept, self._kept = self._kept, []
        return [{**one, "layers": self.layers} for one in kept]
