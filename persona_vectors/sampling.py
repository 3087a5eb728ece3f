"""Sample answers from a Hugging Face chat model.

Each row draws from its own random stream, a function of the seed and the row's own number. So an answer does not
depend on which other rows share its batch, an interrupted run goes on with the answers it would have had, and the same
question under two steering coefficients is compared with common random numbers. (Other rows in the batch change the
rounding of the logits, as everywhere: an answer can differ where two tokens are that close.)
Steering comes in as a context manager made by the caller; this module knows nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from persona_vectors.blocks import device_of
from persona_vectors.decoding import OnToken, SteerRows, cache_kind, check_token, context_length, decode, queue
from persona_vectors.memory import say_halved
from persona_vectors.slots import cache_bytes, grouped_attention
from persona_vectors.tokens import pad_batch, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RowSampler", "SteerRows", "end_token_ids", "sample_answers"]

OnBatch = Callable[[Sequence[int], Sequence[str]], None]
Answers = Iterator[list[tuple[int, list[int]]]]

_TOKENS_PER_BATCH_CPU = 16_384  # prompt + answer tokens held in the KV cache at once,
_TOKENS_PER_BATCH_CUDA = 65_536
_CACHE_BYTES = 2**30  # or more of them, while they take no more than this,
_MOST_ROWS = 256  # and there are not more rows: beyond, a row costs the same
_GROUP = 16  # answers handed to on_batch together, so that a store is not committed for each,
_GROUP_SECONDS = 1.0  # or fewer, when the last ones are that old


class RowUniforms(dict[int, Float[np.ndarray, " tokens"]]):
    """The random numbers of each row, one for each token it may get, drawn when first asked for."""

    def __init__(self, streams: Sequence[Sequence[int]], limits: Sequence[int]):
        super().__init__()
        self.streams, self.limits = streams, limits

    def __missing__(self, row: int) -> Float[np.ndarray, " tokens"]:
        self[row] = np.random.default_rng(list(self.streams[row])).random(self.limits[row])
        return self[row]


class RowSampler(LogitsProcessor):
    """Draws each row's next token from the row's own random stream (inverse of the cumulative distribution).

    The first token is never an end token, as in the published sampling (min_tokens=1): an empty answer has no
    activations. At temperature 0 it is the most likely token.
    """

    def __init__(
        self,
        uniforms: Float[np.ndarray, "rows tokens"] | RowUniforms,
        temperature: float,
        end_ids: Sequence[int],
        width: int = 0,
    ):
        self.uniforms = uniforms
        self.temperature = temperature
        self.ends = torch.tensor(list(end_ids), dtype=torch.long)
        self.width = width  # of the padded prompts, for `generate`

    def pick(
        self, logits: Float[Tensor, "batch vocab"], rows: Sequence[int], steps: Sequence[int]
    ) -> Int[Tensor, " batch"]:
        """The next token of these rows, each having `steps` tokens; -1 where the logits are not finite."""
        scores = logits.float()
        if 0 in steps:
            first = torch.tensor([step == 0 for step in steps], device=scores.device)[:, None]
            masked = scores.index_fill(-1, self.ends.to(scores.device), float("-inf"))
            scores = torch.where(first, masked, scores)
        finite = torch.isfinite(scores.amax(-1))
        if self.temperature == 0:
            return torch.where(finite, scores.argmax(-1), -1)
        cumulative = (scores / self.temperature).softmax(-1).cumsum(-1)  # (batch, vocab)
        total = cumulative[:, -1:]
        uniforms = np.array([self.uniforms[row][step] for row, step in zip(rows, steps, strict=True)])
        draw = torch.as_tensor(uniforms, device=scores.device, dtype=scores.dtype)[:, None] * total
        draw = torch.minimum(draw, torch.nextafter(total, torch.zeros_like(total)))  # strictly inside, after rounding
        token = torch.searchsorted(cumulative, draw, right=True)  # first token whose cumulative probability exceeds it
        return torch.where(finite, token[:, 0], -1)

    def __call__(
        self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """For `generate`: leaves nothing but the picked token of row 0, 1, ..."""
        n_rows, step = len(input_ids), input_ids.shape[1] - self.width
        tokens = self.pick(scores, range(n_rows), [step] * n_rows)
        for token in tokens.tolist():
            check_token(token, step)
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens[:, None], 0.0)


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float,
    streams: Sequence[Sequence[int]],
    steer: SteerRows | None = None,
    on_batch: OnBatch | None = None,
    on_token: OnToken | None = None,
    progress: bool = False,
) -> list[str]:
    """One answer a prompt, in the order of `prompts`.

    Args:
        prompts: rendered chat prompts, ending where the answer starts.
        max_tokens: most tokens of an answer; the end of the model's context ends it, too.
        temperature: 0 is greedy; otherwise the full distribution at that temperature (no top-k, no top-p, whatever
            the model's own generation config says).
        streams: for each row the integers that seed its random stream, e.g. (seed, question, sample).
        steer: makes the context manager under which given rows are generated, called anew whenever the rows in flight
            or their order change.
        on_batch: called with row numbers and answers as rows finish, a few at a time, so that the caller can store
            them; also with what had finished before an error.
        on_token: called with each token as it is picked, to show an answer while it is written; an error of its own
            ends the job. Not called for a model whose cache only `generate` can handle.

    Raises:
        ValueError: a prompt that leaves no room in the model's context, or logits that are not finite.
    """
    if len(streams) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need {len(prompts)} random streams, got {len(streams)}")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1; got {max_tokens}")
    by_prompt = {prompt: tokenize_prompt(tokenizer, prompt) for prompt in dict.fromkeys(prompts)}
    ids = [by_prompt[prompt] for prompt in prompts]  # a sweep asks the same prompts under every setting
    limits = _limits(model, ids, max_tokens)
    uniforms = RowUniforms(streams, limits)
    answers: dict[int, str] = {}
    outbox = Outbox(on_batch)
    with tqdm(total=len(prompts), desc="sampling", unit="answer", disable=not progress) as bar, outbox:
        with grouped_attention(model):
            for ended in _decoded(model, tokenizer, ids, limits, temperature, uniforms, steer, on_token):
                for row, tokens in ended:
                    answers[row] = str(tokenizer.decode(tokens, skip_special_tokens=True))
                    uniforms.pop(row, None)
                bar.update(len(ended))
                outbox.put({row: answers[row] for row, _ in ended})
    assert len(answers) == len(prompts)
    return [answers[row] for row in range(len(prompts))]


class Outbox:
    """Hands finished answers on in groups; on leaving, also after an error, what is left."""

    def __init__(self, on_batch: OnBatch | None):
        self.on_batch = on_batch
        self.answers: dict[int, str] = {}
        self.sent = time.monotonic()

    def put(self, answers: dict[int, str]) -> None:
        self.answers |= answers
        if len(self.answers) >= _GROUP or time.monotonic() - self.sent >= _GROUP_SECONDS:
            self.send()

    def send(self) -> None:
        answers, self.answers = self.answers, {}  # emptied first: an error of on_batch itself is not met with a retry
        if answers and self.on_batch is not None:
            self.on_batch(list(answers), list(answers.values()))
        self.sent = time.monotonic()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.send()


def _limits(model: PreTrainedModel, ids: Sequence[list[int]], max_tokens: int) -> list[int]:
    """Most tokens of each answer: `max_tokens`, or what the prompt leaves of the model's context."""
    context = context_length(model)
    for row, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(f"prompt {row} is empty")
        if context is not None and len(prompt) >= context:
            raise ValueError(f"prompt {row} has {len(prompt)} tokens; the model's context holds {context}")
    return [max_tokens if context is None else min(max_tokens, context - len(prompt)) for prompt in ids]


def _decoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    limits: Sequence[int],
    temperature: float,
    uniforms: RowUniforms,
    steer: SteerRows | None,
    on_token: OnToken | None,
) -> Answers:
    """Groups of (row, tokens of its answer) as rows end, by whatever way the model's cache allows."""
    pad_id = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    ends = end_token_ids(model, tokenizer)
    sampler = RowSampler(uniforms, temperature, ends)
    budget = _TOKENS_PER_BATCH_CUDA if device_of(model).type == "cuda" else _TOKENS_PER_BATCH_CPU
    kind = cache_kind(model)
    if kind == "generate":
        return _generated(model, ids, limits, sampler, pad_id, steer, budget)
    return decode(
        model,
        ids,
        limits=limits,
        end_ids=ends,
        pad_id=pad_id,
        pick=sampler.pick,
        steer=steer,
        tokens_in_flight=max(budget, _CACHE_BYTES // cache_bytes(model)),
        most_rows=_MOST_ROWS,
        kind=kind,
        on_token=on_token,
    )


@torch.inference_mode()
def _generated(
    model: PreTrainedModel,
    ids: Sequence[list[int]],
    limits: Sequence[int],
    sampler: RowSampler,
    pad_id: int,
    steer: SteerRows | None,
    budget: int,
) -> Answers:
    """The same through `model.generate`, in plain batches: for a model whose cache only its own code can handle."""
    waiting, most = queue(range(len(ids)), ids), len(ids)
    while waiting:
        longest = len(ids[waiting[-1]]) + max(limits)
        rows = waiting[-min(most, max(1, budget // longest)) :][::-1]
        try:
            tokens = _generate(model, ids, limits, sampler, pad_id, steer, rows)
        except torch.OutOfMemoryError:
            most = len(rows) // 2
            if most == 0:
                raise
            tokens = None
        if tokens is None:  # outside of the handler: the traceback held on to the tensors
            say_halved("sampling", len(rows))
            continue
        del waiting[-len(rows) :]
        yield list(zip(rows, tokens, strict=True))


def _generate(
    model: PreTrainedModel,
    ids: Sequence[list[int]],
    limits: Sequence[int],
    sampler: RowSampler,
    pad_id: int,
    steer: SteerRows | None,
    rows: Sequence[int],
) -> list[list[int]]:
    input_ids, attention_mask = pad_batch([ids[row] for row in rows], pad_id, "left")
    width, most = input_ids.shape[1], max(limits[row] for row in rows)
    uniforms = np.zeros((len(rows), most))
    for place, row in enumerate(rows):
        uniforms[place, : limits[row]] = sampler.uniforms[row]
    ends = sampler.ends.tolist()
    config = GenerationConfig(
        max_new_tokens=most, do_sample=False, eos_token_id=ends, pad_token_id=pad_id, use_cache=True
    )
    processor = RowSampler(uniforms, sampler.temperature, ends, width)
    device = device_of(model)
    with _no_generation_defaults(model), steer(rows) if steer is not None else nullcontext():
        output = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
        )
    answers = output[:, width:].tolist()
    return [answer[: limits[row]] for row, answer in zip(rows, answers, strict=True)]


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
