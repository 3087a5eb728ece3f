"""What a monitor's study says in plain words, by rules that were fixed beforehand.

A correlation counts where its 95% interval lies above 0 and it is above MIN_BEATEN of the random directions on the same
activations. The overall one is never said without the one within conditions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.finetuning_shift_findings import MIN_BEATEN, MIN_COHERENCE
from eval.finetuning_shift_rows import share
from eval.monitor_conditions import NUMBER_NAMES, Kind, Prompt
from eval.monitor_rows import Found, Study
from eval.monitor_statistics import MonitorCorrelation
from persona_vectors.correlation import N_RANDOM

FEW_QUESTIONS = 8
"""Intervals from resampling fewer are rough."""
MIN_MOVED = 10.0
"""Points of score between the conditions' lowest and highest mean; below, the conditions did not do their work."""
MIN_SPREAD = 2.0
"""Standard deviation of the prompts' scores in a condition; below, there is next to nothing to foretell in it."""
TITLES: dict[Kind, str] = {"system": "System prompts", "shots": "Many shots"}
ONE: dict[Kind, str] = {"system": "one system prompt", "shots": "one number of examples"}


def counts(record: MonitorCorrelation) -> bool:
    """Whether it is evidence for this direction."""
    return (record.pearson.low or 0.0) > 0 and (record.beaten or 0.0) >= MIN_BEATEN


def sentences(study: Study) -> list[str]:
    """For each kind and layer what the conditions did, the correlations, and what they come to."""
    found = [_moved(study, kind) for kind in study.kinds]
    for one in study.found:
        found.append(f"{_both(study, one)} {_verdict(one)}{_beside_number(one)}")
    return found


def _moved(study: Study, kind: Kind) -> str:
    conditions = study.conditions(kind)
    means = [study.mean(condition, "trait") for condition in conditions]
    values, first, last = [one.mean for one in means], conditions[0], conditions[-1]
    text = f"{TITLES[kind]}: the mean {study.trait} score goes from {values[0]:.1f} at {first.name} to "
    text += f"{values[-1]:.1f} at {last.name}"
    if not np.nanmax(values) - np.nanmin(values) >= MIN_MOVED:
        return f"{text}. These conditions hardly move it, so there is little to foretell."
    falls = [
        condition.name
        for condition, own, before in zip(conditions[1:], means[1:], means, strict=False)
        if own.high < before.low
    ]
    if falls:
        return f"{text}, and clearly falls on the way (at {', '.join(falls)}: the intervals do not meet)."
    return f"{text}, without a clear fall on the way."


def _both(study: Study, one: Found) -> str:
    overall, within = one.prompts["overall"], one.prompts["within"]
    layer = f", layer {one.layer}" if len(study.layers) > 1 else ""
    return (
        f"{TITLES[one.kind]}{layer}: over all {overall.correlation.n} prompts {_said(overall)}; within {ONE[one.kind]} "
        f"{_said(within)}."
    )


def _said(record: MonitorCorrelation) -> str:
    if record.beaten is None or record.random is None:
        return "r is not defined (too few points, or equal ones)"
    return (
        f"r {record.pearson.text()}, above {share(record.beaten)} of {N_RANDOM:,} random directions (their median "
        f"{record.random.median:.2f})"
    )


def _verdict(one: Found) -> str:
    overall, within = counts(one.prompts["overall"]), counts(one.prompts["within"])
    if overall and within:
        return "So the projection tells conditions apart, and also prompts under the same condition."
    if overall:
        return (
            "So the projection tells conditions apart. That it also tells apart prompts under the same condition is "
            f"not shown: {_lacks(one.prompts['within'])}."
        )
    if within:
        return (
            "So the projection tells apart prompts under the same condition. Over all prompts it is no evidence for "
            f"this direction: {_lacks(one.prompts['overall'])}."
        )
    return (
        f"So this is no evidence for this direction: overall {_lacks(one.prompts['overall'])}, and within conditions "
        f"{_lacks(one.prompts['within'])}."
    )


def _lacks(record: MonitorCorrelation) -> str:
    """Why it does not count."""
    if record.beaten is None:
        return "r is not defined"
    if record.pearson.low is None:
        return "there is no interval with one question"
    below = record.pearson.high is not None and record.pearson.high < 0
    why = [] if record.pearson.low > 0 else [f"the interval {'lies below' if below else 'is not above'} 0"]
    if record.beaten < MIN_BEATEN:
        why.append(f"{share(1 - record.beaten)} of random directions reach as much")
    return " and ".join(why)


def _beside_number(one: Found) -> str:
    """What the condition says by itself, which needs no model."""
    record = one.prompts["overall"]
    if record.number.value is None or record.known.value is None:
        return ""
    text = (
        f" Without activations: the {NUMBER_NAMES[one.kind]} alone reaches r {record.number.text()}, and knowing the "
        f"condition (its mean score on the other questions, which a new condition has not) {record.known.text()}"
    )
    minus = record.minus_known
    if minus.low is None or minus.high is None:
        return f"{text}."
    told = "" if minus.low > 0 or minus.high < 0 else ", not told apart"
    return f"{text}; the projection's r minus the latter is {minus.text()}{told}."


def notes(study: Study, max_tokens: int, context: int | None) -> list[str]:
    """What in the prompts and answers a reader must know."""
    points, found = study.points, []
    n_questions = len({prompt.question_id for prompt in points.prompts})
    if n_questions < FEW_QUESTIONS:
        found.append(
            f"The intervals come from resampling {n_questions} questions; below {FEW_QUESTIONS} they are rough."
        )
    flat = [one.name for one in points.conditions if study.spread(one) < MIN_SPREAD]
    if flat:
        found.append(
            f"In {len(flat)} of {len(points.conditions)} conditions all prompts score nearly the same (standard "
            f"deviation below {MIN_SPREAD:g}), so nothing within them can be foretold: {', '.join(flat)}."
        )
    low = [one.name for one in points.conditions if not study.mean(one, "coherence").mean >= MIN_COHERENCE]
    if low:
        found.append(f"Coherence is below {MIN_COHERENCE:g}, so the trait score says little: {', '.join(low)}.")
    n_unscored = int(np.isnan(points.scores["trait"]).sum())
    if n_unscored:
        found.append(f"{n_unscored} answers have no trait score, because the judge gave none, and are left out.")
    found += _short_of_room(points.prompts, max_tokens, context)
    found.append(
        "A point is a prompt: a question under a condition, with the mean score of its answers. All its answers share "
        "one projection, so single answers correlate less."
        if points.answers.shape[1] > 1
        else "A point is a prompt with its one answer."
    )
    return found


def _short_of_room(prompts: Sequence[Prompt], max_tokens: int, context: int | None) -> list[str]:
    short = [prompt for prompt in prompts if context and prompt.n_tokens + max_tokens > context]
    if not short:
        return []
    names = ", ".join(dict.fromkeys(prompt.condition.name for prompt in short))
    least = min((context or 0) - prompt.n_tokens for prompt in short)
    return [
        f"{len(short)} prompts leave less room in the model's context than --max_tokens (the least: {least} tokens), "
        f"so their answers may be cut: {names}."
    ]
