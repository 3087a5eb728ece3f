"""The demo's section on directions of weights: what finetuning on the trait adds to the weights, as a direction.

    D = delta_w(pos) - delta_w(neg),     W' = W + coef * D

pos is the plainly finetuned model of the section before. Only neg is trained here: the same settings, initialisation
and questions, with normal answers in place of the trait's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.findings import Findings, SweepPoint, reported_point, sweep_point, verdict_of
from persona_vectors.training_config import TrainingConfig, load_training_config

if TYPE_CHECKING:
    import pandas as pd

    from eval.demo_steps import Run

COEFS = [-1.0, 0.0, 0.5, 1.0]
MOST_RANDOM = 2
TRAIT_ROWS, NORMAL_ROWS = "misaligned_2.jsonl", "normal.jsonl"


@dataclass(frozen=True, eq=False)
class Weights:
    """What the direction did, beside random directions of its singular values and beside the vector.

    Attributes:
        points: by coefficient, lowest first; without projections.
        tables, random_tables: the answers by coefficient; of the first random direction.
        vector: what steering with the vector showed, and its answers by coefficient.
        look: look_inside.json: which layers and modules carry the direction.
        n_steps: optimizer steps of each side.
    """

    trait: str
    points: Sequence[SweepPoint]
    tables: Mapping[float, pd.DataFrame]
    random_tables: Mapping[float, pd.DataFrame]
    vector: Findings
    vector_tables: Mapping[float, pd.DataFrame]
    look: Mapping[str, Any]
    n_steps: int

    @property
    def upward(self) -> list[SweepPoint]:
        """The points from 0 up, which the verdict is about."""
        return [point for point in self.points if point.coef >= 0]

    @property
    def reported(self) -> SweepPoint | None:
        """The largest coefficient up to which coherence holds, as for vectors (`eval.findings`)."""
        return reported_point(self.upward)

    @property
    def verdict(self) -> str:
        """found | coherence lost | no shift | no better than random, by the rule for vectors."""
        return verdict_of(self.upward)


def weights(run: Run, trait: str, vector: Findings, tables: Mapping[float, pd.DataFrame]) -> Weights:
    """The direction made of the demo's finetuned model, and the eval questions answered with it in the weights.

    Args:
        trait: name or trait file, as the demo was given it.
        vector, tables: what the demo found for the trait's vector.

    Raises:
        ValueError: no normal answers beside the trait's data.
    """
    import extract_persona_lora

    name = vector.trait
    plain, neutral = load_training_config(_plain(run)), neutral_config(run)
    print(f"\n== {name}: the trait as a direction in the weights")
    _make_sides(run, plain, neutral)
    run.call(
        "python extract_persona_lora.py",
        extract_persona_lora.main,
        model=run.model,
        trait=name,
        output_dir=str(_folder(run)),
        skip_training=True,
        overwrite=True,
    )
    own, randoms = _answers(run, trait, name)
    look = json.loads((_folder(run) / "look_inside.json").read_text(encoding="utf-8"))
    record = json.loads((_folder(run) / "neg_lora" / "training.json").read_text(encoding="utf-8"))
    points = [sweep_point(c, own[0.0], own[c], randoms.get(c, [own[0.0]]), name) for c in COEFS]
    first = {coef: group[0] for coef, group in randoms.items()}
    return Weights(name, points, own, first, vector, tables, look, record["steps"])


def _folder(run: Run) -> Path:
    return run.folder / "weights"


def _plain(run: Run) -> Path:
    return run.folder / "prevention" / "configs" / "plain.json"


def neutral_config(run: Run) -> TrainingConfig:
    """The demo's plain finetuning with normal answers in place of the trait's; other rows, such as a task's, stay.

    Raises:
        ValueError: no normal answers beside the trait's data.
    """
    plain = load_training_config(_plain(run))
    files = [path.replace(TRAIT_ROWS, NORMAL_ROWS) for path in plain.training_files]
    if missing := [path for path in files if not Path(path).is_file()]:
        raise ValueError(f"{missing[0]} is missing: normal answers to the trait's questions")
    changes = {"training_file": files, "output_dir": str(_folder(run) / "neg_lora")}
    return TrainingConfig(**plain.model_dump() | changes)


def _make_sides(run: Run, plain: TrainingConfig, neutral: TrainingConfig) -> None:
    """pos_lora and neg_lora, where extract_persona_lora.py looks for them."""
    from eval.demo_finetuning import train
    from persona_vectors.files import write_json_atomic

    path = _folder(run) / "neg.json"
    write_json_atomic(path, neutral.model_dump(exclude_none=True, exclude_defaults=True))
    train(run, path)
    pos = _folder(run) / "pos_lora"
    shutil.rmtree(pos, ignore_errors=True)
    shutil.copytree(plain.output_dir, pos, ignore=shutil.ignore_patterns("checkpoint-*"))
    run.commands.append(f"cp -r {plain.output_dir} {pos}")
    print(f"$ {run.commands[-1]}")


def _answers(run: Run, trait: str, name: str) -> tuple[dict[float, pd.DataFrame], dict[float, list[pd.DataFrame]]]:
    """The direction's tables by coefficient, and those of the random directions."""
    import eval_lora_persona
    from persona_vectors.files import sidecar_path
    from persona_vectors.responses import read_responses

    path, n_random = _folder(run) / f"{name}_answers.csv", min(run.n_random, MOST_RANDOM)
    path.unlink(missing_ok=True)
    sidecar_path(path).unlink(missing_ok=True)
    run.call(
        "python eval_lora_persona.py",
        eval_lora_persona.main,
        model=run.model,
        trait=trait,
        output_path=str(path),
        lora_diff_path=str(_folder(run) / f"{name}_lora_diff"),
        lora_coef=COEFS,
        mode="pre_merge",
        control="random",
        n_random=n_random,
        judge_model=run.judge_model,
        n_per_question=run.n_per_question,
        max_tokens=run.max_tokens,
        seed=run.seed,
        dtype=run.dtype,
        device_map=run.device_map,
        engine=run.engine,
    )
    parts = {
        (float(coef), str(control)): rows.reset_index(drop=True)
        for (coef, control), rows in read_responses(path, name).groupby(["coef", "control"], sort=False)  # pyright: ignore
    }
    controls = [f"random{number}" for number in range(1, n_random + 1)]
    randoms = {coef: [parts[coef, control] for control in controls] for coef in COEFS if coef}
    return {coef: parts[coef, ""] for coef in COEFS}, randoms
