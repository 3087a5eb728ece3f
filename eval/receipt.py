"""The steering receipt: what a steered run really adds to the hidden states, measured before the run.

One forward pass over a prompt and one decoding step, without and with the steerings, a row each, by the path that the
run itself takes (`steer_rows`). Each block's output is read twice in each pass: before any hook has touched it, and
after the last. What lies between is what hooks changed. It must be

    coef * vector   at the steered layer, at the steered positions
    0               at every other position, and at every other layer, exactly;

and without the steerings 0 everywhere, or the model already carries a hook and would be steered twice. What enters the
steered layer's hook must be what it is in the unsteered pass.

A sum is rounded to the hidden state's precision, so an entry may differ from coef * vector by `u * |sum|` and, where
coef * vector is itself made in that precision, by `3u * |coef * vector|` (u: half the distance from 1 to the next
number). The bound holds for each entry on its own, so that the few very large ones of a residual stream hide nothing of
the rest.

Of several steerings of one row each layer is measured on its own: what is added there, on top of what the layers below
have already changed; below the lowest of them nothing may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eval.model_utils import Added, Steering, parts_of, steer_rows
from eval.receipt_reading import Reading, read_steps
from persona_vectors.blocks import model_label
from persona_vectors.tokens import tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS_PER_BATCH = 16_384
_STEPS = ("prefill", "decode")
_WHERE = {
    "all": "every token",
    "prompt": "every prompt token and no answer token",
    "response": "the last prompt token and every answer token",
}


@dataclass(frozen=True)
class Receipt:
    """What one steering was seen to add.

    Attributes:
        expected: |coef * vector|, what was asked for.
        prefill, decode: what was added along coef * vector, a mean over the steered tokens of that pass; 0 where
            `positions` names none of them (prompt, in decoding).
        relative_error: the largest |added - coef * vector| / |coef * vector| of a steered token.
        tolerance: what rounding to `dtype` can make of that at most.
        hidden_norm: mean norm of the unsteered hidden states where it is added, without the first of several: many
            models park a norm far from all others at the prompt's first token, and some at its last, which for
            `response` leaves the first answer token.
        n_prompt_tokens: tokens of the prompt it was measured on.
        dtype: of the hidden states.
    """

    layer: int
    coef: float
    positions: str
    expected: float
    prefill: float
    decode: float
    relative_error: float
    tolerance: float
    hidden_norm: float
    n_prompt_tokens: int
    dtype: str

    def line(self) -> str:
        """What was asked for and what was seen, in one line."""
        return (
            f"steering receipt: layer {self.layer}, coef {self.coef:g}: adds {self.prefill:.4g} (asked "
            f"{self.expected:.4g}) to {_WHERE[self.positions]}, {self.expected / self.hidden_norm:.2g} of a token's "
            "hidden norm there; nothing elsewhere"
        )


def take_receipts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    steerings: Sequence[Added],
) -> list[Receipt]:
    """A receipt for each steering, in order, all of them in the same two passes; of several together one for each
    layer, lowest first.

    Args:
        prompt: a rendered chat prompt.
        steerings: each with a coefficient and a vector other than 0; those together at different layers.

    Raises:
        ValueError: one line, where what is added is not coef * vector at the layer and positions asked for: nothing,
            twice as much, at another layer or position, NaN or infinite, or too small for the model's precision; or
            where the model is changed by hooks before this steering.
    """
    ids = tokenize_prompt(tokenizer, prompt)
    if not ids:
        raise ValueError("the steering receipt needs a prompt; got an empty one")
    rows = [_checked(parts_of(added)) for added in steerings]
    return [receipt for batch in _batches(rows, len(ids)) for receipt in _measure(model, ids, batch)]


Row = tuple[Steering, ...]  # what is added together, at different layers


def _checked(row: Row) -> Row:
    for steering in row:
        if not float(steering.coef) * float(steering.vector.float().norm()):
            raise ValueError(f"{_name(steering)} asks for no change: coef or vector is 0; leave it out")
    layers = [steering.layer for steering in row]
    if len(set(layers)) < len(layers):
        raise ValueError(f"steering receipt: layers {layers} are steered together; name each once, with the sum there")
    return row


def _batches(rows: Sequence[Row], n_tokens: int) -> Iterator[list[Row]]:
    """Rows whose readings fit into memory together."""
    batch, size = [], 0
    for row in rows:
        if batch and size + n_tokens * len(row) > _TOKENS_PER_BATCH:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += n_tokens * len(row)
    if batch:
        yield batch


@torch.inference_mode()
def _measure(model: PreTrainedModel, ids: list[int], rows: Sequence[Row]) -> list[Receipt]:
    """The receipts of one batch. Both runs have the same shapes, so that untouched numbers are equal to the bit."""
    layers = [{steering.layer for steering in row} for row in rows]
    plain, token = read_steps(model, ids, layers, nullcontext(), None)
    _check_untouched(plain, model_label(model))
    added = [row[0] if len(row) == 1 else row for row in rows]  # a single one as itself, as a run gives it
    steered, _ = read_steps(model, ids, layers, steer_rows(model, added)(range(len(rows))), token)
    return [
        _receipt(number, steering, layers[number], plain, steered)
        for number, row in enumerate(rows)
        for steering in row
    ]


def _check_untouched(plain: Sequence[Reading], label: str) -> None:
    """Refuses a model whose blocks' outputs hooks already change, or that is not finite by itself."""
    for reading in plain:
        for layer, changes in reading.changes.items():
            if not torch.isfinite(changes).all():
                raise ValueError(
                    f"steering receipt: {label} itself gives NaN or infinite hidden states at layer {layer}; use "
                    "--dtype float32 or bfloat16"
                )
            if changes.any():
                raise ValueError(
                    f"steering receipt: a hook already changes layer {layer} of {label} before this steering is added "
                    "(would it be steered twice?); remove it first"
                )


