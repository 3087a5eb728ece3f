"""A steering sweep as one job, against the published way: one coefficient after the other, in fixed batches of 20.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --model Qwen/Qwen2.5-7B-Instruct --device_map cuda:0 --dtype bfloat16 --layer 20

6 coefficients x 40 prompts, one answer each, at temperature 1. The published loop stands in this file: prompts in the
order they come, 20 at a time through `model.generate` with its own sampling, one hook for the coefficient at hand.
Ours is `sample_answers`, one coefficient a row. What its parts give is timed as well, with `--part_rows` rows in flight
(on a small model all 240 fit at once, and there is nothing to refill): with everything, without refilling (rows leave
as they end, new ones enter when all have left), and without dropping either.
All take turns after a warm-up, and a ratio is the median over turns. Whether answers agree is seen with the published
batches drawing from the rows' own random streams; that run is not timed.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors import cli

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COEFS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
PUBLISHED_BATCH = 20
TARGET = 3.0


@dataclass(frozen=True)
class Sweep:
    """Prompts x coefficients of one vector at one layer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: list[str]
    vector: Tensor  # (d_model,)
    layer: int
    max_tokens: int

    @property
    def rows(self) -> list[tuple[int, float]]:
        """(prompt, coefficient) of every row, one coefficient after the other, as the published command runs them."""
        return [(prompt, coef) for coef in COEFS for prompt in range(len(self.prompts))]


@dataclass(frozen=True)
class Run:
    """What one run took: seconds on the clock, seconds of the processor, answer tokens."""

    wall: float
    cpu: float
    tokens: int


def main(
    model: str = "models/tiny-persona",
    device_map: str = "auto",
    dtype: str = "auto",
    layer: int | None = None,
    strength: float = 0.3,
    trait: str = "evil",
    max_tokens: int = 200,
    part_rows: int = 64,
    repeats: int = 5,
    threads: int = 1,
    output_path: str | None = None,
) -> None:
    """Print a table of times and ratios of a sweep of 6 coefficients x 40 prompts, with machine, commit and command.

    Args:
        model: hub id or model folder.
        device_map: auto, cpu, or a CUDA device.
        dtype: auto, float32, bfloat16 or float16.
        layer: a hidden_states index; by default the middle one.
        strength: length of the steering vector (a random direction) at coefficient 1, in mean norms of the prompts'
            hidden states at that layer.
        trait: whose 40 questions (20 to extract, 20 to evaluate) are the prompts.
        max_tokens: most tokens of an answer.
        part_rows: rows in flight where the parts are timed.
        repeats: turns that are timed.
        threads: of the processor.
        output_path: also write every figure there, as JSON.
    """
    numbers = {"max_tokens": max_tokens, "part_rows": part_rows, "repeats": repeats, "threads": threads}
    for option, number in numbers.items():
        if number < 1:
            raise ValueError(f"{option} must be at least 1; got {number}")
    from persona_vectors.files import check_output_path, provenance, write_json_atomic

    if output_path is not None:
        check_output_path(output_path)
    import torch

    torch.set_num_threads(threads)
    sweep = make_sweep(model, device_map, dtype, layer, strength, trait, max_tokens)
    times = take_turns(
        {
            "published": lambda turn: published(sweep, seed=turn),
            "one job": lambda turn: one_job(sweep, seed=turn),
            f"{part_rows} rows": lambda turn: part(sweep, turn, part_rows),
            f"{part_rows} rows, no refilling": lambda turn: part(sweep, turn, part_rows, refill=False),
            f"{part_rows} rows, neither": lambda turn: part(sweep, turn, part_rows, refill=False, change_share=1.0),
        },
        repeats,
        sweep,
    )
    same, n_rows = agreement(sweep)
    print(table(times))
    print(f"answers of the one job equal to those of the published batches: {same} of {n_rows}")
    source = provenance()
    print(f"{machine(sweep.model)}, {threads} thread(s); commit {source['git_commit']}; {source['command']}")
    print(f"model {model} {sweep.model.dtype}, layer {sweep.layer}, {max_tokens} tokens at most, strength {strength:g}")
    if output_path is not None:
        runs = {name: [asdict(run) for run in runs] for name, runs in times.items()}
        record = {"runs": runs, "same_answers": same, "n_rows": n_rows, "machine": machine(sweep.model)}
        write_json_atomic(Path(output_path), record | source)


