"""How far a vector can be pushed: the coefficients that keep answers coherent, by layer, confirmed on other questions.

    python -m eval.calibrate --model models/tiny-persona --trait impolite --judge_model models/tiny-judge \
        --vector_file persona_vectors/tiny-persona/impolite_response_avg_diff.pt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from eval.calibration_confirm import Calibration
    from eval.calibration_measure import Work
    from eval.finished_answers import Engine
    from persona_vectors.store import Store


CROSSTALK = ("evil", "impolite", "optimistic", "humorous", "apathetic", "extraversion", "openness")


@dataclass(frozen=True)
class Asked:
    """The arguments of `main`."""

    model: str
    vector_file: str
    trait: str
    judge_model: str | None = None
    layers: list[int] | None = None
    criterion: Literal["coherence", "kl"] | None = None
    min_coherence: float = 75.0
    max_kl: float = 1.0
    crosstalk: list[str] | None = None
    n_per_question: int = 1
    max_tokens: int = 200
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str = "auto"
    engine: Literal["auto", "vllm", "hf"] = "auto"
    numbering: Literal["hidden_states", "block"] = "hidden_states"


def main(
    model: str,
    vector_file: str,
    trait: str,
    judge_model: str | None = None,
    layers: list[int] | None = None,
    criterion: Literal["coherence", "kl"] | None = None,
    min_coherence: float = 75.0,
    max_kl: float = 1.0,
    crosstalk: list[str] | None = None,
    n_per_question: int = 1,
    max_tokens: int = 200,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
    numbering: Literal["hidden_states", "block"] = "hidden_states",
) -> None:
    """Find a vector's layer and the range of coefficients that keeps answers coherent, and write it into its sidecar.

    Half of the trait's eval questions find the range of every layer by bisection, along the vector and against it, and
    the layer whose largest coefficient shows most of the trait. The other half confirm it (41 settings): coherence and
    trait at 1/2, 5/8, 3/4, 7/8 and all of both ends, beside random directions of the same norm, how steerable single
    samples are, how many move the wrong way, and what other traits' judges say of the same answers. The range that is
    written down is the part around 0 in which all of these hold, and the coefficient that is kept is the largest in it
    with an effect: the trait is higher than unsteered and than with each random direction, the 95% intervals by
    question above 1 point. Where there is none, none is kept. Coherence is a mean over questions: single answers may
    lie below. It need not fall steadily, as bisection assumes, so that coefficients between those that were tried may
    lie below, too.

    The sidecar's entry, under calibration, is what persona_steering.py starts with. Finished answers and scores are in
    the store, so the same command again samples nothing.

    Args:
        model: chat model: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        vector_file: .pt of generate_vec.py, .npz of quick_persona_extract.py, or safetensors.
        trait: name of the vector's trait, or path of its trait JSON file.
        judge_model: an OpenAI model, a served model, or a local folder; without one the range is found by token KL, and
            neither trait nor coherence is known.
        layers: hidden_states indices to calibrate; default at most 8 of the file's, evenly apart.
        criterion: coherence (judged, at least min_coherence) or kl (95th percentile of the answers' tokens' KL of the
            steered to the unsteered model, at most max_kl); default coherence where there is a judge.
        min_coherence (0-100): mean over answers; one that the judge could not score counts as 0.
        max_kl: nats.
        crosstalk: other traits whose judges score the confirming answers; default evil, impolite, optimistic, humorous,
            apathetic, extraversion and openness with a local judge, and none where a judge is asked over an API.
        n_per_question: samples of each question; 1 samples at temperature 0, otherwise 1.
        max_tokens: most tokens of an answer.
        seed: of the halves of the questions, the random streams and the random directions.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples: vllm, hf (Hugging Face), or auto: vLLM where it is installed.
        numbering: what a file's own layer numbers count: hidden_states indices, or blocks from 0.
    """
    run(Asked(**locals()))


def run(asked: Asked, engine: Engine | None = None) -> tuple[Calibration, Work]:
    """(what was found, of what) after the tables are printed, and the sidecar's entry and the figure written.

    Args:
        engine: one that is there already, of the same model.
    """
    from eval.engine_choice import settle_engine
    from eval.finished_answers import Engine
    from persona_vectors.store import Store

    if engine is None:
        kind = settle_engine(asked.engine, [asked.model], asked.device_map)
        engine = Engine(asked.model, asked.dtype, asked.device_map, kind=kind)
    with Store() as store:
        work = prepare(asked, engine, store)
        from eval.calibration import calibrate
        from eval.calibration_report import lines, write

        found = calibrate(work, lambda line: print(line, flush=True))
    print("\n" + "\n".join(lines(found, work)))
    print("\n" + "\n".join(write(asked, found, work)))
    return found, work


def prepare(asked: Asked, engine: Engine, store: Store) -> Work:
    """Everything that can be known to be wrong before the model is loaded is a ValueError here."""
    from eval.calibration_measure import Limits, Work
    from eval.questions import load_persona_questions
    from eval.select_layer_choice import split_questions
    from eval.select_layer_settings import check_origin
    from judge import check_judge
    from persona_vectors.models import resolve_model

    if asked.n_per_question < 1 or asked.max_tokens < 1:
        raise ValueError("--n_per_question and --max_tokens must be at least 1")
    if not 0 <= asked.min_coherence <= 100:
        raise ValueError(f"--min_coherence {asked.min_coherence:g}: expected 0-100")
    if not asked.max_kl > 0:
        raise ValueError(f"--max_kl {asked.max_kl:g}: expected nats above 0")
    criterion = asked.criterion or ("kl" if asked.judge_model is None else "coherence")
    if criterion == "coherence" and asked.judge_model is None:
        raise ValueError("--criterion coherence needs a --judge_model; --criterion kl needs none")
    resolve_model(asked.model)
    if asked.judge_model is not None:
        check_judge(asked.judge_model)
    vectors = _vectors(asked)
    questions = load_persona_questions(
        asked.trait,
        temperature=0.0 if asked.n_per_question == 1 else 1.0,
        version="eval",
        model=asked.model,
        **({} if asked.judge_model is None else {"judge_model": asked.judge_model}),
    )
    check_origin(asked.vector_file, asked.model, next(iter(questions[0].judge_prompts)))
    halves = split_questions([question.id for question in questions], asked.seed)
    return Work(
        engine,
        store,
        vectors,
        [questions[i] for i in halves.choose_questions],
        [questions[i] for i in halves.report_questions],
        asked.judge_model,
        Limits(criterion, asked.min_coherence, asked.max_kl),
        asked.n_per_question,
        asked.max_tokens,
        asked.seed,
        _others(asked, next(iter(questions[0].judge_prompts))),
    )


def _vectors(asked: Asked) -> dict:
    """layer -> vector, of the layers asked for."""
    from eval.select_layer_settings import spread_layers
    from persona_vectors.blocks import check_layer
    from persona_vectors.models import load_config, resolve_model
    from persona_vectors.vector_files import read_vector_file

    file, config = read_vector_file(asked.vector_file, asked.numbering), load_config(asked.model)
    n_layers, label = config.num_hidden_layers, resolve_model(asked.model).label
    if file.d_model != config.hidden_size:
        raise ValueError(
            f"{asked.vector_file} has vectors of width {file.d_model}; {label} has {config.hidden_size}: use vectors "
            "made from this model"
        )
    there = [layer for layer in file.layers if 1 <= layer <= n_layers]
    spread = [there[i - 1] for i in spread_layers(len(there))] if there else []
    chosen = sorted(set(asked.layers or spread))
    for layer in chosen:
        check_layer(layer, n_layers, label)
    if (missing := [layer for layer in chosen if layer not in file.vectors]) or not chosen:
        have = ", ".join(map(str, file.layers))
        which = f"layer {', '.join(map(str, missing))}" if chosen else f"layers 1 to {n_layers}"
        raise ValueError(f"{asked.vector_file} has no vector at {which}; it has layers {have}")
    print(file.line)
    return {layer: file.vectors[layer] for layer in chosen}


def _others(asked: Asked, trait: str) -> dict[str, str]:
    """Other trait -> its judge prompt."""
    from judge import is_local_judge
    from persona_vectors.traits import canonical_name, load_trait

    if asked.judge_model is None:
        return {}
    names: Sequence[str] = asked.crosstalk or []
    if asked.crosstalk is None and is_local_judge(asked.judge_model):
        names = CROSSTALK
    loaded = {}
    for name in names:
        if canonical_name(Path(name).stem) != trait:
            other = load_trait(name, "eval", model=asked.model, judge_model=asked.judge_model)
            loaded[other.name] = other.eval_prompt
    return loaded


if __name__ == "__main__":
    cli.run(main)
