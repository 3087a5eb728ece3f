"""The answers that all variants of a model read: of one of them, from a file where it has them already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from persona_vectors.cli import Unfinished
from persona_vectors.config import PersonaVectorConfig
from persona_vectors.files import read_sidecar
from persona_vectors.models import fingerprint
from persona_vectors.persona_extraction import ActivationExtractor
from persona_vectors.persona_files import Place, load_responses, save_responses
from persona_vectors.persona_responses import ResponsesError, answers_locally, generate_responses
from persona_vectors.personas import PersonaSet, load_personas
from persona_vectors.store import content_key


def chosen_people(model: str, personas: Sequence[str] | None, n_questions: int | None) -> PersonaSet:
    """The model's personas and questions, or those of them that are wanted.

    Raises:
        ValueError: a persona that is not there, or more questions than there are.
    """
    people = load_personas(model)
    if unknown := [name for name in personas or () if name not in people.personas]:
        raise ValueError(f"--personas {', '.join(unknown)}: expected some of {', '.join(people.personas)}")
    if n_questions is not None and not 1 <= n_questions <= len(people.questions):
        raise ValueError(f"--n_questions {n_questions}: expected 1 to {len(people.questions)}")
    wanted = people.personas if personas is None else {name: people.personas[name] for name in personas}
    roles = {name: role for name, role in people.roles.items() if name in wanted}
    return replace(people, personas=dict(wanted), questions=people.questions[:n_questions], roles=roles)


def answers_of(
    config: PersonaVectorConfig,
    people: PersonaSet,
    path: Path,
    *,
    seed: int = 0,
    sample_locally: bool = False,
    overwrite: bool = False,
) -> dict[Place, str]:
    """(persona, question) -> answer, from `path` if it was written for just this, else asked for and written there.

    Raises:
        Unfinished: calls that failed; what came is kept for the next run.
        ValueError: as `persona_responses.generate_responses`.
    """
    local = sample_locally or answers_locally(config)
    key = content_key(
        "variant_answers",
        model=fingerprint(config.model_name) if local else config.answering_model,
        people=people.hash,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=seed,
    )
    if not overwrite and path.is_file() and read_sidecar(path).get("key") == key:
        return load_responses(path)
    extractor = ActivationExtractor(config) if sample_locally else None
    try:
        responses = generate_responses(
            people.personas, people.questions, config, extractor=extractor, seed=seed, overwrite=overwrite
        )
    except ResponsesError as error:
        raise Unfinished(str(error)) from None
    save_responses(responses, path, {"key": key, "model": config.answering_model, "seed": seed})
    return responses