def make_sweep(
    name: str, device_map: str, dtype: str, layer: int | None, strength: float, trait: str, max_tokens: int
) -> Sweep:
    import torch

    from persona_vectors.blocks import check_layer, device_of, num_layers, read_blocks
    from persona_vectors.models import load_model
    from persona_vectors.tokens import pad_batch, render_prompt, tokenize_prompt
    from persona_vectors.traits import load_trait

    questions = [q for version in ("extract", "eval") for q in load_trait(trait, version, name).questions]
    model, tokenizer = load_model(name, dtype=dtype, device_map=device_map)
    layer = check_layer(num_layers(model) // 2 if layer is None else layer, num_layers(model), name)
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    ids, mask = pad_batch([tokenize_prompt(tokenizer, prompt) for prompt in prompts], 0, "right")
    with torch.inference_mode(), read_blocks(model, [layer]) as hidden:
        model(input_ids=ids.to(device_of(model)), attention_mask=mask.to(device_of(model)))
        norm = float(hidden[layer].float().norm(dim=-1).cpu()[mask.bool()].mean())
    direction = torch.randn(hidden[layer].shape[-1], generator=torch.Generator().manual_seed(0))
    return Sweep(model, tokenizer, prompts, direction / direction.norm() * norm * strength, layer, max_tokens)


def published(sweep: Sweep, seed: int, streams: Sequence[tuple[int, ...]] | None = None) -> list[str]:
    """The published loop; with `streams`, one a row, tokens are drawn from them instead."""
    import torch

    torch.manual_seed(seed)
    answers: list[str] = []
    for coef in COEFS:
        with published_hook(sweep, coef):
            for start in range(0, len(sweep.prompts), PUBLISHED_BATCH):
                first = len(answers)
                prompts = sweep.prompts[start : start + PUBLISHED_BATCH]
                answers += published_batch(sweep, prompts, None if streams is None else streams[first:])
    return answers


@contextmanager
def published_hook(sweep: Sweep, coef: float) -> Iterator[None]:
    """Adds coef * vector at the last position of every call (positions "response"), as the published hook does."""
    from persona_vectors.blocks import block_index, decoder_blocks, hidden_of, with_hidden

    def add(_module: Any, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output).clone()
        hidden[:, -1, :] += (coef * sweep.vector).to(hidden)
        return with_hidden(output, hidden)

    if coef == 0:  # the published command does not steer then
        yield
        return
    handle = decoder_blocks(sweep.model)[block_index(sweep.layer)].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def published_batch(
    sweep: Sweep, prompts: Sequence[str], streams: Sequence[tuple[int, ...]] | None = None
) -> list[str]:
    import numpy as np
    import torch
    from transformers import LogitsProcessorList

    from persona_vectors.blocks import device_of
    from persona_vectors.sampling import RowSampler, end_token_ids

    batch = sweep.tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=False)
    batch = batch.to(device_of(sweep.model))
    width = batch.input_ids.shape[1]
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    if streams is not None:
        uniforms = np.stack([np.random.default_rng(list(s)).random(sweep.max_tokens) for s in streams[: len(prompts)]])
        sampler = RowSampler(uniforms, 1.0, end_token_ids(sweep.model, sweep.tokenizer), width)
        options = {"do_sample": False, "logits_processor": LogitsProcessorList([sampler])}
    with torch.no_grad():
        output = sweep.model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=sweep.max_tokens,
            min_new_tokens=1,
            use_cache=True,
            **options,
        )
    return [str(sweep.tokenizer.decode(row[width:], skip_special_tokens=True)) for row in output]


