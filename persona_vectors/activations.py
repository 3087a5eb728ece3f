"""The engine that reads activations: token ids and spans in, per-sample mean activations of the wanted layers out.

`layer` is a hidden_states index: 0 is the embedding output (the input of the first block), L the output of block L-1.
The last layer is the last block's own output, before the final norm, because that is what can be steered.

Hooks of our own on the blocks reduce each hidden state to its means as soon as it exists, so no hidden state is kept
and memory does not grow with the number of samples. `output_hidden_states` is never asked for: whether it shows a
steered layer depends on the order in which hooks were added. The forward pass ends at the highest wanted layer; the
blocks above it, the final norm and the `lm_head` do not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from persona_vectors.blocks import (
    block_index,
    check_layer,
    decoder_blocks,
    device_of,
    hidden_of,
    hidden_size,
    model_label,
    unwrap,
)
from persona_vectors.tokens import TokenizedSample, pad_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPANS = ("prompt_avg", "response_avg", "prompt_last")

Means = dict[str, Float[Tensor, "batch layers d_model"]]

_TOKENS_PER_BATCH_CPU = 4_096  # padded tokens in one forward pass
_TOKENS_PER_BATCH_CUDA = 16_384
_ROWS_PER_BATCH = 256  # bounds what a batch's means occupy on the device: short samples, many layers


class _EarlyExit(Exception):
    """Raised by the hook on the highest wanted layer: everything asked for has been read."""


def mean_activations(
    model: PreTrainedModel | nn.Module,
    samples: Sequence[TokenizedSample],
    layers: Sequence[int] | None = None,
    spans: Sequence[str] = SPANS,
    *,
    token_budget: int | None = None,
    progress: bool = False,
    on_batch: Callable[[list[int], Means], None] | None = None,
) -> dict[str, Float[Tensor, "n layers d_model"]]:
    """Mean activation of each sample over each span at each layer: float32, on the CPU, in input order.

    With h the hidden states of one sample at one layer and p its prompt length:
        prompt_avg = mean(h[:p]),  response_avg = mean(h[p:]),  prompt_last = h[p - 1].

    The result does not depend on the order of the samples nor on which of them share a batch, beyond rounding; equal
    samples are computed once. An active `ActivationSteerer` is seen, if it was entered before this call; it must steer
    all positions alike, because rows are reordered and a sample is cut after the last span that is wanted.

    Args:
        model: a causal language model; PEFT-wrapped, compiled (run uncompiled here) or spread over devices is fine.
        samples: from `persona_vectors.tokens`.
        layers: hidden_states indices in the wanted order; all of 0..n_layers by default.
        spans: which of SPANS.
        token_budget: padded tokens in one forward pass; a default for the device if None. A batch that does not fit
            the device is halved until it does.
        progress: show a progress bar.
        on_batch: called with row numbers and their means as each batch ends (`iter_mean_activations` keeps nothing).

    Raises:
        ValueError: an empty prompt or answer in a wanted span, a sample longer than the model's context, a layer or
            span that does not exist, or activations that are not finite; all name the rows.

    Source: the per-sample formula of arXiv 2507.21509.
    """
    wanted = _check_layers(model, layers)
    shape = (len(samples), len(wanted), hidden_size(model))
    result = {span: torch.empty(shape, dtype=torch.float32) for span in spans}
    batches = iter_mean_activations(model, samples, wanted, spans, token_budget=token_budget, progress=progress)
    for rows, means in batches:
        index = torch.tensor(rows)
        for span, values in means.items():
            result[span][index] = values
        if on_batch is not None:
            on_batch(rows, means)
    return result


def iter_mean_activations(
    model: PreTrainedModel | nn.Module,
    samples: Sequence[TokenizedSample],
    layers: Sequence[int] | None = None,
    spans: Sequence[str] = SPANS,
    *,
    token_budget: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[list[int], Means]]:
    """Batches of (row numbers, means of those rows), each row once, in the engine's own order (longest first).

    The same numbers as `mean_activations`, for who reduces further and wants no more than one batch in memory.
    """
    wanted = _check_layers(model, layers)
    _check_spans(spans)
    _check_samples(model, samples, spans)
    if token_budget is None:
        token_budget = _TOKENS_PER_BATCH_CPU if device_of(model).type == "cpu" else _TOKENS_PER_BATCH_CUDA
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; expected at least 1")
    return _iterate(model, samples, wanted, tuple(spans), token_budget, progress)


def _iterate(
    model: nn.Module,
    samples: Sequence[TokenizedSample],
    layers: list[int],
    spans: tuple[str, ...],
    token_budget: int,
    progress: bool,
) -> Iterator[tuple[list[int], Means]]:
    rows_of: dict[TokenizedSample, list[int]] = {}
    for row, sample in enumerate(samples):
        rows_of.setdefault(_cut(sample, spans), []).append(row)
    # Longest first: memory runs out on the first batch or never. Ties by content: input order changes nothing.
    ordered = sorted(rows_of, key=lambda sample: (-len(sample.ids), sample.ids, sample.prompt_len))
    with tqdm(total=len(samples), desc="activations", unit="sample", disable=not progress) as bar:
        start = 0
        while start < len(ordered):
            size = min(_ROWS_PER_BATCH, max(1, token_budget // len(ordered[start].ids)))
            batch = ordered[start : start + size]
            start += size
            rows = [row for sample in batch for row in rows_of[sample]]
            index = torch.tensor([i for i, sample in enumerate(batch) for _ in rows_of[sample]])
            means = _means_or_halves(model, batch, layers, spans)  # (batch, span, layer, d_model)
            _check_finite(means[index], rows)
            yield rows, {span: means[index, i] for i, span in enumerate(spans)}
            bar.update(len(rows))


def _cut(sample: TokenizedSample, spans: tuple[str, ...]) -> TokenizedSample:
    """The sample without the answer if no span needs it: later tokens change nothing before them in a causal model."""
    return sample if "response_avg" in spans else TokenizedSample(sample.ids[: sample.prompt_len], sample.prompt_len)


def _means_or_halves(
    model: nn.Module, batch: Sequence[TokenizedSample], layers: list[int], spans: tuple[str, ...]
) -> Float[Tensor, "batch spans layers d_model"]:
    try:
        return _batch_means(model, batch, layers, spans)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    halves = (batch[:middle], batch[middle:])
    return torch.cat([_means_or_halves(model, half, layers, spans) for half in halves])


@torch.inference_mode()
def _batch_means(
    model: nn.Module, batch: Sequence[TokenizedSample], layers: list[int], spans: tuple[str, ...]
) -> Float[Tensor, "batch spans layers d_model"]:
    """One forward pass over right-padded samples: padding comes after every real token, so positions are exact."""
    base = unwrap(model)
    device = device_of(base)
    if device.type == "meta":  # offloaded weights: accelerate's own hook moves the inputs
        device = torch.device("cpu")
    input_ids, attention_mask = pad_batch([sample.ids for sample in batch], 0, "right")
    means: dict[int, Tensor] = {}
    with _eval_mode(base), _reducing_hooks(base, layers, _span_weights(batch, spans), means):
        try:
            base(
                input_ids=input_ids.to(device),
                attention_mask=attention_mask.to(device),
                use_cache=False,
                output_hidden_states=False,
            )
        except _EarlyExit:
            pass
    unread = sorted(set(layers) - means.keys())
    if unread:
        raise RuntimeError(f"{type(base).__name__} did not run the blocks of layers {unread}: nothing was read there")
    return torch.stack([means[layer].cpu() for layer in layers], dim=2)


def _span_weights(batch: Sequence[TokenizedSample], spans: tuple[str, ...]) -> Float[Tensor, "batch spans seq"]:
    """Rows that turn hidden states into span means by one matrix product; every row sums to 1, padding weighs 0."""
    position = torch.arange(max(len(sample.ids) for sample in batch))  # (seq,)
    total = torch.tensor([len(sample.ids) for sample in batch])[:, None]  # (batch, 1)
    prompt = torch.tensor([sample.prompt_len for sample in batch])[:, None]
    masks = {
        "prompt_avg": position < prompt,
        "response_avg": (position >= prompt) & (position < total),
        "prompt_last": position == prompt - 1,
    }
    mask = torch.stack([masks[span] for span in spans], dim=1).float()  # (batch, spans, seq)
    return mask / mask.sum(-1, keepdim=True)


@contextmanager
def _reducing_hooks(
    model: nn.Module, layers: Sequence[int], weights: Float[Tensor, "batch spans seq"], means: dict[int, Tensor]
) -> Iterator[None]:
    """Hooks that put (batch, spans, d_model) into `means[layer]`, and end the pass after the highest layer."""
    blocks = decoder_blocks(model)
    highest = max(layers)
    weights_on: dict[torch.device, Tensor] = {}

    def reduce(layer: int, hidden: Tensor) -> None:
        device = hidden.device
        if device not in weights_on:
            weights_on[device] = weights.to(device)
        with torch.autocast(device.type, enabled=False):
            means[layer] = torch.bmm(weights_on[device], hidden.float())
        if layer == highest:
            raise _EarlyExit

    def read_input(_block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        reduce(0, args[0] if args else kwargs["hidden_states"])

    def reader(layer: int) -> Callable[[nn.Module, tuple, Any], None]:
        return lambda _block, _args, output: reduce(layer, hidden_of(output))

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


def _check_layers(model: nn.Module, layers: Sequence[int] | None) -> list[int]:
    n_layers = len(decoder_blocks(model))
    if layers is None:
        return list(range(n_layers + 1))
    if not layers:
        raise ValueError(f"no layers given; expected some of 0..{n_layers}")
    return [check_layer(layer, n_layers, model_label(model), steering=False) for layer in layers]


def _check_spans(spans: Sequence[str]) -> None:
    unknown = [span for span in spans if span not in SPANS]
    if unknown or not spans:
        raise ValueError(f"spans {list(spans)}: expected some of {', '.join(SPANS)}")


def _check_samples(model: nn.Module, samples: Sequence[TokenizedSample], spans: Sequence[str]) -> None:
    if "response_avg" in spans:
        empty = [row for row, sample in enumerate(samples) if sample.response_len < 1]
        if empty:
            raise ValueError(f"the answer has no tokens in {_some(empty)}: leave such rows out")
    empty = [row for row, sample in enumerate(samples) if sample.prompt_len < 1]
    if empty:
        raise ValueError(f"the prompt has no tokens in {_some(empty)}; expected at least one")
    config: Any = getattr(unwrap(model), "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    long = [row for row, sample in enumerate(samples) if context and len(sample.ids) > context]
    if long:
        raise ValueError(f"{_some(long)}: longer than the {context} tokens that {model_label(model)} reads; shorten it")


def _check_finite(means: Float[Tensor, "batch spans layers d_model"], rows: Sequence[int]) -> None:
    finite = torch.isfinite(means).flatten(1).all(1)
    if not finite.all():
        broken = sorted(row for row, good in zip(rows, finite.tolist(), strict=True) if not good)
        raise ValueError(f"activations are NaN or infinite in {_some(broken)}; use bfloat16 or float32, not float16")


def _some(rows: Sequence[int]) -> str:
    """`row 3` or `rows 3, 7, 9 and 12 more`, counted from 0."""
    shown = ", ".join(map(str, rows[:5]))
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
