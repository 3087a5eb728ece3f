"""What `eval.capping` samples under each setting: answers to role prompts, and conversations that lead into a role.

A setting is uncapped, the cap, or a cap on random directions at percentiles of their own. All settings share random
streams, so that an answer which no token's cap touches is the same word for word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from activation_steer import ActivationSteererMultiple
from eval.finished_answers import Engine, answers_of
from eval.model_utils import Added, cap_steerings
from eval.transcripts import Transcript
from persona_vectors.blocks import block_index
from persona_vectors.capping import Calibration, Cap, calibrate, check_cap_name, make_cap
from persona_vectors.decoding import context_length
from persona_vectors.drift import check_room, project_tokens, turn_means
from persona_vectors.interventions import position_mask
from persona_vectors.personas import ASSISTANT_PERSONAS, PersonaSet
from persona_vectors.projection import unit
from persona_vectors.span_means import reduced_pass
from persona_vectors.statistics import random_directions
from persona_vectors.store import Store
from persona_vectors.tokens import render_prompt, tokenize_prompt, tokenize_sample, tokenize_turns

if TYPE_CHECKING:
    from torch import nn

    from persona_vectors.persona_files import Place

UNCAPPED = "uncapped"
SCRIPT = (
    "{question}",
    "{question}",
    "Speak as {role}. {question}",
    "Play the role of {role}. {question}",
    "You are {role}. {question}",
    "Take the part of {role} and stay in it. {question}",
)
"""A conversation's user turns: ordinary at first, then asking for a role more and more firmly."""


@dataclass(frozen=True, eq=False)
class Tried:
    """One setting; `added` is one object for all of its rows, which is hashed once."""

    name: str
    cap: Cap | None = None
    added: Added = None
    is_random: bool = False


@dataclass(frozen=True)
class Asking:
    """How answers are sampled in all stages."""

    max_tokens: int
    temperature: float
    seed: int
    overwrite: bool


def tried(cap: Cap, controls: Sequence[Cap]) -> list[Tried]:
    """Uncapped, the cap, and the controls."""
    random = [Tried(one.name, one, cap_steerings(one), is_random=True) for one in controls]
    return [Tried(UNCAPPED), Tried(cap.name, cap, cap_steerings(cap)), *random]


def random_name(number: int) -> str:
    """What the cap on random direction 1, 2, ... is called."""
    return f"random{number}"


def check_setting_name(name: str, n_random: int) -> None:
    """Refuses, with a ValueError, a cap that tables and files could not tell from another setting."""
    check_cap_name(name)
    if name in (taken := [UNCAPPED, *map(random_name, range(1, 1 + n_random))]):
        raise ValueError(f"a vector file called {name}.pt would be taken for another setting ({', '.join(taken)})")


def ordinary_answers(
    engine: Engine, store: Store, cast: PersonaSet, questions: Sequence[str], n: int, asking: Asking
) -> tuple[list[str], list[str]]:
    """(prompts, answers) of the assistant's own personas, uncapped: what a cap is calibrated on."""
    rows = [
        (p, q, k) for p in ASSISTANT_PERSONAS if p in cast.personas for q in range(len(questions)) for k in range(n)
    ]
    if not rows:
        raise ValueError(f"{cast.source} has none of {', '.join(ASSISTANT_PERSONAS)}: nobody to calibrate on")
    names = list(cast.personas)
    prompts = [render_prompt(engine.tokenizer, opening(cast.personas[p], questions[q])) for p, q, _ in rows]
    streams = [(asking.seed, 0, names.index(p), q, k) for p, q, k in rows]
    return prompts, _sample(engine, store, prompts, streams, [None] * len(rows), asking)


