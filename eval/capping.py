"""Cap activations along an axis: thresholds from ordinary answers, and what the cap does to role-play and capability.

    python -m eval.capping --model_name models/tiny-persona --judge_model models/tiny-persona --layers 2 3 \
        --vector_path persona_vectors/tiny-persona/assistant_axis.pt --floor_percentile 25 --output_dir results/capping

arXiv 2601.10387.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.questions import DEFAULT_JUDGE
from persona_vectors import cli

if TYPE_CHECKING:
    from eval.capping_measure import Run


def main(
    model_name: str,
    vector_path: str,
    layers: list[int],
    output_dir: str,
    floor_percentile: float | None = None,
    ceiling_percentile: float | None = None,
    positions: Literal["all", "response", "prompt"] = "all",
    calibrate_only: bool = False,
    judge_model: str = DEFAULT_JUDGE,
    personas_path: str | None = None,
    roles: list[str] | None = None,
    oracle: bool = False,
    script: str | None = None,
    tasks: list[str] = ["probe"],  # noqa: B006 (read only; cli shows it)
    limit: int | None = None,
    n_per_question: int = 1,
    n_random: int = 3,
    max_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    overwrite: bool = False,
    engine: Literal["auto", "vllm", "hf"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
) -> None:
    """Cap a model's activations along a vector, and measure what that does beside caps on random directions.

    Every second question is answered by the assistant's own personas (`default...`), uncapped; thresholds are
    percentiles of their tokens' projections h.v/|v|, at each layer. They are written to cap.json, which eval.drift
    --cap and eval.serve --default_steering load. The other questions measure: answers under the roles' system prompts,
    and conversations in which the user leads into a role, judged fully, somewhat or none; and capability. A cap on a
    random direction, at the same percentiles of its own projections, is what capping does by itself.
    Written: cap.json, calibration.csv (the answers behind it), results.csv, answers.csv (to role prompts),
    ordinary.csv, turns.csv, transcripts_<setting>.jsonl (for eval.drift), report.html.

    Args:
        model_name: hub id, model folder or adapter folder.
        vector_path: vectors .pt to cap along; for the assistant axis (roles to assistant) give a floor.
        layers: hidden_states indices to cap, 1 to the number of layers; several at once.
        output_dir: folder for the files; existing ones are replaced.
        floor_percentile (0-100): tokens are kept at least at this percentile of ordinary answers' tokens.
        ceiling_percentile (0-100): and at most at this one; give either or both.
        positions: tokens that are capped: all, response (from the last prompt token on), or prompt.
        calibrate_only: stop after cap.json.
        judge_model: an OpenAI model, a served model (OPENAI_BASE_URL), or a local folder scored in process.
        personas_path: JSON of personas and questions; default the model's own, or the built-in ones.
        roles: personas to be played; default all but the assistant's own.
        oracle: also score role-play by rule, 0 to 100, from the words of models/tiny-persona's language.
        script: JSON list of the user's turns, with {question} and {role}; default six turns, the last four for a role.
        tasks: probe (facts of models/tiny-persona), or names of lm-evaluation-harness (mmlu, ...; extra lm-eval).
        limit: most items of each harness task.
        n_per_question: ordinary answers for each question and default persona.
        n_random: caps on random directions.
        max_tokens: most tokens of an answer.
        temperature: of sampling; 0 is greedy.
        seed: seeds random directions and sampling.
        overwrite: sample and measure anew what the store has.
        engine: what samples: vllm, hf, or auto.
        dtype: precision of the model; auto is the checkpoint's own on CUDA, float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
    """
    arguments = dict(locals())
    run = _check(arguments)

    import pandas as pd

    from eval.capping_measure import measure
    from eval.capping_roles import Asking, calibrated_caps, check_cap, ordinary_answers, tried
    from eval.finished_answers import Engine
    from persona_vectors.capping import save_cap
    from persona_vectors.files import write_csv_atomic, write_sidecar
    from persona_vectors.store import Store

    with Store() as store:
        sampler = Engine(model_name, dtype, device_map, kind=run.kind)
        asking = Asking(max_tokens, temperature, seed, overwrite)
        prompts, answers = ordinary_answers(sampler, store, run.cast, run.calibrating, n_per_question, asking)
        how = {"floor_percentile": floor_percentile, "ceiling_percentile": ceiling_percentile, "positions": positions}
        cap, controls, calibration = calibrated_caps(
            sampler, prompts, answers, Path(vector_path).stem, run.vectors, n_random=n_random, seed=seed, **how
        )
        own = {layer: values[:, 0] for layer, values in calibration.items()}
        record = {**how, "n_answers": len(answers), "seed": seed, "questions": list(run.calibrating)}
        path = save_cap(cap, output_dir, vector_path=vector_path, model_name=model_name, calibration=own, record=record)
        for step in cap.steps:
            print(f"layer {step.layer}: {step.bounds()} from {len(own[step.layer])} tokens of {len(answers)} answers")
        table = pd.DataFrame({"prompt": prompts, "answer": answers})
        write_sidecar(write_csv_atomic(table, path.with_name("calibration.csv")), {"settings": arguments})
        print(f"written to {path}")
        if calibrate_only:
            return
        settings = tried(cap, controls)
        for one in settings[1:]:
            print(check_cap(sampler, prompts[0], one.cap), flush=True)  # pyright: ignore[reportArgumentType]
        study = measure(run, sampler, store, settings, asking, calibration)
    sampler.release()

    from eval.capping_page import write_results

    print("\n".join(write_results(study, run.roles, Path(output_dir), arguments)))


def _check(arguments: Mapping[str, Any]) -> Run:
    """Refuses what can be known to be wrong before any weights are read."""
    from eval.capping_measure import Run
    from eval.capping_roles import check_setting_name, load_script
    from eval.engine_choice import settle_engine
    from eval.model_utils import load_vector_for
    from judge import check_judge
    from persona_vectors.interventions import check_bounds
    from persona_vectors.personas import ASSISTANT_PERSONAS, load_personas

    floor, ceiling = arguments["floor_percentile"], arguments["ceiling_percentile"]
    if floor is None and ceiling is None:
        raise ValueError("a cap needs --floor_percentile, --ceiling_percentile or both; got neither")
    check_bounds(floor, ceiling)
    for flag, value in (("floor_percentile", floor), ("ceiling_percentile", ceiling)):
        if value is not None and not 0 <= value <= 100:
            raise ValueError(f"--{flag} is {value:g}; expected 0 to 100")
    for flag, least in (("n_per_question", 1), ("n_random", 0), ("max_tokens", 1), ("temperature", 0)):
        if arguments[flag] < least:
            raise ValueError(f"--{flag} is {arguments[flag]}; expected at least {least}")
    if Path(arguments["output_dir"]).is_file():
        raise ValueError(f"--output_dir {arguments['output_dir']} is a file; give a folder")
    check_setting_name(Path(arguments["vector_path"]).stem, arguments["n_random"])
    model, layers = arguments["model_name"], list(dict.fromkeys(arguments["layers"]))
    vectors = {layer: load_vector_for(model, arguments["vector_path"], layer) for layer in sorted(layers)}
    cast = load_personas(model, arguments["personas_path"])
    playable = [name for name in cast.personas if name not in ASSISTANT_PERSONAS]
    roles = playable if arguments["roles"] is None else list(dict.fromkeys(arguments["roles"]))
    unknown = sorted(set(roles) - set(playable))
    if unknown or not roles:
        raise ValueError(f"--roles {', '.join(unknown) or 'names nobody'}: expected some of {', '.join(playable)}")
    if arguments["oracle"]:
        from data_generation.tiny_persona.oracle import persona_score

        for role in roles:
            persona_score("", role)
    script = load_script(arguments["script"])
    if len(cast.questions) < 2:
        raise ValueError(
            f"{cast.source} has {len(cast.questions)} question; calibrating and measuring need two or more"
        )
    if not arguments["calibrate_only"]:
        check_judge(arguments["judge_model"])
    leaves = _harness_tasks(arguments)
    kind = settle_engine(arguments["engine"], [model], arguments["device_map"])
    return Run(cast, roles, list(cast.questions), vectors, script, leaves, kind, arguments)


def _harness_tasks(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    from eval.capability_table import PROBE

    names = [name for name in arguments["tasks"] if name != PROBE]
    if not names:
        if arguments["limit"] is not None:
            raise ValueError("--limit is for tasks of lm-evaluation-harness; --tasks names none")
        return {}
    if arguments["positions"] != "all":
        raise ValueError(f"--tasks {' '.join(names)} can be read under --positions all only")
    from eval.capability_identity import identified
    from eval.capability_tasks import load_tasks
    from eval.capping_measure import harness_options

    return identified(load_tasks(names, None, "all"), harness_options(arguments))


if __name__ == "__main__":
    cli.run(main, aliases={"model": "model_name", "layer": "layers"})
