"""What steering costs in time and memory: seconds a generated token of each way, in interleaved rounds.

Rounds are interleaved, and each way is compared with the unsteered model of its own round, so that a machine that slows
down slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval.model_utils import Steering, steer_rows
from lora_utils import LoRASteerer
from persona_vectors.blocks import device_of
from persona_vectors.decoding import context_length
from persona_vectors.tokens import pad_batch, tokenize_prompt
from persona_vectors.weight_direction import WeightDirection

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASELINE, HOOK, MERGED, DYNAMIC = "baseline", "activation hook", "lora merged", "lora dynamic"
VARIANTS = (BASELINE, HOOK, MERGED, DYNAMIC)
ROUNDS = 9
NEW_TOKENS = 64
WARM_TOKENS = 4
PROMPTS = 8


@dataclass(frozen=True)
class Latency:
    """One way's measurements.

    Attributes:
        seconds: a generated token took, in each round.
        ratios: of that to the unsteered model's in the same round.
        peak_mib: CUDA memory at its highest, model included; None on a CPU.
        begin_seconds: what entering the steering took, once: hooks, or the merge.
    """

    variant: str
    seconds: list[float]
    ratios: list[float]
    peak_mib: float | None
    begin_seconds: float


def measure_latency(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    steering: Steering,
    direction: WeightDirection,
    coef: float = 1.0,
    *,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    progress: bool = False,
) -> list[Latency]:
    """Each of VARIANTS: greedy answers of exactly `new_tokens` tokens to the same prompts, one batch.

    A round runs all of them once, in an order of its own. Entering the steering is timed apart, and a few tokens are
    generated before those that are timed: what ran before leaves its weights in the caches. A first, untimed pass of
    each reads its peak memory.

    Raises:
        ValueError: no prompt, or prompts that leave no room for the tokens.
    """
    inputs = _inputs(model, tokenizer, prompts, new_tokens)
    ways = {
        BASELINE: lambda: nullcontext(),
        HOOK: lambda: steer_rows(model, [steering] * len(prompts))(range(len(prompts))),
        MERGED: lambda: LoRASteerer(model, direction, coef, mode="pre_merge"),
        DYNAMIC: lambda: LoRASteerer(model, direction, coef, mode="dynamic"),
    }
    peaks = {}
    for name, way in ways.items():
        _reset_peak(model)
        _timed(model, inputs, way(), new_tokens)
        peaks[name] = peak_mib(model)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    begins: dict[str, list[float]] = {name: [] for name in ways}
    shuffled = np.random.default_rng(0)
    for _round in tqdm(range(rounds), desc="latency", unit="round", disable=not progress):
        for name in shuffled.permutation(VARIANTS).tolist():
            began, ran = _timed(model, inputs, ways[name](), new_tokens)
            seconds[name].append(ran / (new_tokens * len(prompts)))
            begins[name].append(began)
    return [
        Latency(
            name,
            seconds[name],
            [own / base for own, base in zip(seconds[name], seconds[BASELINE], strict=True)],
            peaks[name],
            float(np.median(begins[name])),
        )
        for name in VARIANTS
    ]


def _inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int
) -> dict[str, Any]:
    if not prompts or new_tokens < 1:
        raise ValueError(f"latency needs prompts and new tokens; got {len(prompts)} and {new_tokens}")
    ids = [tokenize_prompt(tokenizer, prompt) for prompt in prompts]
    longest, context = max(map(len, ids)), context_length(model)
    if context is not None and longest + new_tokens > context:
        raise ValueError(f"{longest} prompt tokens and {new_tokens} new ones do not fit the model's {context}")
    pad = tokenizer.pad_token_id
    input_ids, mask = pad_batch(ids, int(pad) if isinstance(pad, int) else 0, "left")
    device = device_of(model)
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


@torch.inference_mode()
def _timed(
    model: PreTrainedModel, inputs: dict[str, Any], steer: AbstractContextManager, new_tokens: int
) -> tuple[float, float]:
    """Seconds of entering the steering, and of the generation."""
    _synchronise(model)
    start = time.perf_counter()
    with steer:
        _synchronise(model)
        entered = time.perf_counter() - start
        _generate(model, inputs, WARM_TOKENS)
        _synchronise(model)
        start = time.perf_counter()
        output = _generate(model, inputs, new_tokens)
        _synchronise(model)
        ran = time.perf_counter() - start
    made = output.shape[1] - inputs["input_ids"].shape[1]
    if made != new_tokens:
        raise RuntimeError(f"{made} tokens were generated and {new_tokens} asked for")
    return entered, ran


def _generate(model: Any, inputs: dict[str, Any], new_tokens: int) -> Tensor:
    from transformers import GenerationConfig

    config = GenerationConfig(
        **{"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "use_cache": True},
        **{"pad_token_id": 0, "eos_token_id": model.generation_config.eos_token_id},
    )
    return model.generate(**inputs, generation_config=config)


def _synchronise(model: PreTrainedModel) -> None:
    if device_of(model).type == "cuda":
        torch.cuda.synchronize()


def _reset_peak(model: PreTrainedModel) -> None:
    if device_of(model).type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_mib(model: PreTrainedModel) -> float | None:
    """The highest memory allocated so far on the model's first CUDA device; None elsewhere.

    A process on a CPU keeps the memory it once had, so its peak says nothing of one way.
    """
    return torch.cuda.max_memory_allocated() / 2**20 if device_of(model).type == "cuda" else None


MEMORY_NOTE = (
    "Peak memory is that of CUDA, allocated at most; of a CPU there is none, since its process keeps all of it."
)


def latency_table(found: Sequence[Latency], n_prompts: int, new_tokens: int, device: str) -> pd.DataFrame:
    """latency_comparison.csv: a row a way, medians and quartiles over rounds."""
    import pandas as pd

    rows = []
    for one in found:
        row: dict[str, Any] = {"variant": one.variant}
        for name, values in (("seconds_per_token", one.seconds), ("ratio_to_baseline", one.ratios)):
            low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
            row |= {name: median, f"{name}_q25": low, f"{name}_q75": high}
        row |= {"begin_seconds": one.begin_seconds, "peak_memory_mib": one.peak_mib, "rounds": len(one.seconds)}
        rows.append(row | {"n_prompts": n_prompts, "new_tokens": new_tokens, "device": device})
    return pd.DataFrame(rows)
