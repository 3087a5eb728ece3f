"""Sample a chat model on a trait's questions, steered or not, and score the answers with a judge.

    python -m eval.eval_persona --model models/tiny-persona --trait evil --output_path results/evil.csv \
        --judge_model models/tiny-judge --version eval

Several coefficients, layers, vectors and traits are one job, with their controls:

    python -m eval.eval_persona --model models/tiny-persona --judge_model models/tiny-judge --version eval \
        --trait evil humorous --vector_path persona_vectors/tiny-persona/{trait}_response_avg_diff.pt \
        --layer 2 3 --coef 0 0.5 1 1.5 --control random prompt --output_path results/{trait}.csv
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.questions import DEFAULT_JUDGE, Question, load_persona_questions
from persona_vectors import cli
from persona_vectors.lazy import published

if TYPE_CHECKING:
    import pandas as pd

    from eval.finished_answers import Engine
    from eval.model_utils import Steering, WeightSteering
    from eval.sweep import Grid, Study
    from judge import JudgeOptions
    from persona_vectors.store import Store


__getattr__ = published(__name__, {"sample": "eval.model_utils", "sample_steering": "eval.model_utils"})


def eval_batched(
    questions: Sequence[Question],
    engine: Engine,
    store: Store,
    *,
    n_per_question: int = 100,
    max_tokens: int = 1000,
    max_concurrent_judges: int = 100,
    steering: Steering | WeightSteering | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """The response table of all questions: answers sampled together, then scored by every judge prompt.

    Raises:
        JudgeError: judge calls that failed, after all others were scored and stored.
    """
    from eval.sweep import Setting, Study
    from eval.sweep_answers import Sampling, answered
    from judge import JudgeError, JudgeOptions
    from persona_vectors.judging import failure_line

    study = Study("", Path(), list(questions), [Setting(steering=steering)])
    judge = JudgeOptions(max_concurrent=max_concurrent_judges)
    how = Sampling(n_per_question, max_tokens, seed, overwrite, progress, judge=judge)
    [[found]] = answered(engine, store, [study], how)
    if found.failures:
        failures = dict(enumerate(found.failures))
        raise JudgeError(failure_line(failures, len(found.table) * len(questions[0].judge_prompts)), failures)
    return found.table


def main(
    model: str,
    trait: str | list[str],
    output_path: str,
    coef: float | list[float] = 0.0,
    vector_path: str | list[str] | None = None,
    layer: int | list[int] | None = None,
    steering_type: Literal["prompt", "response", "all"] = "response",
    max_tokens: int = 1000,
    n_per_question: int = 10,
    batch_process: bool = True,
    max_concurrent_judges: int = 100,
    persona_instruction_type: Literal["pos", "neg", "neutral"] | None = None,
    assistant_name: str | None = None,
    judge_model: str = DEFAULT_JUDGE,
    version: Literal["extract", "eval"] = "extract",
    overwrite: bool = False,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    coef_unit: Literal["vector", "norm"] = "vector",
    control: list[Literal["random", "prompt"]] | None = None,
    n_random: int = 4,
    min_coherence: float = 75.0,
    one_file_per_setting: bool = False,
    judge_mode: Literal["auto", "logprobs", "text"] = "auto",
    judge_samples: int = 1,
    max_requests_per_minute: int | None = None,
    engine: Literal["auto", "vllm", "hf"] = "auto",
    capture: bool = False,
) -> None:
    """Sample answers to a trait's questions, score them with a judge, and write the table.

    Every vector is added at every layer by every coefficient; all of it, and all traits, is one sampling job. What is
    added is measured first (a steering receipt), and a steering that does not do what it says is not run.
    Finished answers and scores are kept in a store (PERSONA_STORE, default .cache/persona_store.sqlite) under a hash
    of everything that determines them: the same command again goes on where it was interrupted.

    Args:
        model: chat model: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        trait: names of traits (evil, sycophantic, ...) or paths of trait JSON files. Several need {trait} in
            --output_path, one table each.
        output_path: CSV to write: question, prompt, answer, question_id, <trait>, coherence; a sidecar .json beside it.
            More than one setting adds the columns coef, layer, vector, control. {trait} stands for the trait's name.
        coef: steering coefficients; coef * vector is added to the hidden states. 0 does not steer.
        vector_path: vectors .pt of generate_vec.py, needed where a coef is not 0; all of them are used for all traits,
            so write {trait} in the path where each trait has its own.
        layer: hidden_states indices to steer, 1 to the number of layers.
        steering_type: which tokens are steered: the prompt's, the response's (from the last prompt token on), or all.
        max_tokens: most tokens of an answer.
        n_per_question: samples of each question and instruction; 1 samples at temperature 0, otherwise 1.
        batch_process: sample all questions together; with --nobatch_process one question after the other.
        max_concurrent_judges: judge calls in flight at once.
        persona_instruction_type: put the trait's pos or neg instructions into the system prompt, or neutral: "You are
            a helpful assistant.", sampled as often as pos and neg; without it no system prompt.
        assistant_name: who the system prompt says the assistant is; default the trait for pos, otherwise helpful.
        judge_model: an OpenAI model, a served model (OPENAI_BASE_URL), or a local folder scored in process.
        version: the trait's extract or eval questions.
        overwrite: start again: sample and judge anew, and replace the output.
        seed: seeds every row's own random stream, and the random directions.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        coef_unit: vector adds coef * vector; norm adds coef * (mean norm of the hidden states at that layer, over this
            run's prompts without their first token) * vector / |vector|.
        control: random runs random directions of each vector's norm at every coef; prompt runs the trait's pos
            instructions as system prompt, unsteered (sample k of question i under instruction i + k). Or both.
        n_random: random directions for each vector and layer.
        min_coherence (0-100): the highest trait is looked for among settings with this mean coherence or more.
        one_file_per_setting: in place of one table of all settings, one published CSV each: <output_path's stem>_coef0,
            _layer3_coef1, _random1_layer3_coef1, _prompt (with several vectors, _<vector>_layer3_coef1).
        judge_mode: how an API judge is asked: log-probabilities, or text where a provider has none.
        judge_samples: replies of text mode that are averaged.
        max_requests_per_minute: judge calls sent in a minute at most.
        engine: what samples, and what computes a local judge: vllm, hf (Hugging Face), or auto: vLLM where it is
            installed, for the judge only on a GPU. Questions apart (--nobatch_process) are always judged by hf.
        capture: while vLLM samples unsteered answers, keep the means of their hidden states in <output_path's
            stem>_means/, from where generate_vec.py and cal_projection take them (0.4 MB an answer of a 7B model).
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    from eval.engine_choice import settle_engine

    kind = arguments["engine"] = settle_engine(engine, [model], device_map)
    from eval.judge_choice import settle_judge
    from eval.kept_means import KeptMeans, check_capture
    from eval.sweep import Grid, check_grid, check_numbers, check_placeholder, check_system_prompt, several
    from judge import JudgeOptions, check_judge, is_local_judge
    from persona_vectors.models import resolve_model

    grid = Grid(several(coef), several(layer), several(vector_path), steering_type, several(control), n_random, seed)
    check_grid(grid)
    check_placeholder(several(trait), output_path)
    check_numbers(n_per_question, max_tokens, max_concurrent_judges, min_coherence, seed)
    check_system_prompt(assistant_name, persona_instruction_type, grid.controls)
    resolve_model(model)
    judge = JudgeOptions(judge_mode, judge_samples, max_concurrent_judges, max_requests_per_minute)
    studies = [_study(arguments, name, grid) for name in several(trait)]
    check_judge(judge_model, judge)
    judge = replace(judge, engine=settle_judge(judge_model, engine, kind if batch_process else "hf"))
    _check_studies(studies, grid)
    if capture:
        check_capture(kind, studies)
    records = _records(studies, arguments, judge)

    from eval.finished_answers import Engine
    from eval.sweep_answers import Sampling
    from eval.sweep_run import run_studies, say
    from persona_vectors.store import Store

    sampler = Engine(model, dtype, device_map, kind=kind)
    how = Sampling(n_per_question, max_tokens, seed, overwrite, judge=judge, together=batch_process)
    if batch_process and not is_local_judge(judge_model):
        how = replace(how, on_estimate=lambda name, takes: say([f"judging {name}: {takes.line()}"]))
    means = KeptMeans(studies, overwrite) if capture else None
    how = replace(how, on_means=means and means.keep)
    with Store() as store:
        if coef_unit == "norm":
            studies, records = _in_norm_units(sampler, store, studies, records, overwrite)
        run_studies(sampler, store, studies, records, how, min_coherence)
    if means is not None:
        say(means.lines())


