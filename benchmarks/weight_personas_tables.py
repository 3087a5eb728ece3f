"""The tables and the figure of the study of weight personas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import weight_personas_settings as settings
from benchmarks.weight_personas_claims import Dose, Moved, Predicted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pairs = Sequence[tuple[Sequence[Moved], float]]
Latency = Mapping[str, Mapping[str, Any]]


def dose_table(doses: Mapping[str, Dose]) -> list[str]:
    """Score / coherence at every coefficient, and random directions' mean shift under it."""
    lines = [f"| trait | {' | '.join(f'{c:g}' for c in settings.COEFS)} | lowest step | strict | looser |"]
    lines.append("|---" * (len(settings.COEFS) + 4) + "|")
    for trait, one in doses.items():
        cells = [f"{mean.text()} / {c:.0f}" for mean, c in zip(one.means, one.coherence, strict=True)]
        lowest = min(one.steps, key=lambda step: step.mean)
        coherent = one.is_coherent(settings.MIN_COHERENCE)
        verdicts = [_yes(coherent and holds) for holds in (one.is_monotone(), one.falls_nowhere_surely())]
        lines.append(f"| {trait} | {' | '.join(cells)} | {lowest.text(2, sign=True)} | {' | '.join(verdicts)} |")
        lines.append(f"| random: mean shift | {' | '.join(f'{shift:+.1f}' for shift in one.random)} | | | |")
    return lines


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def pair_table(pairs: Pairs) -> list[str]:
    """Score minus unsteered of each trait of a pair."""
    lines = ["| pair (shares) | trait | unsteered | both | its own alone | the other alone | two random | coherence |"]
    lines.append("|---" * 8 + "|")
    for (pair, coherence), shares in zip(pairs, settings.SHARES, strict=True):
        name = " + ".join(f"{one.trait} {share:g}" for one, share in zip(pair, shares, strict=True))
        for one in pair:
            cells = [each.text(sign=True) for each in (one.both, one.alone, one.other, one.random)]
            lines.append(f"| {name} | {one.trait} | {one.unsteered:.1f} | {' | '.join(cells)} | {coherence:.0f} |")
    return lines


def prediction_table(found: Mapping[str, Predicted], others: Mapping[str, Sequence[float]]) -> list[str]:
    """A row a trait: r, Spearman, random directions, permutation, the norm alone, other traits' directions."""
    heads = ("trait", "r", "Spearman", "random: 95th of abs. r", "above random", "permutation p", "r of norm")
    lines = ["| " + " | ".join((*heads, "r minus norm's", "r of other traits' directions: mean (highest)")) + " |"]
    lines.append("|---" * 9 + "|")
    for trait, one in found.items():
        other = f"{np.mean(others[trait]):.2f} ({max(others[trait]):.2f})" if trait in others else ""
        lines.append(
            f"| {trait} | {one.r.text()} | {one.spearman.text()} | {one.random_95:.2f} | {one.beaten:.0%} | "
            f"{one.p:.4f} | {one.norm.text()} | {one.above_norm.text()} | {other} |"
        )
    return lines


def latency_table(latency: Latency) -> list[str]:
    """Microseconds a token of each way, and against the unsteered model of the same round."""
    lines = ["| way | microseconds a token | against unsteered |", "|---|---|---|"]
    for way, one in latency.items():
        low, median, high = np.quantile(one["ratios"], [0.25, 0.5, 0.75])
        lines.append(f"| {way} | {1e6 * np.median(one['seconds']):.0f} | {median:.3f} ({low:.3f}-{high:.3f}) |")
    return lines


def figure(doses: Mapping[str, Dose]) -> Figure:
    """Each trait's curve, and the range of its random directions."""
    from persona_vectors.plots import RANDOM, VECTOR, canvas

    drawn, axes = canvas(len(doses), sharey=True, n_rows=2)
    drawn.set_size_inches(13, 6)
    for axis, (trait, one) in zip(axes, doses.items(), strict=True):
        lows, highs = zip(*one.random_range, strict=True)
        axis.fill_between(one.coefs, lows, highs, color=RANDOM, alpha=0.3, linewidth=0)
        middle = [(low + high) / 2 for low, high in one.random_range]
        axis.plot(one.coefs, middle, color=RANDOM, linestyle="--", marker="s", markersize=4, label="random directions")
        means = [mean.mean for mean in one.means]
        axis.fill_between(
            one.coefs, [m.low for m in one.means], [m.high for m in one.means], color=VECTOR, alpha=0.2, linewidth=0
        )
        axis.plot(one.coefs, means, color=VECTOR, marker="o", label="trait score, 95% interval")
        axis.plot(one.coefs, one.coherence, color=RANDOM, linestyle=":", marker="x", label="coherence")
        axis.set(title=trait, ylim=(-3, 103), xticks=one.coefs, xlabel="coefficient of the direction")
    axes[0].set_ylabel("oracle score")
    drawn.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="lower right")
    return drawn
