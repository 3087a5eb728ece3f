"""Forward passes that are read: the means of hidden states over spans at the wanted layers, and nothing else kept.

Hooks of our own on the blocks reduce each hidden state to its means as soon as it exists. A pass ends at the highest
wanted layer; the blocks above it, the final norm and the `lm_head` do not run.

`whole_means` reads samples as they are. `read_prompts` and `answer_means` read a prompt once and then each of its
answers after the prompt's keys and values: the same numbers where the keys and values are all that later tokens see of
earlier ones (`can_share_prompts`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from persona_vectors.blocks import block_index, decoder_blocks, device_of, hidden_of, unwrap
from persona_vectors.packing import packed_attention
from persona_vectors.tokens import TokenizedSample, pad_batch

if TYPE_CHECKING:
    from transformers import DynamicCache

SPANS = ("prompt_avg", "response_avg", "prompt_last")

SpanMeans = Float[Tensor, "batch spans layers d_model"]


class _EarlyExit(Exception):
    """Raised by the hook on the highest wanted layer: everything asked for has been read."""


@dataclass(frozen=True)
class ReadPrompts:
    """Prompts that were read: their own means, and the keys and values that their answers need."""

    lengths: list[int]
    means: SpanMeans
    cache: DynamicCache  # rows are prompts, padded on the right


def can_share_prompts(model: nn.Module) -> bool:
    """Whether answers can be read after the keys and values of their prompt, by what the model's cache holds.

    Not where a state sums up the tokens before (linear attention and hybrids), where columns mean more than distance
    (chunked attention), or where positions cannot be given.
    """
    from transformers import PreTrainedModel

    from persona_vectors.decoding import cache_kind

    base = unwrap(model)
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    return isinstance(base, PreTrainedModel) and takes_positions and cache_kind(base) == "slots"


@torch.inference_mode()
def whole_means(
    model: nn.Module, batch: Sequence[TokenizedSample], layers: Sequence[int], spans: Sequence[str]
) -> SpanMeans:
    """One pass over whole samples, padded on the right.

    Padding comes after every real token, so that positions are exact and causal attention never sees it. So the mask
    says that all is real: the model can then take its faster causal kernels.
    """
    input_ids, _mask = pad_batch([sample.ids for sample in batch], 0, "right")
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}
    return _read(model, layers, _span_weights(batch, spans), inputs)


@torch.inference_mode()
def read_prompts(
    model: nn.Module, prompts: Sequence[tuple[int, ...]], layers: Sequence[int], spans: Sequence[str]
) -> ReadPrompts:
    """One pass over prompts whose answers are to follow; the means of the response's span are left at 0."""
    from transformers import DynamicCache

    cache = DynamicCache()  # without a config: sliding windows are kept whole, and masked by the model
    input_ids, _mask = pad_batch(prompts, 0, "right")
    weights = _span_weights([TokenizedSample(prompt, len(prompt)) for prompt in prompts], spans)
    mask = torch.ones_like(input_ids)
    inputs = {"input_ids": input_ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    return ReadPrompts([len(prompt) for prompt in prompts], _read(model, layers, weights, inputs), cache)


@torch.inference_mode()
def answer_means(
    model: nn.Module,
    prompts: ReadPrompts,
    answers: Sequence[tuple[int, tuple[int, ...]]],
    layers: Sequence[int],
    spans: Sequence[str],
) -> SpanMeans:
    """One pass over answers, each with the row of its prompt in `prompts`; the means of all spans.

    Every prompt ends in the last column before the answers, as distances between columns are what a window masks by.
    Answers are padded on the right, where nothing attends to it.
    """
    owner = torch.tensor([row for row, _answer in answers])
    before = torch.tensor(prompts.lengths)[owner]  # (batch,)
    width = int(before.max())
    columns = torch.arange(width) - (width - before)[:, None]  # (batch, width): of the prompts' rows; < 0 is padding
    input_ids, _mask = pad_batch([answer for _row, answer in answers], 0, "right")
    last = before + torch.tensor([len(answer) for _row, answer in answers]) - 1
    positions = before[:, None] + torch.arange(input_ids.shape[1])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.cat([(columns >= 0).long(), torch.ones_like(input_ids)], dim=1),
        "position_ids": torch.minimum(positions, last[:, None]),  # padding stays within the model's context
        "past_key_values": _select(prompts.cache, owner, columns),
        "use_cache": True,
    }
    weights = _span_weights([TokenizedSample(answer, 0) for _row, answer in answers], spans)
    means = _read(model, layers, weights, inputs)
    of_prompt = torch.tensor([span != "response_avg" for span in spans])[:, None, None]
    return torch.where(of_prompt, prompts.means[owner], means)


