"""The exact probability of each label as a local model's whole answer, from a stock vLLM engine: `label_odds` at speed.

A prompt is one request for its first token; each branch that has probability (`label_walk`) is one more, all of a depth
in one batch. A request asks for the log-probabilities of exactly the tokens that labels go on with, of the raw softmax.
Prompts are scored in the order of their tokens, so that what they share (the rubric, the question) is read once and
then found in the prefix cache, as the prompt of a branch is. vLLM is imported when it is first needed.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path as Folder
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_vectors.label_odds import tokens_of
from persona_vectors.label_walk import walk
from persona_vectors.models import load_config, load_tokenizer, resolve_model
from persona_vectors.scores import AnswerTree, Path
from persona_vectors.vllm_options import adapter_name, adapter_rank, lora_rank, on_cuda, stock_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPTS_PER_BATCH = {"cpu": 256, "cuda": 2_048}  # walked together; the scores of a batch are known at its end
_FREE_MEMORY = 0.9  # share of the device's free memory that an engine takes


class LabelEngine:
    """A stock vLLM engine that gives probabilities of next tokens. It starts when first asked, in 20 seconds or more.

    Args:
        model: hub id, model folder, adapter folder, or training folder.
        dtype: auto (the checkpoint's own on CUDA, float32 on CPU), float32, bfloat16 or float16.
        options: any other argument of `vllm.LLM`.

    Raises:
        ValueError: vLLM cannot be used here, or cannot serve the model's adapter.
    """

    def __init__(self, model: str, *, dtype: str = "auto", **options: Any):
        self._source = resolve_model(model)
        self._config = load_config(model)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        adapter = {} if self._source.adapter is None else _adapter_options(self._source.adapter)
        self._options: dict[str, Any] = {**stock_options(), **adapter, "dtype": self._dtype(dtype), **options}
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
            from vllm import LLM

            if on_cuda():
                free, total = torch.cuda.mem_get_info()  # this process may hold a model there
                self._options.setdefault("gpu_memory_utilization", _FREE_MEMORY * free / total)
            self._llm = LLM(self._source.base, **self._options)
        return self._llm

    @property
    def room(self) -> int:
        """Tokens that the prefix cache holds."""
        cache = self.llm.llm_engine.vllm_config.cache_config
        return cache.num_gpu_blocks * cache.block_size

    def next_logprobs(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each prompt the log-probability of each of its `tokens`, 128 at most, as the next one."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        shared: dict[str, Any] = {"temperature": 0, "max_tokens": 1, "detokenize": False, "flat_logprobs": True}
        params = [SamplingParams(logprob_token_ids=list(own), **shared) for own in tokens]
        inputs: Any = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        adapter = self._source.adapter
        lora = None if adapter is None else LoRARequest(adapter_name(adapter), 1, str(adapter))
        outputs = self.llm.generate(inputs, params, lora_request=lora, use_tqdm=False)
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


def _adapter_options(adapter: Folder) -> dict[str, Any]:
    """The options under which an engine serves an adapter; one that vLLM cannot serve is a ValueError."""
    from vllm.lora.peft_helper import PEFTHelper

    rank = lora_rank(adapter_rank(adapter))
    try:
        PEFTHelper.from_local_dir(str(adapter), None).validate_legal(SimpleNamespace(max_lora_rank=rank))
    except (ValueError, TypeError) as error:
        raise ValueError(f"adapter {adapter} cannot judge in vLLM ({error}); merge it, or use --engine hf") from error
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}


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
