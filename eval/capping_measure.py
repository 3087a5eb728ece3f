"""The measuring part of `eval.capping`: what every setting answers, how it is judged, read and probed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from data_generation.tiny_persona.oracle import persona_score
from eval.capability_measure import Measured
from eval.capability_table import PROBE
from eval.capping_findings import Roles, Study
from eval.capping_roles import (
    UNCAPPED,
    Asking,
    Tried,
    assistant_means,
    conversations,
    opening,
    plain_talk,
    role_answers,
    turn_question,
)
from eval.finished_answers import Engine
from eval.finished_scores import scores_of
from eval.role_adherence import judge_adherence
from eval.transcripts import Transcript
from judge import COHERENCE_PROMPT
from persona_vectors.capping import Calibration, calibrate
from persona_vectors.models import resolve_model
from persona_vectors.persona_files import Place
from persona_vectors.personas import ASSISTANT_PERSONAS, PersonaSet
from persona_vectors.role_adherence import other_roles, tells_roles_apart
from persona_vectors.store import Store
from persona_vectors.tokens import render_prompt, tokenize_sample
from persona_vectors.traits import load_coherence_prompt


@dataclass(frozen=True)
class Run:
    """What was asked for, checked.

    Attributes:
        roles: personas to be played.
        questions: every second one calibrates, the others measure.
        vectors: layer -> what is capped along.
        leaves: tasks of lm-evaluation-harness.
        kind: what samples.
    """

    cast: PersonaSet
    roles: list[str]
    questions: list[str]
    vectors: Mapping[int, Tensor]
    script: tuple[str, ...]
    leaves: Mapping[str, Any]
    kind: Literal["vllm", "hf"]
    arguments: Mapping[str, Any]

    @property
    def calibrating(self) -> list[str]:
        return self.questions[0::2]

    @property
    def measured(self) -> list[str]:
        return self.questions[1::2]


def measure(
    run: Run, engine: Engine, store: Store, settings: Sequence[Tried], asking: Asking, calibration: Calibration
) -> Study:
    """Answers, conversations, their readings, and capability, of all settings."""
    same = engine, store, settings, run.cast
    neutral = [name for name in ASSISTANT_PERSONAS if name in run.cast.personas]
    ordinary = role_answers(*same, neutral, run.measured, asking)
    answers = role_answers(*same, run.roles, run.measured, asking)
    talks = conversations(*same, run.roles, run.measured, run.script, asking)
    engine.release()
    samples = [
        tokenize_sample(engine.tokenizer, render_prompt(engine.tokenizer, opening(run.cast.personas[p], q)), text)
        for (p, q), text in answers[UNCAPPED].items()
    ]
    vectors = {layer: vector[None] for layer, vector in run.vectors.items()}
    in_role = {layer: values[:, 0] for layer, values in calibrate(engine.model, samples, vectors).items()}
    cap = next(one.cap for one in settings if one.cap is not None)
    roles = {one.name: _roles(run, engine, store, one, answers[one.name], talks[one.name]) for one in settings}
    fit, judge_line = _judge_control(run, store, roles[UNCAPPED])
    return Study(
        model=resolve_model(engine.name).label,
        judge=run.arguments["judge_model"],
        judge_fit=fit,
        judge_line=judge_line,
        cap=cap,
        settings=settings,
        layer=max(run.vectors),
        calibration=calibration,
        role_tokens=in_role,
        roles=roles,
        ordinary=ordinary,
        capability=_capability(run, engine, store, settings),
        questions=run.measured,
        script=run.script,
    )


def _roles(
    run: Run, engine: Engine, store: Store, setting: Tried, answers: Mapping[Place, str], talks: Sequence[Transcript]
) -> Roles:
    """One setting's answers and conversations, judged and read."""
    judge, layer = run.arguments["judge_model"], max(run.vectors)
    spoken = [[one["content"] for one in talk.messages if one["role"] == "assistant"] for talk in talks]
    by_turn = []
    for turn in range(len(run.script)):
        places = [(persona, turn_question(run.measured, number, turn)) for number, persona in enumerate(run.roles)]
        said = {place: own[turn] for place, own in zip(places, spoken, strict=True)}
        labels = judge_adherence(judge, run.cast, said, store=store, progress=False)
        by_turn.append([labels[place] for place in places])
    by_rule = run.arguments["oracle"]
    readable = setting.cap is None or setting.cap.positions == "all"
    words = [plain_talk(run.measured, number, own) for number, own in enumerate(spoken)]
    read = functools.partial(assistant_means, engine, vector=run.vectors[layer], layer=layer)
    return Roles(
        answers=answers,
        labels=judge_adherence(judge, run.cast, answers, store=store, progress=False),
        talks=talks,
        talk_labels=[list(own) for own in zip(*by_turn, strict=True)],
        own_means=read(talks, cap=setting.cap) if readable else None,
        word_means=read(words),
        coherence=_coherence(judge, store, answers),
        rule=[persona_score(text, persona) for (persona, _), text in answers.items()] if by_rule else (),
        talk_rule=[
            [persona_score(text, persona) for text in own] for persona, own in zip(run.roles, spoken, strict=True)
        ]
        if by_rule
        else (),
    )


def _judge_control(run: Run, store: Store, uncapped: Roles) -> tuple[bool | None, str]:
    """Whether the judge tells roles apart, and its shares of `fully`."""
    if len(run.roles) < 2:
        return None, "not held against another role: one is played"
    others = other_roles(run.cast, uncapped.answers)
    labels = judge_adherence(run.arguments["judge_model"], run.cast, others, store=store, progress=False)
    return tells_roles_apart(uncapped.labels, labels)


def _coherence(judge: str, store: Store, answers: Mapping[Place, str]) -> dict[Place, float | None]:
    template = load_coherence_prompt(judge) or COHERENCE_PROMPT
    items = [(question, text) for (_, question), text in answers.items()]
    return dict(zip(answers, scores_of(judge, template, items, store=store), strict=True))


def _capability(
    run: Run, engine: Engine, store: Store, settings: Sequence[Tried]
) -> dict[str, dict[str, dict[str, float]]]:
    """Setting -> task -> item -> value."""
    measured = Measured(engine, store, harness_options(run.arguments), overwrite=run.arguments["overwrite"])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for setting in settings:
        own = found.setdefault(setting.name, {})
        for task in run.arguments["tasks"]:
            for one in measured.task(setting.added, task, run.leaves.get(task, {})):
                if not one.part and one.items:
                    own[task if task == PROBE else f"{task} {one.metric}"] = dict(one.items)
    return found


def harness_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How harness tasks are asked."""
    given = {key: arguments[key] for key in ("limit", "seed")}
    return {"num_fewshot": None, "apply_chat_template": False, **given}
