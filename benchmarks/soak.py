"""What a week of use does in minutes: runs killed at random moments, and a store of millions of items.

    python benchmarks/soak.py --kills 50
    python benchmarks/soak.py --kills 0 --millions 1 2 4

A chain is one command started again after every SIGKILL until it ends. It must end with the table of a run that was
left alone, and must not have done anything twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from persona_vectors import cli
from persona_vectors.files import write_json_atomic
from persona_vectors.store import Store, content_key

ROOT = Path(__file__).resolve().parent.parent
MODEL = "models/tiny-persona"
TRAIT_FILE = f"{MODEL}/traits/eval/humorous.json"
N_PER_QUESTION, N_QUESTIONS = 8, 10  # answers are stored 16 at a time: several commits while sampling
N_ANSWERS = N_PER_QUESTION * N_QUESTIONS
N_SCORES = 2 * N_ANSWERS
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class Kill:
    """What a killed process left: items stored, and whether the log ends inside a commit."""

    answers: int
    scores: int
    in_commit: bool

    @property
    def in_sampling(self) -> bool:
        """Between two answers that were stored."""
        return 0 < self.answers < N_ANSWERS

    @property
    def in_work(self) -> bool:
        """Something was stored, and something was missing."""
        return self.answers > 0 and self.scores < N_SCORES and self.answers + self.scores < N_ANSWERS + N_SCORES


def arguments(folder: Path) -> list[str]:
    """The command's arguments: a few questions of a trait that ships with the model, and its table in `folder`."""
    trait = json.loads((ROOT / TRAIT_FILE).read_text(encoding="utf-8"))
    write_json_atomic(folder / "humorous.json", trait | {"questions": trait["questions"][:N_QUESTIONS]})
    given = {"model": MODEL, "judge_model": MODEL, "trait": folder / "humorous.json", "output_path": folder / "out.csv"}
    given |= {"n_per_question": N_PER_QUESTION, "max_tokens": 80, "device_map": "cpu", "version": "eval"}
    return [f"--{name}={value}" for name, value in given.items()]


def start(folder: Path) -> subprocess.Popen[str]:
    """`python -m eval.eval_persona` as a user starts it, with its store and table in `folder`."""
    command = [sys.executable, "-m", "eval.eval_persona", *arguments(folder)]
    environment = {**os.environ, "PERSONA_STORE": str(folder / "s"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "w") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)


def times(folder: Path) -> dict[str, float]:
    """Key -> when it was stored, of everything in the store, read as a program beside the run."""
    if not (folder / "s").exists():
        return {}
    with Store(folder / "s") as store:
        return {item["key"]: item["created"] for item in store.items()}


def kill_in_work(folder: Path, rng: random.Random, *, answers: int, scores: int, in_commit: bool) -> Kill | None:
    """Start the command and kill it once so much is stored, up to 50 ms later; None where it ended before.

    With `in_commit` it is killed when its log next changes.
    """
    process = start(folder)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        done = counts(folder / "s")
        if done[0] >= answers and done[1] >= scores:
            before = log_state(folder / "s")
            if in_commit:
                while process.poll() is None and log_state(folder / "s") == before:
                    time.sleep(0.0005)
            else:
                time.sleep(rng.uniform(0, 0.05))
            break
        time.sleep(POLL_SECONDS)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code == 0:
        return None
    if code != -signal.SIGKILL:
        raise RuntimeError(f"the command ended with {code}: {(folder / 'log.txt').read_text()[-500:]}")
    torn = ends_inside_a_commit(folder / "s")
    return Kill(*counts(folder / "s"), torn)


def counts(path: Path) -> tuple[int, int]:
    """(answers, scores) that are committed; (0, 0) where the store is not made yet."""
    if not path.exists():
        return 0, 0
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)
    try:
        found = dict(connection.execute("SELECT kind, count(*) FROM items GROUP BY kind"))
    except sqlite3.OperationalError:
        return 0, 0  # it has no table yet
    finally:
        connection.close()
    return found.get("answer", 0), found.get("score", 0)


def log_state(path: Path) -> tuple[int, int]:
    """Size and time of the store's write-ahead log."""
    log = Path(f"{path}-wal")
    stat = log.stat() if log.exists() else None
    return (stat.st_size, stat.st_mtime_ns) if stat else (0, 0)


def ends_inside_a_commit(path: Path) -> bool:
    """Whether frames of a commit that was not finished stand at the log's end (sqlite.org/fileformat2.html#walformat).

    A frame belongs to the present log if it has the header's salt, and ends a commit if its second number is not 0.
    """
    log = Path(f"{path}-wal")
    content = log.read_bytes() if log.exists() else b""
    if len(content) < 32:
        return False
    page_size = struct.unpack(">I", content[8:12])[0]
    ends = True
    for offset in range(32, len(content) - 23, 24 + page_size):
        if content[offset + 8 : offset + 16] != content[16:24]:
            break  # left from before the log was begun anew
        ends = struct.unpack(">I", content[offset + 4 : offset + 8])[0] != 0
        if len(content) < offset + 24 + page_size:
            return True
    return not ends


