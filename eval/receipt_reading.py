"""What a steering receipt reads: every block's output in a prefill and a decoding step, before any hook has touched it
and after the last."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from persona_vectors.blocks import decoder_blocks, device_of, hidden_of, model_label, unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Reading:
    """One forward pass: what hooks changed at every layer, and the hidden states at each row's own layers.

    Attributes:
        changes: layer -> (rows, tokens), the largest absolute change of an entry; 0 means not a bit.
        before, after: (row, layer) -> (tokens, d_model), before the first and after the last hook there.
    """

    changes: dict[int, Float[Tensor, "rows tokens"]] = field(default_factory=dict)
    before: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    after: dict[tuple[int, int], Tensor] = field(default_factory=dict)


def read_steps(
    model: PreTrainedModel,
    ids: list[int],
    layers: Sequence[set[int]],
    steering: AbstractContextManager,
    token: int | None,
) -> tuple[list[Reading], int]:
    """The readings of a prefill of `ids`, once for each of `layers`, and of one decoding step; and that step's token.

    Without a `token` given it is the likeliest one, so that another run can be given the same.
    """
    device = device_of(model)
    prompt = torch.tensor([ids] * len(layers), device=device)  # (rows, tokens)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(unwrap(model).forward).parameters else {}
    readings = []
    with _first_hooks(model) as fresh, steering:
        with _last_hooks(model, fresh, layers, readings):
            readings.append(Reading())
            output = model(input_ids=prompt, attention_mask=torch.ones_like(prompt), use_cache=True, **last)
            token = int(output.logits[0, -1].argmax()) if token is None else token
            step = torch.full_like(prompt[:, :1], token)
            mask = torch.ones(len(layers), len(ids) + 1, dtype=torch.long, device=device)
            readings.append(Reading())
            model(input_ids=step, attention_mask=mask, past_key_values=output.past_key_values, use_cache=True, **last)
    n_layers = len(decoder_blocks(model))
    if any(len(reading.changes) < n_layers for reading in readings):
        raise RuntimeError(
            f"{model_label(model)} ran blocks without their hooks: nothing can be said about steering it"
        )
    return readings, token


@contextmanager
def _first_hooks(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Copies of the latest block outputs by layer, taken before any other hook on the block."""
    fresh: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(_block: nn.Module, _args: tuple, output: Any) -> None:
            fresh[layer] = hidden_of(output).clone()  # a hook may write in place

        return read

    with _hooks(model, reader, prepend=True):
        yield fresh


@contextmanager
def _last_hooks(
    model: nn.Module, fresh: dict[int, Tensor], layers: Sequence[set[int]], readings: list[Reading]
) -> Iterator[None]:
    """Completes the latest reading; to be entered inside the steering, so that its hooks come last."""

    def reader(layer: int) -> Any:
        def read(_block: nn.Module, _args: tuple, output: Any) -> None:
            before, after = fresh.pop(layer), hidden_of(output)
            reading = readings[-1]
            reading.changes[layer] = (after.float() - before.float()).abs().amax(-1).cpu()
            for row in (row for row, own in enumerate(layers) if layer in own):
                reading.before[row, layer], reading.after[row, layer] = before[row].cpu(), after[row].cpu()

        return read

    with _hooks(model, reader, prepend=False):
        yield


@contextmanager
def _hooks(model: nn.Module, reader: Any, *, prepend: bool) -> Iterator[None]:
    handles = []
    try:
        for block_idx, block in enumerate(decoder_blocks(model)):
            handles.append(block.register_forward_hook(reader(block_idx + 1), prepend=prepend))
        yield
    finally:
        for handle in handles:
            handle.remove()