@torch.inference_mode()
def packed_answer_means(
    model: nn.Module,
    prompts: ReadPrompts,
    row: int,
    answers: Sequence[tuple[int, ...]],
    layers: Sequence[int],
    spans: Sequence[str],
) -> SpanMeans:
    """`answer_means` for answers to the one prompt in `row`, not padded (`persona_vectors/packing.py`)."""
    before, lengths = prompts.lengths[row], [len(answer) for answer in answers]
    ids = [token for answer in answers for token in answer]
    weights = torch.block_diag(*(torch.full((1, length), 1 / length) for length in lengths))  # (answers, seq)
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, before + len(ids), dtype=torch.long),
        "position_ids": torch.cat([torch.arange(before, before + length) for length in lengths])[None],
        "past_key_values": _select(prompts.cache, torch.tensor([row]), torch.arange(before)[None]),
        "use_cache": True,
    }
    with packed_attention(model, before, lengths):
        means = _read(model, layers, weights[None], inputs)  # (1, answers, layers, d_model)
    of_prompt = torch.tensor([span != "response_avg" for span in spans])[:, None, None]
    return torch.where(of_prompt, prompts.means[row], means[0][:, None])


def _select(cache: DynamicCache, rows: Int[Tensor, " batch"], columns: Int[Tensor, "batch width"]) -> DynamicCache:
    """A cache of its own with those rows and columns; negative columns count from the end, and must be masked."""
    from transformers import DynamicCache

    selected = DynamicCache()
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        at = rows.to(layer.keys.device)[:, None], slice(None), columns.to(layer.keys.device)
        keys, values = layer.keys[at].transpose(1, 2), layer.values[at].transpose(1, 2)  # (batch, heads, width, d_head)
        selected.update(keys, values, index)
    return selected


def _read(
    model: nn.Module, layers: Sequence[int], weights: Float[Tensor, "batch spans seq"], inputs: dict[str, Any]
) -> SpanMeans:
    """One forward pass up to the highest wanted layer; its means, on the CPU."""
    weights_on: dict[torch.device, Tensor] = {}

    def reduce(_layer: int, hidden: Tensor) -> Tensor:
        device = hidden.device
        if device not in weights_on:
            weights_on[device] = weights.to(device)
        return torch.bmm(weights_on[device], hidden.float())  # (batch, spans, d_model)

    means = reduced_pass(model, layers, reduce, inputs)
    return torch.stack([means[layer].cpu() for layer in layers], dim=2)


def reduced_pass(
    model: nn.Module, layers: Sequence[int], reduce: Callable[[int, Tensor], Tensor], inputs: dict[str, Any]
) -> dict[int, Tensor]:
    """One forward pass up to the highest wanted layer: layer -> what `reduce(layer, hidden)` makes of its hidden state.

    The reduction runs in the hook, where the hidden state is, and without autocast; nothing else is kept.
    """
    base = unwrap(model)
    device = device_of(base)
    if device.type == "meta":  # offloaded weights: accelerate's own hook moves the inputs
        device = torch.device("cpu")
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    reduced: dict[int, Tensor] = {}
    with _eval_mode(base), _reducing_hooks(base, layers, reduce, reduced):
        try:
            base(output_hidden_states=False, **inputs)
        except _EarlyExit:
            pass
    unread = sorted(set(layers) - reduced.keys())
    if unread:
        raise RuntimeError(f"{type(base).__name__} did not run the blocks of layers {unread}: nothing was read there")
    return reduced


def _span_weights(batch: Sequence[TokenizedSample], spans: Sequence[str]) -> Float[Tensor, "batch spans seq"]:
    """Rows that turn hidden states into span means by one matrix product; padding weighs 0.

    Every row sums to 1, or to 0 for a span that is not in this pass (the answer's where prompts alone are read).
    """
    position = torch.arange(max(len(sample.ids) for sample in batch))  # (seq,)
    total = torch.tensor([len(sample.ids) for sample in batch])[:, None]  # (batch, 1)
    prompt = torch.tensor([sample.prompt_len for sample in batch])[:, None]
    masks = {
        "prompt_avg": position < prompt,
        "response_avg": (position >= prompt) & (position < total),
        "prompt_last": position == prompt - 1,
    }
    mask = torch.stack([masks[span] for span in spans], dim=1).float()  # (batch, spans, seq)
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


@contextmanager
def _reducing_hooks(
    model: nn.Module,
    layers: Sequence[int],
    reduce: Callable[[int, Tensor], Tensor],
    reduced: dict[int, Tensor],
) -> Iterator[None]:
    """Hooks that put what `reduce` makes of a layer into `reduced[layer]`, and end the pass after the highest layer."""
    blocks = decoder_blocks(model)
    highest = max(layers)

    def keep(layer: int, hidden: Tensor) -> None:
        with torch.autocast(hidden.device.type, enabled=False):
            reduced[layer] = reduce(layer, hidden)
        if layer == highest:
            raise _EarlyExit

    def read_input(_block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    def reader(layer: int) -> Callable[[nn.Module, tuple, Any], None]:
        return lambda _block, _args, output: keep(layer, hidden_of(output))

    handles = []
    try:
        for layer in set(layers):
            if layer == 0:
                handles.append(blocks[0].register_forward_pre_hook(read_input, with_kwargs=True))
            else:
                handles.append(blocks[block_index(layer)].register_forward_hook(reader(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """No dropout while we read, whatever mode a training loop left the model in; every module's mode is restored."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
