"""Steered vLLM against stock vLLM, and a sweep through it against Hugging Face with hooks; interleaved, in one run.

    .venv-vllm/bin/python -m benchmarks.vllm_speed               # about 6 minutes of two cores; needs vLLM
    python -m benchmarks.vllm_speed --shape 7b                   # on a GPU; benchmarks/gpu.py runs it too

First, float32 greedy tokens of 70 mixed requests on a small random model, with compilation and graphs as vLLM has them,
must equal those of hooks. Then both engines live at once and take turns on the same prompts, greedy, with the number of
tokens fixed. Arms: stock vLLM; ours unsteered; one layer steered, with as many different coefficients as prompts; every
layer, likewise. Then a sweep of six coefficients: as one job through vLLM, and through transformers with
ActivationSteerer in batches of 20, one coefficient after the other, as published. Reported are medians, and ratios of
medians.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from persona_vectors import cli

N_PROMPTS, PROMPT_TOKENS, N_TOKENS = 100, 48, 48
ROUNDS, SWEEP_ROUNDS = 5, 3
COEFS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
SWEEP_PROMPTS = 40
BATCH = 20
TARGETS = {"one layer / stock": 0.95, "every layer / stock": 0.65, "sweep: hooks / vLLM": 3.0}


@dataclass(frozen=True)
class Shape:
    """A random Qwen2 and how two engines share the machine's memory; dummy weights need no file."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int
    dummy: bool = False
    options: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    "parity": Shape(256, 4, 4, 2, 512, 4096),
    "small": Shape(512, 8, 8, 4, 1376, 4096),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, dummy=True, options={"gpu_memory_utilization": 0.3}),
}


def main(shape: Literal["small", "7b"] = "small", output_path: str | None = None) -> None:
    """Run the check and both timings, and print a table.

    Args:
        shape: small, or 7b for a GPU of at least 80 GB.
        output_path: also write all seconds, ratios and the check to this JSON file.
    """
    from persona_vectors.vllm_available import vllm_version, why_not_vllm

    if (why := why_not_vllm()) is not None:
        raise ValueError(why)
    equal, n = parity()
    print(f"{vllm_version()}: {equal} of {n} greedy answers equal those of hooks")
    times, sweeps = timings(SHAPES[shape])
    found = report(times, sweeps)
    if output_path is not None:
        content = {"parity": {"equal": equal, "of": n}, "seconds": {**times, **sweeps}, "ratios": found}
        Path(output_path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if equal != n:
        raise ValueError(f"{n - equal} of {n} steered greedy answers differ from those of hooks in float32")


def random_model(folder: Path, shape: Shape) -> Path:
    """A random Qwen2 of the shape with a tokenizer of words, as a folder; without weights where they are dummies."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.tiny_models import word_tokenizer

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16" if shape.dummy else "float32",
    )
    if shape.dummy:
        config.save_pretrained(folder)
    else:
        Qwen2ForCausalLM(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def parity(n_tokens: int = 16) -> tuple[int, int]:
    """(answers that equal those of hooks, answers): every kind of steering on five prompts, greedy, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from persona_vectors.vllm_steering import Request, SteeredLLM
    from tests.vllm.reference import greedy, mixed_specs, random_vectors

    with tempfile.TemporaryDirectory() as temporary:
        folder = random_model(Path(temporary) / "model", SHAPES["parity"])
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        generator = torch.Generator().manual_seed(2)
        prompts = torch.randint(10, 4000, (5, 40), generator=generator).tolist()
        vectors = random_vectors(model, prompts[0])
        requests = [Request(ids, spec) for spec in mixed_specs(vectors) for ids in prompts]
        with SteeredLLM(str(folder), dtype="float32", projections=2, gpu_memory_utilization=0.3) as llm:
            for name, vector in vectors.items():
                llm.register(vector, name)
            answers = dict(llm.stream(requests, max_tokens=n_tokens))
        expected = [greedy(model, request, vectors, [1], n_tokens) for request in requests]
    return sum(answers[row].ids == ids for row, ids in enumerate(expected)), len(requests)


def timings(shape: Shape) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every arm a round: of the engines side by side, and of the sweep."""
    import torch
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    from persona_vectors.vllm_steering import SteeredLLM

    shared: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 256, **shape.options}  # what LLM has on a CPU
    if shape.dummy:
        shared["load_format"] = "dummy"
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_model(Path(temporary) / "model", shape)
        with SteeredLLM(str(folder), projections=0, **shared) as ours:
            stock = LLM(str(folder), dtype="auto" if torch.cuda.is_available() else "float32", **shared)
            generator = torch.Generator().manual_seed(1)
            prompts = torch.randint(10, 4000, (N_PROMPTS, PROMPT_TOKENS), generator=generator).tolist()
            vectors = torch.randn(shape.layers + 1, shape.hidden, generator=generator)
            name, middle = ours.register(vectors), shape.layers // 2 + 1
            times = take_turns(arms(ours, stock, prompts, name, middle, shape.layers), ROUNDS)
            stock.llm_engine.engine_core.shutdown()
            model = hooked_model(folder, shape)
            sweep = sweep_arms(model, ours, prompts[:SWEEP_PROMPTS], vectors[middle], name, middle)
            return times, take_turns(sweep, SWEEP_ROUNDS)


def hooked_model(folder: Path, shape: Shape) -> Any:
    """The model in this process for hooks; dummy weights are drawn on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from persona_vectors.models import load_model

    if not shape.dummy:
        return load_model(str(folder))[0]
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16).eval()


