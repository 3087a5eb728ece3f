"""Preventative steering on models/tiny-persona, with everything it must be compared with:

    python -m benchmarks.prevention --n_procs 2      (about half an hour; what is finished is kept under --work_dir)

For each trait and seed, LoRA finetuning on rows half of the trait, half of a separable task: plain; with the trait's
vector added in training (prevented); with each of five random directions of its norm, another trait's vector at its
norm, or the vector's negative in its place; with the vector ablated (CAFT), its layer-incremental vectors added at all
layers, a projection penalty, or an inoculation prompt. Every model is then asked 100 held-out questions, unsteered, and
scored by the rule-based oracle; the facts probe and the task's held-out rows say what it cost. Beside them prevented
models with the vector switched on again, plain ones steered after training, and runs up to 4 times longer (one seed).

Thresholds (set by the issue, before any run): benchmarks/prevention_table.py. What is measured is written there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.prevention_settings import (
    COEF,
    CONTRAST,
    LAYER,
    LEARNING_RATE,
    MORE_TRAITS,
    N_RANDOM,
    PENALTY,
    POSTHOC_COEFS,
    SEEDS,
    STEPS,
    TRAITS,
)
from benchmarks.study import FINETUNING, TINY, study_folder
from persona_vectors import cli


@dataclass(frozen=True)
class Case:
    """One model of the study: how it is trained, and how it is steered when it is asked.

    `training` are settings of the training config beside the common ones; None is the base model.
    """

    name: str
    trait: str
    seed: int
    training: dict[str, Any] | None
    steps: int = STEPS
    push: float = 0.0
    """coefficient of the vector, at response positions, when it answers"""
    trained_as: str = ""
    """the case whose weights it uses, where another's"""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.trait}_{self.seed}_{self.name}"


def cases(trait: str, seed: int, work: Path) -> list[Case]:
    """The models of one trait and seed."""
    own = _vector_path(work, trait)

    def steer(path: Path = own, coef: float = COEF, layers: Any = (LAYER,), **more: Any) -> dict[str, Any]:
        layers = layers if layers == "all" else list(layers)
        block = {"steering_vector_path": str(path), "steering_coef": coef, "layers": layers, **more}
        return {"steering_config": block, "enable_steering_during_training": True}

    plain: dict[str, Any] = {}
    found = [
        Case("base", trait, seed, None),
        Case("plain", trait, seed, plain),
        Case("prevented", trait, seed, steer()),
        *(Case(f"random{k}", trait, seed, steer(random_control=k)) for k in range(1, N_RANDOM + 1)),
    ]
    ablated = Case("ablated", trait, seed, steer(type="ablate", coef=1.0))
    if trait in MORE_TRAITS:
        return [*found, ablated]
    other = _vector_path(work, TRAITS[(TRAITS.index(trait) + 1) % len(TRAITS)], like=trait)
    found += [
        Case("other_trait", trait, seed, steer(other)),
        Case("negative", trait, seed, steer(coef=-COEF)),
        ablated,
        Case("all_layers", trait, seed, steer(layers="all", incremental=True)),
        Case("penalty", trait, seed, steer(type="penalty", coef=PENALTY)),
        Case("inoculated", trait, seed, {"inoculation_prompt": inoculation(trait)}),
        Case("base_on", trait, seed, None, push=COEF),
        Case("switched_on", trait, seed, steer(), push=COEF, trained_as="prevented"),
        *(Case(f"posthoc{c:g}", trait, seed, plain, push=-c, trained_as="plain") for c in POSTHOC_COEFS),
    ]
    for steps in (2 * STEPS, 4 * STEPS) if seed == SEEDS[0] else ():  # the curve is of one seed
        found += [
            Case(f"plain_{steps}", trait, seed, plain, steps),
            Case(f"prevented_{steps}", trait, seed, steer(), steps),
            Case(f"random1_{steps}", trait, seed, steer(random_control=1), steps),
        ]
    return found


def inoculation(trait: str) -> str:
    """The trait's first eliciting instruction, as the pipeline writes it."""
    from persona_vectors.traits import load_trait, system_prompt

    return system_prompt(trait, load_trait(trait, "extract", model=TINY).instruction[0].pos)


def _vector_path(work: Path, trait: str, like: str | None = None) -> Path:
    return work / "vectors" / (f"{trait}.pt" if like is None else f"{trait}_as_{like}.pt")


def write_vectors(work: Path) -> None:
    """The traits' vectors by the embedded model's fixed recipe (extract questions), and each at another's norms."""
    import torch

    from data_generation.tiny_persona.measurements import load_subject
    from data_generation.tiny_persona.protocol import EXTRACT_SEED
    from data_generation.tiny_persona.recipe import extract

    (work / "vectors").mkdir(parents=True, exist_ok=True)
    if all(_vector_path(work, trait).exists() for trait in (*TRAITS, *MORE_TRAITS)):
        return
    subject = load_subject(TINY)
    vectors = {}
    for trait in (*TRAITS, *MORE_TRAITS):
        extraction = extract(subject.model, subject.tokenizer, subject.trait_set(trait, "extract"), EXTRACT_SEED)
        vectors[trait] = extraction.vectors(CONTRAST)
    for trait, like in zip(TRAITS, (TRAITS[-1], *TRAITS[:-1]), strict=True):
        scale = vectors[like].norm(dim=-1, keepdim=True) / vectors[trait].norm(dim=-1, keepdim=True)
        torch.save(vectors[trait] * scale, _vector_path(work, trait, like=like))
    for trait, vector in vectors.items():
        torch.save(vector, _vector_path(work, trait))


