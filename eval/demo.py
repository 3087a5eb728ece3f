"""The whole method on one page: vectors of a few traits, what they do, and what random directions do instead.

    python -m eval.demo --model models/tiny-persona --judge_model models/tiny-judge --traits evil humorous

Each step is a published command, printed before it runs; only the controls (held-out AUC, random directions) are the
demo's own. Finished answers and scores come from the store, so an interrupted run goes on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    import pandas as pd

    from eval.demo_steps import Run
    from eval.demo_weights import Weights
    from eval.findings import Findings
    from eval.prevention_rows import Comparison

TINY, TINY_JUDGE = "models/tiny-persona", "models/tiny-judge"


def main(
    model: str = TINY,
    judge_model: str | None = None,
    traits: list[str] = ["evil", "humorous"],  # noqa: B006 (read only; cli shows it)
    output_dir: str = "results/demo",
    layer: int | None = None,
    coefs: list[float] = [0, 0.5, 1, 1.5, 2],  # noqa: B006
    n_per_question: int = 2,
    n_random: int = 4,
    max_tokens: int = 80,
    threshold: float = 50,
    finetuning: bool = True,
    prevention_coef: float | None = None,
    finetune_steps: int | None = None,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "hf",
) -> None:
    """Find the vectors of some traits, steer with them beside random directions, and write output_dir/report.html.

    Then the model is finetuned on data that shows the first trait: plainly, with the vector added in training, and with
    a random direction; and what the plain finetuning adds to the weights, less what normal answers add, is tried as a
    direction of weights. Ends by saying what was found: a shift counts at the largest coefficient up to which coherence
    loses at most 10 points, if its 95% interval is above 0 and no random direction of the same norm moves the score as
    far.

    Args:
        model: chat model: hub id or folder.
        judge_model: an OpenAI model, a served model, or a local folder or hub id scored in process; default
            models/tiny-judge for models/tiny-persona, and the model itself for another.
        traits: names of traits, or paths of trait JSON files.
        output_dir: folder for tables, vectors, figures and report.html; what the demo wrote there before is replaced.
        layer: hidden_states index to steer; default two thirds of the depth.
        coefs: steering coefficients, with 0.
        n_per_question: samples of each question and instruction.
        n_random: random directions of the vector's norm, each run at every coefficient.
        max_tokens: most tokens of an answer.
        threshold (0-100): which pairs of answers make the vector, as in generate_vec.py.
        finetuning: finetune, too; --nofinetuning leaves that section out, and that on weights.
        prevention_coef: coefficient of the vector in training; default that of configs/train_tiny_steer.json, for
            another model that of configs/train_instruct_7b_steer.json.
        finetune_steps: optimizer steps of each finetuning; default those of the same config.
        seed: seeds answers, random directions, folds and bootstraps.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples: hf (Hugging Face), vllm, or auto: vLLM where it is installed and can do all of this. Every
            step starts vLLM anew, which takes longer than sampling so few answers of a small model.
    """
    started = time.monotonic()
    from persona_vectors.persona_trainings import own_judge

    judge_model = judge_model or own_judge(model)
    names = _check(model, judge_model, traits, output_dir, coefs, n_per_question, n_random, max_tokens)
    if finetune_steps is not None and finetune_steps < 1:
        raise ValueError("--finetune_steps must be at least 1")
    if prevention_coef is not None and not prevention_coef > 0:
        raise ValueError(f"--prevention_coef must be above 0, the vector is added in training; got {prevention_coef:g}")
    from eval.demo_steps import Run, study
    from eval.engine_choice import settle_engine

    run = Run(
        model=model,
        judge_model=judge_model,
        folder=Path(output_dir),
        layer=_layer(model, layer),
        coefs=sorted({float(coef) for coef in coefs}),
        n_per_question=n_per_question,
        n_random=n_random,
        max_tokens=max_tokens,
        threshold=threshold,
        seed=seed,
        dtype=dtype,
        device_map=device_map,
        engine=settle_engine(engine, [model], device_map),
    )

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights, a dozen times
    found: list[Findings] = []
    tables: dict[str, dict[float, pd.DataFrame]] = {}
    for trait, name in zip(traits, names, strict=True):
        findings, tables[name] = study(run, trait, name)
        found.append(findings)
    compared = _finetuning(run, traits[0], names[0], prevention_coef, finetune_steps) if finetuning else None
    weights = _weights(run, traits[0], found[0], tables[names[0]]) if compared else None
    report = _write_report(run, found, tables, compared, weights, time.monotonic() - started)
    _say(found, compared, weights, report)


def _check(
    model: str,
    judge_model: str,
    traits: list[str],
    output_dir: str,
    coefs: list[float],
    n_per_question: int,
    n_random: int,
    max_tokens: int,
) -> list[str]:
    """The traits' canonical names; a ValueError for whatever is wrong before any model is loaded."""
    from judge import check_judge
    from persona_vectors.files import check_output_path
    from persona_vectors.models import resolve_model
    from persona_vectors.traits import load_trait

    resolve_model(model)
    check_judge(judge_model)
    check_output_path(Path(output_dir) / "report.html")
    if 0 not in coefs or min(coefs) < 0 or len(set(coefs)) < 2:
        raise ValueError(f"--coefs must hold 0 and at least one above it, none below; got {coefs}")
    if min(n_per_question, n_random, max_tokens) < 1:
        raise ValueError("--n_per_question, --n_random and --max_tokens must be at least 1")
    names = [
        load_trait(trait, version, model=model, judge_model=judge_model).name
        for trait in traits
        for version in ("extract", "eval")
    ][::2]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--traits must name different traits, at least one; got {' '.join(traits) or 'none'}")
    return names


