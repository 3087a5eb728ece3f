"""Sample answers from a Hugging Face chat model.

Each row draws from its own random stream, a function of the seed and the row's own number. So an answer does not
depend on which other rows share its batch, an interrupted run goes on with the answers it would have had, and the same
question under two steering coefficients is compared with common random numbers.
Steering comes in as a context manager made by the caller; this module knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from persona_vectors.blocks import device_of
from persona_vectors.tokens import pad_batch, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SteerRows = Callable[[Sequence[int]], AbstractContextManager]
"""Given the row numbers of a batch, in order, the context manager that steers that batch."""

_TOKENS_PER_BATCH_CPU = 16_384  # prompt + answer tokens held in the KV cache at once
_TOKENS_PER_BATCH_CUDA = 65_536


class RowSampler(LogitsProcessor):
    """Forces each row's next token to the one its own random stream draws (inverse of the cumulative distribution).

    The first token is never an end token, as in the published sampling (min_tokens=1): an empty answer has no
    activations. At temperature 0 the processor only masks, and generation is greedy.
    """

    def __init__(self, uniforms: Float[np.ndarray, "batch tokens"], temperature: float, width: int, end_ids: list[int]):
        self.uniforms = uniforms
        self.temperature = temperature
        self.width = width  # of the padded prompts
        self.end_ids = end_ids

    def __call__(
        self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        step = input_ids.shape[1] - self.width
        scores = scores.float()
        if step == 0:
            ends = torch.tensor(self.end_ids, dtype=torch.long, device=scores.device)
            scores = scores.index_fill(-1, ends, float("-inf"))
        if not torch.isfinite(scores.amax(-1)).all():
            raise ValueError(f"logits are NaN or infinite at answer token {step}; lower --coef, or use --dtype float32")
        if self.temperature == 0:
            return scores
        cumulative = (scores / self.temperature).softmax(-1).cumsum(-1)  # (batch, vocab)
        total = cumulative[:, -1:]
        draw = torch.as_tensor(self.uniforms[:, step], device=scores.device, dtype=scores.dtype)[:, None] * total
        draw = torch.minimum(draw, torch.nextafter(total, torch.zeros_like(total)))  # strictly inside, after rounding
        token = torch.searchsorted(cumulative, draw, right=True)  # first token whose cumulative probability exceeds it
        return torch.full_like(scores, float("-inf")).scatter(-1, token, 0.0)


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float,
    streams: Sequence[Sequence[int]],
    steer: SteerRows | None = None,
    on_batch: Callable[[Sequence[int], Sequence[str]], None] | None = None,
    progress: bool = False,
) -> list[str]:
    """One answer a prompt, in the order of `prompts`.

    Args:
        prompts: rendered chat prompts, ending where the answer starts.
        max_tokens: most tokens of an answer.
        temperature: 0 is greedy; otherwise the full distribution at that temperature (no top-k, no top-p, whatever
            the model's own generation config says).
        streams: for each row the integers that seed its random stream, e.g. (seed, question, sample).
        steer: makes the context manager under which the rows of a batch are generated.
        on_batch: called with row numbers and answers as batches finish, so that the caller can store them.

    Raises:
        ValueError: a prompt that leaves no room in the model's context, or logits that are not finite.
    """
    if len(streams) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need {len(prompts)} random streams, got {len(streams)}")
    ids = [tokenize_prompt(tokenizer, prompt) for prompt in prompts]
    _check_room(model, ids)
    generate = partial(_generate, model, tokenizer, ids, max_tokens, temperature, streams, steer)
    answers: list[str | None] = [None] * len(prompts)
    budget = _TOKENS_PER_BATCH_CUDA if device_of(model).type == "cuda" else _TOKENS_PER_BATCH_CPU
    with tqdm(total=len(prompts), desc="sampling", unit="answer", disable=not progress) as bar:
        for rows in _batches([len(row) for row in ids], max_tokens, budget):
            texts = _fitting(generate, rows)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
            if on_batch is not None:
                on_batch(rows, texts)
            bar.update(len(rows))
    assert all(answer is not None for answer in answers)
    return [answer for answer in answers if answer is not None]


def _batches(lengths: Sequence[int], max_tokens: int, budget: int) -> Iterator[list[int]]:
    """Rows of similar prompt length together, longest first: memory runs out on the first batch or never."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = max(1, budget // (lengths[order[start]] + max_tokens))
        yield order[start : start + size]
        start += size


def _fitting(generate: Callable[[Sequence[int]], list[str]], rows: Sequence[int]) -> list[str]:
    """The batch's answers; a batch that does not fit the device is halved until it does."""
    try:
        return generate(rows)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    return _fitting(generate, rows[:middle]) + _fitting(generate, rows[middle:])


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    max_tokens: int,
    temperature: float,
    streams: Sequence[Sequence[int]],
    steer: SteerRows | None,
    rows: Sequence[int],
) -> list[str]:
    pad_id = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    input_ids, attention_mask = pad_batch([ids[row] for row in rows], pad_id, "left")
    width = input_ids.shape[1]
    ends = end_token_ids(model, tokenizer)
    uniforms = np.stack([np.random.default_rng(list(streams[row])).random(max_tokens) for row in rows])
    sampler = RowSampler(uniforms, temperature, width, ends)
    config = GenerationConfig(
        max_new_tokens=max_tokens, do_sample=False, eos_token_id=ends, pad_token_id=pad_id, use_cache=True
    )
    device = device_of(model)
    with _no_generation_defaults(model), steer(rows) if steer is not None else nullcontext():
        output = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([sampler]),
        )
    return tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)


@contextmanager
def _no_generation_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Sets the model's own generation config aside: `generate` would fill in its repetition penalty, top-k and
    suppressed tokens behind the caller's back (transformers 5 merges it into any config that is passed)."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: those of the tokenizer, the model's config and its generation config."""
    configs = (model.generation_config, model.config.get_text_config(), tokenizer)
    found = [getattr(config, "eos_token_id", None) for config in configs]
    return sorted({end for ends in found if ends is not None for end in ([ends] if isinstance(ends, int) else ends)})


def _check_room(model: PreTrainedModel, ids: Sequence[list[int]]) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for row, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(f"prompt {row} is empty")
        if context is not None and len(prompt) >= context:
            raise ValueError(f"prompt {row} has {len(prompt)} tokens; the model's context holds {context}")
