"""Answers and scores of every setting of every trait: one sampling job, whose rows carry their own steering."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from eval.finished_answers import Engine, answers_of
from eval.finished_scores import Estimate, scores_of
from eval.sweep import Setting, Study
from judge import JudgeError, JudgeOptions, release_local_judges
from persona_vectors.responses import PromptRow, response_table
from persona_vectors.store import Store
from persona_vectors.tokens import render_prompt

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from persona_vectors.captured_means import CapturedAnswer


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled and judged; the same for every setting."""

    n_per_question: int = 100
    max_tokens: int = 1000
    seed: int = 0
    overwrite: bool = False
    progress: bool = True
    together: bool = True
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    on_estimate: Callable[[str, Estimate], None] | None = None  # before each judging: of which score, and what it takes
    on_means: Callable[[Setting, Sequence[CapturedAnswer]], None] | None = None  # captured while answers are sampled


@dataclass(frozen=True)
class Answered:
    """A setting's response table, and why judge calls failed: one entry for each score that is missing for it."""

    setting: Setting
    table: pd.DataFrame
    failures: list[str]


@dataclass
class _Part:
    """A setting of a study while it is worked on; lists have an entry a row."""

    study: Study
    setting: Setting
    rows: list[PromptRow]
    prompts: list[str]
    answers: list[str] = field(default_factory=list)
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def answered(
    engine: Engine,
    store: Store,
    studies: Sequence[Study],
    how: Sampling,
    before_sampling: Callable[[], None] | None = None,
) -> list[list[Answered]]:
    """For each study the table of each of its settings, in order.

    Settings share rows, prompts and random streams; together they are one sampling job, and equal answers are judged
    once. Judge calls that fail leave gaps, which the result names. `before_sampling` is called once, before the first
    answer, if any has to be sampled.
    """
    pending = [before_sampling] if before_sampling is not None else []

    def first_time() -> None:
        while pending:
            pending.pop()()

    parts = [part for study in studies for part in _parts(study, engine.tokenizer, how)]
    for group in _groups(parts, how.together):
        _sample(engine, store, group, how, first_time)
        if how.together:
            engine.release()  # the judge may want its memory
        for study in studies:
            _score(store, [(part, rows) for part, rows in group if part.study is study], how)
    if how.judge.engine == "vllm":
        release_local_judges()  # what is measured next may want its engine's memory
    done = [Answered(part.setting, _table(part), part.failures) for part in parts]
    starts = [sum(len(study.settings) for study in studies[:i]) for i in range(len(studies))]
    return [done[start : start + len(study.settings)] for start, study in zip(starts, studies, strict=True)]


def _parts(study: Study, tokenizer: PreTrainedTokenizerBase, how: Sampling) -> list[_Part]:
    """The study's settings with their rows; what they share is made once."""
    rows = study.rows(how.n_per_question)
    prompts = rendered(tokenizer, rows)
    parts = []
    for setting in study.settings:
        if setting.control == "prompt":
            own = study.prompted_rows(how.n_per_question)
            part = _Part(study, setting, own, rendered(tokenizer, own))
        else:
            part = _Part(study, setting, rows, prompts)
        part.answers = [""] * len(part.rows)
        part.scores = {name: [None] * len(part.rows) for name in study.questions[0].judge_prompts}
        parts.append(part)
    return parts


def rendered(tokenizer: PreTrainedTokenizerBase, rows: Iterable[PromptRow]) -> list[str]:
    """Each row's prompt; rows that ask the same share it."""
    known: dict[tuple[str, str | None], str] = {}
    prompts = []
    for row in rows:
        asked = (row.question, row.system)
        if asked not in known:
            known[asked] = render_prompt(tokenizer, row.messages())
        prompts.append(known[asked])
    return prompts


Group = list[tuple[_Part, list[int]]]


def _groups(parts: Sequence[_Part], together: bool) -> list[Group]:
    """Which rows of which parts are worked on at once: all, or those of one question of one trait."""
    if together:
        return [[(part, list(range(len(part.rows)))) for part in parts]]
    groups: dict[tuple[str, int], Group] = {}
    for part in parts:
        places: dict[int, list[int]] = {}
        for place, row in enumerate(part.rows):
            places.setdefault(row.question_index, []).append(place)
        for question, found in places.items():
            groups.setdefault((part.study.trait, question), []).append((part, found))
    return list(groups.values())


def _sample(engine: Engine, store: Store, group: Group, how: Sampling, before_sampling: Callable[[], None]) -> None:
    jobs = [(part, place) for part, places in group for place in places]
    texts = answers_of(
        engine,
        [part.prompts[place] for part, place in jobs],
        [(how.seed, *part.rows[place].stream) for part, place in jobs],
        max_tokens=how.max_tokens,
        temperature=group[0][0].study.questions[0].temperature,
        steerings=[part.setting.steering for part, _ in jobs],
        store=store,
        overwrite=how.overwrite,
        progress=how.progress and how.together,
        before_sampling=before_sampling,
        on_means=how.on_means and partial(_hand_on, how.on_means, [part.setting for part, _ in jobs]),
    )
    for (part, place), text in zip(jobs, texts, strict=True):
        part.answers[place] = text


def _hand_on(
    on_means: Callable[[Setting, Sequence[CapturedAnswer]], None],
    settings: Sequence[Setting],
    found: Mapping[int, CapturedAnswer],
) -> None:
    """Gives captured means to `on_means`, those of one setting together."""
    for setting in dict.fromkeys(settings[row] for row in found):
        on_means(setting, [one for row, one in found.items() if settings[row] is setting])


def _score(store: Store, group: Group, how: Sampling) -> None:
    """Scores the group's answers by every judge prompt of their study; calls that fail leave gaps that are named."""
    if not group:
        return
    jobs = [(part, place) for part, places in group for place in places]
    items = [(part.rows[place].question, part.answers[place]) for part, place in jobs]
    question = group[0][0].study.questions[0]
    for name, template in question.judge_prompts.items():
        failed: dict[int, str] = {}
        try:
            found = scores_of(
                question.judge,
                template,
                items,
                store=store,
                eval_type=question.judge_eval_type,
                options=how.judge,
                overwrite=how.overwrite,
                progress=f"judging {name}" if how.progress and how.together else None,
                on_estimate=partial(how.on_estimate, name) if how.on_estimate is not None else None,
            )
        except JudgeError as error:
            found, failed = error.scores, error.failures
        for row, ((part, place), score) in enumerate(zip(jobs, found, strict=True)):
            part.scores[name][place] = score
            if row in failed:
                part.failures.append(failed[row])


def _table(part: _Part) -> pd.DataFrame:
    return response_table(part.rows, part.prompts, part.answers, part.scores)
