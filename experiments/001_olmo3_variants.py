"""The same answers, read by variants of one model: where each puts the personas.

    python experiments/001_olmo3_variants.py
    python experiments/001_olmo3_variants.py --name tiny --responses_from base \
        --models base=models/tiny-persona tuned=ckpt/tiny-persona/evil

The first reads OLMo 3 7B as Base, Instruct, Think and RL-Zero, the second a small model and its finetune, offline.
One variant answers every question as every persona; all variants read those same answers in the raw format, so that
what differs is how they represent them, not what they say. `--steered` adds a vector to one of them while it reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from persona_vectors import cli

OLMO3 = [
    "Base=allenai/Olmo-3-1025-7B",
    "Instruct=allenai/Olmo-3-7B-Instruct",
    "Think=allenai/Olmo-3-7B-Think",
    "RL-Zero=allenai/Olmo-3-7B-RL-Zero-Math",
]
AT_OPENROUTER = {"allenai/Olmo-3-7B-Instruct": "allenai/olmo-3-7b-instruct"}


def main(
    models: list[str] = OLMO3,  # noqa: B006 (never changed)
    responses_from: str = "Instruct",
    name: str = "olmo3_variants",
    openrouter_model: str | None = None,
    sample_locally: bool = False,
    personas: list[str] | None = None,
    n_questions: int | None = None,
    layer: int | None = None,
    prompt_format: Literal["raw", "chat"] = "raw",
    steered: str | None = None,
    vector_path: str | None = None,
    steer_layer: int | None = None,
    coef: float = 1.0,
    max_tokens: int = 256,
    temperature: float = 0.7,
    seed: int = 0,
    dtype: str = "auto",
    centre: Literal["joint", "model"] = "joint",
    data_dir: str = "data",
    images_dir: str = "images",
    overwrite: bool = False,
) -> None:
    """Persona vectors of several variants on the same answers: figures of each, of each pair, of all, and numbers.

    Writes data/responses/<name>_<variant>.json, data/persona_vectors/<name>_<variant>_layer<L>.pt with a list of them
    in <name>_files.json, and figures and results.json in images/<name>/. What is finished is not done again.

    Args:
        models: name=path of each variant; a path is a hub id, a model folder or an adapter folder.
        responses_from: the variant that answers, by its name. A model folder answers in this process, a hub model over
            OpenRouter (OPENROUTER_API_KEY) or the server at OPENAI_BASE_URL.
        name: of the experiment, in file names.
        openrouter_model: the answering model's name at the API, where it differs from its hub id.
        sample_locally: let a hub model answer in this process.
        personas: only these, by name; all of the answering model's by default.
        n_questions: only the first so many.
        layer: hidden_states index at which activations are read; 65% of the model's depth by default.
        prompt_format: how prompts are written where activations are read.
        steered: the variant, by its name, that reads with a vector added at every token.
        vector_path: the vector to add, (n_layers + 1, d_model).
        steer_layer: hidden_states index at which it is added; by default the layer that is read.
        coef: what it is multiplied by.
        max_tokens: most tokens of an answer.
        temperature: of the answers.
        seed: of the answers and of the statistics.
        dtype: of the weights; auto, float32, bfloat16 or float16.
        centre: how pairs are centred; joint takes off the mean of both, model each model's own.
        data_dir: folder of answers and vectors.
        images_dir: folder of figures.
        overwrite: sample and read everything anew.
    """
    from eval.model_variants import make_variant, parse_variants, read_variant
    from eval.variant_answers import answers_of, chosen_people
    from eval.variant_figures import draw, load_saved, measure, remember, table, write_findings
    from persona_vectors.config import PersonaVectorConfig

    paths = parse_variants(models)
    for wanted, flag in ((responses_from, "responses_from"), (steered, "steered")):
        if wanted is not None and wanted not in paths:
            raise ValueError(f"--{flag} {wanted} is none of the models {', '.join(paths)}")
    if (steered is None) != (vector_path is None):
        raise ValueError("--steered names the variant and --vector_path what is added to it: give both or neither")
    variants = [
        make_variant(
            label,
            PersonaVectorConfig(path, prompt_format=prompt_format),
            layer,
            (vector_path, steer_layer, coef) if vector_path is not None and label == steered else None,
        )
        for label, path in paths.items()
    ]
    people = chosen_people(paths[responses_from], personas, n_questions)

    api_name = openrouter_model or AT_OPENROUTER.get(paths[responses_from])
    asked = PersonaVectorConfig(paths[responses_from], api_name, max_tokens=max_tokens, temperature=temperature)
    said = Path(data_dir) / "responses" / f"{name}_{responses_from}.json"
    responses = answers_of(asked, people, said, seed=seed, sample_locally=sample_locally, overwrite=overwrite)
    print(f"{len(responses)} answers of {responses_from}: {said}")

    saved = []
    for variant in variants:
        folder = Path(data_dir) / "persona_vectors"
        path, read = read_variant(variant, people, responses, folder, name, dtype=dtype, overwrite=overwrite)
        print(f"{variant.name}: {'read' if read else 'was read before'}: {path}")
        saved.append(load_saved(variant.name, path))
    remember(saved, Path(data_dir), name)

    folder = Path(images_dir) / name
    findings = measure(saved, seed)
    figures = draw(saved, folder, name, centre)
    results = write_findings(findings, folder / "results.json", saved)
    print("\n".join(["", *table(findings), "", f"{len(figures)} figures in {folder}, numbers in {results}"]))


if __name__ == "__main__":
    cli.run(main)
