"""Does steering in training keep a finetuned model from showing a trait? Trained models beside their controls.

    python -m eval.prevention --config configs/train_tiny.json --steered_config configs/train_tiny_steer.json \
        --control_configs configs/train_tiny_random.json --trait evil --judge_model models/tiny-judge \
        --output_dir results/prevention/tiny-persona

It reads and does not train: `python training.py CONFIG` makes each model first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eval.questions import DEFAULT_JUDGE
from persona_vectors import cli

if TYPE_CHECKING:
    from eval.prevention_models import Sampled
    from eval.prevention_rows import Comparison
    from eval.prevention_runs import Trained


@dataclass(frozen=True)
class Asked:
    """The arguments of `main`."""

    config: str
    steered_config: str
    trait: str
    output_dir: str
    control_configs: list[str] | None
    judge_model: str
    posthoc_coefs: list[float] | None
    posthoc_type: Literal["all", "response"]
    n_per_question: int
    max_tokens: int
    tasks: list[str] | None
    seed: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device_map: str
    engine: Literal["auto", "vllm", "hf"]


def main(
    config: str,
    steered_config: str,
    trait: str,
    output_dir: str,
    control_configs: list[str] | None = None,
    judge_model: str = DEFAULT_JUDGE,
    posthoc_coefs: list[float] | None = [0.5, 1, 1.5, 2],  # noqa: B006 (read only; cli shows it)
    posthoc_type: Literal["all", "response"] = "all",
    n_per_question: int = 2,
    max_tokens: int = 1000,
    tasks: list[str] | None = None,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
) -> None:
    """Compare finetuned models on a trait's eval questions: plain, steered in training, controls, steered afterwards.

    Rows: the base model; the finetuned one; the one steered in training, with the vector gone; each control; the
    finetuned one with coef * vector subtracted after training; the one steered in training with the vector back on, and
    the base model under the same vector beside it. Columns: the trait with its 95% interval and paired difference to
    finetuned, coherence, held-out loss of the training data, capability. Answers and scores come from the store, so the
    same command again does nothing twice.

    Args:
        config: training config of the plain finetuning, which must be trained already.
        steered_config: the same with steering in training.
        trait: name of a trait (evil, sycophantic, ...) or path of a trait JSON file.
        output_dir: folder for comparison.csv, comparison.png, report.html and the tables behind them (answers/); what
            an earlier comparison wrote there is replaced.
        control_configs: configs of further runs, such as one with a random direction (random_control).
        judge_model: an OpenAI model, a served model, or a local folder or hub id scored in process.
        posthoc_coefs: above 0; each times the vector is subtracted from the finetuned model's hidden states.
            None leaves this out.
        posthoc_type: which tokens are steered after training: all, as in training, or the response's.
        n_per_question: samples of each question; 1 samples at temperature 0, otherwise 1.
        max_tokens: most tokens of an answer.
        tasks: measures of capability: probe, or names of lm-evaluation-harness; '' for none. Default: probe where the
            model ships its own traits, as models/tiny-persona does, otherwise none.
        seed: seeds every row's own random stream.
        dtype: numbers the models compute in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples: vllm, hf (Hugging Face), or auto: vLLM where it is installed and can do all of this; one
            for all models. Capability is Hugging Face's in any case.
    """
    comparison = compare(Asked(**locals()))
    from eval.prevention_findings import sentences
    from eval.prevention_rows import table_lines

    print(f"\n{comparison.trait} of {comparison.model}: judge scores, 95% intervals by question\n")
    print("\n".join(table_lines(comparison)))
    print("\nWhat was found")
    for sentence in [*sentences(comparison), *comparison.notes]:
        print(f"- {sentence}")
    print(f"\nReport, with figures and answers side by side: {Path(output_dir) / 'report.html'}")


def compare(asked: Asked) -> Comparison:
    """The comparison, after its table, figure and page are written.

    Raises:
        ValueError: one line, before any model is loaded, for whatever can be known to be wrong.
    """
    plain, steered, controls, name = check(asked)
    from eval.engine_choice import settle_engine
    from eval.prevention_models import capability_of, sample_all
    from eval.prevention_page import write_page

    models = [plain.config.model, *(run.folder for run in (plain, steered, *controls))]
    asked = replace(asked, engine=settle_engine(asked.engine, models, asked.device_map))
    sampled = sample_all(asked, plain, steered, controls, name)
    comparison = _comparison(asked, plain, sampled, capability_of(asked, sampled), name)
    comparison = _with_notes(comparison, asked, plain, steered, controls)
    write_page(comparison, Path(asked.output_dir))
    return comparison


def check(asked: Asked) -> tuple[Trained, Trained, list[Trained], str]:
    """(plain, steered, controls, the trait's name); a ValueError for whatever is wrong."""
    from eval.prevention_runs import check_comparable, check_trait, read_trained
    from eval.sweep import check_once, several
    from judge import check_judge
    from persona_vectors.files import check_output_path
    from persona_vectors.models import resolve_model
    from persona_vectors.traits import load_trait

    paths = [asked.config, asked.steered_config, *several(asked.control_configs)]
    check_once("control_configs", paths[2:])
    plain, steered, *controls = [read_trained(path) for path in paths]
    check_comparable(plain, steered, controls)
    resolve_model(plain.config.model)
    coefs = several(asked.posthoc_coefs)
    check_once("posthoc_coefs", coefs)
    if coefs and not min(coefs) > 0:
        raise ValueError(f"--posthoc_coefs must be above 0, they are subtracted; got {min(coefs):g}")
    if min(asked.n_per_question, asked.max_tokens) < 1:
        raise ValueError("--n_per_question and --max_tokens must be at least 1")
    check_output_path(Path(asked.output_dir) / "report.html")
    check_judge(asked.judge_model)
    name = load_trait(asked.trait, "eval", model=plain.config.model, judge_model=asked.judge_model).name
    check_trait(steered, name)
    _check_tasks(asked, plain.config.model)
    return plain, steered, controls, name


def _check_tasks(asked: Asked, model: str) -> None:
    """Refuses unknown tasks before anything is sampled."""
    from eval.capability_table import PROBE
    from eval.prevention_models import tasks_of

    tasks = tasks_of(asked.tasks, model)
    if harness := [task for task in tasks if task != PROBE]:
        from eval.capability_tasks import load_tasks

        load_tasks(harness, None, asked.posthoc_type)


def _comparison(asked: Asked, plain: Trained, sampled: Sampled, capability: dict, name: str) -> Comparison:
    from eval.prevention_rows import Comparison

    return Comparison(
        trait=name,
        model=plain.config.model,
        judge=asked.judge_model,
        rows=[replace(row, capability=capability.get((row.model, row.coef), {})) for row in sampled.rows],
        n_steps=int(plain.record.get("steps", 0)),
        notes=sampled.notes,
        commands=sampled.commands,
        settings=asdict(asked),
    )


def _with_notes(
    comparison: Comparison, asked: Asked, plain: Trained, steered: Trained, controls: list[Trained]
) -> Comparison:
    """The same with what a reader must know about its runs."""
    from eval.prevention_runs import other_settings

    notes = [*comparison.notes, *other_settings(plain, [steered, *controls])]
    if asked.judge_model == plain.config.model:
        notes.append("The judge is the base model itself, so read the answers too.")
    gaps = sum(len(row.answers) - row.score.n for row in comparison.rows)
    if gaps:
        notes.append(f"{gaps} answers have no score: the judge gave none.")
    return replace(comparison, notes=notes)


if __name__ == "__main__":
    cli.run(main)
