"""What a comparison of finetuned models says in plain words, by rules that were fixed beforehand.

An own-trait correlation is evidence for the vector where its 95% interval lies above 0 and it is above MIN_BEATEN of
the random directions on the same activations. Otherwise the words say which of the two is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eval.finetuning_shift_measure import SPANS
from eval.finetuning_shift_rows import SPAN_NAMES, Comparison, share
from eval.finetuning_shift_statistics import ShiftCorrelation, cross_mean
from persona_vectors.correlation import LEAST_POINTS, MIN_CLUSTERS, N_RANDOM

MIN_BEATEN = 0.95
MIN_COHERENCE = 50.0  # as answers must have that a vector is made from


def overview(comparison: Comparison) -> list[str]:
    """Own beside cross over all traits, a sentence a layer and span; none where there is one trait."""
    if len(comparison.traits) == 1:
        return []
    return [_overview(comparison, layer, span) for layer in comparison.layers for span in SPANS]


def _overview(comparison: Comparison, layer: int, span: str) -> str:
    records = [comparison.of(span, layer, trait) for trait in comparison.traits]
    own = [of[0] for of in records if of[0].r is not None]
    start = f"{SPAN_NAMES[span].capitalize()}, layer {layer}: "
    if not own:
        return f"{start}no trait has a correlation."
    above_zero = sum((one.correlation.pearson.low or 0.0) > 0 for one in own)
    beaten = sum((one.beaten or 0.0) >= MIN_BEATEN for one in own)
    cross = [mean for of in records if (mean := cross_mean(of, of[0].trait)) is not None]
    text = (
        f"{start}own r {_ends([one.r or 0.0 for one in own])} for {len(own)} of {len(records)} traits, with an "
        f"interval above 0 for {above_zero} and above {share(MIN_BEATEN)} of random directions for {beaten}"
    )
    return text + (f"; the other traits' vectors reach r {_ends(cross)} on average." if cross else ".")


def _ends(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def sentences(comparison: Comparison, traits: Sequence[str] = ()) -> list[str]:
    """What was found: for each trait, layer and span the own correlation, then what the other vectors reach."""
    return [
        _sentence(comparison, trait, layer, span)
        for trait in traits or comparison.traits
        for layer in comparison.layers
        for span in SPANS
    ]


def _sentence(comparison: Comparison, trait: str, layer: int, span: str) -> str:
    own, *others = comparison.of(span, layer, trait)
    at = f", layer {layer}" if len(comparison.layers) > 1 else ""
    start = f"{trait}, {SPAN_NAMES[span]}{at}: "
    if own.r is None or own.beaten is None:
        return f"{start}r is not defined, {_why_undefined(own)}."
    r = own.correlation.pearson
    text = f"{start}r {r.text()}, above {share(own.beaten)} of {N_RANDOM:,} random directions"
    if r.low is None:
        text += f", without an interval because there are fewer than {MIN_CLUSTERS} groups"
    elif not r.low > 0:
        text += ", but its interval includes 0"
    elif own.beaten < MIN_BEATEN:
        text += ", so it is no evidence for this direction"
    return f"{text}.{_beside(trait, [one for one in others if one.r is not None])}"


def _beside(trait: str, others: Sequence[ShiftCorrelation]) -> str:
    """What the other traits' vectors reach with the same score."""
    if not others:
        return ""
    highest = max(others, key=lambda one: one.r or 0.0)
    if len(others) == 1:
        minus = f" (own minus this {highest.own_minus.text()})" if highest.own_minus else ""
        return f" The {highest.vector} vector reaches r {highest.r:.2f}{minus}."
    surely = sum(one.own_minus is not None and (one.own_minus.low or 0.0) > 0 for one in others)
    return (
        f" The other {len(others)} traits' vectors: mean r {cross_mean(others, trait):.2f}, highest {highest.r:.2f} "
        f"({highest.vector}); own minus theirs has its interval above 0 for {surely} of {len(others)}."
    )


def _why_undefined(own: ShiftCorrelation) -> str:
    n = own.correlation.n
    if n < LEAST_POINTS:
        plural = "s have" if n != 1 else " has"
        return f"because {n} finetuned model{plural} a score and a shift; it needs {LEAST_POINTS}"
    return f"because all {n} scores or all shifts are the same"


def notes(comparison: Comparison) -> list[str]:
    """What in the models and their answers a reader must know."""
    found = _group_notes(comparison)
    labels = [comparison.base, *(one.label for one in comparison.finetunes)]

    def which(holds: Callable[[int, str], bool]) -> str:
        """The models that something holds of for some trait."""
        hits = [i for i in range(len(labels)) if any(holds(i, trait) for trait in comparison.traits)]
        return ", ".join(labels[i] for i in hits[:8]) + (f" and {len(hits) - 8} more" if len(hits) > 8 else "")

    measured = comparison.measured
    if names := which(lambda i, t: not comparison.mean(i, t, "coherence") >= MIN_COHERENCE):
        found.append(f"Coherence is below {MIN_COHERENCE:g}, so the trait score says little: {names}.")
    if names := which(lambda i, t: not measured[i].tables[t]["prompt"].equals(measured[0].tables[t]["prompt"])):
        found.append(
            f"Their chat template renders the prompts otherwise than the base model's, which moves activations too: "
            f"{names}."
        )
    n_unscored = sum(np.isnan(one.tables[t][t].to_numpy(float)).sum() for one in measured for t in comparison.traits)
    if n_unscored:
        found.append(f"{n_unscored} answers have no trait score: the judge gave none.")
    n_empty = sum(sum(one.n_empty.values()) for one in measured)
    if n_empty:
        names = which(lambda i, t: measured[i].n_empty[t] > 0)
        found.append(f"{n_empty} answers are empty, and are left out of the answer means: {names}.")
    return found


def _group_notes(comparison: Comparison) -> list[str]:
    n, k = len(comparison.finetunes), len({one.cluster for one in comparison.finetunes})
    if n < LEAST_POINTS:
        return [f"A correlation needs {LEAST_POINTS} finetuned models; there are {n}."]
    if k < MIN_CLUSTERS:
        groups = "1 group is" if k == 1 else f"{k} groups are"
        return [f"{groups} too few for intervals, which need {MIN_CLUSTERS}: read the random directions before the r."]
    return []
