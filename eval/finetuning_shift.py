"""Does a model's shift along a trait's vector say how much of the trait finetuning put in? Many finetunes of one base.

    python -m eval.finetuning_shift --base models/tiny-persona --finetuned runs/evil_0 runs/evil_1 runs/humorous_0 \
        --traits evil humorous --vector_path "persona_vectors/tiny-persona/{trait}_response_avg_diff.pt" --layer 3 \
        --judge_model models/tiny-judge --output_dir results/finetuning_shift

It reads and does not train: `python training.py CONFIG` makes each model first. arXiv 2507.21509, section 4.2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.questions import DEFAULT_JUDGE, Question, load_persona_questions
from persona_vectors import cli

if TYPE_CHECKING:
    from torch import Tensor

    from eval.finetuning_shift_models import Finetune
    from eval.finetuning_shift_rows import Comparison


@dataclass(frozen=True)
class Asked:
    """The arguments of `main`."""

    base: str
    finetuned: list[str]
    traits: list[str]
    vector_path: str
    layer: list[int]
    output_dir: str
    judge_model: str
    n_per_question: int
    max_tokens: int
    group_by_data: bool
    group_pattern: str | None
    seed: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device_map: str
    engine: Literal["auto", "vllm", "hf"]


def main(
    base: str,
    finetuned: list[str],
    traits: list[str],
    vector_path: str,
    layer: list[int],
    output_dir: str,
    judge_model: str = DEFAULT_JUDGE,
    n_per_question: int = 10,
    max_tokens: int = 1000,
    group_by_data: bool = True,
    group_pattern: str | None = None,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
) -> None:
    """Correlate how far finetuning moved models along traits' vectors with how much of the traits they show.

    Every model answers every trait's eval questions without a system prompt; a judge scores the answers. A finetuned
    model's shift is its mean activation minus the base model's, projected on v / |v|: at the last prompt token, and
    over the answers. Each trait's score is correlated over the finetuned models with the shift along its own vector and
    along the other traits' vectors, all read on that trait's questions, and always beside 1,000 random directions on
    the same activations. Answers, scores and mean activations come from the store, so the same command again does
    nothing twice.

    Args:
        base: the model that the others were finetuned from: hub id or model folder.
        finetuned: adapters, checkpoints, models or training runs; a folder that holds training runs stands for all of
            them. Correlations need three.
        traits: names of traits (evil, sycophantic, ...) or paths of trait JSON files.
        vector_path: vectors .pt of generate_vec.py; {trait} stands for each trait's name.
        layer: hidden_states indices at which activations are read and projected.
        output_dir: folder for shifts.csv, correlations.csv, answers.csv, scatter.png and report.html.
        judge_model: an OpenAI model, a served model, or a local folder or hub id scored in process.
        n_per_question: samples of each question; 1 samples at temperature 0, otherwise 1.
        max_tokens: most tokens of an answer.
        group_by_data: resample runs of the same training files together, as training.json names them.
        group_pattern: a regular expression instead: what it finds in a model's name (its first group, or all of it) is
            what the model is resampled with.
        seed: seeds every answer's own random stream, and the bootstrap.
        dtype: numbers the models compute in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples: vllm, hf (Hugging Face), or auto: vLLM where it is installed and can do all of this; one
            for all models. Activations are read with Hugging Face in any case.
    """
    comparison = compare(Asked(**locals()))
    from eval.finetuning_shift_findings import overview, sentences
    from eval.finetuning_shift_models import cluster_line
    from eval.finetuning_shift_rows import OWN_COLUMNS, own_cells
    from eval.text_table import aligned

    print(f"\nShift along a trait's vector against its score, over models finetuned from {base}")
    print(f"{cluster_line(comparison.finetunes, group_pattern)}\n")
    print("\n".join(aligned([list(OWN_COLUMNS), *own_cells(comparison)])))
    print("\nWhat was found")
    for sentence in [*overview(comparison), *sentences(comparison), *comparison.notes]:
        print(f"- {sentence}")
    print(f"\nReport, with figures and answers side by side: {Path(output_dir) / 'report.html'}")


def compare(asked: Asked) -> Comparison:
    """The comparison, after its tables, figure and page are written.

    Raises:
        ValueError: one line, before any model is loaded, for whatever can be known to be wrong.
    """
    finetunes, questions, vectors = check(asked)
    from eval.engine_choice import settle_engine
    from eval.finetuning_shift_measure import Sampling, measure
    from eval.finetuning_shift_page import write_results
    from eval.finetuning_shift_rows import Comparison, correlated
    from persona_vectors.store import Store

    names = [asked.base, *(one.name for one in finetunes)]
    kind = settle_engine(asked.engine, names, asked.device_map)
    asked = replace(asked, engine=kind)
    how = Sampling(asked.n_per_question, asked.max_tokens, asked.seed, asked.dtype, asked.device_map, kind)
    with Store() as store:
        measured = measure(names, questions, asked.layer, how, store)
    found = Comparison(
        base=asked.base,
        judge=asked.judge_model,
        layers=asked.layer,
        vectors=vectors,
        finetunes=finetunes,
        measured=measured,
        settings=asdict(asked),
    )
    found = replace(
        found, found=correlated(found, asked.seed), notes=_notes(asked, found), sources=_sources(asked, found)
    )
    write_results(found, Path(asked.output_dir))
    return found


def check(asked: Asked) -> tuple[list[Finetune], dict[str, list[Question]], dict[str, Tensor]]:
    """(the finetuned models, questions by trait, vectors by trait); a ValueError for whatever is wrong."""
    from eval.finetuning_shift_models import find_finetunes
    from eval.sweep import check_once
    from judge import check_judge
    from persona_vectors.files import check_output_path
    from persona_vectors.models import resolve_model

    if min(asked.n_per_question, asked.max_tokens) < 1:
        raise ValueError("--n_per_question and --max_tokens must be at least 1")
    if not asked.layer or not asked.traits:
        raise ValueError("--layer and --traits need at least one value each")
    check_once("layer", asked.layer)
    check_output_path(Path(asked.output_dir) / "report.html")
    check_judge(asked.judge_model)
    resolve_model(asked.base)
    questions = _questions(asked)
    vectors = _vectors(asked, list(questions))
    finetunes = find_finetunes(
        asked.base, asked.finetuned, group_by_data=asked.group_by_data, group_pattern=asked.group_pattern
    )
    return finetunes, questions, vectors


def _questions(asked: Asked) -> dict[str, list[Question]]:
    """Trait -> its eval questions as every model is asked them: those of the base, whoever answers."""
    from eval.sweep import check_once

    temperature = 0.0 if asked.n_per_question == 1 else 1.0
    loaded = [
        load_persona_questions(
            trait, temperature=temperature, judge_model=asked.judge_model, version="eval", model=asked.base
        )
        for trait in asked.traits
    ]
    names = [next(iter(own[0].judge_prompts)) for own in loaded]
    check_once("traits", names)
    return dict(zip(names, loaded, strict=True))


def _vectors(asked: Asked, traits: list[str]) -> dict[str, Tensor]:
    """Trait -> (n_layers + 1, d_model), checked against the base's config, and that they are of the trait."""
    from eval.sweep import PLACEHOLDER
    from persona_vectors.blocks import check_layer
    from persona_vectors.files import read_sidecar
    from persona_vectors.models import load_config, resolve_model
    from persona_vectors.vectors import load_vector, load_vectors

    if len(traits) > 1 and PLACEHOLDER not in asked.vector_path:
        raise ValueError(
            f"{len(traits)} traits need {PLACEHOLDER} in --vector_path, since each has a vector of its own; got "
            f"{asked.vector_path}"
        )
    config, label = load_config(asked.base), resolve_model(asked.base).label
    wanted = (config.num_hidden_layers + 1, config.hidden_size)
    for layer in asked.layer:
        check_layer(layer, config.num_hidden_layers, label, steering=False)
    found = {}
    for trait in traits:
        path = asked.vector_path.replace(PLACEHOLDER, trait)
        found[trait] = load_vectors(path)
        if tuple(found[trait].shape) != wanted:
            raise ValueError(
                f"{path} has vectors of shape {tuple(found[trait].shape)}; {label} needs {wanted}: use vectors made "
                "from this model"
            )
        for layer in asked.layer:
            load_vector(path, layer)
        made_for = read_sidecar(path).get("trait")
        if made_for is not None and made_for != trait:
            raise ValueError(f"{path} is a vector of {made_for}, not of {trait}; give --vector_path with {PLACEHOLDER}")
    return found


