"""All CUDA checks and timings in one command, on random models of real shapes, within 8 minutes on one large card.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --shape tiny --device cpu   # where there is no GPU: runs the code, times nothing real

Checks: steering adds exactly coef * vector at the target layer and nothing below it; the extraction engine equals the
published one-sample loop. Timings: extraction and sampling in tokens per second, against the published loop in the same
file, as medians of interleaved ratios; the model's arithmetic rate beside the card's own matrix rate; an optimizer step
of finetuning, its batching and its steering, as benchmarks/finetuning.py times it, on the shape's first four blocks;
and, where vLLM is installed, benchmarks/vllm_speed.py: greedy parity with graphs on, steered against stock.
Nothing here needs weights or a network. The figures go into benchmarks/RESULTS.md by hand, with machine and commit.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `training` is the command, not this folder's

from activation_steer import ActivationSteerer
from benchmarks import finetuning as steps
from benchmarks.gpu_parts import (
    SHAPES,
    Shape,
    build_model,
    interleaved,
    matrix_rate,
    median_ratio,
    published_loop,
    random_samples,
)
from persona_vectors import cli
from persona_vectors.activations import mean_activations
from persona_vectors.blocks import block_index, read_blocks
from persona_vectors.decoding import decode
from persona_vectors.files import provenance
from persona_vectors.models import load_tokenizer
from persona_vectors.slots import grouped_attention
from persona_vectors.tokens import TokenizedSample, pad_batch
from persona_vectors.training_tokens import TrainingSample

ROLLOUTS = 10  # answers a prompt, where prompts are shared
TRAINED_LAYERS, TRAINING_TURNS = 4, 9  # blocks of the model, and steps timed, in finetuning


def main(shape: Literal["7b", "tiny"] = "7b", device: str = "cuda", seed: int = 0) -> None:
    """Run every check and timing, and print one JSON report.

    Args:
        shape: 7b, or tiny for machines without a GPU.
        device: cuda, cuda:1, or cpu.
        seed: of the random weights, prompts and directions.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("no CUDA device here; use --shape tiny --device cpu to run the checks alone")
    spec = SHAPES[shape]
    torch.manual_seed(seed)
    model = build_model(spec, device)
    samples = random_samples(spec, seed)
    report: dict[str, Any] = {
        "shape": shape,
        **asdict(spec),
        "device": device,
        "dtype": str(model.dtype),
        **provenance(),
    }
    if device.startswith("cuda"):
        report["card"] = torch.cuda.get_device_name(device)
        report["matrix_tflops"] = matrix_rate(device)
    rollouts = random_samples(spec, seed, ROLLOUTS)
    report["checks"] = {
        **check_steering(model, spec, samples),
        **check_extraction("extraction", model, samples[:16]),
        **check_extraction("shared_prompts", model, rollouts[: 2 * ROLLOUTS]),
    }
    report["extraction"] = time_extraction(model, samples)
    report["extraction_shared_prompts"] = time_rollouts(model, rollouts)
    report["sampling"] = time_sampling(model, spec, samples)
    report["sweep"] = time_sweep(model, spec, samples, seed)
    if device.startswith("cuda"):
        report["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    del model
    report["training"], report["checks"]["training_losses_equal_published"] = time_training(spec, device, samples, seed)
    report["vllm"], report["checks"]["vllm_greedy_equals_hooks"] = time_vllm(shape, device)
    print(json.dumps(report, indent=2))
    failed = [name for name, check in report["checks"].items() if not check["ok"]]
    if failed:
        raise ValueError(f"failed checks: {', '.join(failed)}")


def check_steering(model: Any, spec: Shape, samples: list[TokenizedSample]) -> dict[str, dict[str, Any]]:
    """Below the target every block is bit-equal; at it the change is coef * vector, in the hidden state's own dtype."""
    layer, coef = spec.layers // 2, 4.0
    vector = torch.nn.functional.normalize(torch.randn(spec.hidden), dim=0)
    ids, mask = (x.to(model.device) for x in pad_batch([s.ids for s in samples[:4]], 0, "left"))

    def hidden_states(coeff: float | None) -> dict[int, Tensor]:
        steerer: AbstractContextManager = nullcontext()
        if coeff is not None:
            steerer = ActivationSteerer(model, vector, coeff=coeff, layer_idx=block_index(layer), positions="all")
        with torch.inference_mode(), steerer, read_blocks(model, [layer - 1, layer]) as seen:
            model(input_ids=ids, attention_mask=mask)
            return {key: value.clone() for key, value in seen.items()}

    plain, off, steered = hidden_states(None), hidden_states(0.0), hidden_states(coef)
    real = mask.bool()
    expected = plain[layer] + (coef * vector).to(model.device, model.dtype)
    return {
        "coef_0_bit_identical": {"ok": torch.equal(plain[layer], off[layer])},
        "earlier_block_bit_equal": {"ok": torch.equal(plain[layer - 1], steered[layer - 1])},
        "target_is_plus_coef_v": {"ok": torch.equal(expected[real], steered[layer][real])},
    }


def check_extraction(name: str, model: Any, samples: list[TokenizedSample]) -> dict[str, dict[str, Any]]:
    """Worst cosine of the engine's response means with the published loop's, over samples and layers."""
    layers = list(range(model.config.num_hidden_layers))
    ours = mean_activations(model, samples, layers, ["response_avg"])["response_avg"]
    worst = float(torch.nn.functional.cosine_similarity(ours, published_loop(model, samples), dim=-1).min())
    bound = 0.99999 if model.dtype == torch.float32 else 0.999
    return {f"{name}_equals_published_loop": {"ok": worst > bound, "worst_cosine": worst, "bound": bound}}


def time_extraction(model: Any, samples: list[TokenizedSample]) -> dict[str, Any]:
    """The engine against the published loop, all layers, and with the pass ended at mid depth."""
    middle = model.config.num_hidden_layers // 2
    times = interleaved(
        {
            "published": lambda: published_loop(model, samples),
            "engine": lambda: mean_activations(model, samples, None, ["response_avg"]),
            "engine_mid_depth": lambda: mean_activations(model, samples, [middle], ["response_avg"]),
        }
    )
    tokens = sum(len(sample.ids) for sample in samples)
    parameters = sum(p.numel() for p in model.model.layers.parameters())
    seconds = statistics.median(times["engine"])
    return {
        "tokens": tokens,
        "engine_tokens_per_s": tokens / seconds,
        "engine_tflops": 2 * parameters * tokens / seconds / 1e12,
        "ratio_to_published": median_ratio(times["published"], times["engine"]),
        "ratio_to_published_mid_depth": median_ratio(times["published"], times["engine_mid_depth"]),
    }


def time_rollouts(model: Any, samples: list[TokenizedSample]) -> dict[str, Any]:
    """Several answers a prompt: each prompt read once, against the published loop and against samples read whole."""
    apart = [replace(sample, ids=(10 + i % ROLLOUTS, *sample.ids[1:])) for i, sample in enumerate(samples)]
    times = interleaved(
        {
            "published": lambda: published_loop(model, samples),
            "whole": lambda: mean_activations(model, apart, None, ["response_avg"]),  # as long, but no prompt shared
            "engine": lambda: mean_activations(model, samples, None, ["response_avg"]),
        }
    )
    return {
        "rollouts": ROLLOUTS,
        "tokens": sum(len(sample.ids) for sample in samples),
        "ratio_to_published": median_ratio(times["published"], times["engine"]),
        "ratio_to_whole_samples": median_ratio(times["whole"], times["engine"]),
    }


def time_sampling(model: Any, spec: Shape, samples: list[TokenizedSample]) -> dict[str, Any]:
    """Greedy generation with and without a steering hook, at a large batch and at the published batch of 20."""
    vector = torch.randn(spec.hidden) / spec.hidden**0.5
    prompts = [list(s.ids[: s.prompt_len]) for s in samples][: spec.sampled_rows]

    def generate(batch: int, coef: float) -> None:
        steerer = ActivationSteerer(model, vector, coeff=coef, layer_idx=spec.layers // 2, positions="response")
        for start in range(0, len(prompts), batch):
            ids, mask = (x.to(model.device) for x in pad_batch(prompts[start : start + batch], 0, "left"))
            options = {"max_new_tokens": spec.sampled_tokens, "min_new_tokens": spec.sampled_tokens, "do_sample": False}
            if coef:
                with steerer:
                    model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **options)
            else:
                model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **options)

    times = interleaved(
        {
            "plain": lambda: generate(len(prompts), 0.0),
            "steered": lambda: generate(len(prompts), 1.0),
            "steered_batch_20": lambda: generate(20, 1.0),
        }
    )
    tokens = len(prompts) * spec.sampled_tokens
    return {
        "tokens": tokens,
        "steered_tokens_per_s": tokens / statistics.median(times["steered"]),
        "steered_over_plain_time": median_ratio(times["steered"], times["plain"]),
        "ratio_to_batch_20": median_ratio(times["steered_batch_20"], times["steered"]),
    }


