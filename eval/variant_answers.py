"""The answers that all variants of a model read: of one of them, from a file where it has them already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.cached_files import is_finished
from persona_vectors.axis import present_assistants
from persona_vectors.axis_statistics import check_roles
from persona_vectors.cli import Unfinished
from persona_vectors.config import PersonaVectorConfig
from persona_vectors.files import check_sidecar
from persona_vectors.models import fingerprint
from persona_vectors.persona_extraction import ActivationExtractor, answered, hub_token
from persona_vectors.persona_files import Place, load_responses, save_responses
from persona_vectors.persona_responses import ResponsesError, answers_locally, generate_responses
from persona_vectors.personas import ASSISTANT_PERSONAS, PersonaSet, load_personas
from persona_vectors.store import content_key


def chosen_people(model: str, personas: Sequence[str] | None, n_questions: int | None) -> PersonaSet:
    """The model's personas and questions, or those of them that are wanted.

    Raises:
        ValueError: a persona that is not there, more questions than there are, no assistant persona, or too few others.
    """
    people = load_personas(model)
    if unknown := [name for name in personas or () if name not in people.personas]:
        raise ValueError(f"--personas {', '.join(unknown)}: expected some of {', '.join(people.personas)}")
    if n_questions is not None and not 1 <= n_questions <= len(people.questions):
        raise ValueError(f"--n_questions {n_questions}: expected 1 to {len(people.questions)}")
    wanted = people.personas if personas is None else {name: people.personas[name] for name in personas}
    if not (assistants := present_assistants(list(wanted))):
        raise ValueError(f"no assistant persona among {', '.join(wanted)}; expected one of {ASSISTANT_PERSONAS}")
    check_roles(list(wanted), assistants)
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
        ValueError: as `persona_responses.generate_responses`, an answer that is blank, or a JSON file of something else
            where the sidecar goes.
    """
    check_sidecar(path)
    local = sample_locally or answers_locally(config)
    with hub_token(config.hf_token):
        model = fingerprint(config.model_name) if local else config.answering_model
    key = content_key(
        "variant_answers",
        model=model,
        people=people.hash,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=seed,
    )
    if not overwrite and is_finished(path, key):
        return _all_said(load_responses(path), people, seed)
    extractor = ActivationExtractor(config) if sample_locally else None
    try:
        responses = generate_responses(
            people.personas, people.questions, config, extractor=extractor, seed=seed, overwrite=overwrite
        )
    except ResponsesError as error:
        old = f"; delete {path} first, it has the answers of before" if overwrite and path.is_file() else ""
        raise Unfinished(f"{error}{old}") from None
    save_responses(responses, path, {"key": key, "model": config.answering_model, "seed": seed})
    return _all_said(responses, people, seed)


def _all_said(responses: dict[Place, str], people: PersonaSet, seed: int) -> dict[Place, str]:
    """The responses, if none is blank: variants are compared on all of them."""
    n = len(people.questions)
    said = answered(people.personas, people.questions, responses)
    if silent := {name: n - len(own) for name, own in said.items() if len(own) < n}:
        counts = ", ".join(f"{name} {missing}" for name, missing in silent.items())
        raise ValueError(
            f"the model said nothing to some of {n} questions ({counts}); take a --seed other than {seed}, or leave "
            "these out with --personas"
        )
    return responses
