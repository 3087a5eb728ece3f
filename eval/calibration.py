"""The coefficients at which a vector leaves a model coherent, by layer, and what it does there on other questions.

Half of a trait's eval questions find the range by bisection; the other half confirm it (`eval.calibration_confirm`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eval.calibration_bounds import Arm, Bracket, LayerRange, find_bounds
from eval.calibration_confirm import Calibration, confirm
from eval.calibration_measure import Work, judged, kl_percentile, mean_coherence, rows_of, steering_of
from eval.residual_norm import norms_of
from eval.sweep_answers import rendered

if TYPE_CHECKING:
    from eval.model_utils import Steering
    from eval.questions import Question


def calibrate(work: Work, say: Callable[[str], None]) -> Calibration:
    """Finds every layer's range, chooses a layer by the trait reached there, and confirms it on other questions.

    Without a judge the layer is the one that can be pushed furthest in units of the residual norm, and only the KL is
    confirmed.

    Raises:
        ValueError: unsteered answers that are themselves below the coherence asked for.
    """
    prompts = rendered(work.engine.tokenizer, rows_of(work, work.questions))
    norms = norms_of(work.engine, work.store, prompts, list(work.vectors))
    arms = [Arm(layer, sign) for layer in work.vectors for sign in (1, -1)]
    if work.limits.criterion == "coherence":
        _check_unsteered(work)
    brackets = find_bounds(arms, lambda sizes: _within(work, norms, sizes, say))
    ranges = [
        LayerRange(layer, norms[layer], float(v.norm()), brackets[Arm(layer, 1)], brackets[Arm(layer, -1)])
        for layer, v in work.vectors.items()
    ]
    usable = [one for one in ranges if one.up.passed]
    if work.judge_model is not None and usable:
        traits = _mean_traits(work, work.questions, [steering_of(work, one, one.up.passed) for one in usable])
        reached = dict(zip([one.layer for one in usable], traits, strict=True))
        ranges = [replace(one, trait=reached.get(one.layer)) for one in ranges]
    best = max((one for one in ranges if one.up.passed), key=_merit, default=None)
    if best is None:
        return Calibration(ranges, None, None)
    return confirm(work, ranges, best)


def _merit(one: LayerRange) -> float:
    return one.up.passed if one.trait is None else one.trait


def _within(
    work: Work, norms: Mapping[int, float], sizes: Mapping[Arm, float], say: Callable[[str], None]
) -> dict[Arm, bool]:
    """Whether each arm stays within the limit at its size; one job for all of them."""
    steerings = []
    for arm, size in sizes.items():
        own = LayerRange(arm.layer, norms[arm.layer], float(work.vectors[arm.layer].norm()), Bracket(), Bracket())
        steerings.append(steering_of(work, own, arm.sign * size))
    if work.limits.criterion == "kl":
        values = [kl_percentile(work, work.questions, steering) for steering in steerings]
        passed = [value <= work.limits.max_kl for value in values]
    else:
        values = [mean_coherence(found) for found in judged(work, work.questions, steerings, "coherence")]
        passed = [value >= work.limits.min_coherence for value in values]
    unit = "nats" if work.limits.criterion == "kl" else "coherence"
    told = (
        f"layer {arm.layer} {'+' if arm.sign > 0 else '-'}{size:.3g}: {value:.3g}{'' if ok else ' (over)'}"
        for (arm, size), value, ok in zip(sizes.items(), values, passed, strict=True)
    )
    say(f"{unit} at sizes of the residual norm: {', '.join(told)}")
    return dict(zip(sizes, passed, strict=True))


def _check_unsteered(work: Work) -> None:
    [found] = judged(work, work.questions, [None], "coherence")
    mean = mean_coherence(found)
    if not mean >= work.limits.min_coherence:
        raise ValueError(
            f"the unsteered answers have a mean coherence of {mean:.1f}, below {work.limits.min_coherence:g}: no "
            "coefficient can pass; lower --min_coherence, or take --criterion kl"
        )


def _mean_traits(work: Work, questions: Sequence[Question], steerings: Sequence[Steering]) -> list[float]:
    return [float(np.nanmean(found)) for found in judged(work, questions, steerings, work.trait)]