def time_sweep(model: Any, spec: Shape, samples: list[TokenizedSample], seed: int = 0) -> dict[str, Any]:
    """6 coefficients x 40 prompts as one job, each row with its coefficient, against fixed batches of 20 in order.

    Random weights never end an answer, so each row's length is drawn: 1/8 to all of `sampled_tokens`. A fixed batch
    goes on to its longest row, as `generate` does; tokens count only up to each row's own length.
    """
    prompts = [list(s.ids[: s.prompt_len]) for s in samples][:40]
    rows = [(prompt, coef) for coef in range(6) for prompt in prompts]
    draw = torch.Generator().manual_seed(seed)
    limits = torch.randint(max(1, spec.sampled_tokens // 8), spec.sampled_tokens + 1, (len(rows),), generator=draw)
    vector, block = torch.randn(spec.hidden, generator=draw) / spec.hidden**0.5, spec.layers // 2
    inputs = [prompt for prompt, _ in rows]

    def steer(numbers: Sequence[int]) -> ActivationSteerer:
        coefs = [float(rows[number][1]) for number in numbers]
        return ActivationSteerer(model, vector, coeff=coefs, layer_idx=block, positions="response")

    def greedy(logits: Tensor, _rows: Sequence[int], _steps: Sequence[int]) -> Tensor:
        return torch.where(torch.isfinite(logits.amax(-1)), logits.argmax(-1), -1).cpu()

    def one_job() -> dict[int, list[int]]:
        options = {"limits": limits.tolist(), "end_ids": [], "pad_id": 0, "tokens_in_flight": 2**20}
        with grouped_attention(model):
            groups = decode(model, inputs, pick=greedy, steer=steer, **options)
            return {row: tokens for group in groups for row, tokens in group}

    def published() -> dict[int, list[int]]:
        found = {}
        for start in range(0, len(rows), 20):
            numbers = range(start, min(start + 20, len(rows)))
            ids, mask = (x.to(model.device) for x in pad_batch([inputs[n] for n in numbers], 0, "left"))
            longest = int(limits[list(numbers)].max())
            options = {"max_new_tokens": longest, "min_new_tokens": longest, "do_sample": False, "pad_token_id": 0}
            with steer(numbers):
                output = model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()
            found |= {n: answer[: int(limits[n])] for n, answer in zip(numbers, output, strict=True)}
        return found

    times = interleaved({"published": published, "one_job": one_job})
    ours, theirs = one_job(), published()
    tokens = int(limits.sum())
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / statistics.median(times["one_job"]),
        "ratio_to_published": median_ratio(times["published"], times["one_job"]),
        "answers_equal": sum(ours[n] == theirs[n] for n in range(len(rows))) / len(rows),
    }


def time_training(
    spec: Shape, device: str, samples: list[TokenizedSample], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures of each way to take an optimizer step, the check of their losses); on the first card, whatever `device`.

    As in benchmarks/finetuning.py: `ratio` is how much faster than published a batching is, or how much slower than by
    length a steered step or gradient checkpointing; the memory is the peak, all ways' adapters and gradients included.
    """
    if device.startswith("cuda") and torch.cuda.device_count() > 1:
        skipped = "several cards are visible, over which the trainer would spread a batch; set CUDA_VISIBLE_DEVICES=0"
        return {"skipped": skipped}, {"ok": True, "skipped": skipped}
    model = build_model(replace(spec, layers=TRAINED_LAYERS), device)
    learned = [TrainingSample(s.ids, tuple(i >= s.prompt_len for i in range(len(s.ids)))) for s in samples]
    with tempfile.TemporaryDirectory() as folder:
        work = steps.make_work(model, load_tokenizer(steps.TINY), learned, Path(folder), seed)
        ways = steps.take_turns(work, TRAINING_TURNS, seed)
    errors = steps.loss_errors(ways)
    bound = steps.LOSS_TOLERANCE if model.dtype == torch.float32 else 1e-3
    figures = {"blocks": TRAINED_LAYERS, **steps.figures(ways, learned)}
    return figures, {"ok": max(errors.values()) <= bound, "bound": bound, **errors}


def time_vllm(shape: str, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(seconds and ratios of steered vLLM, the check of its greedy answers), in a process of its own."""
    from persona_vectors.vllm_available import vllm_version, why_not_vllm

    why = why_not_vllm() if device.startswith("cuda") else "vLLM is timed on a GPU only"
    if why is not None:
        return {"skipped": why}, {"ok": True, "skipped": why}
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "vllm.json"
        command = [sys.executable, "-m", "benchmarks.vllm_speed", "--output_path", str(output)]
        command += ["--shape", "7b" if shape == "7b" else "small"]
        done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], stdout=sys.stderr, check=False)
        if not output.is_file():
            return {"exit code": done.returncode}, {"ok": False, "exit code": done.returncode}
        found = json.loads(output.read_text(encoding="utf-8"))
    return {"version": vllm_version(), **found}, {"ok": done.returncode == 0, **found["parity"]}


if __name__ == "__main__":
    cli.run(main)
