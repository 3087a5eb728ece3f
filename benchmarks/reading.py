"""The engine that reads activations against the published loop, and its memory against the number of samples.

    python benchmarks/reading.py

The published loop is written below as it is run: one sample a forward pass with `output_hidden_states`, logits and all,
then the means of its hidden states. Each ratio is the median over interleaved repeats of the loop's time over the
engine's, on random token ids: on models/tiny-persona, and on random models, where arithmetic decides, whose lm_head has
the share of the arithmetic that it has in Qwen2.5-7B (the engine does not run it) and in Llama-3.2-1B. Memory is the
peak of a process of its own for each number of samples.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors import cli

if TYPE_CHECKING:
    from torch import Tensor

    from persona_vectors.tokens import TokenizedSample

PROMPT_TOKENS, ANSWER_TOKENS = (60, 300), (50, 300)  # fewest and most: system prompt and question; an answer
ROLLOUTS = 10
TINY = "models/tiny-persona"
MEMORY_SAMPLES = (20, 80, 320)


@dataclass(frozen=True)
class Timing:
    """One line of the table: seconds of both sides, a repeat each."""

    model: str
    job: str
    published: list[float]
    engine: list[float]
    worst_cosine: float
    target: float

    @property
    def ratio(self) -> float:
        return statistics.median(a / b for a, b in zip(self.published, self.engine, strict=True))


def main(
    repeats: int = 3, threads: int = 1, seed: int = 0, output_path: str | None = None, memory_samples: int = 0
) -> None:
    """Print a table of ratios to the published loop, with machine, commit and command.

    Args:
        repeats: of each side, interleaved, after a warm-up.
        threads: of the processor.
        seed: of the random weights and token ids.
        output_path: also write the table to this file.
        memory_samples: instead, read this many samples with models/tiny-persona and print the process's peak in MiB
            (what the command starts for its own memory lines).
    """
    if repeats < 1 or threads < 1:
        raise ValueError(f"repeats {repeats} and threads {threads}: expected at least 1 of each")
    from persona_vectors.files import atomic_write, check_output_path

    if output_path is not None:
        check_output_path(output_path)
    import torch

    torch.set_num_threads(threads)
    if memory_samples:
        print(peak_mib(memory_samples, seed))
        return
    started = time.monotonic()
    timings = measure("tiny-persona", tiny_persona(), 4, 20, repeats, seed)
    timings += measure("random, head as in a 7B", random_model(3_600, seed), 2, 10, repeats, seed)
    timings += measure("random, head as in a 1B", random_model(9_000, seed), 2, 10, repeats, seed)
    peaks = {n: float(memory_process(n, threads, seed)) for n in MEMORY_SAMPLES}
    text = "\n".join([*heading(threads, repeats), *table(timings), "", *memory_lines(peaks)])
    text += f"\n\ntook {time.monotonic() - started:.0f} s"
    print(text)
    if output_path is not None:
        with atomic_write(output_path) as file:
            file.write(text + "\n")


def tiny_persona() -> Any:
    from persona_vectors.models import load_model

    return load_model(TINY, dtype="float32", device_map="cpu")[0]


def random_model(vocab: int, seed: int) -> Any:
    """A random Qwen2 of 8 blocks of 2.8M weights; `vocab` sets the lm_head's share: 3,600 is 8%, 9,000 is 21%."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=1408,
        vocab_size=vocab,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config).eval()


def random_samples(vocab: int, prompts: int, rollouts: int, seed: int) -> list[TokenizedSample]:
    """`rollouts` answers to each of `prompts` prompts; the lengths of all are spread evenly between the bounds."""
    import torch

    from persona_vectors.tokens import TokenizedSample

    generator = torch.Generator().manual_seed(seed)

    def spread(bounds: tuple[int, int], n: int) -> list[int]:
        steps = (torch.arange(n) + 0.5) / n
        lengths = bounds[0] + (steps * (bounds[1] - bounds[0])).round().long()
        return lengths[torch.randperm(n, generator=generator)].tolist()

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, vocab, (length,), generator=generator).tolist())

    answers = spread(ANSWER_TOKENS, prompts * rollouts)
    samples = []
    for i, length in enumerate(spread(PROMPT_TOKENS, prompts)):
        prompt = draw(length)
        for answer in answers[i * rollouts : (i + 1) * rollouts]:
            samples.append(TokenizedSample(prompt + draw(answer), len(prompt)))
    return samples


def published_loop(model: Any, samples: list[TokenizedSample]) -> dict[str, Tensor]:
    """The published extraction: (n, layers, d_model) a span, all layers but the last, which is normed there."""
    import torch

    means: dict[str, list[Tensor]] = {"prompt_avg": [], "response_avg": [], "prompt_last": []}
    for sample in samples:
        p = sample.prompt_len
        with torch.no_grad():
            states = model(input_ids=torch.tensor([sample.ids]), output_hidden_states=True).hidden_states[:-1]
        means["prompt_avg"].append(torch.stack([state[0, :p].mean(0) for state in states]))
        means["response_avg"].append(torch.stack([state[0, p:].mean(0) for state in states]))
        means["prompt_last"].append(torch.stack([state[0, p - 1] for state in states]))
    return {span: torch.stack(rows) for span, rows in means.items()}