def opening(system: str, question: str) -> list[dict[str, str]]:
    """The messages before an answer; an empty system prompt is left out."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": question}]


def _sample(
    engine: Engine,
    store: Store,
    prompts: Sequence[str],
    streams: Sequence[Sequence[int]],
    steerings: Sequence[Added],
    asking: Asking,
) -> list[str]:
    return answers_of(
        engine,
        prompts,
        streams,
        max_tokens=asking.max_tokens,
        temperature=asking.temperature,
        steerings=steerings,
        store=store,
        overwrite=asking.overwrite,
    )


def calibrated_caps(
    engine: Engine,
    prompts: Sequence[str],
    answers: Sequence[str],
    name: str,
    vectors: Mapping[int, torch.Tensor],
    *,
    n_random: int,
    seed: int,
    **how: Any,
) -> tuple[Cap, list[Cap], Calibration]:
    """The cap on the vectors, caps on random directions, and the calibration, whose first column is the vectors'.

    A random direction's bounds are at the same percentiles of what the same answers show on it.
    """
    directions = {}
    for layer, vector in vectors.items():
        norm = float(vector.norm())
        random = random_directions(n_random, len(vector), norm, seed + layer) if n_random else vector[None][:0]
        directions[layer] = torch.cat([vector[None], random])  # (1 + n_random, d_model)
    samples = [tokenize_sample(engine.tokenizer, *pair) for pair in zip(prompts, answers, strict=True)]
    found = calibrate(engine.model, samples, directions, progress=True)
    caps = []
    for column in range(1 + n_random):
        own = {layer: rows[column].clone() for layer, rows in directions.items()}
        values = {layer: found[layer][:, column] for layer in found}
        caps.append(make_cap(name if column == 0 else random_name(column), own, values, **how))
    return caps[0], caps[1:], found


def role_answers(
    engine: Engine,
    store: Store,
    settings: Sequence[Tried],
    cast: PersonaSet,
    personas: Sequence[str],
    questions: Sequence[str],
    asking: Asking,
) -> dict[str, dict[Place, str]]:
    """Setting -> (persona, question) -> answer, each persona in the system prompt; all of it one job."""
    places = [(persona, question) for persona in personas for question in questions]
    names = list(cast.personas)
    prompts = [render_prompt(engine.tokenizer, opening(cast.personas[p], q)) for p, q in places]
    streams = [(asking.seed, 1, names.index(p), questions.index(q)) for p, q in places]
    answers = _sample(
        engine,
        store,
        prompts * len(settings),
        streams * len(settings),
        [setting.added for setting in settings for _ in places],
        asking,
    )
    found = iter(answers)
    return {setting.name: {place: next(found) for place in places} for setting in settings}


def role_name(cast: PersonaSet, persona: str) -> str:
    """What a user calls the role: as the personas' file names it, otherwise its name with an article."""
    return cast.roles.get(persona) or f"{'an' if persona[0] in 'aeiou' else 'a'} {persona.replace('_', ' ')}"


def load_script(path: str | None) -> tuple[str, ...]:
    """The user's turns of a conversation, with {question} and {role}; SCRIPT unless a file is given.

    Raises:
        ValueError: no JSON list of texts, one without {question}, or none with {role}.
    """
    if path is None:
        return SCRIPT
    if not Path(path).is_file():
        raise ValueError(f"--script {path} does not exist; expected a JSON list of the user's turns")
    try:
        turns = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--script {path} is not JSON: {error}") from None
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, str) for turn in turns):
        raise ValueError(f"--script {path}: expected a JSON list of two texts or more")
    if not all("{question}" in turn for turn in turns) or not any("{role}" in turn for turn in turns):
        raise ValueError(f"--script {path}: every turn needs {{question}}, and at least one {{role}}")
    return tuple(turns)


def conversations(
    engine: Engine,
    store: Store,
    settings: Sequence[Tried],
    cast: PersonaSet,
    personas: Sequence[str],
    questions: Sequence[str],
    script: Sequence[str],
    asking: Asking,
) -> dict[str, list[Transcript]]:
    """Setting -> one conversation a persona, written turn by turn: each setting answers to what it said itself."""
    rows = [(setting, number) for setting in settings for number in range(len(personas))]
    messages: list[list[dict[str, str]]] = [[] for _ in rows]
    names = list(cast.personas)
    for turn, text in enumerate(script):
        for (_, number), so_far in zip(rows, messages, strict=True):
            asked = text.replace("{role}", role_name(cast, personas[number]))
            asked = asked.replace("{question}", turn_question(questions, number, turn))
            so_far.append({"role": "user", "content": asked})
        prompts = [render_prompt(engine.tokenizer, so_far) for so_far in messages]
        streams = [(asking.seed, 2, names.index(personas[number]), turn) for _, number in rows]
        answers = _sample(engine, store, prompts, streams, [setting.added for setting, _ in rows], asking)
        for so_far, answer in zip(messages, answers, strict=True):
            so_far.append({"role": "assistant", "content": answer})
    found: dict[str, list[Transcript]] = {setting.name: [] for setting in settings}
    for (setting, number), whole in zip(rows, messages, strict=True):
        found[setting.name].append(Transcript(f"{personas[number]}, {setting.name}", whole))
    return found


def turn_question(questions: Sequence[str], number: int, turn: int) -> str:
    """What conversation `number` is asked in a turn: questions in turn, each conversation from another one on."""
    return questions[(number + turn) % len(questions)]


