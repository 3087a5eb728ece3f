"""Preventative weight steering on models/tiny-persona, both signs, beside random directions:

    python -m benchmarks.weight_prevention      (about 7 minutes of one core; what is finished is kept)

A trait's direction is the difference of two adapters, trained on its misaligned_2 and its normal rows alone: the even
ones. The odd ones, of other questions, are then finetuned on, beside a separable task: plain; with the direction in
training at +c (`W + c * D`); at -c; and with random directions of its singular values. Every model is asked 100
held-out questions, unsteered, and scored by the rule-based oracle. c is chosen on one trait and seed, as the one of
least trait score; the other trait is measured at that c.

`same rows` has its direction from the very rows that are finetuned on, which is not a fair test: beside it, the other.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import FINETUNING, TINY, settings_of, study_folder
from benchmarks.weight_prevention_settings import (
    CHOSEN_WITH,
    COEFS,
    LEARNING_RATE,
    MIN_COHERENCE,
    N_RANDOM,
    SEEDS,
    STEPS,
    TRAITS,
)
from persona_vectors import cli

ROWS = {
    "base": "base model, not finetuned",
    "plain": "finetuned",
    "with": "finetuned with +{c:g} D (prevented)",
    "against": "finetuned with -{c:g} D",
    "random": f"{N_RANDOM} random directions at {{c:g}}, mean",
    "same_rows": "+{c:g} D, from the same rows",
}
RANDOM = [f"random{k}" for k in range(1, N_RANDOM + 1)]
HALVES = ("even", "odd")


def write_halves(work: Path) -> None:
    """Even and odd rows of each trait's files, as files."""
    from persona_vectors.files import write_text_atomic

    (work / "rows").mkdir(parents=True, exist_ok=True)
    for trait in TRAITS:
        for kind in ("misaligned_2", "normal"):
            lines = Path(f"dataset/tiny_{trait}/{kind}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            for first, half in enumerate(HALVES):
                write_text_atomic(_rows(work, trait, kind, half), "".join(lines[first::2]))


def _rows(work: Path, trait: str, kind: str, half: str) -> Path:
    return work / "rows" / f"{trait}_{kind}_{half}.jsonl"


def direction(work: Path, trait: str, half: str) -> Path:
    """The folder of the trait's direction from one half of its rows, trained if it is not yet."""
    from persona_vectors.models import fingerprint
    from persona_vectors.weight_direction import difference
    from persona_vectors.weight_files import load_adapter, save_adapter

    sides = [
        train(work / "sides" / f"{trait}_{half}_{kind}", [_rows(work, trait, kind, half)], seed=100)
        for kind in ("misaligned_2", "normal")
    ]
    found = difference(*(load_adapter(side) for side in sides))
    record = {"trait": trait, "model": {"name": TINY, "fingerprint": fingerprint(TINY)}, "rows": half}
    return save_adapter(type(found)(found.modules, TINY, record), work / "directions" / f"{trait}_{half}")


def train(folder: Path, files: list[Path], seed: int, **steering: Any) -> Path:
    """The folder of a finetuned model; it is trained where it is not there yet."""
    import training
    from persona_vectors.training_config import TrainingConfig

    config = FINETUNING | {
        "training_file": [str(file) for file in files],
        "no_test_split": True,
        "output_dir": str(folder),
        "seed": seed,
        "max_steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "steering_config": {"type": "lora", **steering} if steering else None,
        "enable_steering_during_training": bool(steering),
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        training.train(TrainingConfig.model_validate(config))
    return folder


def case(work: Path, trait: str, seed: int, name: str, **steering: Any) -> dict[str, Any]:
    """What was measured of one model: its scores by question; trained and measured where it is not yet."""
    from persona_vectors.files import write_json_atomic

    path = work / "measured" / f"{trait}_{seed}_{name}.json"
    if not path.exists():
        files = [_rows(work, trait, "misaligned_2", "odd"), Path("dataset/tiny_task/train.jsonl")]
        model = TINY if name == "base" else str(train(work / "models" / path.stem, files, seed, **steering))
        path.parent.mkdir(exist_ok=True)
        write_json_atomic(path, measure(model, trait, seed))
    found = json.loads(path.read_text(encoding="utf-8"))
    print(f"{trait}, seed {seed}, {name}: trait {np.mean(found['trait']):.1f}", flush=True)
    return found


def measure(model_folder: str, trait: str, seed: int) -> dict[str, Any]:
    """Trait score and coherence of each held-out question's answer, unsteered, and the task's held-out loss in nats."""
    from benchmarks.prevention import task_loss
    from data_generation.tiny_persona.answers import Ask, answer_all
    from data_generation.tiny_persona.measurements import test_questions
    from data_generation.tiny_persona.oracle import coherence, trait_score
    from persona_vectors.models import load_model
    from persona_vectors.training_data import read_conversations

    with contextlib.redirect_stderr(io.StringIO()):
        model, tokenizer = load_model(model_folder)
    questions = test_questions()
    answers = answer_all(model, tokenizer, [Ask(question, (seed, i)) for i, question in enumerate(questions)], layer=1)
    return {
        "trait": [trait_score(text, trait) for text in answers],
        "coherence": [coherence(question, text) for question, text in zip(questions, answers, strict=True)],
        "task_loss": task_loss(model, tokenizer, read_conversations(["dataset/tiny_task/test.jsonl"]), None),
        "answers": answers[:3],
    }


def choose(work: Path) -> dict[str, Any]:
    """The coefficient of least trait score on the first trait and seed, coherent ones first, and what was tried."""
    trait, seed = CHOSEN_WITH
    folder = str(direction(work, trait, "even"))
    tried = {c: case(work, trait, seed, f"with{c:g}", lora_path=folder, coef=c) for c in COEFS}
    means = {c: {what: float(np.mean(one[what])) for what in ("trait", "coherence")} for c, one in tried.items()}
    chosen = min(means, key=lambda c: (means[c]["coherence"] < MIN_COHERENCE, means[c]["trait"]))
    return {"coef": chosen, "tried": means}


def run(work: Path, trait: str, coef: float) -> dict[str, list[dict[str, Any]]]:
    """Each case's measurements, a seed each."""
    folder = str(direction(work, trait, "even"))
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in SEEDS:
        blocks = {
            "base": {},
            "plain": {},
            f"with{coef:g}": {"lora_path": folder, "coef": coef},
            "against": {"lora_path": folder, "coef": -coef},
            **{f"random{k}": {"lora_path": folder, "coef": coef, "random_control": k} for k in range(1, N_RANDOM + 1)},
        }
        for name, block in blocks.items():
            row = "with" if name.startswith("with") else name
            found.setdefault(row, []).append(case(work, trait, seed, name, **block))
    if trait == TRAITS[0]:
        same = str(direction(work, trait, "odd"))
        found["same_rows"] = [case(work, trait, SEEDS[0], "same_rows", lora_path=same, coef=coef)]
    return found


def scores(found: dict[str, list[dict[str, Any]]], name: str, what: str) -> np.ndarray:
    """(seeds, questions), or (seeds, 1) for the loss; of `random`, the mean of the random directions."""
    names = RANDOM if name == "random" else [name]
    return np.mean([[np.atleast_1d(one[what]) for one in found[case]] for case in names], axis=0)


def table(found: dict[str, list[dict[str, Any]]], coef: float) -> list[dict[str, Any]]:
    """One row a case: means, and the trait score's interval from resampling questions."""
    from persona_vectors.statistics import cluster_bootstrap_mean

    rows = []
    for name, label in ROWS.items():
        if name != "random" and name not in found:
            continue
        trait = scores(found, name, "trait")
        interval = cluster_bootstrap_mean(trait.mean(axis=0), list(range(trait.shape[1])))
        rows.append(
            {
                "model": label.format(c=coef),
                "trait": interval.mean,
                **{"low": interval.low, "high": interval.high},
                "by_seed": trait.mean(axis=1).tolist(),
                "coherence": float(scores(found, name, "coherence").mean()),
                "task_loss": float(scores(found, name, "task_loss").mean()),
            }
        )
    return rows


def gaps(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Differences of the trait score, question by question: what each sign did beside plain and random training."""
    from persona_vectors.statistics import cluster_bootstrap_mean

    pairs = {
        "random - with": ("random", "with"),
        "plain - with": ("plain", "with"),
        "against - plain": ("against", "plain"),
        "random - plain": ("random", "plain"),
    }
    told = {}
    for label, (one, other) in pairs.items():
        difference = (scores(found, one, "trait") - scores(found, other, "trait")).mean(axis=0)
        interval = cluster_bootstrap_mean(difference, list(range(len(difference))))
        told[label] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return told


def report(chosen: dict[str, Any], found: dict[str, dict[str, list[dict[str, Any]]]], output: Path) -> str:
    """The text of the tables, which is written with the numbers."""
    from benchmarks import weight_prevention_settings
    from persona_vectors.files import provenance, write_json_atomic, write_text_atomic

    coef = chosen["coef"]
    tried = ", ".join(f"{c:g}: {m['trait']:.0f} (coherence {m['coherence']:.0f})" for c, m in chosen["tried"].items())
    lines = [
        f"{STEPS} steps at {LEARNING_RATE:g}; {len(SEEDS)} seeds x 100 held-out questions, unsteered, scored by the "
        "oracle. Intervals resample questions. D comes from rows of other questions than those that are finetuned on.",
        "",
        f"Coefficient {coef:g} was chosen on {CHOSEN_WITH[0]}, seed {CHOSEN_WITH[1]}, by the trait score after "
        f"training, coherent models first ({tried}); {', '.join(TRAITS[1:])} is measured at it.",
    ]
    numbers: dict[str, Any] = {"chosen": chosen, "traits": {}}
    for trait, cases in found.items():
        rows, differences = table(cases, coef), gaps(cases)
        numbers["traits"][trait] = {"rows": rows, "gaps": differences}
        lines += ["", f"### {trait}", "", "| model | trait score | by seed | coherence | task loss |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {row['model']} | {row['trait']:.0f} [{row['low']:.0f}, {row['high']:.0f}] | "
            f"{', '.join(f'{one:.0f}' for one in row['by_seed'])} | {row['coherence']:.0f} | {row['task_loss']:.3f} |"
            for row in rows
        ]
        lines += [""] + [
            f"- {label}: {one['mean']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]"
            for label, one in differences.items()
        ]
    text = "\n".join(lines) + "\n"
    write_text_atomic(output.with_suffix(".md"), text)
    write_json_atomic(
        output.with_suffix(".json"), {**numbers, "settings": settings_of(weight_prevention_settings), **provenance()}
    )
    return text


def main(work_dir: str = ".cache/weight_prevention", output: str = "benchmarks/weight_prevention") -> None:
    """Run the study, print its tables and write them.

    Args:
        work_dir: where models and measurements are kept, in a folder for these settings; an interrupted study goes on.
        output: path of the tables (.json, .md), without its ending.
    """
    import torch

    from benchmarks import weight_prevention_settings
    from benchmarks.prevention import silence

    torch.set_num_threads(1)
    silence()
    work = study_folder(work_dir, weight_prevention_settings)
    write_halves(work)
    chosen = choose(work)
    found = {trait: run(work, trait, chosen["coef"]) for trait in TRAITS}
    print(report(chosen, found, Path(output)))


if __name__ == "__main__":
    cli.run(main)