def _study(arguments: dict[str, Any], trait: str, grid: Grid) -> Study:
    """One trait's questions, settings and tables; vector files are read here."""
    from eval.sweep import PLACEHOLDER, Study, expand
    from eval.sweep_files import plan_outputs, study_arguments
    from persona_vectors.files import check_output_path

    options = {name: arguments[name] for name in ("judge_model", "version", "model")}
    options["temperature"] = 0.0 if arguments["n_per_question"] == 1 else 1.0
    pole, assistant = arguments["persona_instruction_type"], arguments["assistant_name"]
    questions = load_persona_questions(trait, persona_instruction_type=pole, assistant_name=assistant, **options)
    prompted = load_persona_questions(trait, persona_instruction_type="pos", **options)
    name = next(iter(questions[0].judge_prompts))
    path = check_output_path(arguments["output_path"].replace(PLACEHOLDER, name))
    own = grid.for_trait(name)
    settings = expand(own, arguments["model"], name)
    given = study_arguments(arguments, trait, own)
    outputs = plan_outputs(path, settings, given, arguments["one_file_per_setting"])
    return Study(name, path, questions, settings, outputs, prompted)


def _check_studies(studies: Sequence[Study], grid: Grid) -> None:
    """Refuses traits that are the same, and tables that would be written over one another."""
    from eval.sweep import check_once
    from eval.sweep_files import check_outputs

    check_once("trait", [study.trait for study in studies])
    vectors = [path for study in studies for path in grid.for_trait(study.trait).vectors]
    check_outputs([output for study in studies for output in study.outputs], vectors)