def measure(name: str, model: Any, n_prompts: int, n_singles: int, repeats: int, seed: int) -> list[Timing]:
    """The three jobs of the table: `n_prompts` with ROLLOUTS answers each; `n_singles`, all layers and mid depth."""
    from persona_vectors.activations import SPANS, mean_activations

    depth, vocab = model.config.num_hidden_layers, model.config.vocab_size
    middle = depth // 2
    shared = random_samples(vocab, n_prompts, ROLLOUTS, seed)
    singles = random_samples(vocab, n_singles, 1, seed + 1)
    shared_loop, singles_loop, shared_engine, singles_engine, projection = [], [], [], [], []
    worst = {"shared": 1.0, "singles": 1.0, "projection": 1.0}
    published_loop(model, singles[:2])  # a warm-up
    mean_activations(model, shared[:2])
    for _ in range(repeats):
        theirs = timed(shared_loop, lambda: published_loop(model, shared))
        ours = timed(shared_engine, lambda: mean_activations(model, shared))
        worst["shared"] = min(worst["shared"], *(worst_cosine(theirs[s], ours[s][:, :depth]) for s in SPANS))
        theirs = timed(singles_loop, lambda: published_loop(model, singles))
        ours = timed(singles_engine, lambda: mean_activations(model, singles))
        worst["singles"] = min(worst["singles"], *(worst_cosine(theirs[s], ours[s][:, :depth]) for s in SPANS))
        means = timed(projection, lambda: mean_activations(model, singles, [middle], ["response_avg"]))["response_avg"]
        worst["projection"] = min(worst["projection"], worst_cosine(theirs["response_avg"][:, [middle]], means))
    titles = [f"extraction, {ROLLOUTS} rollouts a prompt", "extraction, no prompt shared"]
    titles.append(f"projection at layer {middle} of {depth}, no prompt shared")
    return [
        Timing(name, titles[0], shared_loop, shared_engine, worst["shared"], 2.0),
        Timing(name, titles[1], singles_loop, singles_engine, worst["singles"], 1.1),
        Timing(name, titles[2], singles_loop, projection, worst["projection"], 2.2),
    ]


def timed(seconds: list[float], job: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The job's result; its seconds are added to the list."""
    start = time.perf_counter()
    result = job()
    seconds.append(time.perf_counter() - start)
    return result


def worst_cosine(a: Tensor, b: Tensor) -> float:
    import torch

    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).min())


def memory_process(n: int, threads: int, seed: int) -> str:
    command = [sys.executable, __file__, f"--memory_samples={n}", f"--threads={threads}", f"--seed={seed}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def peak_mib(n: int, seed: int) -> float:
    """Peak resident memory of this process after reading `n` samples, ROLLOUTS a prompt, keeping only their sum."""
    import resource

    from persona_vectors.activations import iter_mean_activations

    model = tiny_persona()
    samples = random_samples(model.config.vocab_size, n // ROLLOUTS, ROLLOUTS, seed)
    total: Any = 0
    for _rows, means in iter_mean_activations(model, samples):
        total = total + means["response_avg"].double().sum(0)
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts what the parent had at the fork into ru_maxrss
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def heading(threads: int, repeats: int) -> list[str]:
    from persona_vectors.files import provenance

    made = provenance()
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    return [
        f"machine: {processor()}, {os.cpu_count()} cores{load}; {threads} thread(s), float32",
        f"commit: {made['git_commit']}; torch {made['versions']['torch']}, "
        f"transformers {made['versions']['transformers']}, python {made['python']}",
        f"command: python benchmarks/{made['command']}",
        f"prompts of {PROMPT_TOKENS[0]}-{PROMPT_TOKENS[1]} tokens, answers of {ANSWER_TOKENS[0]}-{ANSWER_TOKENS[1]}, "
        f"so that sharing prompts saves {100 - 100 / token_ratio():.0f}% of the tokens; "
        f"medians of {repeats} interleaved repeats",
        "",
    ]


def token_ratio() -> float:
    """Tokens of all samples over those that are left when each prompt is read once."""
    prompt, answer = sum(PROMPT_TOKENS) / 2, sum(ANSWER_TOKENS) / 2
    return ROLLOUTS * (prompt + answer) / (prompt + ROLLOUTS * answer)


def processor() -> str:
    """The processor's name, where the system says it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(timings: list[Timing]) -> list[str]:
    lines = [
        "| model | job | published s | engine s | ratio | target | worst cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for timing in timings:
        ratios = [a / b for a, b in zip(timing.published, timing.engine, strict=True)]
        cells = [
            timing.model,
            timing.job,
            f"{statistics.median(timing.published):.2f}",
            f"{statistics.median(timing.engine):.2f}",
            f"{timing.ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{timing.target:g} {'reached' if timing.ratio >= timing.target else 'MISSED'}",
            f"{timing.worst_cosine:.7f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory_lines(peaks: dict[int, float]) -> list[str]:
    listed = ", ".join(f"{n} samples {peak:.0f} MiB" for n, peak in peaks.items())
    return [f"peak memory of a process (tiny-persona, {ROLLOUTS} rollouts a prompt): {listed}"]


if __name__ == "__main__":
    cli.run(main)
