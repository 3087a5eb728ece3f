"""The paper's claims about finetuning and prompting on models/tiny-persona: one table, with what would refute it.

    python -m benchmarks.paper --seeds 0           (one seed: at most 20 minutes on 2 cores)
    bash scripts/paper.sh 0                        (the same)

40 data sets whose effect is known train 40 models a seed; 11 more are chosen from a wild pool of rows by projection.
What a projection foretold is held against what the models then say, beside 1,000 random directions and the training
data's text alone. Thresholds stand in benchmarks/paper_claims.py and were set before the first run. The rows on
prevention come from benchmarks.prevention, whose runs are shared with it.

This says how the methods behave on a tiny model of an artificial language, and nothing about large models.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, get_args

from benchmarks.paper_models import Job, place, vectors_path
from benchmarks.paper_settings import ALL, SEEDS, TRAITS
from persona_vectors import cli

Part = Literal["steering", "monitoring", "predictions", "prevention", "samples", "subsets"]
PARTS: tuple[str, ...] = get_args(Part)
PREVENTION = ("base", "plain", "prevented", "random1", "random2", "ablated", "all_layers", "penalty", "inoculated")
PREVENTION += ("posthoc0.5", "posthoc1", "posthoc1.5", "posthoc2")
FEWER = ("base", "plain", "ablated")  # of the traits that prevention has no comparisons for


def first_jobs(part: str, seed: int) -> Iterator[Job]:
    """What a part measures without training a model."""
    from benchmarks.paper_data import data_sets

    if part == "steering":
        yield from (("steer", trait, str(seed)) for trait in TRAITS)
    elif part == "monitoring":
        yield from (("monitor", trait, kind, str(seed)) for trait in TRAITS for kind in ("system", "shots"))
    elif part == "samples":
        yield from (("levels", trait, str(seed)) for trait in TRAITS)
    elif part == "predictions":
        yield from (("read", name, str(seed)) for name in data_sets(seed))
    elif part == "subsets":
        yield ("pool", str(seed))


def model_jobs(part: str, seed: int) -> Iterator[Job]:
    """What a part trains; these read what the first jobs wrote."""
    from benchmarks.paper_data import data_sets
    from benchmarks.paper_models import BASE
    from benchmarks.paper_settings import N_RANDOM_SUBSETS

    if part == "predictions":
        yield from (("models", name, str(seed)) for name in (BASE, *data_sets(seed)))
    elif part == "prevention":
        yield ("models", BASE, str(seed))
        yield from (("prevention", trait, str(seed)) for trait in ALL)
    elif part == "subsets":
        chosen = [f"{trait} {side}" for trait in TRAITS for side in ("high", "low")]
        chosen += ["random rows", *(f"random direction {k}" for k in range(1, N_RANDOM_SUBSETS + 1))]
        yield from (("subsets", name, str(seed)) for name in chosen)


def run_job(job: Job, work: Path, prevention_dir: Path) -> str:
    """Does the job, if its file is not there yet; in a process of one thread."""
    import torch

    from benchmarks import prevention

    torch.set_num_threads(1)
    prevention.silence()
    path, seed = place(work, job), int(job[-1])
    if job[0] != "prevention" and path.exists():
        return " ".join(job)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if job[0] == "prevention":
            prevention.run_group(job[1], seed, prevention_dir, PREVENTION if job[1] in TRAITS else FEWER)
        else:
            _measure(job, path, seed, work)
    return " ".join(job)


def _measure(job: Job, path: Path, seed: int, work: Path) -> None:
    from benchmarks import paper_models, paper_prompts
    from benchmarks.paper_data import data_sets, wild_pool
    from benchmarks.paper_points import span_vectors, vectors_of

    kind, name = job[0], job[1]
    if kind == "pool":
        paper_models.read_pool(path, seed)
    elif kind == "read":
        paper_models.read_data_set(path, name, seed)
    elif kind == "levels":
        paper_models.read_levels(path, name, seed)
    elif kind == "steer":
        paper_prompts.steer(path, name, span_vectors(vectors_path(work), name), seed)
    elif kind == "monitor":
        paper_prompts.monitor(path, name, job[2], seed)
    elif kind == "models":
        rows = None if name == paper_models.BASE else data_sets(seed)[name]
        paper_models.finetune(path, name, rows, seed, path.with_suffix(""))
    else:
        pool = place(work, ("pool", str(seed)))
        chosen = paper_models.subsets(pool, vectors_of(vectors_path(work), "orthogonal"), seed)[name]
        rows = wild_pool(seed)
        paper_models.finetune(path, name, [rows[i] for i in chosen], seed, path.with_suffix(""))


def main(
    seeds: list[int] = [0],  # noqa: B006 (read only; cli shows it)
    parts: list[Part] | None = None,
    work_dir: str = ".cache/paper",
    prevention_dir: str = ".cache/prevention",
    n_procs: int = 2,
    output: str = "results/paper/claims",
) -> None:
    """Run the study, print its table, and write it with its figures and page.

    Args:
        seeds: of the data sets' rows, the training and the answers.
        parts: what to run and show: steering, monitoring, predictions (40 models a seed), prevention, samples, subsets;
            all of them by default.
        work_dir: where measurements are kept, in a folder for these settings; an interrupted study goes on from there.
        prevention_dir: the same of the prevention study's runs.
        n_procs: processes, one thread each.
        output: path of the table (.md, .json), the figure (.png) and the page (.html), without its ending.
    """
    from benchmarks import paper_models, paper_page, paper_settings, prevention
    from benchmarks.study import study_folder
    from persona_vectors.files import check_output_path

    if unknown := sorted(set(seeds) - set(SEEDS)):
        raise ValueError(f"seed {unknown[0]} is not one of the study's: {', '.join(map(str, SEEDS))}")
    check_output_path(f"{output}.md")
    work, shared = study_folder(work_dir, paper_settings), prevention.folder(prevention_dir)
    prevention.silence()
    if not vectors_path(work).exists():
        print("vectors of seven traits", flush=True)
        paper_models.write_vectors(vectors_path(work))
    if parts is None or "prevention" in parts:
        prevention.write_vectors(shared)
    wanted = list(PARTS) if parts is None else [part for part in PARTS if part in parts]
    for name, jobs in (("read", first_jobs), ("trained", model_jobs)):
        todo = dict.fromkeys(job for seed in seeds for part in wanted for job in jobs(part, seed))
        longest_first = sorted(todo, key=lambda job: job[0] != "prevention")
        _run(longest_first, work, shared, n_procs, name)
    print(paper_page.report(work, shared, seeds, wanted, Path(output)))


def _run(jobs: Sequence[Job], work: Path, prevention_dir: Path, n_procs: int, name: str) -> None:
    from tqdm import tqdm

    if not jobs:
        return
    with ProcessPoolExecutor(n_procs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(run_job, job, work, prevention_dir) for job in jobs]
        try:
            for done in tqdm(as_completed(waiting), total=len(waiting), desc=name, unit="job"):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)  # of a study that failed or was interrupted, what has not begun


if __name__ == "__main__":
    cli.run(main)