def _layer(model: str, layer: int | None) -> int:
    """The layer asked for, checked; by default two thirds of the depth, a rule that looks at no result."""
    from persona_vectors.blocks import check_layer
    from persona_vectors.models import load_config, resolve_model

    n_layers = load_config(model).num_hidden_layers
    chosen = round(n_layers * 2 / 3) if layer is None else layer
    return check_layer(chosen, n_layers, resolve_model(model).label)


def _finetuning(run: Run, trait: str, name: str, coef: float | None, steps: int | None) -> Comparison | None:
    """The first trait's finetuned models; None, and a line that says why, where there are no data for it."""
    from eval.demo_finetuning import finetuning, training_files

    try:
        training_files(name, run.model)
    except ValueError as error:
        print(f"\nno finetuning: {error}")
        return None
    return finetuning(run, trait, name, coef, steps)


def _weights(run: Run, trait: str, vector: Findings, tables: dict[float, pd.DataFrame]) -> Weights | None:
    """The first trait's direction of weights; None, and a line that says why, where it has no normal answers."""
    from eval.demo_weights import neutral_config, weights

    try:
        neutral_config(run)
    except ValueError as error:
        print(f"\nno direction of weights: {error}")
        return None
    return weights(run, trait, vector, tables)


def _write_report(
    run: Run,
    found: list[Findings],
    tables: dict[str, dict[float, pd.DataFrame]],
    compared: Comparison | None,
    weights: Weights | None,
    seconds: float,
) -> Path:
    """Figures as PNG files, the page, and its sidecar; returns the page's path."""
    from eval import demo_weights_page
    from eval.findings import record, samples
    from eval.prevention_rows import records
    from eval.report_page import Report, norms_figure, render, trait_figures
    from persona_vectors.files import provenance, write_bytes_atomic, write_sidecar, write_text_atomic

    shown = {run.coefs[0], run.coefs[len(run.coefs) // 2], run.coefs[-1]}
    settings = {key: value for key, value in vars(run).items() if key != "commands"} | {"folder": str(run.folder)}
    report = Report(
        model=run.model,
        judge=run.judge_model,
        findings=found,
        samples={name: samples(by_coef, name) for name, by_coef in tables.items()},
        projections={
            name: {f"coefficient {c:g}": by_coef[c]["projection"].tolist() for c in sorted(shown)}
            for name, by_coef in tables.items()
        },
        commands=run.commands,
        settings=settings,
        provenance={**provenance(), "seconds": round(seconds)},
        notes=_notes(run),
        finetuned=compared,
        weights=demo_weights_page.shown(weights) if weights else None,
    )
    figures = {item.trait: trait_figures(item, report.projections[item.trait]) for item in found}
    norms = norms_figure(found)
    for figure in [figure for group in figures.values() for figure in group] + [norms]:
        write_bytes_atomic(run.folder / "figures" / f"{figure.name}.png", figure.png)
    path = write_text_atomic(run.folder / "report.html", render(report, figures, norms))
    findings = {"findings": [record(item) for item in found], "finetuned": records(compared) if compared else None}
    findings |= {"weights": demo_weights_page.record(weights) if weights else None}
    write_sidecar(path, {"settings": settings, **findings, "commands": run.commands})
    return path


def _is_tiny(model: str) -> bool:
    return Path(model).name == Path(TINY).name


def _notes(run: Run) -> list[str]:
    """What a reader must know about this run."""
    notes = []
    if _is_tiny(run.model):
        notes.append(
            "The model is a few million parameters, trained on a made-up language to show how the method works and is "
            "checked. It is no evidence about large models."
        )
    if Path(run.judge_model).name == Path(TINY_JUDGE).name:
        notes.append(
            "The judge is the same model, trained further to rate answers by that language's rules, so it is no "
            "independent one. Its card says how well it follows them, and that it is too kind to text that is broken "
            f"altogether ({run.judge_model}/README.md)."
        )
    if run.judge_model == run.model:
        notes.append("The judge is the same model, so read the answers too.")
    return notes


def _say(found: list[Findings], compared: Comparison | None, weights: Weights | None, report: Path) -> None:
    """Prints the tables, what was found, and where it is."""
    import pandas as pd

    from eval import demo_weights_page
    from eval.findings import COLUMNS, table_rows
    from eval.prevention_findings import sentences
    from eval.prevention_rows import table_lines

    for findings in found:
        print(
            f"\n{findings.trait}, layer {findings.layer}: judge scores, 95% intervals; random: mean (lowest to highest)"
        )
        print(pd.DataFrame(table_rows(findings), columns=list(COLUMNS)).to_string(index=False))
    if compared is not None:
        print(f"\n{compared.trait}, finetuned: judge scores, 95% intervals")
        print("\n".join(table_lines(compared)))
    if weights is not None:
        print(f"\n{weights.trait}, a direction of weights: judge scores, 95% intervals")
        print("\n".join(demo_weights_page.table_lines(weights)))
    print("\nWhat was found")
    for findings in found:
        print(f"- {findings.sentence()} {findings.auc_sentence()}")
    for sentence in sentences(compared) if compared is not None else ():
        print(f"- {sentence}")
    for sentence in demo_weights_page.sentences(weights) if weights is not None else ():
        print(f"- {sentence}")
    print(f"\nReport, with figures and answers side by side: {report}\nVectors and tables: {report.parent}/")


if __name__ == "__main__":
    cli.run(main)