def _sources(asked: Asked, found: Comparison) -> dict[str, Any]:
    """What is in the files behind the numbers, by hash, and what each model is resampled with."""
    from eval.finished_scores import judge_identity
    from eval.sweep import PLACEHOLDER
    from persona_vectors.files import sha256_of_file
    from persona_vectors.models import fingerprint

    paths = [asked.vector_path.replace(PLACEHOLDER, trait) for trait in found.traits]
    return {
        "base_fingerprint": fingerprint(asked.base),
        "judge": judge_identity(asked.judge_model),
        "vectors": {path: sha256_of_file(path) for path in paths},
        "models": {
            one.label: {"path": one.name, "group": one.cluster, "fingerprint": fingerprint(one.name)}
            for one in found.finetunes
        },
    }


def _notes(asked: Asked, found: Comparison) -> list[str]:
    """What a reader must know beside the numbers."""
    from eval import finetuning_shift_findings as findings
    from eval.finetuning_shift_models import origin_notes
    from eval.sweep import PLACEHOLDER
    from persona_vectors.training_vectors import vector_record

    notes = [*findings.notes(found), *origin_notes(asked.base, found.finetunes)]
    for trait in found.traits:
        path = asked.vector_path.replace(PLACEHOLDER, trait)
        record = vector_record(path, asked.base)
        if record["same_model"] is False:
            notes.append(f"{path} was made from {record['made_from']}, not from {asked.base} as it is now.")
    if asked.judge_model == asked.base:
        notes.append("The judge is the base model itself, so read the answers too.")
    return notes


if __name__ == "__main__":
    cli.run(main)
