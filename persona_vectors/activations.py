"""The engine that reads activations: token ids and spans in, per-sample mean activations of the wanted layers out.

`layer` is a hidden_states index: 0 is the embedding output (the input of the first block), L the output of block L-1.
The last layer is the last block's own output, before the final norm, because that is what can be steered.

A prompt with several answers is read once, and its answers after its keys and values, where the model's cache allows
(`persona_vectors/span_means.py`, which runs the passes). `output_hidden_states` is never asked for: whether it shows a
steered layer depends on the order in which hooks were added. No hidden state is kept, so that memory does not grow with
the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from persona_vectors.blocks import check_layer, decoder_blocks, device_of, hidden_size, model_label, unwrap
from persona_vectors.memory import say_halved
from persona_vectors.packing import can_pack
from persona_vectors.span_means import (
    SPANS,
    SpanMeans,
    answer_means,
    can_share_prompts,
    packed_answer_means,
    read_prompts,
    whole_means,
)
from persona_vectors.tokens import TokenizedSample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Means = dict[str, Float[Tensor, "batch layers d_model"]]

_TOKENS_PER_PASS_CPU = 4_096  # padded tokens in one forward pass, those of prompts read before included
_TOKENS_PER_PASS_CUDA = 16_384
_PASS_COST_CPU = 64  # a pass of its own costs about as much as this many padded tokens
_PASS_COST_CUDA = 2_048
_PACKED_TOKENS = 512  # in one packed pass: larger ones fall out of the processor's cache
_ROWS_PER_PASS = 256  # bounds what a pass's means occupy on the device: short samples, many layers


@dataclass
class _Limits:
    """What one forward pass holds at most (`tokens`, padding included), and how many padded tokens it is worth.

    `tokens` is halved each time a pass does not fit the device, so that those after it fit.
    """

    tokens: int
    pass_cost: int

    def halve(self, n_rows: int) -> None:
        """A pass of so many rows did not fit."""
        say_halved("reading activations of", n_rows)
        self.tokens = max(1, self.tokens // 2)

    def parts(self, lengths: Sequence[int], before: int = 0) -> Iterator[slice]:
        """Rows of one pass each, of lengths that fall; `before` tokens stand before each row without being read.

        A row joins the rows above it unless their padding would by then cost more than a pass of its own.
        """
        start = 0
        while start < len(lengths):
            most = min(_ROWS_PER_PASS, self.tokens // (before + lengths[start]))
            end, padding = start + 1, 0
            while end < len(lengths) and end - start < most:
                padding += lengths[start] - lengths[end]
                if padding > self.pass_cost:
                    break
                end += 1
            yield slice(start, end)
            start = end

    def packed(self, lengths: Sequence[int], before: int) -> Iterator[slice]:
        """Rows of one pass each that are laid end to end after the same `before` tokens."""
        most = min(_PACKED_TOKENS, self.tokens - before)
        start = held = 0
        for row, length in enumerate(lengths):
            if row > start and held + length > most:
                yield slice(start, row)
                start, held = row, 0
            held += length
        yield slice(start, len(lengths))


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

    The result does not depend on the order of the samples nor on which of them share a batch or a prompt, beyond
    rounding; equal samples are computed once, and so are equal prompts. An active `ActivationSteerer` is seen, if it
    was entered before this call; it must steer all positions alike, because rows are reordered, a sample is cut after
    the last span that is wanted, and its prompt may be read in a pass of its own.

    Args:
        model: a causal language model; PEFT-wrapped, compiled (run uncompiled here) or spread over devices is fine.
        samples: from `persona_vectors.tokens`.
        layers: hidden_states indices in the wanted order; all of 0..n_layers by default.
        spans: which of SPANS.
        token_budget: padded tokens in one forward pass, those of prompts read before included; a default for the
            device if None. A batch that does not fit the device is halved until it does.
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
    names: Sequence[str] | None = None,
) -> Iterator[tuple[list[int], Means]]:
    """Batches of (row numbers, means of those rows), each row once, in the engine's own order.

    The same numbers as `mean_activations`, for who reduces further and wants no more than one batch in memory. Errors
    call the samples by `names`, where they are given.
    """
    wanted = _check_layers(model, layers)
    _check_spans(spans)
    check_samples(samples, spans, _context_of(model), model_label(model), names)
    on_cpu = device_of(model).type == "cpu"
    if token_budget is None:
        token_budget = _TOKENS_PER_PASS_CPU if on_cpu else _TOKENS_PER_PASS_CUDA
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; expected at least 1")
    limits = _Limits(token_budget, _PASS_COST_CPU if on_cpu else _PASS_COST_CUDA)
    return _iterate(model, samples, wanted, tuple(spans), limits, progress, names)


def _iterate(
    model: nn.Module,
    samples: Sequence[TokenizedSample],
    layers: list[int],
    spans: tuple[str, ...],
    limits: _Limits,
    progress: bool,
    names: Sequence[str] | None,
) -> Iterator[tuple[list[int], Means]]:
    rows_of: dict[TokenizedSample, list[int]] = {}
    for row, sample in enumerate(samples):
        rows_of.setdefault(_cut(sample, spans), []).append(row)
    with tqdm(total=len(samples), desc="activations", unit="sample", disable=not progress) as bar:
        for batch, means in _passes(model, list(rows_of), layers, spans, limits):
            rows = [row for sample in batch for row in rows_of[sample]]
            index = torch.tensor([i for i, sample in enumerate(batch) for _ in rows_of[sample]])
            check_finite(means[index], rows, names)
            yield rows, {span: means[index, i] for i, span in enumerate(spans)}
            bar.update(len(rows))


def _cut(sample: TokenizedSample, spans: tuple[str, ...]) -> TokenizedSample:
    """The sample without the answer if no span needs it: later tokens change nothing before them in a causal model."""
    return sample if "response_avg" in spans else TokenizedSample(sample.ids[: sample.prompt_len], sample.prompt_len)


def _passes(
    model: nn.Module, samples: Sequence[TokenizedSample], layers: list[int], spans: tuple[str, ...], limits: _Limits
) -> Iterator[tuple[list[TokenizedSample], SpanMeans]]:
    """Different samples with their means, a pass at a time: those whose prompt has several answers, then the others.

    Longest first: memory runs out early or never. Ties by content: the order of the samples changes nothing.
    """
    answers_to: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for sample in samples:
        answers_to.setdefault(sample.ids[: sample.prompt_len], []).append(sample.ids[sample.prompt_len :])
    share = max(layers) > 0 and can_share_prompts(model)  # nothing comes before layer 0
    prompts = sorted((p for p, answers in answers_to.items() if share and len(answers) > 1), key=_longest_first)
    for part in limits.parts([len(prompt) for prompt in prompts]):
        yield from _shared_passes(model, {p: answers_to[p] for p in prompts[part]}, layers, spans, limits)
    shared = set(prompts)
    others = [sample for sample in samples if sample.ids[: sample.prompt_len] not in shared]
    others.sort(key=lambda sample: (_longest_first(sample.ids), sample.prompt_len))
    for part in limits.parts([len(sample.ids) for sample in others]):
        batch = others[part]
        yield batch, _or_halves(lambda some: whole_means(model, some, layers, spans), batch, limits)


def _longest_first(ids: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return -len(ids), ids


def _shared_passes(
    model: nn.Module,
    answers_to: dict[tuple[int, ...], list[tuple[int, ...]]],
    layers: list[int],
    spans: tuple[str, ...],
    limits: _Limits,
) -> Iterator[tuple[list[TokenizedSample], SpanMeans]]:
    """One pass over the prompts, then passes over their answers: packed, a prompt at a time, where the model can.

    Elsewhere those of similar lengths share a pass, whichever prompt is theirs.
    """
    prompts = list(answers_to)
    read = None
    try:
        read = read_prompts(model, prompts, layers, spans)
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    if read is None:
        limits.halve(len(prompts))
        for half in (prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :]):
            yield from _shared_passes(model, {p: answers_to[p] for p in half}, layers, spans, limits)
        return
    if can_pack(model):
        for row, prompt in enumerate(prompts):
            ends = sorted(answers_to[prompt], key=_longest_first)
            packed = partial(packed_answer_means, model, read, row, layers=layers, spans=spans)
            for part in limits.packed([len(end) for end in ends], before=len(prompt)):
                batch = [TokenizedSample(prompt + end, len(prompt)) for end in ends[part]]
                yield batch, _or_halves(packed, ends[part], limits)
        return
    answers = [(row, answer) for row, prompt in enumerate(prompts) for answer in answers_to[prompt]]
    answers.sort(key=lambda pair: (_longest_first(pair[1]), pair[0]))
    for part in limits.parts([len(answer) for _row, answer in answers], before=max(read.lengths)):
        batch = answers[part]
        means = _or_halves(lambda some: answer_means(model, read, some, layers, spans), batch, limits)
        yield [TokenizedSample(prompts[row] + answer, read.lengths[row]) for row, answer in batch], means


def _or_halves(read: Callable[[list[Any]], SpanMeans], batch: list[Any], limits: _Limits) -> SpanMeans:
    """The means of a batch, read in halves where it does not fit the device."""
    try:
        return read(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    limits.halve(len(batch))
    middle = len(batch) // 2
    return torch.cat([_or_halves(read, half, limits) for half in (batch[:middle], batch[middle:])])


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


def check_samples(
    samples: Sequence[TokenizedSample],
    spans: Sequence[str],
    context: int | None,
    label: str,
    names: Sequence[str] | None = None,
) -> None:
    """Returns if a model can read the samples over these spans; a ValueError says which it cannot, and why.

    Args:
        context: tokens that the model reads at most, None for no limit.
        label: what the error calls the model.
        names: what it calls the samples; "row 3", counted from 0, without.
    """
    if "response_avg" in spans:
        empty = [row for row, sample in enumerate(samples) if sample.response_len < 1]
        if empty:
            raise ValueError(f"the answer has no tokens in {_some(empty, names)}: leave such rows out")
    empty = [row for row, sample in enumerate(samples) if sample.prompt_len < 1]
    if empty:
        raise ValueError(f"the prompt has no tokens in {_some(empty, names)}; expected at least one")
    long = [row for row, sample in enumerate(samples) if context and len(sample.ids) > context]
    if long:
        raise ValueError(f"{_some(long, names)}: longer than the {context} tokens that {label} reads; shorten it")


def _context_of(model: nn.Module) -> int | None:
    config: Any = getattr(unwrap(model), "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def check_finite(means: SpanMeans, rows: Sequence[int], names: Sequence[str] | None = None) -> None:
    """Refuses, with a ValueError that names their rows, means that are not finite."""
    finite = torch.isfinite(means).flatten(1).all(1)
    if not finite.all():
        broken = sorted(row for row, good in zip(rows, finite.tolist(), strict=True) if not good)
        where = _some(broken, names)
        raise ValueError(f"activations are NaN or infinite in {where}; use bfloat16 or float32, not float16")


def _some(rows: Sequence[int], names: Sequence[str] | None) -> str:
    """`row 3` or `rows 3, 7, 9 and 12 more`, counted from 0; by name where they have names."""
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    if names is not None:
        return "; ".join(names[row] for row in rows[:5]) + more
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}{more}"
