"""Writes data/test_fixtures: answers of the embedded model's personas, and their vectors at its extraction layer.

    python -m data_generation.tiny_persona.write_persona_fixtures

The answers are of another seed than those of `python example.py`, so that the two sets of vectors can be compared.
"""

import argparse
from pathlib import Path

from persona_vectors import (
    ActivationExtractor,
    PersonaVectorConfig,
    extract_persona_vectors,
    generate_responses,
    load_personas,
    save_persona_vectors,
    save_responses,
)

SEED = 1
N_QUESTIONS = 12  # of the model's 18, so that the file stays small


def write_fixtures(model: str, folder: Path) -> list[Path]:
    """The paths written: responses_cache.json and persona_vectors_layer<L>.pt, each with its sidecar."""
    config, cast = PersonaVectorConfig(model_name=model), load_personas(model)
    questions = cast.questions[:N_QUESTIONS]
    extractor = ActivationExtractor(config)
    responses = generate_responses(cast.personas, questions, config, extractor=extractor, seed=SEED)
    layer = extractor.get_extraction_layer()
    vectors = extract_persona_vectors(extractor, cast.personas, questions, responses, layer)
    record = {"model": model, "personas": cast.source, "seed": SEED}
    return [
        save_responses(responses, folder / "responses_cache.json", record),
        save_persona_vectors(vectors, folder / f"persona_vectors_layer{layer}.pt", {**record, "layer": layer}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the fixtures of tests/test_persona_vectors.py.")
    parser.add_argument("--model", default="models/tiny-persona")
    parser.add_argument("--folder", type=Path, default=Path("data/test_fixtures"), help="where they go")
    arguments = parser.parse_args()
    print("wrote " + ", ".join(map(str, write_fixtures(arguments.model, arguments.folder))))


if __name__ == "__main__":
    main()
