"""What capturing costs while vLLM samples, and what it saves of an extraction; interleaved, in one run.

    .venv-vllm/bin/python -m benchmarks.vllm_capture    (about 15 minutes of two idle cores; needs vLLM)

First two engines take turns on the same prompts, each answered several times, with the number of tokens fixed: one that
captures nothing, one that captures each prompt with one of its answers (as `eval_persona --capture` asks), and the same
engine capturing every prompt with every answer, which must not read the prefix cache.

Then the user's commands: eval_persona for pos and neg, and generate_vec, with and without --capture, each from an empty
store. Processor time is that of a command and all its processes. Reported are medians, and what was found: how many of
the answers had their means, and how far the vectors are from those of a forward pass.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

N_PROMPTS, N_ANSWERS, PROMPT_TOKENS, N_TOKENS = 20, 5, 64, 64
ROUNDS = 9
TINY = str(Path(__file__).parent.parent / "models" / "tiny-persona")
COMMAND_ROUNDS = 3  # the first warms vLLM's compile cache


def main(commands_only: bool = False) -> None:
    """Runs both parts and prints their tables."""
    if not commands_only:
        report_rates(*sampling_times())
    with tempfile.TemporaryDirectory() as folder:
        report_commands(*command_times(Path(folder)))


@dataclass(frozen=True)
class Used:
    wall: float
    cpu: float


class Meter:
    """Processor seconds of this process and of those that were started while the meter was made, by `start`."""

    def __init__(self, start: Callable[[], Any]):
        import psutil

        own = psutil.Process()
        before = set(own.children(recursive=True))
        self.started = start()
        self.processes = [own, *(set(own.children(recursive=True)) - before)]

    def measure(self, run: Callable[[Any], None]) -> Used:
        cpu, wall = self._cpu(), time.perf_counter()
        run(self.started)
        return Used(time.perf_counter() - wall, self._cpu() - cpu)

    def _cpu(self) -> float:
        return sum(sum(one.cpu_times()[:2]) for one in self.processes)


def sampling_times() -> tuple[dict[str, list[Used]], int]:
    """What each arm's runs took after the first, and the answers' tokens in a run."""
    import torch

    from benchmarks.vllm_speed import SHAPES, random_model
    from persona_vectors.vllm_steering import Request, SteeredLLM

    with tempfile.TemporaryDirectory() as temporary:
        folder = str(random_model(Path(temporary) / "model", SHAPES["small"]))
        shared: dict[str, Any] = {"projections": 0, "max_model_len": 512, "max_num_seqs": 128}
        plain = Meter(lambda: SteeredLLM(folder, **shared))
        capturing = Meter(lambda: SteeredLLM(folder, capture=True, **shared))
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(10, 4000, (N_PROMPTS, PROMPT_TOKENS), generator=generator).tolist()

        def through(shares: bool) -> Callable[[SteeredLLM], None]:
            requests = [
                Request(ids, seed=k, capture_prompt=not shares or k == 0) for ids in prompts for k in range(N_ANSWERS)
            ]

            def run(llm: SteeredLLM) -> None:
                llm.llm.reset_prefix_cache()
                how: dict[str, Any] = {"max_tokens": N_TOKENS, "min_tokens": N_TOKENS, "temperature": 1.0}
                n = sum(len(answer.ids) for _, answer in llm.stream(requests, **how))
                assert n == len(requests) * N_TOKENS, n

            return run

        arms = {
            "nothing captured": (plain, through(True)),
            "captured, each prompt once": (capturing, through(True)),
            "captured, each prompt always": (capturing, through(False)),
        }
        found: dict[str, list[Used]] = {arm: [] for arm in arms}
        for turn in range(ROUNDS + 1):
            for arm, (engine, run) in arms.items():
                took = engine.measure(run)
                if turn:
                    found[arm].append(took)
        plain.started.close()
        capturing.started.close()
    return found, N_PROMPTS * N_ANSWERS * N_TOKENS


def report_rates(found: dict[str, list[Used]], n_tokens: int) -> None:
    """Prints tokens a second and processor time, and how each compares with no capture in the same turn, by medians."""
    plain = next(iter(found.values()))
    for arm, turns in found.items():
        rates = sorted(n_tokens / one.wall for one in turns)
        speed = [before.wall / one.wall for before, one in zip(plain, turns, strict=True)]
        work = [one.cpu / before.cpu for before, one in zip(plain, turns, strict=True)]
        print(
            f"{arm:30} {statistics.median(rates):6.0f} tokens/s ({rates[0]:.0f} to {rates[-1]:.0f}), "
            f"{statistics.median(speed):.2f} of none; processor {statistics.median(one.cpu for one in turns):.2f} s, "
            f"{statistics.median(work):.2f} of none ({min(work):.2f} to {max(work):.2f})",
            flush=True,
        )


def used(argv: list[str], env: dict[str, str]) -> tuple[Used, str]:
    """What a command and all its processes took, and what it printed."""
    import psutil

    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    spent: dict[int, float] = {}

    def watch() -> None:  # vLLM kills processes of its own at the end, whose time nobody else collects
        while process.poll() is None:
            try:
                tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for one in tree:
                try:
                    spent[one.pid] = sum(one.cpu_times()[:2])
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed = process.communicate()[0].decode()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}: {printed}")
    return Used(time.perf_counter() - start, sum(spent.values())), printed


def command_times(folder: Path) -> tuple[dict[str, list[tuple[Used, Used]]], list[str]]:
    """By arm what sampling and extraction took in each round after the first, and lines on what was found."""
    found: dict[str, list[tuple[Used, Used]]] = {"without --capture": [], "with --capture": []}
    said: list[str] = []
    for turn in range(COMMAND_ROUNDS):
        for arm in found:
            own = folder / f"{turn}_{arm.split()[0]}"
            env = {**os.environ, "PERSONA_STORE": str(own / "store.sqlite")}
            sampled = [used(sampling(pole, own) + ["--capture"] * (arm == "with --capture"), env) for pole in POLES]
            extracted, printed = used(extraction(own), env)
            both = Used(sum(one.wall for one, _ in sampled), sum(one.cpu for one, _ in sampled))
            print(f"turn {turn}, {arm}: {both}, {extracted}", flush=True)
            if turn:
                found[arm].append((both, extracted))
            said = [line for line in printed.splitlines() if "captured" in line] or said
    last = COMMAND_ROUNDS - 1
    return found, said + differences(folder / f"{last}_with", extraction_of_the_same(folder / f"{last}_with"))


POLES = ("pos", "neg")


def sampling(pole: str, folder: Path) -> list[str]:
    how = f"--engine auto --model {TINY} --judge_model {TINY} --trait humorous --persona_instruction_type {pole}"
    size = f"--n_per_question 5 --max_tokens 80 --output_path {folder / pole}.csv"
    return ["-m", "eval.eval_persona", *how.split(), *size.split()]


def extraction(folder: Path) -> list[str]:
    tables = f"--pos_path {folder}/pos.csv --neg_path {folder}/neg.csv --save_dir {folder}/vectors"
    return ["generate_vec.py", "--model_name", TINY, "--trait", "humorous", *tables.split()]


def extraction_of_the_same(folder: Path) -> Path:
    """The same tables without what was captured beside them, and their vectors by a forward pass."""
    import shutil

    read = folder / "read"
    read.mkdir()
    for pole in POLES:
        shutil.copy(folder / f"{pole}.csv", read)
    used(extraction(read), dict(os.environ))
    return read


def differences(captured: Path, read: Path) -> list[str]:
    """How far each span's vectors are from those of a forward pass, relative to their length, at the worst layer."""
    from persona_vectors.activations import SPANS
    from persona_vectors.vectors import load_vectors, vector_path

    lines = []
    for span in SPANS:
        ours, theirs = (load_vectors(vector_path(one / "vectors", "humorous", span)) for one in (captured, read))
        away = (ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp(min=1e-12)
        lines.append(f"{span}: within {float(away.max()):.1e} of the vectors of a forward pass")
    return lines


def report_commands(found: dict[str, list[tuple[Used, Used]]], said: list[str]) -> None:
    """Prints medians of sampling, extraction and both: wall and processor seconds."""
    for arm, rounds in found.items():
        for what, chosen in (("sampling", [0]), ("extraction", [1]), ("both", [0, 1])):
            walls = [sum(one[i].wall for i in chosen) for one in rounds]
            cpus = [sum(one[i].cpu for i in chosen) for one in rounds]
            print(
                f"{arm:18} {what:10} wall {statistics.median(walls):6.1f} s ({min(walls):.1f} to {max(walls):.1f})  "
                f"processor {statistics.median(cpus):6.1f} s ({min(cpus):.1f} to {max(cpus):.1f})"
            )
    print("\n".join(said))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands_only", action="store_true", help="leave out the engines' speed")
    main(**vars(parser.parse_args()))
