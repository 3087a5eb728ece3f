"""How long quick_persona_extract.py takes a trait, from nothing: the Big Five and the dark triad on the embedded model.

    python -m benchmarks.quick_extract

Each trait is a run of the command of its own, with an empty store: start, loading, sampling, reading, statistics,
figures and page. Beside the seconds stand the numbers of its best layer with their controls, so that speed is not had
by leaving something out.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from persona_vectors import cli

TINY = "models/tiny-persona"
BIG_FIVE = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
DARK_TRIAD = ("machiavellianism", "narcissism", "psychopathy")
LIMIT = 30.0
COLUMNS = ("trait", "seconds", "of CPU", "layer", "held-out AUC [95%]", "random 95th", "swapped 95th", "in sample")
COLUMNS += ("separation", "random 95th")


def main(model_name: str = TINY, n_samples: int = 5, threads: int = 1) -> None:
    """Print seconds a trait, and the best layer's AUC and separation beside random directions and swapped labels.

    Args:
        model_name: chat model that ships these traits.
        n_samples: questions a trait, each under 5 pairs of instructions: 10 answers a question.
        threads: torch's, of each run.
    """
    from eval.text_table import aligned

    rows: list[list[str]] = [list(COLUMNS)]
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for trait in (*BIG_FIVE, *DARK_TRIAD):
            seconds, processor = timed(model_name, trait, n_samples, threads, Path(folder))
            rows.append([trait, f"{seconds:.1f}", f"{processor:.1f}", *best(Path(folder), trait)])
            slowest = max(slowest, processor)
            print(f"{trait}: {seconds:.1f} s", flush=True)
    print("\n" + "\n".join(aligned(rows)))
    said = "within" if slowest < LIMIT else "MORE THAN"
    print(
        f"slowest: {slowest:.1f} s of processor time, {said} {LIMIT:g} s a trait ({n_samples * 10} answers, all layers)"
    )


def timed(model_name: str, trait: str, n_samples: int, threads: int, folder: Path) -> tuple[float, float]:
    """(seconds, seconds of processor time) of the command, which finds nothing in its store."""
    environment = os.environ | {"PERSONA_STORE": str(folder / f"{trait}.sqlite"), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "quick_persona_extract.py", "--model_name", model_name, "--trait", trait]
    command += ["--n_samples", str(n_samples), "--save_dir", str(folder)]
    before, start = processor_of_children(), time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start, processor_of_children() - before


def processor_of_children() -> float:
    """Seconds of processor time of finished child processes: other work beside them does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def best(folder: Path, trait: str) -> list[str]:
    """The best layer's numbers."""
    (vectors,) = folder.glob(f"*_{trait}_vectors.json")
    layer = json.loads(vectors.read_text(encoding="utf-8"))["best_layer"]
    (analysis,) = folder.glob(f"*_{trait}_analysis.json")
    own = json.loads(analysis.read_text(encoding="utf-8"))[f"layer_{layer}"]
    held_out = f"{own['auc']:.3f} [{own['auc_low']:.2f}, {own['auc_high']:.2f}]"
    names = ("auc_random_95", "auc_permuted_95", "auc_in_sample", "separation", "separation_random_95")
    return [str(layer), held_out, *(f"{own[name]:.2f}" for name in names)]


if __name__ == "__main__":
    cli.run(main)