def plain_talk(questions: Sequence[str], number: int, answers: Sequence[str]) -> Transcript:
    """Conversation `number` with these answers, as if the user had asked the questions and nothing else."""
    pairs = [
        ({"role": "user", "content": turn_question(questions, number, turn)}, {"role": "assistant", "content": answer})
        for turn, answer in enumerate(answers)
    ]
    return Transcript(f"words {number + 1}", [message for pair in pairs for message in pair])


def capped(model: nn.Module, cap: Cap | None) -> AbstractContextManager:
    """The cap on every row of every pass meanwhile; nothing for None."""
    if cap is None:
        return nullcontext()
    steps = [
        {
            "steering_vector": step.vector,
            "coeff": 1.0,
            "layer_idx": block_index(step.layer),
            "positions": cap.positions,
            "kind": "cap",
            "floor": step.floor,
            "ceiling": step.ceiling,
        }
        for step in cap.steps
    ]
    return ActivationSteererMultiple(model, steps)


def assistant_means(
    engine: Engine, transcripts: Sequence[Transcript], *, vector: torch.Tensor, layer: int, cap: Cap | None = None
) -> Float[np.ndarray, "conversations turns"]:
    """The mean projection of every assistant turn, read by the model as it is or under a cap; NaN for an empty turn.

    Raises:
        ValueError: a conversation that is longer than the model's context; nothing is cut.
    """
    read = [tokenize_turns(engine.tokenizer, one.messages) for one in transcripts]
    for one, (ids, turns) in zip(transcripts, read, strict=True):
        try:
            check_room(ids, turns, context_length(engine.model) or len(ids))
        except ValueError as error:
            raise ValueError(f"{one.name}: {error}, or lower --max_tokens") from None
    with capped(engine.model, cap):
        values = project_tokens(engine.model, [ids for ids, _ in read], {layer: vector[None]})
    means = [turn_means(own, turns)[:, 0, 0].numpy() for own, (_, turns) in zip(values, read, strict=True)]
    spoken = [[turn.role == "assistant" for turn in turns] for _, turns in read]
    return np.stack([own[rows] for own, rows in zip(means, spoken, strict=True)])


def check_cap(engine: Engine, prompt: str, cap: Cap) -> str:
    """A line that says what the cap was seen to do to a prompt in the engine that samples, before anything is sampled.

    Raises:
        ValueError: a token that is out of bounds at a capped layer.
    """
    ids = tokenize_prompt(engine.tokenizer, prompt)
    if engine.kind == "vllm":
        added = cap_steerings(cap)
        receipts = engine.vllm([added]).receipts(prompt, [added])
        off = max(one.relative_error for one in receipts)
        layers = ", ".join(str(one.layer) for one in receipts)
        return f"cap receipt, {cap.name}: inside vLLM tokens move as asked at layers {layers}, off by {off:.1e} at most"
    plain, within = _components(engine.model, ids, cap, None), _components(engine.model, ids, cap, cap)
    where = position_mask(cap.positions, torch.arange(len(ids))[None], torch.tensor([len(ids)]))[0]
    parts = []
    for step in cap.steps:
        before, (after, rounding) = plain[step.layer][0], within[step.layer]
        low = -np.inf if step.floor is None else step.floor
        high = np.inf if step.ceiling is None else step.ceiling
        outside = ((after < low - rounding) | (after > high + rounding)) & where
        if outside.any():
            raise ValueError(
                f"the cap {cap.name} leaves token {int(outside.nonzero()[0])} of {len(ids)} at "
                f"{float(after[outside][0]):.4g} at layer {step.layer}; expected {low:.4g} to {high:.4g}"
            )
        parts.append(
            f"layer {step.layer}: {int((((before < low) | (before > high)) & where).sum())} out of bounds before"
        )
    return f"cap receipt, {cap.name}: {int(where.sum())} prompt tokens, all within bounds ({'; '.join(parts)})"


@torch.inference_mode()
def _components(
    model: Any, ids: Sequence[int], cap: Cap, under: Cap | None
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> (h.v/|v|, what rounding can make of it) of each token, with or without the cap."""
    units = {step.layer: unit(step.vector) for step in cap.steps}

    def reduce(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        rounding = 2 * torch.finfo(hidden.dtype).eps * hidden[0].float().norm(dim=-1)
        return torch.stack([hidden[0].float() @ units[layer].to(hidden.device), rounding]).cpu()

    inputs = {"input_ids": torch.tensor([list(ids)]), "use_cache": False}
    with capped(model, under):
        found = reduced_pass(model, list(units), reduce, inputs)
    return {layer: (both[0], both[1]) for layer, both in found.items()}
