"""What benchmarks/gpu.py is made of: random models and samples of real shapes, the published loop, and clocks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from persona_vectors.tokens import TokenizedSample

REPEATS = 3


@dataclass(frozen=True)
class Shape:
    """A model's shape and the work that suits it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int
    samples: int
    prompt_tokens: int
    answer_tokens: int
    sampled_rows: int
    sampled_tokens: int


SHAPES = {
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, 128, 120, 280, 96, 128),
    "tiny": Shape(64, 4, 4, 2, 128, 512, 16, 12, 28, 8, 8),
}


def build_model(spec: Shape, device: str) -> Qwen2ForCausalLM:
    """A random Qwen2 of the shape, its weights drawn on the device; bf16 on CUDA, float32 on a CPU."""
    config = Qwen2Config(
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        intermediate_size=spec.feed_forward,
        vocab_size=spec.vocab,
        max_position_embeddings=4096,
    )
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype)
    return model.eval()


def random_samples(spec: Shape, seed: int, rollouts: int = 1) -> list[TokenizedSample]:
    """Samples of varied lengths about the shape's: an answer has between a half and one and a half of its tokens.

    `rollouts` answers to each prompt.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(mean: int) -> list[int]:
        length = int(torch.randint(mean // 2, mean * 3 // 2, (1,), generator=generator))
        return torch.randint(10, spec.vocab - 10, (length,), generator=generator).tolist()

    samples = []
    for _ in range(-(-spec.samples // rollouts)):
        prompt = draw(spec.prompt_tokens)
        samples += [TokenizedSample((*prompt, *draw(spec.answer_tokens)), len(prompt)) for _ in range(rollouts)]
    return samples


def published_loop(model: Any, samples: list[TokenizedSample]) -> Tensor:
    """The published extraction: one sample a forward pass, all hidden states kept, then averaged."""
    rows = []
    for sample in samples:
        ids = torch.tensor([sample.ids], device=model.device)
        with torch.inference_mode():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        rows.append(torch.stack([state[0, sample.prompt_len :].float().mean(0).cpu() for state in states[:-1]]))
    return torch.stack(rows)


def interleaved(jobs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each job, run in turn REPEATS times after one warm-up round, so that drift meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(REPEATS + 1):
        for name, job in jobs.items():
            synchronize()
            start = time.perf_counter()
            job()
            synchronize()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def matrix_rate(device: str, size: int = 8192, repeats: int = 20) -> float:
    """TFLOP/s of a square bf16 matrix product: what the card can do at best."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    torch.matmul(a, a)
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        torch.matmul(a, a)
    synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - start) / 1e12


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
