"""Sample a chat model whose weights carry a persona, `W + coef * D`, and score the answers with a judge.

    python eval_lora_persona.py --model models/tiny-persona --judge_model models/tiny-judge --trait evil \
        --lora_diff_path persona_loras/tiny-persona/evil/evil_lora_diff --lora_coef -1 0 0.5 1 --control random \
        --output_path eval_persona_eval/tiny-persona/evil_lora.csv

The questions, random streams, judge, store and table are those of `python -m eval.eval_persona`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from eval.questions import DEFAULT_JUDGE, load_persona_questions
from persona_vectors import cli
from persona_vectors.lazy import published

if TYPE_CHECKING:
    from eval.sweep import Study
    from persona_vectors.weight_direction import WeightDirection

__getattr__ = published(
    __name__,
    {
        "sample_with_lora_steering": "eval.weight_settings",
        "sample_baseline": "eval.weight_settings",
        "eval_batched_lora": "eval.weight_settings",
    },
)


def main(
    model: str,
    trait: str | list[str],
    output_path: str,
    lora_diff_path: str | list[str],
    lora_coef: float | list[float] = 0.0,
    mode: Literal["dynamic", "pre_merge"] = "dynamic",
    compose: bool = False,
    compose_shares: list[float] | None = None,
    max_tokens: int = 1000,
    n_per_question: int = 10,
    max_concurrent_judges: int = 100,
    persona_instruction_type: Literal["pos", "neg", "neutral"] | None = None,
    assistant_name: str | None = None,
    judge_model: str = DEFAULT_JUDGE,
    version: Literal["extract", "eval"] = "eval",
    overwrite: bool = False,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    control: Literal["random"] | None = None,
    n_random: int = 2,
    min_coherence: float = 75.0,
    engine: Literal["auto", "vllm", "hf"] = "auto",
) -> None:
    """Sample answers with a direction of weights at each coefficient, score them, and write the table.

    What the direction does to every module is measured first (a steering receipt), and a direction that does nothing,
    or something else, is not run. Finished answers and scores are kept in a store, so the same command goes on where it
    was interrupted.

    Args:
        model: chat model: hub id, model folder, adapter folder, or training folder.
        trait: names of traits, or paths of trait JSON files, each with its own questions. Several need {trait} in
            --output_path, one table each.
        output_path: CSV to write: question, prompt, answer, question_id, <trait>, coherence; several settings add coef,
            layer, vector, control. A sidecar .json stands beside it.
        lora_diff_path: directions: adapter folders or .pt files of extract_persona_lora.py. Each is run by itself.
        lora_coef: coefficients of the direction; > 0 moves towards the trait, 0 leaves the weights alone.
        mode: dynamic runs D beside the weights, all coefficients in one batch; pre_merge adds it to the weights, one
            coefficient after the other, and restores them bit for bit.
        compose: all directions at once, `coef * sum(share * D)`.
        compose_shares: a number for each direction, in the order of --lora_diff_path; default 1.
        max_tokens: most tokens of an answer.
        n_per_question: samples of each question; 1 samples at temperature 0, otherwise 1.
        max_concurrent_judges: judge calls in flight at once.
        persona_instruction_type: put the trait's pos or neg instructions, or a neutral one, into the system prompt.
        assistant_name: who the system prompt says the assistant is.
        judge_model: an OpenAI model, a served model (OPENAI_BASE_URL), or a local folder scored in process.
        version: the trait's extract or eval questions.
        overwrite: start again: sample and judge anew, and replace the output.
        seed: seeds every row's own random stream, and the random directions.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        control: random runs directions with the same singular values and random singular vectors at every coefficient.
        n_random: random directions for each direction.
        min_coherence (0-100): the highest trait is looked for among settings with this mean coherence or more.
        engine: what samples: vllm (directions become exactly rescaled adapters in one batch, whatever --mode says), hf
            (Hugging Face), or auto: vLLM where it is installed and can do all of this. It computes a local judge too,
            with auto only on a GPU.
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    from eval.engine_choice import settle_engine
    from eval.judge_choice import settle_judge
    from eval.model_utils import WeightSteering
    from eval.sweep import check_numbers, check_once, check_placeholder, check_system_prompt, several
    from eval.sweep_files import check_outputs, refuse_other_settings, sidecar_records
    from eval.weight_settings import crosstalk_lines, crosstalk_of, read_directions, together
    from judge import JudgeOptions, check_judge
    from persona_vectors.models import resolve_model

    paths, coefs, traits = several(lora_diff_path), several(lora_coef), several(trait)
    check_once("lora_coef", coefs)
    check_placeholder(traits, output_path)
    check_numbers(n_per_question, max_tokens, max_concurrent_judges, min_coherence, seed)
    check_system_prompt(assistant_name, persona_instruction_type)
    if n_random < 1:
        raise ValueError(f"--n_random must be at least 1; got {n_random}")
    if control and not any(coefs):
        raise ValueError("--control random needs a steering to be compared with: give --lora_coef other than 0")
    if compose_shares is not None and not compose:
        raise ValueError("--compose_shares needs --compose")
    resolve_model(model)
    if not any(coefs):
        print(
            "note: --lora_coef is 0, so no direction is applied: these are the model's own answers; 1 applies it once"
        )
    judge = JudgeOptions(max_concurrent=max_concurrent_judges)
    single = read_directions(model, paths)
    acting = together(single, compose_shares) if compose else single
    added = [WeightSteering(direction, coef) for direction in acting.values() for coef in coefs if coef]
    kind = arguments["engine"] = settle_engine(engine, [model], device_map, added)
    studies = [_study(arguments, name, acting) for name in traits]
    check_judge(judge_model, judge)
    judge = replace(judge, engine=settle_judge(judge_model, engine, kind))
    check_once("trait", [study.trait for study in studies])
    check_outputs([output for study in studies for output in study.outputs], paths)
    records = sidecar_records(studies, model, judge_model, judge)
    if not overwrite:
        for study, own in zip(studies, records, strict=True):
            refuse_other_settings(study.outputs, own)

    from eval.finished_answers import Engine
    from eval.sweep_answers import Sampling
    from eval.sweep_run import run_studies, say
    from persona_vectors.store import Store

    shared = crosstalk_of(single)
    say(crosstalk_lines(shared))
    records = [[{**record, "crosstalk": shared} for record in own] for own in records] if shared else records
    with Store() as store:
        how = Sampling(n_per_question, max_tokens, seed, overwrite, judge=judge)
        run_studies(Engine(model, dtype, device_map, kind=kind), store, studies, records, how, min_coherence)