def _records(studies: Sequence[Study], arguments: dict[str, Any], judge: JudgeOptions) -> list[list[dict[str, Any]]]:
    """The sidecars' first part, for each study and output; a table of other settings is refused."""
    from eval.sweep_files import refuse_other_settings, sidecar_records

    records = sidecar_records(studies, arguments["model"], arguments["judge_model"], judge)
    if not arguments["overwrite"]:
        for study, own in zip(studies, records, strict=True):
            refuse_other_settings(study.outputs, own)
    return records


def _in_norm_units(
    engine: Engine, store: Store, studies: Sequence[Study], records: list[list[dict[str, Any]]], overwrite: bool
) -> tuple[list[Study], list[list[dict[str, Any]]]]:
    """The studies with coefficients in units of the mean residual norm over their own prompts; records say it."""
    from eval.residual_norm import norms_of
    from eval.sweep import in_norm_units
    from eval.sweep_answers import rendered
    from eval.sweep_run import say

    scaled, said = [], []
    for study, own in zip(studies, records, strict=True):
        steered = [setting.vector_steering for setting in study.settings]
        layers = sorted({steering.layer for steering in steered if steering is not None})
        norms = norms_of(engine, store, rendered(engine.tokenizer, study.rows(1)), layers, overwrite=overwrite)
        scaled.append(replace(study, settings=in_norm_units(study.settings, norms)))
        said.append([{**record, "mean_norms": {str(layer): norm for layer, norm in norms.items()}} for record in own])
        say(f"mean residual norm of {study.trait}'s prompts at layer {n}: {norm:.4g}" for n, norm in norms.items())
    return scaled, said


if __name__ == "__main__":
    cli.run(main)