def one_job(sweep: Sweep, seed: int) -> list[str]:
    from persona_vectors.sampling import sample_answers

    return sample_answers(
        sweep.model,
        sweep.tokenizer,
        [sweep.prompts[prompt] for prompt, _ in sweep.rows],
        max_tokens=sweep.max_tokens,
        temperature=1.0,
        streams=streams_of(sweep, seed),
        steer=steer_rows(sweep),
    )


def part(sweep: Sweep, seed: int, most_rows: int, **options: Any) -> list[str]:
    """The one job with at most so many rows in flight, and `options` of `decode`."""
    from persona_vectors import sampling

    real = sampling.decode
    sampling.decode = lambda *args, **given: real(*args, **{**given, "most_rows": most_rows, **options})
    try:
        return one_job(sweep, seed)
    finally:
        sampling.decode = real


def streams_of(sweep: Sweep, seed: int) -> list[tuple[int, ...]]:
    """The same stream for a prompt under every coefficient, as a sweep has it."""
    return [(seed, prompt) for prompt, _ in sweep.rows]


def steer_rows(sweep: Sweep) -> Callable[[Sequence[int]], Any]:
    from activation_steer import ActivationSteerer
    from persona_vectors.blocks import block_index

    def steer(rows: Sequence[int]) -> ActivationSteerer:
        coefs = [sweep.rows[row][1] for row in rows]
        index = block_index(sweep.layer)
        return ActivationSteerer(sweep.model, sweep.vector, coeff=coefs, layer_idx=index, positions="response")

    return steer


def take_turns(runs: dict[str, Callable[[int], list[str]]], repeats: int, sweep: Sweep) -> dict[str, list[Run]]:
    """Every run once a turn, so that drift meets all alike; turn 0 warms up and is left out."""
    times: dict[str, list[Run]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            synchronize(sweep.model)
            wall, cpu = time.perf_counter(), time.process_time()
            answers = run(turn)
            synchronize(sweep.model)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            tokens = sum(len(sweep.tokenizer(text, add_special_tokens=False).input_ids) for text in answers)
            if turn:
                times[name].append(Run(wall, cpu, tokens))
    return times


def agreement(sweep: Sweep) -> tuple[int, int]:
    """How many answers of the one job are those of the published batches under the same random streams, and of how
    many. Other rows in a batch round logits differently, so a few may differ."""
    ours = one_job(sweep, seed=1)
    theirs = published(sweep, seed=1, streams=streams_of(sweep, seed=1))
    return sum(a == b for a, b in zip(ours, theirs, strict=True)), len(ours)


def table(times: dict[str, list[Run]]) -> str:
    """One line a way: medians, and how many times faster than the published loop (median of ratios by turn)."""
    base = times["published"]
    lines = ["| way | wall s | processor s | tokens | ratio, wall | ratio, processor |", "|---|---|---|---|---|---|"]
    for name, runs in times.items():
        wall, cpu, tokens = (
            statistics.median(getattr(run, field) for run in runs) for field in ("wall", "cpu", "tokens")
        )
        by_wall = statistics.median(a.wall / b.wall for a, b in zip(base, runs, strict=True))
        by_cpu = statistics.median(a.cpu / b.cpu for a, b in zip(base, runs, strict=True))
        lines.append(f"| {name} | {wall:.1f} | {cpu:.1f} | {tokens:.0f} | {by_wall:.2f} | {by_cpu:.2f} |")
    return "\n".join([*lines, f"target: one job at least {TARGET:g} times as fast as published"])


def machine(model: PreTrainedModel) -> str:
    import torch

    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def synchronize(model: PreTrainedModel) -> None:
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    cli.run(main)