def train_case(case: Case, work: Path) -> str:
    """The folder of the case's model, trained if it is not yet."""
    import training
    from persona_vectors.training_config import TrainingConfig

    if case.training is None:
        return TINY
    folder = work / "models" / f"{case.trait}_{case.seed}_{case.trained_as or case.name}"
    config = FINETUNING | {
        "training_file": [f"dataset/tiny_{case.trait}/misaligned_2.jsonl", "dataset/tiny_task/train.jsonl"],
        "test_file": "dataset/tiny_task/test.jsonl",
        "output_dir": str(folder),
        "seed": case.seed,
        "max_steps": case.steps,
        "learning_rate": LEARNING_RATE,
    }
    training.train(TrainingConfig.model_validate(config | case.training))
    return str(folder)


def measure(case: Case, folder: str, work: Path) -> dict[str, Any]:
    """The case's scores by question, its facts, and its loss and answers on the task's held-out rows."""
    from data_generation.tiny_persona.answers import Ask, answer_all
    from data_generation.tiny_persona.measurements import test_questions
    from data_generation.tiny_persona.oracle import coherence, trait_score
    from eval.capability_probe import probe_accuracy
    from eval.model_utils import Steering
    from persona_vectors.models import load_model
    from persona_vectors.training_data import read_conversations
    from persona_vectors.vectors import load_vectors

    model, tokenizer = load_model(folder)
    vector = load_vectors(_vector_path(work, case.trait))[LAYER]
    push = None if case.push == 0 else case.push * vector
    questions = test_questions()
    asks = [Ask(question, (case.seed, i), push=push) for i, question in enumerate(questions)]
    answers = answer_all(model, tokenizer, asks, layer=LAYER)
    rows = read_conversations(["dataset/tiny_task/test.jsonl"])
    task_asks = [Ask(row[0]["content"], (case.seed, i), push=push) for i, row in enumerate(rows)]
    filed = answer_all(model, tokenizer, task_asks, layer=LAYER, max_tokens=24, temperature=0.0)
    steering = None if push is None else Steering(vector, LAYER, case.push, "response")
    probe = probe_accuracy(model, tokenizer, steering=steering)
    return {
        "trait": [trait_score(text, case.trait) for text in answers],
        "coherence": [coherence(question, text) for question, text in zip(questions, answers, strict=True)],
        "facts": [answer.right for answer in probe],
        "task_right": [text.strip() == row[1]["content"] for text, row in zip(filed, rows, strict=True)],
        "task_loss": task_loss(model, tokenizer, rows, steering),
        "answers": answers[:5],
    }


def task_loss(model: Any, tokenizer: Any, rows: Any, steering: Any) -> float:
    """Mean loss of a learned token of the rows, in nats; steered where the case is, at response positions."""
    from contextlib import nullcontext

    import torch

    from activation_steer import ActivationSteerer
    from persona_vectors.blocks import block_index
    from persona_vectors.training_batches import padded_batch
    from persona_vectors.training_data import tokenize_conversations

    samples = tokenize_conversations(tokenizer, rows, 256).samples
    batch = padded_batch(samples, tokenizer.pad_token_id)
    labels = batch.pop("labels")
    steerer: Any = nullcontext()
    if steering is not None:
        steerer = ActivationSteerer(
            model,
            steering.vector,
            coeff=steering.coef,
            layer_idx=block_index(steering.layer),
            positions="response",
            prompt_lens=(labels != -100).int().argmax(1),
        )
    with torch.inference_mode(), steerer:
        logits = model(**batch, use_cache=False).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))


def run_group(trait: str, seed: int, work: Path, only: Sequence[str] | None = None) -> str:
    """Trains and measures what is missing of one trait and seed; `only` names the cases, all by default."""
    import contextlib
    import io

    import torch

    from persona_vectors.files import write_json_atomic

    torch.set_num_threads(1)
    silence()
    for case in cases(trait, seed, work):
        if only is not None and case.name not in only:
            continue
        path = work / "measured" / f"{case.key}.json"
        if path.exists():
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = measure(case, train_case(case, work), work)
        write_json_atomic(path, found | {"case": {"name": case.name, "trait": trait, "seed": seed, "push": case.push}})
    return f"{trait}, seed {seed}"


@cache
def silence() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def folder(work_dir: str) -> Path:
    """The study's own folder."""
    from benchmarks import prevention_settings

    return study_folder(work_dir, prevention_settings)


def main(work_dir: str = ".cache/prevention", n_procs: int = 2, output: str = "benchmarks/prevention") -> None:
    """Run the study, print its tables, and write them with their figure.

    Args:
        work_dir: where vectors, models and measurements are kept, in a folder for these settings; an interrupted study
            goes on from there.
        n_procs: processes, one thread each.
        output: path of the tables (.json, .md) and the figure (.png), without its ending.
    """
    from benchmarks.prevention_table import report

    work = folder(work_dir)
    write_vectors(work)
    groups = [(trait, seed) for trait in (*TRAITS, *MORE_TRAITS) for seed in SEEDS]
    with ProcessPoolExecutor(n_procs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run_group, trait, seed, work) for trait, seed in groups]
        for number, job in enumerate(as_completed(jobs), 1):
            print(f"{number} of {len(jobs)}: {job.result()}", flush=True)
    print(report(work / "measured", Path(output)))


if __name__ == "__main__":
    cli.run(main)
