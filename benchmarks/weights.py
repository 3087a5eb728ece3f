"""Directions in weight space against plain code: merging them, projecting adapters and full checkpoints on them.

    python -m benchmarks.weights --part merging
    python -m benchmarks.weights --part adapters
    python -m benchmarks.weights --part checkpoints

Both sides are in benchmarks/weight_sides.py. Everything is on one random model of Qwen2's architecture (24 blocks,
0.32B parameters; adapters also on two blocks as wide as a 7B's, 0.47B), with adapters of rank 32 on all seven kinds of
linear modules, whose difference has rank 64. Ratios are medians over interleaved rounds, of processor time, since other
work may run beside. Memory is a process's own peak above what its imports took.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.weight_sides import (
    COEFS,
    PROJECTED,
    RANK,
    our_sweep,
    persona,
    plain_products,
    plain_sweep,
    random_direction,
    random_model,
    write_pair,
)
from persona_vectors import cli

if TYPE_CHECKING:
    from persona_vectors.weight_direction import WeightDirection

# Written before the first run.
MERGING_TARGET = 4.0  # a sweep of coefficients in bfloat16, times faster
ADAPTERS_TARGET = 30.0  # a projection of an adapter, times faster
CHECKPOINTS_TARGET = 2.0  # a projection of a full checkpoint, times faster
MEMORY_TARGET = 5.0  # the same, times less memory above imports

RANKS = (32, 16, 8)  # of adapters; the target is for the first
FULL = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 3072, "vocab_size": 32_000}
WIDE = {"hidden_size": 3584, "num_hidden_layers": 2, "intermediate_size": 18_944}  # a 7B's blocks: 0.47B parameters


@dataclass(frozen=True)
class Line:
    """One comparison: what both sides took, a round each, in `unit`; `target` None is for information alone."""

    job: str
    unit: str
    plain: list[float]
    ours: list[float]
    target: float | None
    difference: float
    """largest, relative to the size of the numbers"""

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.plain, self.ours, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def main(
    part: Literal["merging", "merging_float32", "adapters", "checkpoints"] = "merging",
    rounds: int = 5,
    threads: int = 1,
    seed: int = 0,
    output_path: str | None = None,
    side: str | None = None,
    folder: str | None = None,
) -> None:
    """Print a table of ratios to a plain implementation, with machine, commit and command.

    Args:
        part: which comparison; each takes about a minute.
        rounds: of both sides, interleaved.
        threads: of the processor.
        seed: of the random weights and factors.
        output_path: also write the numbers of every round to this JSON file.
        side: instead, project a checkpoint once in this way (plain or ours) and print what it took as JSON (what the
            command starts for the checkpoints).
        folder: where that checkpoint, its original and the direction are.
    """
    if rounds < 1 or threads < 1:
        raise ValueError(f"rounds {rounds} and threads {threads}: expected at least 1 of each")
    if side is not None:
        if side not in PROJECTED or folder is None:
            raise ValueError(f"side {side!r} in {folder}: expected {' or '.join(PROJECTED)} and a folder")
        print(json.dumps(projected_once(side, Path(folder), threads)))
        return
    import torch

    from persona_vectors.files import check_output_path, write_bytes_atomic

    if output_path is not None:
        check_output_path(output_path)
    torch.set_num_threads(threads)
    started = time.monotonic()
    if part == "adapters":
        lines = [
            adapters(size, rank, rounds, seed, ADAPTERS_TARGET if rank == RANK else None)
            for size in (FULL, WIDE)
            for rank in RANKS
        ]
    elif part == "checkpoints":
        lines = checkpoints(FULL, rounds, threads, seed)
    else:
        lines = merging(FULL, "float32" if part == "merging_float32" else "bfloat16", rounds, seed)
    print("\n".join([*heading(threads, rounds), *table(lines), "", f"took {time.monotonic() - started:.0f} s"]))
    if output_path is not None:
        content = {
            "heading": heading(threads, rounds),
            "lines": [asdict(line) | {"ratio": line.ratio} for line in lines],
        }
        write_bytes_atomic(Path(output_path), (json.dumps(content, indent=1) + "\n").encode())


def merging(size: dict[str, int], dtype: str, rounds: int, seed: int) -> list[Line]:
    """A sweep of 8 coefficients against the plain one, and against it with factors in the weights' dtype."""
    model, direction = random_model(size, dtype, seed), persona(size, seed)
    difference = furthest(model, direction)
    plain: list[float] = []
    cast: list[float] = []
    ours: list[float] = []
    for _ in range(rounds):
        timed(plain, lambda: list(plain_sweep(model, direction)))
        timed(ours, lambda: list(our_sweep(model, direction)))
        timed(cast, lambda: list(plain_sweep(model, direction, in_weights_dtype=True)))
    job = f"{len(COEFS)} coefficients merged and restored, {dtype}"
    lines = [Line(job, "s", plain, ours, MERGING_TARGET if dtype == "bfloat16" else None, difference)]
    return lines + [Line("the same, plain with factors in bfloat16", "s", cast, ours, None, difference)] * (
        dtype == "bfloat16"
    )


