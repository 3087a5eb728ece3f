"""Sample a chat model whose weights carry a persona, `W + coef * D`, and score the answers with a judge.

    python eval_lora_persona.py --model models/tiny-persona --judge_model models/tiny-persona --trait evil \
        --lora_diff_path persona_loras/tiny-persona/evil/evil_lora_diff --lora_coef -1 0 0.5 1 --control random \
        --output_path eval_persona_eval/tiny-persona/evil_lora.csv

The questions, random streams, judge, store and table are those of `python -m eval.eval_persona`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from eval.questions import DEFAULT_JUDGE, load_persona_questions
from persona_vectors import cli

if TYPE_CHECKING:
    from eval.sweep import Setting
    from persona_vectors.weight_direction import WeightDirection


def main(
    model: str,
    trait: str,
    output_path: str,
    lora_diff_path: str | list[str],
    lora_coef: float | list[float] = 0.0,
    mode: Literal["dynamic", "pre_merge"] = "dynamic",
    compose: bool = False,
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
) -> None:
    """Sample answers with a direction of weights at each coefficient, score them, and write the table.

    Args:
        model: chat model: hub id, model folder, adapter folder, or training folder.
        trait: name of a trait, or the path of a trait JSON file.
        output_path: CSV to write: question, prompt, answer, question_id, <trait>, coherence; several settings add coef,
            layer, vector, control. A sidecar .json stands beside it.
        lora_diff_path: directions: adapter folders or .pt files of extract_persona_lora.py. Each is run by itself.
        lora_coef: coefficients of the direction; > 0 moves towards the trait, 0 leaves the weights alone.
        mode: dynamic runs D beside the weights, all coefficients in one batch; pre_merge adds it to the weights, one
            coefficient after the other, and restores them bit for bit.
        compose: all directions at once, each at the same coefficient.
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
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    from eval.eval_persona import _check_numbers, _check_scores, _check_system_prompt, _report
    from eval.sweep import Grid, Output, Study, check_once, several
    from eval.sweep_files import NO_ANSWER_DEPENDS_ON, check_outputs, refuse_other_settings, sidecar_records
    from judge import JudgeOptions, check_judge
    from persona_vectors.files import check_output_path
    from persona_vectors.models import resolve_model

    paths, coefs = several(lora_diff_path), several(lora_coef)
    check_once("lora_diff_path", paths)
    check_once("lora_coef", coefs)
    _check_numbers(n_per_question, max_tokens, max_concurrent_judges, min_coherence)
    _check_system_prompt(assistant_name, persona_instruction_type, Grid(coefs, (), ()))
    if n_random < 1:
        raise ValueError(f"--n_random must be at least 1; got {n_random}")
    resolve_model(model)
    judge = JudgeOptions(max_concurrent=max_concurrent_judges)
    asked: dict[str, Any] = {"judge_model": judge_model, "version": version, "model": model}
    asked |= {"persona_instruction_type": persona_instruction_type, "assistant_name": assistant_name}
    questions = load_persona_questions(trait, temperature=0.0 if n_per_question == 1 else 1.0, **asked)
    name = next(iter(questions[0].judge_prompts))
    path = check_output_path(output_path)
    settings = expand(model, paths, coefs, mode, compose, n_random if control else 0, seed)
    check_judge(judge_model, judge)
    kept = {key: value for key, value in arguments.items() if key not in NO_ANSWER_DEPENDS_ON}
    study = Study(name, path, questions, settings, [Output(path, list(range(len(settings))), kept)])
    check_outputs(study.outputs, paths)
    records = sidecar_records([study], model, judge_model)
    if not overwrite:
        refuse_other_settings(study.outputs, records[0])

    from eval.finished_answers import Engine
    from eval.sweep_answers import Sampling, answered
    from eval.sweep_files import write_study
    from eval.sweep_receipts import Receipts
    from persona_vectors.store import Store

    engine = Engine(model, dtype, device_map)
    how = Sampling(n_per_question, max_tokens, seed, overwrite, judge=judge)
    with Store() as store:
        receipts = Receipts(engine, store, [study])
        found = answered(engine, store, [study], how)
    findings = write_study(study, records[0], found[0], receipts, min_coherence)
    _report(study, found[0], findings)
    _check_scores([study], found)


def expand(
    model: str, paths: Sequence[str], coefs: Sequence[float], mode: Any, compose: bool, n_random: int, seed: int
) -> list[Setting]:
    """Every setting once: unsteered (coef 0), then each direction, or all of them as one, and its random controls.

    Raises:
        ValueError: no direction there, another model's, a coefficient that is not finite.
    """
    import math
    import zlib

    from eval.compare_settings import check_fits
    from eval.model_utils import WeightSteering
    from eval.sweep import Setting
    from lora_utils import as_direction
    from persona_vectors.weight_direction import combine, random_like

    if wrong := [coef for coef in coefs if not math.isfinite(coef)]:
        raise ValueError(f"--lora_coef {wrong[0]} is not a finite number")
    directions: dict[str, WeightDirection] = {path: as_direction(path) for path in paths}
    for direction in directions.values():
        check_fits(model, direction)
    if compose and len(directions) > 1:
        directions = {" + ".join(directions): combine([(one, 1.0) for one in directions.values()])}
    found = [Setting()] if 0 in coefs else []
    pushes = [float(coef) for coef in coefs if coef]
    for path, direction in directions.items():
        found += [Setting(c, None, path, steering=WeightSteering(direction, c, mode)) for c in pushes]
        for number in range(1, n_random + 1):
            random = random_like(direction, zlib.crc32(f"{path} {number} {seed}".encode()))
            for c in pushes:
                steering = WeightSteering(random, c, mode)
                found.append(Setting(c, None, control=f"random{number}", matched=path, steering=steering))
    return found


if __name__ == "__main__":
    cli.run(main)
