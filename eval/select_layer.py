"""At which layer to steer: the trait at matched coherence on questions that took no part in the choice.

    python -m eval.select_layer --model models/tiny-persona --trait impolite --judge_model models/tiny-judge \
        --vector_path persona_vectors/tiny-persona/impolite_response_avg_diff.pt --output_dir results/select_layer
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eval.questions import DEFAULT_JUDGE
from persona_vectors import cli

if TYPE_CHECKING:
    from eval.questions import Question
    from eval.select_layer_choice import Selection
    from eval.select_layer_settings import Setting
    from judge import JudgeOptions


@dataclass(frozen=True)
class Asked:
    """The arguments of `main`."""

    model: str
    trait: str
    vector_path: str
    output_dir: str
    judge_model: str
    layers: list[int] | None
    coefs: list[float]
    min_coherence: float
    n_per_question: int
    max_tokens: int
    n_random: int
    incremental: bool
    steering_type: Literal["prompt", "response", "all"]
    seed: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device_map: str
    engine: Literal["auto", "vllm", "hf"]
    max_concurrent_judges: int
    judge_mode: Literal["auto", "logprobs", "text"]
    write_sidecar: bool


def main(
    model: str,
    trait: str,
    vector_path: str,
    output_dir: str,
    judge_model: str = DEFAULT_JUDGE,
    layers: list[int] | None = None,
    coefs: list[float] = [0.5, 1, 1.5, 2, 2.5],  # noqa: B006 (read only; cli shows it)
    min_coherence: float = 75.0,
    n_per_question: int = 2,
    max_tokens: int = 1000,
    n_random: int = 4,
    incremental: bool = True,
    steering_type: Literal["prompt", "response", "all"] = "response",
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
    max_concurrent_judges: int = 100,
    judge_mode: Literal["auto", "logprobs", "text"] = "auto",
    write_sidecar: bool = True,
) -> None:
    """Find the layer at which a vector raises its trait most while answers stay coherent, or say that none does.

    Each layer's vector is added by each coefficient, and a layer counts by its highest mean trait among coefficients
    with mean coherence >= min_coherence, so that layers whose vectors differ in length can be compared. Beside it stand
    random directions of the same norms, and increments at all layers at once: v_L - v_(L-1) at every layer L, which sum
    to v_n - v_0. The highest of many means is flattered, so half of the trait's eval questions choose layer and
    coefficient, and every value that is reported is of the other half. A layer is recommended if its difference to the
    highest of the unsteered answers and of all random directions, at any of the layers, lies above 0 with its whole 95%
    interval.

    The recommendation goes into the vector's sidecar, under layer_selection. Answers and scores come from the store, so
    the same command again samples nothing.

    Args:
        model: chat model: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        trait: name of a trait (evil, sycophantic, ...) or path of a trait JSON file.
        vector_path: vectors .pt of generate_vec.py, of this trait and model.
        output_dir: folder for selection.csv, answers.csv, selection.png and report.html; what an earlier selection
            wrote there is replaced.
        judge_model: an OpenAI model, a served model, or a local folder or hub id scored in process.
        layers: hidden_states indices, 1 to the number of layers; default 8 of them, evenly apart.
        coefs: above 0, in units of the vector at the layer.
        min_coherence (0-100): a coefficient counts if the mean coherence of its answers is at least this.
        n_per_question: samples of each question under each setting; 1 samples at temperature 0, otherwise 1.
        max_tokens: most tokens of an answer.
        n_random: random directions beside each layer, and beside the increments.
        incremental: also steer all layers at once by increments; --noincremental leaves this out.
        steering_type: which tokens are steered: the prompt's, the response's (from the last prompt token on), or all.
        seed: seeds every row's own random stream, the halves of the questions, the random directions and the bootstrap.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples: vllm, hf (Hugging Face), or auto: vLLM where it is installed and can do all of this.
        max_concurrent_judges: judge calls in flight at once.
        judge_mode: how an API judge is asked: log-probabilities, or text where a provider has none.
        write_sidecar: write the recommendation into the vector's sidecar; --nowrite_sidecar leaves the sidecar alone.
    """
    asked = Asked(**locals())
    name, selection, notes = find(asked)
    from eval.select_layer_report import sentences, table_lines

    print(f"\n{name} of {model} by layer: judge scores, 95% intervals by question\n")
    print("\n".join(table_lines(selection, name)))
    print("\nWhat was found")
    for sentence in [*sentences(selection, name, asked), *notes]:
        print(f"- {sentence}")
    print(f"\nReport, with figures and answers: {Path(output_dir) / 'report.html'}")


def find(asked: Asked) -> tuple[str, Selection, list[str]]:
    """(the trait's name, the selection, what a reader must know beside it), after everything is written.

    Raises:
        ValueError: one line, before the model is loaded, for whatever can be known to be wrong.
    """
    from eval.engine_choice import settle_engine

    kind = settle_engine(asked.engine, [asked.model], asked.device_map)
    asked = replace(asked, engine=kind)
    name, questions, settings, options = check(asked)
    from eval.finished_answers import Engine
    from eval.select_layer_answers import score_settings
    from eval.select_layer_choice import Scores, select
    from eval.select_layer_page import write_files
    from eval.select_layer_report import notes_of, remember

    scored = score_settings(
        Engine(asked.model, asked.dtype, asked.device_map, kind=kind),
        questions,
        settings,
        n_per_question=asked.n_per_question,
        max_tokens=asked.max_tokens,
        seed=asked.seed,
        options=options,
    )
    scores = Scores(settings, scored.trait, scored.coherence, scored.questions)
    selection = select(scores, asked.min_coherence, asked.seed)
    notes = notes_of(asked, scored, selection)
    write_files(asked, name, scored, selection, notes)
    if asked.write_sidecar:
        notes.append(remember(asked, name, selection))
    return name, selection, notes


def check(asked: Asked) -> tuple[str, list[Question], list[Setting], JudgeOptions]:
    """(the trait's name, its eval questions, what is sampled, how the judge is asked); a ValueError for a mistake."""
    from eval.questions import load_persona_questions
    from eval.select_layer_choice import split_questions
    from eval.select_layer_settings import check_lists, check_origin, expand, spread_layers
    from eval.sweep import several
    from judge import JudgeOptions, check_judge
    from persona_vectors.files import check_output_path
    from persona_vectors.models import load_config, resolve_model

    _check_numbers(asked)
    resolve_model(asked.model)
    coefs = sorted(float(coef) for coef in several(asked.coefs))
    layers = sorted(several(asked.layers)) or spread_layers(load_config(asked.model).num_hidden_layers)
    check_lists(layers, coefs, asked.model)
    check_output_path(Path(asked.output_dir) / "report.html")
    options = JudgeOptions(asked.judge_mode, max_concurrent=asked.max_concurrent_judges)
    check_judge(asked.judge_model, options)
    questions = load_persona_questions(
        asked.trait,
        temperature=0.0 if asked.n_per_question == 1 else 1.0,
        judge_model=asked.judge_model,
        version="eval",
        model=asked.model,
    )
    split_questions([question.id for question in questions], asked.seed)
    name = next(iter(questions[0].judge_prompts))
    settings = expand(
        asked.model,
        name,
        asked.vector_path,
        layers=layers,
        coefs=coefs,
        incremental=asked.incremental,
        n_random=asked.n_random,
        seed=asked.seed,
        positions=asked.steering_type,
    )
    check_origin(asked.vector_path, asked.model, name)
    return name, questions, settings, options


def _check_numbers(asked: Asked) -> None:
    if min(asked.n_per_question, asked.max_tokens, asked.max_concurrent_judges) < 1:
        raise ValueError("--n_per_question, --max_tokens and --max_concurrent_judges must be at least 1")
    if asked.n_random < 1:
        raise ValueError(f"--n_random must be at least 1, a layer is compared with them; got {asked.n_random}")
    if not 0 <= asked.min_coherence <= 100:
        raise ValueError(f"--min_coherence must lie between 0 and 100; got {asked.min_coherence:g}")


if __name__ == "__main__":
    cli.run(main)
