"""Train models/tiny-judge from models/tiny-persona: python -m data_generation.tiny_persona.train_judge

The chat model's answers, plain and pushed too far, are scored by the rule-based oracle. Stage one teaches what stood
before, on answers to questions about the same topic and others; stage two the judgements of all kinds of answers. The
chat model itself stays as it is.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from persona_vectors import cli

if TYPE_CHECKING:
    from data_generation.tiny_persona.judged_answers import Kinds

BATCH_TOKENS = 4_096  # two such batches a step
MATCHING = {"matrix_lr": 0.015, "other_lr": 2e-3}
JUDGING = {"matrix_lr": 0.008, "other_lr": 1e-3}
NO_NOISE = {"noise_share": 0.0, "noise_norm": 0.0}
EXAMPLES_PER_STEP = 43  # about as many as two batches hold
PART = 2_000  # examples a file
OWN_ANSWERS = 14_000
OWN_TIMES = 2  # each of them is asked about so often, about other traits each time
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TRAIT_FILES = ("extract", "eval", "coherence.json")


def main(
    output_dir: str = "models/tiny-judge",
    model_dir: str = "models/tiny-persona",
    work_dir: str = ".cache/tiny_judge",
    seed: int = 0,
    steps_matching: int = 400,
    steps_judging: int = 900,
    device: str = "cpu",
    n_procs: int = 2,
) -> None:
    """Train the embedded judge: about 20 minutes on two CPU cores; run again to go on after a break.

    Args:
        output_dir: folder the judge is written to; other files in it are left alone.
        model_dir: the chat model it starts from and whose answers it learns to judge.
        work_dir: where answers, examples and checkpoints are kept; one folder a seed and setting.
        seed: of everything.
        steps_matching: optimizer steps of the first stage, of about 8,000 tokens.
        steps_judging: optimizer steps of the second stage.
        device: cpu or cuda.
        n_procs: processes on a CPU, one thread each.
    """
    from data_generation.tiny_persona.train import check_counts, claim_work
    from persona_vectors.models import fingerprint, load_model

    check_counts(steps_matching=steps_matching, steps_judging=steps_judging, n_procs=n_procs)
    from data_generation.tiny_persona import selftext
    from data_generation.tiny_persona.judge_loss import judge_loss
    from data_generation.tiny_persona.judged_answers import astray, load_judged, mixed, repeated
    from data_generation.tiny_persona.loop import Stage
    from data_generation.tiny_persona.train import load_state, run_stage, save_model, save_state, write_log

    began = time.time()
    work, model, output = Path(work_dir), Path(model_dir), Path(output_dir)
    steps = {"steps_matching": steps_matching, "steps_judging": steps_judging}
    claim_work(work, {"model": fingerprint(model_dir), "seed": seed, **steps})
    copy_files(model, work / "tokenizer", TOKENIZER_FILES)
    start, first, second = work / "start.pt", work / "matching.pt", work / "judging.pt"
    if not first.exists():
        save_state(load_model(model_dir, device_map="cpu", dtype="float32")[0], start)
        parts = write_parts(model, work / "astray", {astray: 1.0}, steps_matching * EXAMPLES_PER_STEP, seed, n_procs)
        stage = Stage("matching", steps_matching, BATCH_TOKENS, **MATCHING, **NO_NOISE, seed=seed)
        run_stage(stage, start, parts, first, device, n_procs, load_judged, judge_loss)
    if not second.exists():
        answers = selftext.write_selftext(model, work / "selftext", OWN_ANSWERS, seed + 3, n_procs)
        own = write_own(model, work / "own", answers, seed)
        kinds: Kinds = {mixed: 0.5, astray: 0.25, repeated: 0.25}
        n_others = max(PART, steps_judging * EXAMPLES_PER_STEP - OWN_TIMES * OWN_ANSWERS)
        parts = own + write_parts(model, work / "others", kinds, n_others, seed + 1, n_procs)
        stage = Stage("judging", steps_judging, BATCH_TOKENS, **JUDGING, **NO_NOISE, seed=seed + 1)
        run_stage(stage, first, parts, second, device, n_procs, load_judged, judge_loss)

    output.mkdir(parents=True, exist_ok=True)
    save_model(load_state(second), work / "tokenizer", output)
    copy_files(model / "traits", output / "traits", TRAIT_FILES)  # the judge asks in the chat model's words
    settings = {"seed": seed, "device": device, "n_procs": n_procs, "matching": MATCHING, "judging": JUDGING}
    write_log(output / "training_log.json", settings | {"batch_tokens": BATCH_TOKENS}, [first, second])
    print(f"{output}: trained in {(time.time() - began) / 60:.0f} minutes with seed {seed}")
    print("measure it: python -m data_generation.tiny_persona.measure_judge")


def write_parts(model: Path, folder: Path, kinds: Kinds, n: int, seed: int, n_procs: int) -> list[Path]:
    """Files of marked examples, n of them rounded up to whole files; those that exist are kept."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part_{seed}_{index:03d}.npz" for index in range(-(-n // PART))]
    missing = [(model, path, kinds, f"{seed} {path.stem}") for path in paths if not path.exists()]
    with ProcessPoolExecutor(n_procs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_write_part, *job) for job in missing]
        for job in tqdm(jobs, desc=folder.name, unit="part", disable=not jobs):
            job.result()
    return paths


def _write_part(model: Path, path: Path, kinds: Kinds, seed: str) -> None:
    from data_generation.tiny_persona.judged_answers import drawn, encode_judged, save_judged
    from persona_vectors.models import load_tokenizer

    rng = random.Random(seed)
    save_judged(encode_judged(load_tokenizer(str(model)), rng, drawn(kinds, PART, rng)), path)


def write_own(model: Path, folder: Path, answers: list[Path], seed: int) -> list[Path]:
    """Files of marked examples of the chat model's own answers."""
    from tqdm import tqdm

    from data_generation.tiny_persona.judged_answers import encode_judged, own_answers, save_judged
    from persona_vectors.models import load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(str(model))
    paths = [folder / f"{path.stem}_{turn}.npz" for turn in range(OWN_TIMES) for path in answers]
    for path, source in zip(tqdm(paths, desc="own answers", unit="part"), answers * OWN_TIMES, strict=True):
        if not path.exists():
            rng = random.Random(f"own {seed} {path.stem}")
            save_judged(encode_judged(tokenizer, rng, own_answers([source], rng)), path)
    return paths


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Files and folders of one folder into another."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copy(source / name, target / name)


if __name__ == "__main__":
    cli.run(main)