def _study(arguments: dict[str, Any], trait: str, directions: dict[str, WeightDirection]) -> Study:
    """One trait's questions, settings and table."""
    from eval.sweep import PLACEHOLDER, Output, Study, several
    from eval.sweep_files import NO_ANSWER_DEPENDS_ON
    from eval.weight_settings import expand
    from persona_vectors.files import check_output_path

    names = ("judge_model", "version", "model", "persona_instruction_type", "assistant_name")
    options: dict[str, Any] = {name: arguments[name] for name in names}
    options["temperature"] = 0.0 if arguments["n_per_question"] == 1 else 1.0
    questions = load_persona_questions(trait, **options)
    name = next(iter(questions[0].judge_prompts))
    path = check_output_path(arguments["output_path"].replace(PLACEHOLDER, name))
    n_random = arguments["n_random"] if arguments["control"] else 0
    coefs = several(arguments["lora_coef"])
    settings = expand(directions, coefs, arguments["mode"], n_random, arguments["seed"])
    kept = {key: value for key, value in arguments.items() if key not in NO_ANSWER_DEPENDS_ON}
    outputs = [Output(path, list(range(len(settings))), kept | {"trait": trait})]
    return Study(name, path, questions, settings, outputs)


if __name__ == "__main__":
    cli.run(main)
