"""Does the last prompt token's projection, read before anything is said, foretell how much of a trait the answer shows?

    python -m eval.monitor --model models/tiny-persona --judge_model models/tiny-judge --trait evil --layer 3 \
        --vector_path persona_vectors/tiny-persona/evil_response_avg_diff.pt --n_shots 0 1 2 4 8 \
        --n_per_question 2 --max_tokens 80 --output_dir results/monitor/evil

arXiv 2507.21509, section 3.3. Graded system prompts are in data_generation/trait_data_monitor/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eval.questions import DEFAULT_JUDGE, Question, load_persona_questions
from persona_vectors import cli

if TYPE_CHECKING:
    from torch import Tensor

    from eval.monitor_conditions import Condition
    from eval.monitor_rows import Study


@dataclass(frozen=True)
class Asked:
    """The arguments of `main`."""

    model: str
    trait: str
    vector_path: str
    layer: list[int]
    output_dir: str
    judge_model: str
    kinds: list[Literal["system", "shots"]]
    system_prompts: str | None
    n_shots: list[int]
    shots_path: str | None
    n_per_question: int
    max_tokens: int
    seed: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device_map: str
    engine: Literal["auto", "vllm", "hf"]


def main(
    model: str,
    trait: str,
    vector_path: str,
    layer: list[int],
    output_dir: str,
    judge_model: str = DEFAULT_JUDGE,
    kinds: list[Literal["system", "shots"]] = ["system", "shots"],  # noqa: B006 (read only; cli shows it)
    system_prompts: str | None = None,
    n_shots: list[int] = [0, 5, 10, 15, 20],  # noqa: B006
    shots_path: str | None = None,
    n_per_question: int = 10,
    max_tokens: int = 1000,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
) -> None:
    """Correlate the projection of the last prompt token on a trait's vector with the score of the answers that follow.

    The trait's eval questions are asked under system prompts graded from suppressing to eliciting the trait, and after
    0, 5, ... examples of answers that show it. Every correlation is given over all prompts and within one condition,
    beside 1,000 random directions on the same activations and beside the condition's number alone. Answers, scores and
    activations come from the store, so the same command again does nothing twice.

    Args:
        model: chat model: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        trait: name of a trait (evil, sycophantic, ...) or path of a trait JSON file.
        vector_path: vectors .pt of generate_vec.py.
        layer: hidden_states indices at which the last prompt token is read, one or several.
        output_dir: folder for points.csv, prompts.csv, conditions.csv, correlations.csv, scatter.png and report.html;
            what an earlier run wrote there is replaced.
        judge_model: an OpenAI model, a served model, or a local folder or hub id scored in process.
        kinds: system (graded system prompts), shots (examples before the question), or both.
        system_prompts: JSON file {"system_prompts": [...]}, from suppressing to eliciting. Default: the model's own
            (traits/monitor/<trait>.json in its folder), else data_generation/trait_data_monitor/<trait>.json.
        n_shots: numbers of examples before the question.
        shots_path: response table the examples come from: answers with trait and coherence >= 50, to questions that are
            not asked here. Default eval_persona_extract/<model>/<trait>_pos_instruct.csv.
        n_per_question: answers to each prompt; 1 is sampled at temperature 0, otherwise 1.
        max_tokens: most tokens of an answer.
        seed: seeds every answer's own random stream, the order of examples, random directions and bootstrap.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples: vllm, hf (Hugging Face), or auto: vLLM where it is installed and can do all of this.
            Activations are read with Hugging Face in any case.
    """
    study = monitor(Asked(**locals()))
    from eval.monitor_findings import sentences
    from eval.monitor_rows import condition_cells, correlation_cells
    from eval.text_table import aligned

    print(f"\n{study.trait} of {model}: means by condition, 95% intervals by question\n")
    print("\n".join(aligned(condition_cells(study))))
    print("\nProjection of the last prompt token with the score of the answers\n")
    print("\n".join(aligned(correlation_cells(study, short=True))))
    print("\nWhat was found")
    for sentence in [*sentences(study), *study.notes]:
        print(f"- {sentence}")
    print(f"\nReport, with figures and answers side by side: {Path(output_dir) / 'report.html'}")


def monitor(asked: Asked) -> Study:
    """The study, after its tables, figure and page are written.

    Raises:
        ValueError: one line, before any weights are read, for whatever can be known to be wrong.
    """
    from eval.engine_choice import settle_engine

    kind = settle_engine(asked.engine, [asked.model], asked.device_map)
    asked = replace(asked, engine=kind)
    questions, vectors, conditions, files = check(asked)
    from eval.finished_answers import Engine
    from eval.monitor_conditions import check_room, prompts_of
    from eval.monitor_measure import Judge, monitor_points
    from eval.monitor_page import write_results
    from eval.monitor_rows import Study, find
    from persona_vectors.store import Store

    engine = Engine(asked.model, asked.dtype, asked.device_map, kind=kind)
    texts = {question.id: question.paraphrases[0] for question in questions}
    prompts = prompts_of(engine.tokenizer, conditions, texts)
    context = check_room(prompts, asked.model)
    name = next(iter(questions[0].judge_prompts))
    with Store() as store:
        judge = Judge(questions[0], store)
        points = monitor_points(
            engine,
            conditions,
            texts,
            {"trait": judge.scorer(name), "coherence": judge.scorer("coherence")},
            layers=list(vectors),
            store=store,
            n_per_question=asked.n_per_question,
            max_tokens=asked.max_tokens,
            temperature=questions[0].temperature,
            seed=asked.seed,
            prompts=prompts,
        )
        judge.check()
    study = Study(name, asked.model, asked.judge_model, vectors, points, settings=asdict(asked))
    study = replace(study, found=find(study, asked.seed))
    study = replace(study, notes=_notes(asked, study, context))
    write_results(study, Path(asked.output_dir), [asked.vector_path, *files])
    return study


def check(asked: Asked) -> tuple[list[Question], dict[int, Tensor], list[Condition], list[str]]:
    """(questions, vectors by layer, conditions, files they come from); a ValueError for whatever is wrong."""
    from eval.sweep import check_once
    from judge import check_judge
    from persona_vectors.files import check_output_path
    from persona_vectors.models import resolve_model

    if min(asked.n_per_question, asked.max_tokens) < 1 or asked.seed < 0:
        raise ValueError("--n_per_question and --max_tokens must be at least 1, and --seed at least 0")
    if not asked.layer or not asked.kinds:
        raise ValueError("--layer and --kinds need at least one value each")
    check_once("layer", asked.layer)
    check_once("kinds", asked.kinds)
    resolve_model(asked.model)
    check_output_path(Path(asked.output_dir) / "report.html")
    check_judge(asked.judge_model)
    temperature = 0.0 if asked.n_per_question == 1 else 1.0
    options = {"judge_model": asked.judge_model, "version": "eval", "model": asked.model}
    questions = load_persona_questions(asked.trait, temperature=temperature, **options)
    trait = next(iter(questions[0].judge_prompts))
    vectors = _vectors(asked, trait)
    conditions, files = _conditions(asked, trait, [question.paraphrases[0] for question in questions])
    return questions, vectors, conditions, files


def _vectors(asked: Asked, trait: str) -> dict[int, Tensor]:
    """Layer -> vector, checked against the model's config, and that it is of the trait."""
    from eval.row_projections import load_columns
    from persona_vectors.files import read_sidecar

    columns = load_columns(asked.model, [asked.vector_path], asked.layer)
    made_for = read_sidecar(asked.vector_path).get("trait")
    if made_for is not None and made_for != trait:
        raise ValueError(f"{asked.vector_path} is a vector of {made_for}, not of {trait}; give {trait}'s")
    return {column.layer: column.vector for column in columns}


