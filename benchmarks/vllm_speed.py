"""Steered vLLM against stock vLLM, and a sweep through it against Hugging Face with hooks; interleaved, in one run.

    .venv-vllm/bin/python -m benchmarks.vllm_speed      (about 6 minutes of two cores; needs vLLM)

Both engines live at once and take turns on the same prompts, greedy, with the number of tokens fixed. Arms: stock vLLM;
ours unsteered; one layer steered, with as many different coefficients as prompts; every layer, likewise. Then a sweep
of six coefficients: as one job through vLLM, and through transformers with ActivationSteerer in batches of 20, one
coefficient after the other, as published. Reported are medians, and ratios of medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

N_PROMPTS, PROMPT_TOKENS, N_TOKENS = 100, 48, 48
ROUNDS = 5
COEFS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
SWEEP_PROMPTS = 40
BATCH = 20
TARGETS = {"one layer / stock": 0.95, "every layer / stock": 0.65, "sweep: hooks / vLLM": 3.0}


def random_model(folder: Path) -> Path:
    """A random Qwen2 of 8 layers and width 512, with a tokenizer of words, as a folder."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.tiny_models import word_tokenizer

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Runs both parts and prints a table."""
    import torch
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    from persona_vectors.models import load_model
    from persona_vectors.vllm_spec import Step
    from persona_vectors.vllm_steering import Request, SteeredLLM

    with tempfile.TemporaryDirectory() as temporary:
        folder = random_model(Path(temporary) / "model")
        shared: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 128}
        ours = SteeredLLM(str(folder), projections=0, **shared)
        stock = LLM(str(folder), dtype="float32" if not torch.cuda.is_available() else "auto", **shared)
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(10, 4000, (N_PROMPTS, PROMPT_TOKENS), generator=generator).tolist()
        vectors = torch.randn(9, 512, generator=generator)
        name = ours.register(vectors)

        def steered(layers: range) -> list[Request]:
            return [
                Request(ids, tuple(Step(name, layer, 0.01 * (k + 1)) for layer in layers))
                for k, ids in enumerate(prompts)
            ]

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

        plain = [Request(ids) for ids in prompts]
        arms: dict[str, Callable[[], None]] = {
            "stock": through_stock,
            "unsteered": lambda: through_ours(plain),
            "one layer": lambda: through_ours(steered(range(5, 6))),
            "every layer": lambda: through_ours(steered(range(1, 9))),
        }
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for turn in range(ROUNDS + 1):  # the first warms up
            for arm, run in arms.items():
                seconds = timed(run)
                if turn:
                    times[arm].append(seconds)
        stock.llm_engine.engine_core.shutdown()
        model, _ = load_model(str(folder))
        sweeps = sweep_times(model, ours, prompts[:SWEEP_PROMPTS], vectors[5], name)
        ours.close()
    report(times, sweeps)


def sweep_times(model: Any, ours: Any, prompts: list[list[int]], vector: Any, name: str) -> dict[str, list[float]]:
    """Seconds of the sweep through vLLM and through hooks, in turns."""
    import torch

    from activation_steer import ActivationSteerer
    from persona_vectors.blocks import block_index
    from persona_vectors.vllm_spec import Step
    from persona_vectors.vllm_steering import Request

    def through_vllm() -> None:
        ours.llm.reset_prefix_cache()
        requests = [Request(ids, (Step(name, 5, coef),) if coef else ()) for coef in COEFS for ids in prompts]
        for _ in ours.stream(requests, max_tokens=N_TOKENS, min_tokens=N_TOKENS):
            pass

    def through_hooks() -> None:
        for coef in COEFS:
            for start in range(0, len(prompts), BATCH):
                ids = torch.tensor(prompts[start : start + BATCH], device=model.device)
                how = {"max_new_tokens": N_TOKENS, "min_new_tokens": N_TOKENS, "do_sample": False, "pad_token_id": 0}
                with (
                    torch.inference_mode(),
                    ActivationSteerer(model, vector, coeff=coef, layer_idx=block_index(5), positions="response"),
                ):
                    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)

    found: dict[str, list[float]] = {"vLLM": [], "hooks": []}
    for turn in range(4):
        for arm, run in (("vLLM", through_vllm), ("hooks", through_hooks)):
            seconds = timed(run)
            if turn:
                found[arm].append(seconds)
    return found


def report(times: dict[str, list[float]], sweeps: dict[str, list[float]]) -> None:
    """Prints medians, ratios, and which targets were reached."""
    median = {arm: statistics.median(found) for arm, found in {**times, **sweeps}.items()}
    for arm, found in {**times, **sweeps}.items():
        print(f"{arm:12} {median[arm]:6.2f} s  ({min(found):.2f} to {max(found):.2f})")
    ratios = {f"{arm} / stock": median["stock"] / median[arm] for arm in times if arm != "stock"}
    ratios["sweep: hooks / vLLM"] = median["hooks"] / median["vLLM"]
    for what, ratio in ratios.items():
        target = TARGETS.get(what)
        verdict = "" if target is None else f"  target {target}: {'reached' if ratio >= target else 'MISSED'}"
        print(f"{what:22} {ratio:5.2f}x{verdict}")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
