"""The steps of the demo: each a published command, printed before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.commands import run_command

if TYPE_CHECKING:
    import pandas as pd

    from eval.findings import Findings


@dataclass
class Run:
    """One demo: what was asked for, and the commands that did it so far."""

    model: str
    judge_model: str
    folder: Path
    layer: int
    coefs: list[float]
    n_per_question: int
    n_random: int
    max_tokens: int
    threshold: float
    seed: int
    dtype: str
    device_map: str
    engine: str = "hf"
    commands: list[str] = field(default_factory=list)

    def call(self, command: str, main: Callable[..., None], **arguments: Any) -> None:
        """Runs a command's `main`, after printing the line that a user would type for it."""
        self.commands.append(run_command(command, main, **arguments))

    def extract_path(self, trait: str, pole: str) -> Path:
        return self.folder / "extract" / f"{trait}_{pole}_instruct.csv"

    def vector_path(self, trait: str) -> Path:
        return self.folder / "vectors" / f"{trait}_response_avg_diff.pt"

    def steered_path(self, trait: str) -> Path:
        return self.folder / "steered" / f"{trait}.csv"


def study(run: Run, trait: str, name: str) -> tuple[Findings, dict[float, pd.DataFrame]]:
    """One trait from its definition to its findings, and its steered tables by coefficient."""
    from eval.findings import Findings, layer_auc, sweep_point
    from persona_vectors.models import resolve_model
    from persona_vectors.responses import read_responses
    from persona_vectors.statistics import cluster_bootstrap_mean
    from persona_vectors.vectors import count_pairs, load_vectors

    print(f"\n== {name}: answers with and without the trait, and the vector between them")
    _make_vector(run, trait, name)
    vectors = load_vectors(run.vector_path(name))
    sides = {pole: read_responses(run.extract_path(name, pole), name) for pole in ("pos", "neg")}
    counts = count_pairs(sides["pos"], sides["neg"], name, run.threshold)
    quality = json.loads((run.folder / "vectors" / f"{name}_quality.json").read_text())

    print(f"\n== {name}: steering the answers to other questions")
    tables, randoms = _sweep(run, trait, name)
    column = f"{resolve_model(run.model).label}_{run.vector_path(name).stem}_proj_layer{run.layer}"
    base = tables[0.0]
    findings = Findings(
        trait=name,
        layer=run.layer,
        n_pairs=counts.n_pairs,
        n_kept=counts.n_kept,
        pos=cluster_bootstrap_mean(sides["pos"][name].tolist(), sides["pos"]["question"].tolist()),
        neg=cluster_bootstrap_mean(sides["neg"][name].tolist(), sides["neg"]["question"].tolist()),
        norms=vectors.norm(dim=-1).numpy(),
        auc=layer_auc(quality),
        split_half=quality["layers"][run.layer]["split_half"],
        points=[
            sweep_point(coef, base, table, randoms.get(coef, [base]), name, column) for coef, table in tables.items()
        ],
    )
    for table in tables.values():
        table["projection"] = table[column]
    return findings, tables


def _make_vector(run: Run, trait: str, name: str) -> None:
    """Samples and scores both sides, and writes the vectors."""
    import generate_vec

    for pole in ("pos", "neg"):
        _evaluate(run, trait, run.extract_path(name, pole), version="extract", persona_instruction_type=pole)
    run.call(
        "python generate_vec.py",
        generate_vec.main,
        model_name=run.model,
        pos_path=str(run.extract_path(name, "pos")),
        neg_path=str(run.extract_path(name, "neg")),
        trait=name,
        save_dir=str(run.folder / "vectors"),
        threshold=run.threshold,
        seed=run.seed,
        dtype=run.dtype,
        device_map=run.device_map,
    )


def _evaluate(run: Run, trait: str, path: Path, **arguments: Any) -> None:
    """`eval_persona` with the run's settings; the demo's earlier table is replaced, its answers come from the store."""
    from eval import eval_persona
    from persona_vectors.files import sidecar_path

    path.unlink(missing_ok=True)
    sidecar_path(path).unlink(missing_ok=True)
    run.call(
        "python -m eval.eval_persona",
        eval_persona.main,
        model=run.model,
        trait=trait,
        output_path=str(path),
        judge_model=run.judge_model,
        n_per_question=run.n_per_question,
        max_tokens=run.max_tokens,
        seed=run.seed,
        dtype=run.dtype,
        device_map=run.device_map,
        engine=run.engine,
        **arguments,
    )


def _sweep(run: Run, trait: str, name: str) -> tuple[dict[float, pd.DataFrame], dict[float, list[pd.DataFrame]]]:
    """The eval questions answered at each coefficient, under the vector and under random directions of its norm.

    One job and one table, scored and projected. Returns the vector's rows and the random directions' by coefficient.
    """
    from eval import cal_projection
    from persona_vectors.responses import read_responses

    path, vector = run.steered_path(name), str(run.vector_path(name))
    control = {"control": ["random"], "n_random": run.n_random}
    _evaluate(run, trait, path, version="eval", coef=run.coefs, vector_path=vector, layer=run.layer, **control)
    run.call(
        "python -m eval.cal_projection",
        cal_projection.main,
        file_path=str(path),
        vector_path_list=[vector],
        layer_list=[run.layer],
        model_name=run.model,
        dtype=run.dtype,
        device_map=run.device_map,
    )
    table = read_responses(path, name)
    parts = {
        (float(coef), str(control)): rows.reset_index(drop=True)
        for (coef, control), rows in table.groupby(["coef", "control"], sort=False)  # pyright: ignore
    }
    controls = [f"random{number}" for number in range(1, run.n_random + 1)]
    randoms = {coef: [parts[coef, control] for control in controls] for coef in run.coefs if coef}
    return {coef: parts[coef, ""] for coef in run.coefs}, randoms