def _receipt(
    row: int, steering: Steering, layers: set[int], plain: Sequence[Reading], steered: Sequence[Reading]
) -> Receipt:
    """Of one steering of a row that is steered at `layers`."""
    place = row, steering.layer
    push = float(steering.coef) * steering.vector.detach().double().cpu()  # (d_model,)
    expected = float(push.norm())
    along = dict.fromkeys(_STEPS, 0.0)
    errors, bounds, norms = [], [], []
    for step, reference, reading in zip(_STEPS, plain, steered, strict=True):
        where = _expected_tokens(steering.positions, step, len(reference.before[place]))
        _check_place(steering, layers, step, reading, row, where, expected)
        if steering.layer == min(layers):
            _check_upstream(steering, reference.before[place], reading.before[place])
        before, after = reading.before[place][where], reading.after[place][where]
        if len(before):
            error, bound, along[step] = _compare(steering, step, before, after, push)
            errors.append(error)
            bounds.append(bound)
            norms.append(reference.before[place][where].float().norm(dim=-1))
    if len(norms[0]) > 1:
        norms[0] = norms[0][1:]
    elif len(norms) > 1:
        norms = norms[1:]
    return Receipt(
        layer=steering.layer,
        coef=float(steering.coef),
        positions=steering.positions,
        expected=expected,
        prefill=along["prefill"],
        decode=along["decode"],
        relative_error=max(errors),
        tolerance=max(bounds),
        hidden_norm=float(torch.cat(norms).mean()),
        n_prompt_tokens=len(plain[0].before[place]),
        dtype=str(plain[0].before[place].dtype).removeprefix("torch."),
    )


def _expected_tokens(positions: str, step: str, n_tokens: int) -> Bool[Tensor, " tokens"]:
    """Which tokens of a pass are to be steered; told here anew, not asked of the steerer."""
    if step == "decode":
        return torch.full((n_tokens,), positions != "prompt")
    return torch.arange(n_tokens) >= (n_tokens - 1 if positions == "response" else 0)


