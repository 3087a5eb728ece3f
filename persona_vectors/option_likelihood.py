"""How likely a model finds each of a few given answers to a prompt, by teacher-forced passes; nothing is generated.

A prompt is read once for all of its options: its last token gives their first tokens, and what an option has beyond
that is read after the prompt's keys and values. Options of one token (letters) need no second pass. A model whose cache
cannot be shared reads each option with its prompt, to the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from persona_vectors.blocks import device_of, model_label, unwrap
from persona_vectors.memory import say_halved
from persona_vectors.span_means import can_share_prompts
from persona_vectors.tokens import pad_batch

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

Ids = tuple[int, ...]
SteerPass = Callable[[Sequence[int]], AbstractContextManager]
"""Given the number of prompt tokens of each row, what steers one forward pass."""
Found = list[list[float]]

_TOKENS_PER_PASS = {"cpu": 2_048, "cuda": 16_384}  # of prompts, padding included
_CACHED_PER_PASS = {"cpu": 8_192, "cuda": 32_768}  # tokens of prompts that are held again for each of their options
_LOGITS_PER_PASS = {"cpu": 2**26, "cuda": 2**29}  # tokens * vocabulary: 256 MiB and 2 GiB of float32


@dataclass(frozen=True)
class Choice:
    """A prompt and the answers to weigh up, as token ids; no option is empty."""

    prompt: Ids
    options: tuple[Ids, ...]


def option_log_likelihoods(
    model: PreTrainedModel,
    choices: Sequence[Choice],
    *,
    steer: SteerPass | None = None,
    token_budget: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[list[int], Found]]:
    """Batches of (row numbers, the log-likelihood of each of the row's options), each row once, longest prompts first.

    log P(option | prompt) = sum over the option's tokens of log P(token | what comes before), in nats; divide by
    `len(option)` for a mean. Which rows share a batch changes nothing beyond rounding.

    Args:
        steer: entered anew for every forward pass. Rows know where their prompt ends, so `response` steers the last
            prompt token and every later one, as in generation.
        token_budget: prompt tokens in one forward pass, padding included.

    Raises:
        ValueError: an empty prompt or option, a choice longer than the model's context, or logits that are NaN.
    """
    _check(model, choices)
    budget = token_budget or _TOKENS_PER_PASS[_kind(model)]
    order = sorted(range(len(choices)), key=lambda row: -len(choices[row].prompt))
    with tqdm(total=len(choices), desc="options", unit="prompt", disable=not progress) as bar:
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, budget // len(choices[order[start]].prompt))]
            yield from _in_memory(model, choices, rows, steer or (lambda _lens: nullcontext()))
            start += len(rows)
            bar.update(len(rows))


def _check(model: PreTrainedModel, choices: Sequence[Choice]) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for row, choice in enumerate(choices):
        if not choice.prompt or not choice.options or not all(choice.options):
            raise ValueError(f"choice {row} has an empty prompt or option; expected one token or more of each")
        length = len(choice.prompt) + max(map(len, choice.options))
        if context is not None and length > context:
            raise ValueError(
                f"choice {row}: prompt and option take {length} tokens, and {model_label(model)} reads {context}; "
                "shorten the item or take a model with a longer context"
            )


def _kind(model: PreTrainedModel) -> str:
    return "cuda" if device_of(model).type == "cuda" else "cpu"


def _in_memory(
    model: PreTrainedModel, choices: Sequence[Choice], rows: list[int], steer: SteerPass
) -> Iterator[tuple[list[int], Found]]:
    """The rows' log-likelihoods; a batch that does not fit the device is halved until it does."""
    read = _shared if can_share_prompts(model) else _apart
    try:
        found = read(model, [choices[row] for row in rows], steer)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
        found = None
    if found is None:
        say_halved("weighing the options of", len(rows))
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            yield from _in_memory(model, choices, half, steer)
        return
    if any(value != value for values in found for value in values):
        raise ValueError("the model's logits are NaN; load it in float32 or bfloat16")
    yield rows, found


@torch.inference_mode()
def _shared(model: PreTrainedModel, batch: Sequence[Choice], steer: SteerPass) -> Found:
    """One pass over the prompts, padded on the left, and the options after their keys and values."""
    from transformers import DynamicCache

    longer = [(row, k) for row, choice in enumerate(batch) for k, o in enumerate(choice.options) if len(o) > 1]
    cache = DynamicCache() if longer else None  # without a config: sliding windows are kept whole, and masked
    input_ids, mask = pad_batch([choice.prompt for choice in batch], 0, "left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
    with steer([len(choice.prompt) for choice in batch]):
        logits = _logits(model, {**inputs, "past_key_values": cache, "use_cache": bool(longer)}, keep=1)
    first = logits[:, -1].float().log_softmax(-1).cpu()  # (batch, vocab)
    found = [[float(first[row, option[0]]) for option in choice.options] for row, choice in enumerate(batch)]
    longer.sort(key=lambda place: -len(batch[place[0]].options[place[1]]))
    for part in _parts(model, [len(batch[row].options[k]) - 1 for row, k in longer], before=mask.shape[1]):
        assert cache is not None
        ends = _ends(model, batch, longer[part], mask, cache, steer)
        for (row, k), value in zip(longer[part], ends, strict=True):
            found[row][k] += value
    return found


def _parts(model: PreTrainedModel, lengths: Sequence[int], before: int) -> Iterator[slice]:
    """Rows of one pass each, of lengths that fall, after `before` columns of cache."""
    kind, vocab = _kind(model), model.config.get_text_config().vocab_size
    start = 0
    while start < len(lengths):
        most = min(_LOGITS_PER_PASS[kind] // (vocab * lengths[start]), _CACHED_PER_PASS[kind] // before)
        yield slice(start, start + max(1, most))
        start += max(1, most)


def _ends(
    model: PreTrainedModel,
    batch: Sequence[Choice],
    places: Sequence[tuple[int, int]],
    mask: Int[Tensor, "rows columns"],
    cache: DynamicCache,
    steer: SteerPass,
) -> list[float]:
    """log P of what each of these options, (row, its number), has beyond its first token."""
    options = [batch[row].options[k] for row, k in places]
    lens = [len(batch[row].prompt) for row, _ in places]
    owner = torch.tensor([row for row, _ in places])
    input_ids, own = pad_batch([option[:-1] for option in options], 0, "right")
    steps = torch.minimum(torch.arange(own.shape[1]), own.sum(1, keepdim=True) - 1)  # padding stays within the context
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.cat([mask[owner], own], dim=1),
        "position_ids": torch.tensor(lens)[:, None] + steps,
        "past_key_values": _rows_of(cache, owner),
        "use_cache": True,
    }
    with steer(lens):
        return _sums(_logits(model, inputs), [option[1:] for option in options])


def _rows_of(cache: DynamicCache, rows: Int[Tensor, " batch"]) -> DynamicCache:
    """A cache of its own with those rows."""
    from transformers import DynamicCache

    chosen = DynamicCache()
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        at = rows.to(layer.keys.device)
        chosen.update(layer.keys[at], layer.values[at], index)
    return chosen


@torch.inference_mode()
def _apart(model: PreTrainedModel, batch: Sequence[Choice], steer: SteerPass) -> Found:
    """Every option in a row of its own, with its prompt before it, padded on the right."""
    found: Found = []
    for choice in batch:
        n = len(choice.prompt)
        input_ids, mask = pad_batch([(*choice.prompt, *option[:-1]) for option in choice.options], 0, "right")
        with steer([n] * len(choice.options)):
            logits = _logits(model, {"input_ids": input_ids, "attention_mask": mask})
        found.append(_sums(logits[:, n - 1 :], choice.options))
    return found


def _sums(logits: Float[Tensor, "batch seq vocab"], targets: Sequence[Ids]) -> list[float]:
    """The summed log-probabilities of each row's targets, its logits from the first on."""
    ids, real = (x.to(logits.device) for x in pad_batch(targets, 0, "right"))
    chosen = logits[:, : ids.shape[1]].float()
    log_odds = chosen.gather(-1, ids[..., None])[..., 0] - chosen.logsumexp(-1)  # (batch, seq)
    return torch.where(real.bool(), log_odds, 0.0).double().sum(1).tolist()


def _logits(
    model: PreTrainedModel, inputs: dict[str, Any], keep: int | None = None
) -> Float[Tensor, "batch seq vocab"]:
    """The logits of one pass; of the last `keep` columns, where the model can leave the others out."""
    accepts = inspect.signature(unwrap(model).forward).parameters
    if keep is not None and "logits_to_keep" in accepts:
        inputs["logits_to_keep"] = keep
    device = device_of(model)
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return model(**moved).logits
