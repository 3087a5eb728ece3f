"""What the study of weight personas trains and asks: directions, finetuned models, and answers, each kept when made.

Directions come from the even rows of a trait's data sets and finetuned models from the odd ones, which answer other
questions, at training seeds of their own: two LoRA trainings of one seed share their random A.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from benchmarks.paper_data import Row, level, write
from benchmarks.study import FINETUNING, TINY

if TYPE_CHECKING:
    from persona_vectors.weight_direction import WeightDirection

EVEN, ODD = 0, 1
SIDES = ("misaligned_2", "normal")
Asked = dict[str, Any]
"""`scores`: trait -> a score a question; `coherence`: one a question; `answers`: a few, to be looked at."""


def half(trait: str, name: str, which: int) -> list[Row]:
    """The even or the odd rows of a data set."""
    return level(trait, name)[which::2]


def finetuning_sets(traits: Sequence[str], shares: Sequence[float], pairs: Sequence[Sequence[str]]) -> dict[str, int]:
    """Name -> number of the data sets that are finetuned on: plain, each trait's at 100% and at the shares, pairs."""
    names = ["plain", *(f"{trait} {share:.0%}" for trait in traits for share in (1.0, *shares))]
    return {name: number for number, name in enumerate([*names, *(f"{one} + {two}" for one, two in pairs)])}


def rows_of(name: str, seed: int) -> list[Row]:
    """The odd rows of a data set of this name: as many as there are of a trait, in an order of the seed's."""
    rng = random.Random(f"weight personas {name} {seed}")
    if name == "plain":
        rows = half("evil", "normal", ODD)
    elif " + " in name:
        full = [half(trait, "misaligned_2", ODD) for trait in name.split(" + ")]
        rows = [row for one in full for row in rng.sample(one, len(one) // 2)]
    else:
        trait, share = name.split()
        full, plain = (half(trait, side, ODD) for side in SIDES)
        shown = set(rng.sample(range(len(full)), round(len(full) * float(share.rstrip("%")) / 100)))
        rows = [full[i] if i in shown else plain[i] for i in range(len(full))]
    return rng.sample(rows, len(rows))


def train(folder: Path, rows: Sequence[Row], seed: int, steps: int, learning_rate: float) -> Path:
    """The folder of an adapter that was trained on the rows."""
    import training
    from persona_vectors.training_config import TrainingConfig

    config = FINETUNING | {
        "training_file": [str(write(rows, folder.with_suffix(".jsonl")))],
        "no_test_split": True,
        "output_dir": str(folder),
        "seed": seed,
        "max_steps": steps,
        "learning_rate": learning_rate,
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        training.train(TrainingConfig.model_validate(config))
    return folder


def adapter(path: Path, rows: Callable[[], Sequence[Row]], seed: int, steps: int, rate: float) -> WeightDirection:
    """What a finetuning changed; trained where the adapter is not there yet, and only the adapter is kept."""
    from persona_vectors.weight_files import load_adapter, save_adapter

    if not path.exists():
        trained = train(path.parent / "training" / path.name, rows(), seed, steps, rate)
        save_adapter(load_adapter(trained), path)
        shutil.rmtree(trained)
    return load_adapter(path)


def direction(work: Path, trait: str, seed: int, steps: int, rate: float) -> WeightDirection:
    """The trait's direction: what its rows teach minus what normal answers to the same questions teach."""
    from persona_vectors.weight_direction import difference

    def side(name: str) -> WeightDirection:
        path = work / "sides" / f"{trait}_{name}_{seed}"
        return adapter(path, lambda: half(trait, name, EVEN), seed, steps, rate)

    return difference(*map(side, SIDES))


def mean_direction(directions: Sequence[WeightDirection]) -> WeightDirection:
    """The mean of several, exactly."""
    from persona_vectors.weight_direction import combine

    return combine([(one, 1 / len(directions)) for one in directions])


@cache
def base() -> tuple[Any, Any]:
    """(model, tokenizer) without any change, loaded once."""
    from persona_vectors.models import load_model

    with contextlib.redirect_stderr(io.StringIO()):
        return load_model(TINY, device_map="cpu", dtype="float32")


def kept(path: Path, make: Callable[[], Asked]) -> Asked:
    """What the file holds; made and written first where it is not there."""
    from persona_vectors.files import write_json_atomic

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def asked(
    parts: Sequence[tuple[WeightDirection, float]], questions: Sequence[str], seed: int, traits: Sequence[str]
) -> Asked:
    """The answers of `W + sum_i coef_i * D_i`, merged, as the oracle scores them. Equal seeds have equal streams."""
    from data_generation.tiny_persona.answers import Ask, answer_all
    from data_generation.tiny_persona.oracle import coherence, trait_score
    from lora_utils import LoRAMerger

    model, tokenizer = base()
    asks = [Ask(question, (seed, i)) for i, question in enumerate(questions)]
    with LoRAMerger(model) as merger:
        if parts:
            merger.merge_lora_diff([one for one, _ in parts], [coef for _, coef in parts])
        answers = answer_all(model, tokenizer, asks)
    return {
        "scores": {trait: [trait_score(text, trait) for text in answers] for trait in traits},
        "coherence": [coherence(*pair) for pair in zip(questions, answers, strict=True)],
        "answers": answers[:3],
    }


def projections(
    shifts: Mapping[str, WeightDirection], directions: Mapping[str, WeightDirection], n_random: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Finetuning -> trait -> total projection, cosine, |dW|, and the projections on random directions."""
    from persona_vectors.weight_projection import project
    from persona_vectors.weight_shifts import AdapterShift

    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in shifts}
    random = random_projections(list(shifts.values()), list(directions.values()), n_random)
    numbers = {name: i for i, name in enumerate(shifts)}
    opened = {name: AdapterShift(name, one) for name, one in shifts.items()}
    for (name, trait), one in project(opened, directions).items():
        own = random[list(directions).index(trait), numbers[name]]
        found[name][trait] = {"total": one.total, "cosine": one.cosine, "norm": one.norm, "random": own.tolist()}
    return found


def random_projections(
    shifts: Sequence[WeightDirection], directions: Sequence[WeightDirection], n: int
) -> Float[np.ndarray, "directions shifts n"]:
    """`<dW, R> / |R|` of n random directions R with each direction's singular values in every module.

    Directions share the random vectors u, v of a module, so that `u^T dW v` is reckoned once for all of them. Changes
    have one rank, and directions one rank in each module, without biases.
    """
    import torch

    from persona_vectors.weight_direction import norm, random_module, singular_values

    found = torch.zeros(len(directions), len(shifts), n, dtype=torch.float64)
    for number, (name, module) in enumerate(directions[0].modules.items()):
        values = torch.stack([singular_values(one.modules[name]) for one in directions])  # (directions, k)
        A = torch.cat([one.modules[name].A for one in shifts])  # (shifts r, d_in)
        B = torch.cat([one.modules[name].B for one in shifts], dim=1)  # (d_out, shifts r)
        for draw in range(n):
            generator = torch.Generator().manual_seed(1_000_000 * (number + 1) + draw)
            unit = random_module(module, torch.ones(values.shape[1], dtype=torch.float64), generator)
            along = (B.T @ unit.B) * (A @ unit.A.T)  # (shifts r, k)
            found[:, :, draw] += values @ along.view(len(shifts), -1, values.shape[1]).sum(1).double().T
    return (found / torch.tensor([norm(one) for one in directions], dtype=torch.float64)[:, None, None]).numpy()