def _check_place(
    steering: Steering,
    layers: set[int],
    step: str,
    reading: Reading,
    row: int,
    where: Bool[Tensor, " tokens"],
    expected: float,
) -> None:
    """Refuses a change at another layer or position, none where one was asked for, and what is not finite."""
    name = _name(steering)
    changes = {layer: change[row] for layer, change in reading.changes.items()}
    broken = [layer for layer, change in changes.items() if not torch.isfinite(change).all()]
    if broken:
        raise ValueError(
            f"{name} makes hidden states NaN or infinite in {step}, first at layer {broken[0]}; lower --coef"
        )
    others = [layer for layer, change in changes.items() if layer not in layers and change.any()]
    at_others = f"layer{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
    touched = changes[steering.layer] != 0
    if where.any() and not touched[where].any():
        instead = f"; {at_others} changed instead" if others else ""
        raise ValueError(f"{name} adds nothing there in {step}; expected {expected:.4g}{instead}")
    if others:
        raise ValueError(
            f"{name} also changes {at_others} in {step}; expected layer{'s' * (len(layers) > 1)} "
            f"{', '.join(map(str, sorted(layers)))} only"
        )
    stray = (touched & ~where).nonzero().flatten().tolist()
    if stray:
        raise ValueError(
            f"{name} also changes {len(stray)} of {int((~where).sum())} tokens it must leave alone in {step} (token "
            f"{stray[0]} of {len(where)}, counted from 0)"
        )


def _check_upstream(steering: Steering, plain: Tensor, steered: Tensor) -> None:
    """Refuses a change of what enters the steered layer's hook. Equal to the bit in a dense model; in a mixture of
    experts a row's neighbours decide how its sums are grouped, hence a rounding for every layer below."""
    difference = (steered.double() - plain.double()).norm(dim=-1)  # (tokens,)
    rounding = steering.layer * (torch.finfo(plain.dtype).eps + 64 * torch.finfo(torch.float32).eps)
    if (difference > rounding * plain.double().norm(dim=-1)).any():
        raise ValueError(
            f"{_name(steering)} also changes what enters that layer, by up to {float(difference.max()):.4g}; expected "
            "no change below it"
        )


def _compare(
    steering: Steering, step: str, before: Tensor, after: Tensor, push: Float[Tensor, " d_model"]
) -> tuple[float, float, float]:
    """(relative error, what rounding may make of it, what was added along the push) of one pass's steered tokens."""
    unit = torch.finfo(after.dtype).eps / 2
    added = after.double() - before.double()  # (tokens, d_model)
    allowed = unit * ((before.double() + push).abs() + 4 * push.abs()) + torch.finfo(after.dtype).tiny
    error, expected = (added - push).abs(), float(push.norm())
    along = float((added @ push).mean()) / expected
    if (push.abs() <= allowed).all(-1).any():
        norm, dtype = float(before.double().norm(dim=-1).mean()), str(after.dtype).removeprefix("torch.")
        raise ValueError(
            f"{_name(steering)} asks for {expected:.3g} where hidden states have norm {norm:.3g}: it is lost in the "
            f"rounding of {dtype}; raise --coef or use --dtype float32"
        )
    if (error > allowed).any():
        twice = " (is it steered twice?)" if 1.9 < along / expected < 2.1 else ""
        raise ValueError(
            f"{_name(steering)} adds {along:.4g} along its vector in {step}, {along / expected:.3g} times the "
            f"{expected:.4g} asked for, and is off by {float(error.norm(dim=-1).max()):.3g}{twice}"
        )
    return float(error.norm(dim=-1).max()) / expected, float(allowed.norm(dim=-1).max()) / expected, along


def _name(steering: Steering) -> str:
    return f"steering receipt: steering layer {steering.layer} by coef {steering.coef:g} at {steering.positions}"