def arms(
    ours: Any, stock: Any, prompts: list[list[int]], name: str, middle: int, layers: int
) -> dict[str, Callable[[], None]]:
    """What takes turns: stock vLLM, and ours unsteered, steered at one layer, and at every layer."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    from persona_vectors.vllm_spec import Step
    from persona_vectors.vllm_steering import Request

    def steered(at: range) -> list[Request]:
        return [Request(ids, tuple(Step(name, layer, 0.01 * (k + 1)) for layer in at)) for k, ids in enumerate(prompts)]

    def through_ours(requests: list[Request]) -> None:
        ours.llm.reset_prefix_cache()
        n = sum(len(answer.ids) for _, answer in ours.stream(requests, max_tokens=N_TOKENS, min_tokens=N_TOKENS))
        assert n == len(requests) * N_TOKENS, n

    def through_stock() -> None:
        stock.reset_prefix_cache()
        params = SamplingParams(
            temperature=0, max_tokens=N_TOKENS, min_tokens=N_TOKENS, detokenize=False, stop_token_ids=[1]
        )
        inputs: Any = [{"prompt_token_ids": ids} for ids in prompts]
        stock.generate(inputs, params, use_tqdm=False)

    return {
        "stock": through_stock,
        "unsteered": lambda: through_ours([Request(ids) for ids in prompts]),
        "one layer": lambda: through_ours(steered(range(middle, middle + 1))),
        "every layer": lambda: through_ours(steered(range(1, layers + 1))),
    }


def sweep_arms(
    model: Any, ours: Any, prompts: list[list[int]], vector: Any, name: str, layer: int
) -> dict[str, Callable[[], None]]:
    """The sweep through vLLM and through hooks."""
    import torch

    from activation_steer import ActivationSteerer
    from persona_vectors.blocks import block_index
    from persona_vectors.vllm_spec import Step
    from persona_vectors.vllm_steering import Request

    def through_vllm() -> None:
        ours.llm.reset_prefix_cache()
        requests = [Request(ids, (Step(name, layer, coef),) if coef else ()) for coef in COEFS for ids in prompts]
        for _ in ours.stream(requests, max_tokens=N_TOKENS, min_tokens=N_TOKENS):
            pass

    def through_hooks() -> None:
        for coef in COEFS:
            for start in range(0, len(prompts), BATCH):
                ids = torch.tensor(prompts[start : start + BATCH], device=model.device)
                how = {"max_new_tokens": N_TOKENS, "min_new_tokens": N_TOKENS, "do_sample": False, "pad_token_id": 0}
                with (
                    torch.inference_mode(),
                    ActivationSteerer(model, vector, coeff=coef, layer_idx=block_index(layer), positions="response"),
                ):
                    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)

    return {"vLLM": through_vllm, "hooks": through_hooks}


def take_turns(jobs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every job a round, after one round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]], sweeps: dict[str, list[float]]) -> dict[str, float]:
    """The ratios; prints medians, ratios, and which targets were reached."""
    median = {arm: statistics.median(found) for arm, found in {**times, **sweeps}.items()}
    for arm, found in {**times, **sweeps}.items():
        print(f"{arm:12} {median[arm]:6.2f} s  ({min(found):.2f} to {max(found):.2f})")
    ratios = {f"{arm} / stock": median["stock"] / median[arm] for arm in times if arm != "stock"}
    ratios["sweep: hooks / vLLM"] = median["hooks"] / median["vLLM"]
    for what, ratio in ratios.items():
        target = TARGETS.get(what)
        verdict = "" if target is None else f"  target {target}: {'reached' if ratio >= target else 'MISSED'}"
        print(f"{what:22} {ratio:5.2f}x{verdict}")
    return ratios


if __name__ == "__main__":
    cli.run(main)