def finish(folder: Path) -> None:
    """Run the command to its end."""
    process = start(folder)
    if process.wait(timeout=PATIENCE_SECONDS) != 0:
        raise RuntimeError(f"the command failed: {(folder / 'log.txt').read_text()[-500:]}")


def chain(folder: Path, seed: int, n_kills: int) -> list[Kill]:
    """Kill the command `n_kills` times, then let it end; what each kill left.

    The first comes while answers are sampled, the others anywhere, each when more is stored than at the one before.
    Raises RuntimeError where something was done twice.
    """
    rng, kills = random.Random(seed), []
    stored: dict[str, float] = {}
    total = N_ANSWERS + N_SCORES
    targets = sorted([rng.randrange(1, N_ANSWERS // 2), *(rng.randrange(total) for _ in range(n_kills - 1))])
    for target in targets:
        answers, scores = min(target, N_ANSWERS - 1), max(0, target - N_ANSWERS)
        kill = kill_in_work(folder, rng, answers=answers, scores=scores, in_commit=rng.random() < 0.5)
        stored = checked(stored, times(folder))
        if kill is None:
            return kills
        kills.append(kill)
    finish(folder)
    checked(stored, times(folder))
    return kills


def checked(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """`now`, if everything that was stored before still is, and was not stored again."""
    lost = before.keys() - now.keys()
    again = [key for key in before.keys() & now.keys() if now[key] != before[key]]
    if lost or again:
        raise RuntimeError(f"{len(lost)} items lost, {len(again)} done again")
    return now


def same_table(one: Path, other: Path) -> bool:
    """The same rows and answers, and scores equal up to the rounding of what else was judged in the same batch."""
    a, b = (pd.read_csv(path, dtype={"answer": str}, keep_default_na=False) for path in (one, other))
    texts = ["question", "prompt", "answer", "question_id"]
    scores = [name for name in a.columns if name not in texts]
    same_texts = list(a.columns) == list(b.columns) and a[texts].equals(b[texts])
    return same_texts and np.allclose(a[scores], b[scores], atol=1e-3, rtol=0)


def soak_kills(n_kills: int, seed: int, per_chain: int = 5) -> None:
    """Chains of kills until there were `n_kills`, each compared with a run that was left alone."""
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference"
        reference.mkdir()
        finish(reference)
        keys = set(times(reference))
        kills: list[Kill] = []
        while len(kills) < n_kills:
            folder = Path(scratch) / f"chain_{seed}"
            folder.mkdir()
            kills += chain(folder, seed, min(per_chain, n_kills - len(kills)))
            if not same_table(folder / "out.csv", reference / "out.csv") or set(times(folder)) != keys:
                raise RuntimeError(f"chain {seed}: its table or its store is not that of a run left alone")
            seed += 1
            print(
                f"{len(kills)} kills, {sum(kill.in_work for kill in kills)} in mid-work"
                f" ({sum(kill.in_sampling for kill in kills)} sampling,"
                f" {sum(kill.in_work and kill.answers == N_ANSWERS for kill in kills)} judging),"
                f" {sum(kill.in_commit for kill in kills)} inside a commit;"
                " every table as of a run left alone, nothing lost, nothing done twice",
                flush=True,
            )


def soak_size(n_items: int, value_bytes: int = 600, batch: int = 32) -> str:
    """One line: rates, bytes an item and times of a store with so many items, put `batch` at a time as a run does."""
    with tempfile.TemporaryDirectory() as scratch, Store(Path(scratch) / "s") as store:
        text = "x" * (value_bytes - 2)
        wall, cpu = time.perf_counter(), time.process_time()
        for first in range(0, n_items, batch):
            rows = range(first, min(n_items, first + batch))
            store.put_many({content_key("x", i=i): text for i in rows}, kind="answer", source="tiny-persona")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rng = random.Random(0)
        wanted = [content_key("x", i=rng.randrange(n_items)) for _ in range(20_000)]
        read = time.perf_counter(), time.process_time()
        n_found = len(store.get_many(wanted))
        read = time.perf_counter() - read[0], time.process_time() - read[1]
        assert n_found == len(set(wanted)) and store.count() == n_items
        listing = time.perf_counter()
        store.groups()
        listing = time.perf_counter() - listing
        return (
            f"{n_items} items of {value_bytes} bytes: put {n_items / wall:.0f} a second ({cpu / n_items * 1e6:.0f} us"
            f" of CPU each, key included), get {len(wanted) / read[0]:.0f} a second"
            f" ({read[1] / len(wanted) * 1e6:.0f} us each), {store.size() / n_items:.0f} bytes an item on disk,"
            f" list {listing:.1f} s"
        )


def main(kills: int = 50, millions: list[float] = [], seed: int = 0) -> None:  # noqa: B006 (read only; cli shows it)
    """Kill runs at random moments and finish them; fill stores and measure them. Raises where something is lost.

    Args:
        kills: SIGKILLs in all, five a run.
        millions: sizes of stores to measure, in millions of items.
        seed: of the moments.
    """
    if kills < 0 or any(size <= 0 for size in millions):
        raise ValueError("--kills must be at least 0 and --millions above 0")
    for size in millions:
        print(soak_size(round(size * 1e6)), flush=True)
    if kills:
        soak_kills(kills, seed)


if __name__ == "__main__":
    cli.run(main)
