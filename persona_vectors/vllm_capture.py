"""Means of hidden states over a request's prompt and answer, summed inside vLLM's graph while it samples.

Extraction needs no second pass over the answers then. Each request that asks has three rows of sums at every layer: the
prompt without its last token, that token, and the answer; so the graph adds each token to one row. A token of any other
request is added to rows that nobody reads. Every position counts once, however often preemption has it computed again.
The last token of an answer is sampled and never computed, so the front asks for one token more and drops it
(`persona_vectors.vllm_steering`). vLLM is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

CAPTURE_KEY = "steering_capture"
"""A request's `extra_args` under this name: the name its means are kept under."""

ROWS = 3  # of one request: the prompt without its last token, that token, the answer

_TRASH = 64  # rows that share the tokens nobody asked for, so that they do not all wait for one


@dataclass
class _Sums:
    name: str
    prompt_len: int
    slot: int | None  # its rows of the sums begin at ROWS * slot; None while preempted
    counted: int = 0
    n_prompt: int = 0
    n_response: int = 0
    kept: Float[Tensor, "layers rows d_model"] | None = None
    """Its sums while preempted: others may start before it goes on, and all places be taken."""


class Capture:
    """Sums over the prompt's and the answer's tokens at every layer, for as many requests as may run at once.

    `layers` are hidden_states indices; of layer 0, the embeddings, `read` is given the input of the first block.
    """

    def __init__(self, layers: Sequence[int], d_model: int, max_requests: int, n_tokens: int, device: torch.device):
        self.layers = list(layers)
        self._number = {layer: k for k, layer in enumerate(self.layers)}
        self._first_trash = ROWS * max_requests
        shape = (self._first_trash + _TRASH, d_model)
        self.sums = [torch.zeros(shape, dtype=torch.float32, device=device) for _ in self.layers]
        self.row_of_token = torch.full((n_tokens,), self._first_trash, dtype=torch.int64, device=device)
        self._trash = (self._first_trash + np.arange(n_tokens) % _TRASH).astype(np.int64)
        self._free = list(range(max_requests - 1, -1, -1))
        self._running: dict[str, _Sums] = {}
        self._done: dict[str, dict[str, Any]] = {}

    def read(self, layer: int, hidden: Float[Tensor, "tokens d_model"], residual: Tensor | None) -> None:
        """Called in the graph: adds every token's stream to its row."""
        stream = hidden.float() if residual is None else hidden.float() + residual.float()
        self.sums[self._number[layer]].index_add_(0, self.row_of_token[: hidden.shape[0]], stream)

    def learn(self, scheduled: Any) -> None:
        """Takes in requests that begin and end."""
        for request in scheduled.finished_req_ids:
            if request in self._running:
                self._finish(request)
        for request in scheduled.preempted_req_ids or ():
            if request in self._running:
                self._pause(self._running[request])
        for new in scheduled.scheduled_new_reqs:
            extra = (new.sampling_params.extra_args if new.sampling_params else None) or {}
            if CAPTURE_KEY in extra and new.req_id not in self._running:
                slot = self._free.pop()
                for sums in self.sums:
                    sums[ROWS * slot : ROWS * slot + ROWS] = 0.0
                self._running[new.req_id] = _Sums(extra[CAPTURE_KEY], len(new.prompt_token_ids), slot)
        for request in scheduled.scheduled_cached_reqs.req_ids:
            if request in self._running:
                self._resume(self._running[request])

    def _pause(self, own: _Sums) -> None:
        """Takes a preempted request's sums out, and frees its place."""
        if own.slot is not None:
            own.kept = self._at(own.slot)
            self._free.append(own.slot)
            own.slot = None

    def _resume(self, own: _Sums) -> None:
        """Puts a preempted request's sums back; nothing for one that runs."""
        if own.slot is None:
            assert own.kept is not None
            own.slot = self._free.pop()
            for layer_sums, kept in zip(self.sums, own.kept, strict=True):
                layer_sums[ROWS * own.slot : ROWS * own.slot + ROWS] = kept.to(layer_sums.device)
            own.kept = None

    def _at(self, slot: int) -> Float[Tensor, "layers rows d_model"]:
        return torch.stack([layer_sums[ROWS * slot : ROWS * slot + ROWS] for layer_sums in self.sums]).cpu()

    def fill(self, requests: Sequence[str], n_scheduled: Sequence[int], n_computed: Sequence[int]) -> None:
        """Writes the row of every token of the batch."""
        rows = self._trash[: self.row_of_token.shape[0]].copy()
        start = 0
        for request, n_tokens, first in zip(requests, n_scheduled, n_computed, strict=True):
            sums, n_tokens, first = self._running.get(request), int(n_tokens), int(first)
            if sums is not None:
                self._count(sums, first, n_tokens, rows[start : start + n_tokens])
            start += n_tokens
        self.row_of_token.copy_(torch.from_numpy(rows), non_blocking=True)

    @staticmethod
    def _count(sums: _Sums, first: int, n_tokens: int, rows: np.ndarray) -> None:
        """Sends the tokens that were not counted yet to the request's own rows."""
        assert sums.slot is not None, "a preempted request is computed before the scheduler has said so"
        start, end = max(sums.counted, first), first + n_tokens
        positions = np.arange(start, end)
        rows[start - first :] = ROWS * sums.slot + np.clip(positions - sums.prompt_len + 2, 0, 2)
        n_prompt = int((positions < sums.prompt_len).sum())
        sums.n_prompt += n_prompt
        sums.n_response += len(positions) - n_prompt
        sums.counted = max(sums.counted, end)

    def _finish(self, request: str) -> None:
        sums = self._running.pop(request)
        self._pause(sums)
        assert sums.kept is not None
        self._done[sums.name] = {
            "n_prompt": sums.n_prompt,
            "n_response": sums.n_response,
            "sums": sums.kept.numpy().tobytes(),
            "layers": self.layers,
        }

    def take(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """By name, the sums of requests that have ended, whether or not the scheduler has announced it yet."""
        for request in self._named(names):
            self._finish(request)
        return {name: self._done.pop(name) for name in names}

    def forget(self, names: Sequence[str]) -> None:
        """Drops the sums of requests that were aborted, and frees their places."""
        for request in self._named(names):
            slot = self._running.pop(request).slot
            self._free += [] if slot is None else [slot]
        for name in names:
            self._done.pop(name, None)

    @property
    def n_held(self) -> int:
        """Requests that run or wait to be taken."""
        return len(self._running) + len(self._done)

    def _named(self, names: Sequence[str]) -> list[str]:
        return [request for request, sums in self._running.items() if sums.name in names]


def span_means(
    captured: Mapping[str, Any], d_model: int, n_prompt: int | None, n_response: int
) -> dict[str, Float[Tensor, "layers d_model"]]:
    """Span -> mean, by layer, of what `Capture.take` gave for one request; the prompt's spans only where wanted.

    Args:
        n_prompt: tokens of the prompt; None where its means are not wanted.
        n_response: tokens of the answer.

    Raises:
        RuntimeError: other tokens were summed than these.
    """
    counted = captured["n_prompt"], captured["n_response"]
    if counted != (captured["n_prompt"] if n_prompt is None else n_prompt, n_response):
        raise RuntimeError(f"captured {counted} tokens of a prompt of {n_prompt} and an answer of {n_response}")
    shape = (len(captured["layers"]), ROWS, d_model)
    body, last, response = torch.frombuffer(bytearray(captured["sums"]), dtype=torch.float32).reshape(shape).unbind(1)
    means = {"response_avg": response / max(1, n_response)}
    return means if n_prompt is None else {**means, "prompt_avg": (body + last) / n_prompt, "prompt_last": last}