def furthest(model: Any, direction: WeightDirection) -> float:
    """The largest difference of a merged weight between both sides, over the largest weight; and both must restore.

    Raises:
        RuntimeError: a weight that is not restored to the bit.
    """
    import torch

    name = list(direction.modules)[-1]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen = []
    for sweep in (plain_sweep(model, direction), our_sweep(model, direction)):
        seen.append([model.get_submodule(name).weight.detach().float().clone() for _coef in sweep])
        if wrong := [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]:
            raise RuntimeError(f"{wrong[0]} was not restored")
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*seen, strict=True))


def adapters(size: dict[str, int], rank: int, rounds: int, seed: int, target: float | None) -> Line:
    """An adapter projected on a direction of twice its rank, all linear modules of the blocks."""
    from persona_vectors.weight_direction import norm, products

    finetuned, direction = random_direction(size, rank, seed + 3), persona(size, seed, rank=rank)
    plain: list[float] = []
    ours: list[float] = []
    for _ in range(rounds + 1):  # the first warms up
        theirs = timed(plain, lambda: plain_products(finetuned, direction))
        found = timed(ours, lambda: products(finetuned, direction))
    difference = max(abs(theirs[name] - found[name]) for name in theirs) / (norm(finetuned) * norm(direction))
    job = f"width {size['hidden_size']}: an adapter of rank {finetuned.rank} on a direction of rank {direction.rank}"
    return Line(job, "s", plain[1:], ours[1:], target, difference)


def projected_once(side: str, folder: Path, threads: int) -> dict[str, float]:
    """Seconds, peak MiB above imports, and the values of one side, in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    import lora_utils

    del AutoModelForCausalLM, lora_utils  # imported, with what they import, before anything is counted
    torch.set_num_threads(threads)
    warm_up()
    start_memory, start = memory("VmRSS"), time.process_time()
    total, norm = PROJECTED[side](folder)
    seconds = time.process_time() - start
    return {"seconds": seconds, "mib": memory("VmHWM") - start_memory, "total": total, "norm": norm}


def warm_up() -> None:
    """A tiny model built, saved and loaded: what transformers imports when it is first used is imported."""
    from transformers import AutoModelForCausalLM

    tiny = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 64}
    with tempfile.TemporaryDirectory() as folder:
        write_pair(Path(folder), tiny, 0)
        AutoModelForCausalLM.from_pretrained(Path(folder) / "original")
        for project in PROJECTED.values():
            project(Path(folder))


def memory(field: str) -> float:
    """Of this process, in MiB: VmRSS now, VmHWM its peak. A child's ru_maxrss would start at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def checkpoints(size: dict[str, int], rounds: int, threads: int, seed: int) -> list[Line]:
    """A full finetuning projected on the direction: time and memory, each side in processes of its own."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in PROJECTED}
    with tempfile.TemporaryDirectory() as folder:
        write_pair(Path(folder), size, seed)
        for _ in range(rounds):
            for side, runs in found.items():
                command = [sys.executable, "-m", "benchmarks.weights", f"--side={side}", f"--folder={folder}"]
                command.append(f"--threads={threads}")
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    plain, ours = found["plain"], found["ours"]
    difference = max(abs(plain[0][key] / ours[0][key] - 1) for key in ("total", "norm"))
    return [
        Line(job, unit, [run[key] for run in plain], [run[key] for run in ours], target, difference)
        for job, unit, key, target in (
            ("a full checkpoint on a direction", "s", "seconds", CHECKPOINTS_TARGET),
            ("the same, peak memory above imports", "MiB", "mib", MEMORY_TARGET),
        )
    ]


def timed(seconds: list[float], job: Callable[[], Any]) -> Any:
    """The job's result; its seconds are added to the list."""
    start = time.process_time()
    result = job()
    seconds.append(time.process_time() - start)
    return result


def heading(threads: int, rounds: int) -> list[str]:
    import os

    from benchmarks.reading import processor
    from persona_vectors.files import provenance

    made = provenance()
    return [
        f"machine: {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        f"{threads} thread(s), seconds of processor time; medians of {rounds} interleaved rounds",
        f"commit: {made['git_commit']}; torch {made['versions']['torch']}, "
        f"transformers {made['versions']['transformers']}, python {made['python']}",
        f"command: python -m benchmarks.{made['command'].replace('.py', '')}",
        "",
    ]


def table(lines: Sequence[Line]) -> list[str]:
    rows = ["| job | plain | ours | ratio (lowest-highest) | target | difference |", "|---|---|---|---|---|---|"]
    for line in lines:
        verdict = "" if line.target is None else "reached" if line.ratio >= line.target else "MISSED"
        cells = [
            line.job,
            f"{statistics.median(line.plain):.3g} {line.unit}",
            f"{statistics.median(line.ours):.3g} {line.unit}",
            f"{line.ratio:.1f} ({min(line.ratios):.1f}-{max(line.ratios):.1f})",
            "-" if line.target is None else f"{line.target:g} {verdict}",
            f"{line.difference:.1e}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    cli.run(main)
