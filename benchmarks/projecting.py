"""Projections of rows on 5 vectors at 3 layers in one pass, against the published loop; and the memory they take.

    python -m benchmarks.projecting

The published loop is written below as it is run: one row a forward pass with `output_hidden_states`, logits and
gradients and all, then a projection for each vector and layer. It reads once for all vectors, as its command does with
several of them; its script is run once a vector, which a line of its own times on a fifth of the rows. Another line
leaves gradients out of the loop.
Jobs: rows of random token ids; the same where each prompt has a training answer and one of the model's own (delta_p);
and rows of dataset/, tokenized by both sides. Ratios are medians over interleaved repeats, of processor time, since
other work may run beside. Memory is the peak of a process of its own for each number of rows.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reading import TINY, processor, random_model, random_samples, tiny_persona
from persona_vectors import cli

if TYPE_CHECKING:
    from torch import Tensor

    from eval.row_projections import DataRow
    from persona_vectors.tokens import TokenizedSample

N_VECTORS = 5
MEMORY_ROWS = (250, 500, 1000)
TARGET = 2.0
Loop = Callable[[], "Tensor"]


@dataclass(frozen=True)
class Timing:
    """One line of the table: seconds of both sides, a repeat each, and the largest difference of a value."""

    model: str
    job: str
    published: list[float]
    ours: list[float]
    worst: float

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.published, self.ours, strict=True)]


def main(
    n: int = 1000,
    n_random: int = 30,
    repeats: int = 3,
    threads: int = 1,
    seed: int = 0,
    output_path: str | None = None,
    memory_rows: int = 0,
) -> None:
    """Print a table of ratios to the published loop, with machine, commit and command.

    Args:
        n: rows on models/tiny-persona.
        n_random: rows on random models of 8 blocks, where arithmetic decides.
        repeats: of each side, interleaved, after a warm-up.
        threads: of the processor.
        seed: of the random weights, token ids and vectors.
        output_path: also write the table to this file.
        memory_rows: instead, project this many rows with models/tiny-persona and print the process's peak in MiB
            (what the command starts for its own memory lines).
    """
    if min(n, n_random) < 20 or min(repeats, threads) < 1:
        raise ValueError(f"n {n} and n_random {n_random} must be at least 20, repeats and threads at least 1")
    import torch

    from persona_vectors.files import check_output_path, write_text_atomic

    if output_path is not None:
        check_output_path(output_path)
    torch.set_num_threads(threads)
    if memory_rows:
        print(peak_mib(memory_rows, seed))
        return
    started = time.monotonic()
    timings = [*measure("tiny-persona", tiny_persona(), n, repeats, seed), measure_rows(n, repeats, seed)]
    timings += measure("random, head as in a 7B", random_model(3_600, seed), n_random, repeats, seed)
    peaks = {rows: memory_process(rows, threads, seed) for rows in MEMORY_ROWS}
    text = "\n".join([*heading(threads, repeats, n, n_random), *table(timings), "", memory_line(peaks)])
    text += f"\n\ntook {time.monotonic() - started:.0f} s"
    print(text)
    if output_path is not None:
        write_text_atomic(output_path, text + "\n")


def layers_of(model: Any) -> list[int]:
    """A quarter, a half and three quarters of the depth."""
    depth = model.config.num_hidden_layers
    return [depth // 4, depth // 2, 3 * depth // 4]


def random_vectors(model: Any, seed: int) -> dict[int, Tensor]:
    """Layer -> (N_VECTORS, d_model)."""
    from persona_vectors.statistics import random_directions

    width = model.config.hidden_size
    return {layer: random_directions(N_VECTORS, width, 3.0, seed + layer) for layer in layers_of(model)}


def published_loop(
    model: Any, samples: Sequence[TokenizedSample], vectors: dict[int, Tensor], *, gradients: bool = True
) -> Tensor:
    """(rows, layers x vectors): each value computed from the pass's hidden states by itself, as published."""
    import torch

    rows = []
    for sample in samples:
        with torch.set_grad_enabled(gradients):
            states = model(input_ids=torch.tensor([sample.ids]), output_hidden_states=True).hidden_states
        values = []
        for layer, several in vectors.items():
            for vector in several:
                mean = states[layer][:, sample.prompt_len :, :].mean(dim=1)
                values.append(((mean * vector).sum(dim=-1) / vector.norm(dim=-1)).item())
        rows.append(values)
    return torch.tensor(rows)


