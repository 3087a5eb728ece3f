"""The exact probability of each label as a local model's whole answer, from a stock vLLM engine: `label_odds` at speed.

A prompt is one request for its first token; each branch that has probability (`label_walk`) is one more, all of a depth
in one batch. A request asks for the log-probabilities of exactly the tokens that labels go on with, of the raw softmax.
Prompts are scored in the order of their tokens, so that what they share (the rubric, the question) is read once and
then found in the prefix cache, as the prompt of a branch is. vLLM is imported when it is first needed.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_vectors.label_odds import tokens_of
from persona_vectors.label_walk import walk
from persona_vectors.models import load_config, load_tokenizer, resolve_model
from persona_vectors.scores import AnswerTree, Path
from persona_vectors.vllm_available import known_architectures, why_not_vllm
from persona_vectors.vllm_options import on_cuda, stock_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPTS_PER_BATCH = {"cpu": 256, "cuda": 2_048}  # walked together; the scores of a batch are known at its end
_FREE_MEMORY = 0.9  # share of the device's free memory that an engine takes


class LabelEngine:
    """A stock vLLM engine that gives probabilities of next tokens. It starts when first asked, in 20 seconds or more.

    Args:
        model: hub id, model folder, or training folder with full checkpoints.
        dtype: auto (the checkpoint's own on CUDA, float32 on CPU), float32, bfloat16 or float16.
        options: any other argument of `vllm.LLM`.

    Raises:
        ValueError: what `check_servable` refuses; at the start, a model that vLLM does not take.
    """

    def __init__(self, model: str, *, dtype: str = "auto", **options: Any):
        check_servable(model)
        self._name = model
        self._config = load_config(model)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        own = {"dtype": self._dtype(dtype), "enforce_eager": True}  # graphs cost a start and big batches gain little
        self._options: dict[str, Any] = {**stock_options(), **own, **options}
        self._llm: Any = None

    def _dtype(self, asked: str) -> str:
        if asked != "auto":
            return asked
        return "float32" if not on_cuda() or self._config.dtype == torch.float32 else "auto"  # vLLM's auto: 16 bits

    @property
    def context(self) -> int | None:
        """Most tokens of a prompt: one less than the model's context, for vLLM samples a token after it."""
        length = getattr(self._config, "max_position_embeddings", None)
        return None if length is None else length - 1

    @property
    def llm(self) -> Any:
        """The `vllm.LLM`, started now if it has not been."""
        if self._llm is None:
            self._llm = self._start()
        return self._llm

    def _start(self) -> Any:
        from vllm import LLM

        options = self._options
        if on_cuda():
            free, total = torch.cuda.mem_get_info()  # this process may hold a model there
            options = {"gpu_memory_utilization": _FREE_MEMORY * free / total, **options}
        try:
            return LLM(resolve_model(self._name).base, **options)
        except (ValueError, RuntimeError) as error:
            why = textwrap.shorten(str(error), 300, placeholder=" ...")
            raise ValueError(f"vLLM does not start with the judge {self._name}; use --engine hf ({why})") from error

    @property
    def room(self) -> int:
        """Tokens that the prefix cache holds."""
        cache = self.llm.llm_engine.vllm_config.cache_config
        return cache.num_gpu_blocks * cache.block_size

    def next_logprobs(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each prompt the log-probability of each of its `tokens`, 128 at most, as the next one."""
        from vllm import SamplingParams

        shared: dict[str, Any] = {"temperature": 0, "max_tokens": 1, "detokenize": False, "flat_logprobs": True}
        params = [SamplingParams(logprob_token_ids=list(own), **shared) for own in tokens]
        inputs: Any = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        found = [output.outputs[0].logprobs for output in outputs]
        known = [dict(zip(one.token_ids, one.logprobs, strict=True)) for one in found]  # the sampled token is there too
        return [[odds[token] for token in own] for odds, own in zip(known, tokens, strict=True)]

    def close(self) -> None:
        """Ends the engine and frees what it holds; the next question starts another."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_servable(model: str) -> None:
    """Returns if vLLM can be expected to compute the judge; it is not started.

    Raises:
        ValueError: vLLM cannot be used here, or does not know the architecture; an adapter, of which stock vLLM may
            leave out modules without a word.
    """
    if (why := why_not_vllm()) is not None:
        raise ValueError(f"judge {model} cannot be computed with vLLM: {why}")
    if resolve_model(model).adapter is not None:
        raise ValueError(f"judge {model} is an adapter, which cannot judge through vLLM; merge it, or use --engine hf")
    own, known = set(load_config(model).architectures or ()), known_architectures()
    if own and known and not own & known:
        raise ValueError(f"the installed vLLM has no {' or '.join(sorted(own))}, which judge {model} is")


def label_odds(engine: LabelEngine, names: Mapping[str, str], eval_type: str) -> Iterator[tuple[str, dict[str, float]]]:
    """(text, label -> P(label)) of every user message in `names`, as `label_odds.label_odds` gives them.

    Raises:
        ValueError: a prompt longer than the model's context (found before the engine is started), or NaN.
    """
    ids, tree = tokens_of(engine.tokenizer, names, eval_type, engine.context)
    for texts in _batches(ids, engine.room):
        odds = walk(tree, len(texts), partial(_children_odds, engine, tree, [ids[text] for text in texts]))
        yield from ((text, {label: float(p[row]) for label, p in odds.items()}) for row, text in enumerate(texts))


def _batches(ids: Mapping[str, list[int]], room: int) -> Iterator[list[str]]:
    """The texts in the order of their tokens, no more at once than the prefix cache holds the prompts of."""
    most = _PROMPTS_PER_BATCH["cuda" if on_cuda() else "cpu"]
    batch: list[str] = []
    taken = 0
    for text in sorted(ids, key=lambda text: ids[text]):
        if batch and (len(batch) == most or taken + len(ids[text]) > room):
            yield batch
            batch, taken = [], 0
        batch.append(text)
        taken += len(ids[text])
    if batch:
        yield batch


def _children_odds(
    engine: LabelEngine, tree: AnswerTree, ids: Sequence[Sequence[int]], wanted: Mapping[Path, Bool[Tensor, " batch"]]
) -> dict[Path, Float[Tensor, "batch children"]]:
    """P(child | prompt, path) in the rows that are wanted, the branches of a prompt side by side; 0 in others."""
    pairs = sorted((row, path) for path, rows in wanted.items() for row in rows.nonzero()[:, 0].tolist())
    prompts = [[*ids[row], *path] for row, path in pairs]
    found = engine.next_logprobs(prompts, [tree.children[path] for _, path in pairs])
    odds = {path: torch.zeros(len(ids), len(tree.children[path]), dtype=torch.float64) for path in wanted}
    for (row, path), own in zip(pairs, found, strict=True):
        odds[path][row] = torch.tensor(own, dtype=torch.float64).exp()
    return odds