def _conditions(asked: Asked, trait: str, questions: Sequence[str]) -> tuple[list[Condition], list[str]]:
    """Conditions of the kinds asked for, and the files that they were made from."""
    from eval.monitor_conditions import system_conditions
    from persona_vectors.traits import load_graded_prompts

    conditions: list[Condition] = []
    files = []
    if asked.system_prompts is not None and "system" not in asked.kinds:
        raise ValueError("--system_prompts is for --kinds system, which is left out")
    if "system" in asked.kinds:
        prompts, path = load_graded_prompts(trait, asked.model, asked.system_prompts)
        conditions += system_conditions(prompts)
        files.append(path)
    if "shots" in asked.kinds:
        own, path = _shots(asked, trait, questions)
        conditions += own
        files += path
    return conditions, files


def _shots(asked: Asked, trait: str, questions: Sequence[str]) -> tuple[list[Condition], list[str]]:
    from eval.monitor_conditions import no_examples, read_examples, shot_conditions
    from eval.sweep import check_once
    from persona_vectors.models import resolve_model

    check_once("n_shots", asked.n_shots)
    if len(asked.n_shots) < 2 or min(asked.n_shots) < 0:
        given = " ".join(map(str, asked.n_shots)) or "none"
        raise ValueError(f"--n_shots needs two or more numbers of examples, each at least 0; got {given}")
    numbers = sorted(asked.n_shots)
    label = resolve_model(asked.model).label
    path = asked.shots_path or f"eval_persona_extract/{label}/{trait}_pos_instruct.csv"
    if not Path(path).is_file():
        raise ValueError(no_examples(path, asked.model, asked.trait))
    examples = read_examples(path, trait, questions, numbers[-1])
    return shot_conditions(numbers, examples, questions, asked.seed), [path]


def _notes(asked: Asked, study: Study, context: int | None) -> list[str]:
    from eval import monitor_findings as findings
    from persona_vectors.training_vectors import vector_record

    notes = findings.notes(study, asked.max_tokens, context)
    record = vector_record(asked.vector_path, asked.model)
    if record["same_model"] is False:
        notes.append(f"{asked.vector_path} was made from {record['made_from']}, not from {asked.model} as it is now.")
    if asked.judge_model == asked.model:
        notes.append("The judge is the model itself, so read the answers too.")
    return notes


if __name__ == "__main__":
    cli.run(main)