def one_pass(model: Any, samples: Sequence[TokenizedSample], vectors: dict[int, Tensor]) -> Tensor:
    """The same numbers by the code of the commands."""
    import numpy as np
    import torch

    from eval.row_sums import Answer, sums_of

    answers = [
        Answer(i, False, 1.0, np.array(sample.ids, dtype=np.int32), sample.prompt_len)
        for i, sample in enumerate(samples)
    ]
    has = {"raw": np.ones(len(samples), dtype=bool)}
    found = sums_of(model, answers, vectors, has, [0] * len(samples), progress=False)
    return torch.cat([torch.from_numpy(found.values["raw", layer]) for layer in vectors], dim=1)


def measure(name: str, model: Any, n: int, repeats: int, seed: int) -> list[Timing]:
    """Rows whose prompts are their own, and rows of which two share a prompt."""
    import torch

    vectors, vocab = random_vectors(model, seed), model.config.vocab_size
    singles, pairs = random_samples(vocab, n, 1, seed), random_samples(vocab, n // 2, 2, seed)
    place = "layers " + ", ".join(map(str, layers_of(model))) + f" of {model.config.num_hidden_layers}"

    def ours() -> Tensor:
        return one_pass(model, singles, vectors)

    few = singles[: max(2, n // N_VECTORS)]

    def once_a_vector() -> Tensor:
        loops = [
            published_loop(model, few, {layer: several[[i]] for layer, several in vectors.items()})
            for i in range(N_VECTORS)
        ]
        return torch.stack(loops, dim=2).flatten(1)  # (rows, layers x vectors)

    jobs: list[tuple[str, Loop, Loop]] = [
        (f"raw, the loop once a vector, {len(few)} rows", once_a_vector, lambda: one_pass(model, few, vectors)),
        (f"raw, {place}", lambda: published_loop(model, singles, vectors), ours),
        ("the same, without gradients", lambda: published_loop(model, singles, vectors, gradients=False), ours),
        (
            "delta_p, two answers a prompt",
            lambda: published_loop(model, pairs, vectors),
            lambda: one_pass(model, pairs, vectors),
        ),
    ]
    published_loop(model, singles[:2], vectors)  # a warm-up
    one_pass(model, singles[:2], vectors)
    return interleaved(name, jobs, repeats)


def measure_rows(n: int, repeats: int, seed: int) -> Timing:
    """Rows of dataset/ from their messages on: what a user of the command waits for, sampling apart."""
    import torch

    from eval.finished_answers import Engine
    from eval.row_projections import Column, OwnAnswers, read
    from persona_vectors.store import Store
    from persona_vectors.tokens import tokenize_messages

    engine, rows = Engine(TINY, "float32", "cpu"), real_rows(n)
    vectors = random_vectors(engine.model, seed)
    columns = [
        Column(f"{layer} {i}", vector, layer, "")
        for layer, several in vectors.items()
        for i, vector in enumerate(several)
    ]

    def published() -> Tensor:
        samples = [tokenize_messages(engine.tokenizer, row.messages) for row in rows]
        return published_loop(engine.model, samples, vectors)

    def ours() -> Tensor:
        with Store(":memory:") as store:
            found = read(engine, rows, columns, ["raw"], OwnAnswers(), store=store, progress=False)
        return torch.tensor([found.values["raw", column.name] for column in columns]).T

    [timing] = interleaved("tiny-persona", [("raw, rows of dataset/", published, ours)], repeats)
    return timing


def real_rows(n: int, answers: int = 1) -> list[DataRow]:
    """`n` rows of the embedded model's data sets, three levels one after another; `answers` of them in each one's."""
    from eval.row_projections import DataRow, read_rows

    levels = ("misaligned_2", "misaligned_1", "normal")
    rows = [
        row
        for path in sorted(Path("dataset").glob("tiny_*"))
        for level in levels
        if (path / f"{level}.jsonl").is_file()
        for row in read_rows(path / f"{level}.jsonl")
    ]
    made = []
    for i in range(n):
        text = " ".join(rows[(i * answers + k) % len(rows)].answer for k in range(answers))
        messages = [*rows[i % len(rows)].messages[:-1], {"role": "assistant", "content": text}]
        made.append(DataRow("rows", i + 1, {"messages": messages}))
    return made


def interleaved(name: str, jobs: Sequence[tuple[str, Loop, Loop]], repeats: int) -> list[Timing]:
    """Each job's both sides in turn, all of it `repeats` times."""
    published: list[list[float]] = [[] for _ in jobs]
    ours: list[list[float]] = [[] for _ in jobs]
    worst = [0.0] * len(jobs)
    for _ in range(repeats):
        for number, (_title, their_loop, our_pass) in enumerate(jobs):
            theirs = timed(published[number], their_loop)
            found = timed(ours[number], our_pass)
            worst[number] = max(worst[number], float((theirs - found).abs().max() / theirs.abs().mean()))
    return [Timing(name, jobs[i][0], published[i], ours[i], worst[i]) for i in range(len(jobs))]


def timed(seconds: list[float], job: Loop) -> Tensor:
    """The job's result; its seconds are added to the list."""
    start = time.process_time()
    result = job()
    seconds.append(time.process_time() - start)
    return result


def memory_process(rows: int, threads: int, seed: int) -> float:
    command = [sys.executable, "-m", "benchmarks.projecting", f"--memory_rows={rows}"]
    command += [f"--threads={threads}", f"--seed={seed}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_mib(n: int, seed: int) -> float:
    """Peak resident memory of this process after all kinds without sampling for `n` rows of about 200 tokens."""
    from eval.finished_answers import Engine
    from eval.row_projections import Column, OwnAnswers, read
    from persona_vectors.store import Store

    engine, rows = Engine(TINY, "float32", "cpu"), real_rows(n, answers=4)
    columns = [
        Column(f"{layer} {i}", vector, layer, "")
        for layer, several in random_vectors(engine.model, seed).items()
        for i, vector in enumerate(several)
    ]
    with Store(":memory:") as store:
        read(engine, rows, columns, ["raw", "cheap"], OwnAnswers(), store=store, progress=False)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def heading(threads: int, repeats: int, n: int, n_random: int) -> list[str]:
    import os

    from persona_vectors.files import provenance

    made = provenance()
    return [
        f"machine: {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        f"{threads} thread(s), float32, seconds of processor time",
        f"commit: {made['git_commit']}; torch {made['versions']['torch']}, "
        f"transformers {made['versions']['transformers']}, python {made['python']}",
        f"command: python -m benchmarks.{made['command'].replace('.py', '')}",
        f"{n} rows on tiny-persona, {n_random} on random models; {N_VECTORS} vectors x 3 layers; "
        f"medians of {repeats} interleaved repeats",
        "",
    ]


def table(timings: Sequence[Timing]) -> list[str]:
    lines = [
        "| model | job | published s | ours s | ratio | target | largest difference / mean value |",
        "|---|---|---|---|---|---|---|",
    ]
    for timing in timings:
        ratio = statistics.median(timing.ratios)
        cells = [
            timing.model,
            timing.job,
            f"{statistics.median(timing.published):.2f}",
            f"{statistics.median(timing.ours):.2f}",
            f"{ratio:.2f} ({min(timing.ratios):.2f}-{max(timing.ratios):.2f})",
            f"{TARGET:g} {'reached' if ratio >= TARGET else 'MISSED'}",
            f"{timing.worst:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory_line(peaks: dict[int, float]) -> str:
    listed = ", ".join(f"{n} rows {peak:.0f} MiB" for n, peak in peaks.items())
    return f"peak memory of a process (tiny-persona, rows of about 200 tokens, raw and cheap): {listed}"


if __name__ == "__main__":
    cli.run(main)
