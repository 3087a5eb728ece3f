"""The steps of the demo: each a published command, printed before it runs, and the controls beside them."""

from __future__ import annotations

import inspect
import shlex
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from eval.findings import Findings
    from eval.finished_answers import Engine
    from persona_vectors.store import Store


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
    commands: list[str] = field(default_factory=list)

    def call(self, command: str, main: Callable[..., None], **arguments: Any) -> None:
        """Runs a command's `main`, after printing the line that a user would type for it."""
        words, parameters = command.split(), inspect.signature(main).parameters
        for name, value in arguments.items():
            if value != parameters[name].default:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        self.commands.append(shlex.join(words))
        print(f"$ {self.commands[-1]}", flush=True)
        main(**arguments)

    def extract_path(self, trait: str, pole: str) -> Path:
        return self.folder / "extract" / f"{trait}_{pole}_instruct.csv"

    def vector_path(self, trait: str) -> Path:
        return self.folder / "vectors" / f"{trait}_response_avg_diff.pt"

    def steered_path(self, trait: str, coef: float) -> Path:
        return self.folder / "steered" / f"{trait}_coef{coef:g}.csv"


def study(run: Run, engine: Engine, store: Store, trait: str, name: str) -> tuple[Findings, dict[float, pd.DataFrame]]:
    """One trait from its definition to its findings, and its steered tables by coefficient."""
    from eval.findings import Findings, layer_auc, repeatability, sweep_point
    from persona_vectors.models import resolve_model
    from persona_vectors.responses import read_responses
    from persona_vectors.statistics import cluster_bootstrap_mean
    from persona_vectors.vectors import count_pairs, load_vectors

    print(f"\n== {name}: answers with and without the trait, and the vector between them")
    _make_vector(run, trait, name)
    vectors = load_vectors(run.vector_path(name))
    sides = {pole: read_responses(run.extract_path(name, pole), name) for pole in ("pos", "neg")}
    counts = count_pairs(sides["pos"], sides["neg"], name, run.threshold)
    pos, neg, questions = _activations(run, engine, name, sides)

    print(f"\n== {name}: steering the answers to other questions")
    tables = _sweep(run, trait, name)
    randoms = _random_sweep(run, engine, store, trait, name)
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
        auc=layer_auc(pos, neg, questions, run.seed),
        split_half=repeatability(pos[:, run.layer], neg[:, run.layer], questions, run.seed),
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
        **arguments,
    )


def _activations(run: Run, engine: Engine, name: str, sides: dict[str, pd.DataFrame]) -> tuple[Any, Any, list[str]]:
    """Mean answer activations of the kept pairs, (n, layers, d) a side, and each pair's question."""
    from persona_vectors.activations import mean_activations
    from persona_vectors.tokens import tokenize_sample
    from persona_vectors.vectors import effective_pairs

    pairs = effective_pairs(sides["pos"], sides["neg"], name, run.threshold)
    samples = [
        tokenize_sample(engine.tokenizer, prompt, answer)
        for pole in ("pos", "neg")
        for prompt, answer in zip(pairs[f"{pole}_prompt"], pairs[f"{pole}_answer"], strict=True)
    ]
    means = mean_activations(engine.model, samples, spans=("response_avg",))["response_avg"]
    return means[: len(pairs)], means[len(pairs) :], pairs["question"].tolist()


def _sweep(run: Run, trait: str, name: str) -> dict[float, pd.DataFrame]:
    """The eval questions answered at each coefficient, scored and projected: coefficient -> table."""
    from eval import cal_projection
    from persona_vectors.responses import read_responses

    tables = {}
    for coef in run.coefs:
        path = run.steered_path(name, coef)
        steering = {"coef": coef, "vector_path": str(run.vector_path(name)), "layer": run.layer} if coef else {}
        _evaluate(run, trait, path, version="eval", **steering)
        run.call(
            "python -m eval.cal_projection",
            cal_projection.main,
            file_path=str(path),
            vector_path_list=[str(run.vector_path(name))],
            layer_list=[run.layer],
            model_name=run.model,
            dtype=run.dtype,
            device_map=run.device_map,
        )
        tables[coef] = read_responses(path, name)
    return tables


def _random_sweep(run: Run, engine: Engine, store: Store, trait: str, name: str) -> dict[float, list[pd.DataFrame]]:
    """The same questions, random streams and coefficients under random directions of the vector's norm."""
    from tqdm import tqdm

    from eval.eval_persona import eval_batched, load_persona_questions
    from eval.model_utils import Steering
    from persona_vectors.statistics import random_directions
    from persona_vectors.vectors import load_vector

    questions = load_persona_questions(
        trait,
        temperature=0.0 if run.n_per_question == 1 else 1.0,
        judge_model=run.judge_model,
        version="eval",
        model=run.model,
    )
    vector = load_vector(run.vector_path(name), run.layer)
    seed = zlib.crc32(f"{name} {run.seed}".encode())  # other traits get other directions
    directions = random_directions(run.n_random, len(vector), float(vector.norm()), seed)
    todo = [(coef, direction) for coef in run.coefs if coef for direction in directions]
    tables: dict[float, list[pd.DataFrame]] = {}
    print(f"# the same under {run.n_random} random directions of the vector's norm {vector.norm():.2f}", flush=True)
    for coef, direction in tqdm(todo, desc="random directions", unit="run"):
        table = eval_batched(
            questions,
            engine,
            store,
            n_per_question=run.n_per_question,
            max_tokens=run.max_tokens,
            steering=Steering(direction, run.layer, coef),
            seed=run.seed,
            progress=False,
        )
        tables.setdefault(coef, []).append(table)
    _keep_randoms(run, name, tables, {"seed": seed, "norm": float(vector.norm()), "layer": run.layer})
    return tables


def _keep_randoms(run: Run, name: str, tables: dict[float, list[pd.DataFrame]], how: dict[str, Any]) -> None:
    """The control's answers as one table, so that they can be read like the vector's own."""
    import pandas as pd

    from persona_vectors.files import write_csv_atomic, write_sidecar

    rows = [
        table.assign(coef=coef, direction=number)
        for coef, runs in tables.items()
        for number, table in enumerate(runs, start=1)
    ]
    if rows:
        path = run.folder / "steered" / f"{name}_random.csv"
        write_csv_atomic(pd.concat(rows, ignore_index=True), path)
        write_sidecar(path, {"random_directions": how | {"n": run.n_random}, "model": run.model, "trait": name})
