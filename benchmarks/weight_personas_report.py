"""The report of the study of weight personas: a table of claims first, then what each rests on; and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import weight_personas_settings as settings
from benchmarks.study import settings_of
from benchmarks.weight_personas_claims import (
    Claim,
    Columns,
    Dose,
    Moved,
    Predicted,
    pair_holds,
    pooled,
    predicted,
    speed,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pairs = Sequence[tuple[Sequence[Moved], float]]
Latency = Mapping[str, Mapping[str, Any]]
QUANTITIES = {"total": "projection <dW, D> / |D|", "cosine": "cosine of dW with D"}
POOLED = "pooled"


def dose_claims(doses: Mapping[str, Dose]) -> list[Claim]:
    """Monotone, strictly and in the looser reading; and what random directions do."""
    least, asked = settings.MIN_COHERENCE, f"at least {settings.MIN_MONOTONE} traits"
    coherent = {trait: one for trait, one in doses.items() if one.is_coherent(least)}
    strict = [trait for trait, one in coherent.items() if one.is_monotone()]
    loose = [trait for trait, one in coherent.items() if one.falls_nowhere_surely()]
    shift = max((abs(one) for each in doses.values() for one in each.random), default=0.0)
    return [
        Claim(
            f"score rises with c in {_span()}: the mean of {len(settings.SEEDS)} seeds never falls, coherence >= "
            f"{least:g} at every c",
            asked,
            _of(strict, doses),
            len(strict) >= settings.MIN_MONOTONE,
        ),
        Claim(
            "the looser reading: no step whose 95% interval lies below 0, coherence as above",
            asked,
            _of(loose, doses),
            len(loose) >= settings.MIN_MONOTONE,
        ),
        Claim(
            f"control: {settings.N_RANDOM} random directions a trait and seed, largest mean shift at any c",
            f"<= {settings.MAX_RANDOM_SHIFT:g} points",
            f"{shift:.1f}",
            shift <= settings.MAX_RANDOM_SHIFT,
        ),
    ]


def _span() -> str:
    return ", ".join(f"{c:g}" for c in settings.COEFS)


def _of(held: Sequence[str], doses: Mapping[str, Dose]) -> str:
    return f"{len(held)} of {len(doses)}" + (f": {', '.join(held)}" if held else "")


def pair_claim(pairs: Pairs) -> Claim:
    """Whether two directions at once move both traits, in every pair."""
    held = [" + ".join(one.trait for one in pair) for pair, c in pairs if pair_holds(pair, c, settings.MIN_COHERENCE)]
    return Claim(
        f"two directions at once raise both traits (each interval > 0) at coherence >= {settings.MIN_COHERENCE:g}",
        f"all {len(pairs)} pairs",
        f"{len(held)} of {len(pairs)}" + (f": {', '.join(held)}" if held else ""),
        len(held) == len(pairs),
    )


def prediction_claims(found: Mapping[str, Predicted]) -> list[Claim]:
    """r of the primary quantity, pooled and trait by trait."""
    traits = {trait: one for trait, one in found.items() if trait != POOLED}
    high = [trait for trait, one in traits.items() if (one.r.value or 0) >= settings.MIN_R]
    whole = found[POOLED]
    what = f"r of the {QUANTITIES[settings.PRIMARY]} with the trait score"
    return [
        Claim(
            f"{what}, pooled over traits, {whole.n_clusters} data sets",
            f">= {settings.MIN_R:g}",
            f"{whole.r.text()}; above {whole.beaten:.0%} of random directions, p {whole.p:.4f}",
            (whole.r.value or 0) >= settings.MIN_R,
        ),
        Claim(
            "the same for each trait alone",
            f">= {settings.MIN_R:g} for every trait",
            f"{len(high)} of {len(traits)}" + (f": {', '.join(high)}" if high else ""),
            len(high) == len(traits),
        ),
    ]


def speed_claim(latency: Latency) -> Claim:
    """Merged against the hook."""
    median, low, high = speed(latency["activation hook"]["seconds"], latency["lora merged"]["seconds"])
    return Claim(
        f"merged generation as fast as hook steering, median of {len(latency['lora merged']['seconds'])} interleaved "
        "rounds (quartiles)",
        f">= {settings.MIN_SPEED:g} times",
        f"{median:.3f} ({low:.3f}-{high:.3f})",
        median >= settings.MIN_SPEED,
    )


def dose_table(doses: Mapping[str, Dose]) -> list[str]:
    """Score / coherence at every coefficient, and random directions' mean shift under it."""
    lines = [f"| trait | {' | '.join(f'{c:g}' for c in settings.COEFS)} | lowest step | strict | looser |"]
    lines.append("|---" * (len(settings.COEFS) + 4) + "|")
    for trait, one in doses.items():
        cells = [f"{mean.text()} / {c:.0f}" for mean, c in zip(one.means, one.coherence, strict=True)]
        lowest = min(one.steps, key=lambda step: step.mean)
        coherent = one.is_coherent(settings.MIN_COHERENCE)
        verdicts = [_yes(coherent and holds) for holds in (one.is_monotone(), one.falls_nowhere_surely())]
        lines.append(f"| {trait} | {' | '.join(cells)} | {lowest.text(sign=True)} | {' | '.join(verdicts)} |")
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


def prediction_table(found: Mapping[str, Predicted]) -> list[str]:
    """A row a trait: r, Spearman, random directions, permutation, the norm alone."""
    lines = [
        "| trait | r | Spearman | random: 95th of |r| | above random | permutation p | r of norm | r minus norm's |"
    ]
    lines[0] = lines[0].replace("|r|", "abs. r")
    lines.append("|---" * 8 + "|")
    for trait, one in found.items():
        lines.append(
            f"| {trait} | {one.r.text()} | {one.spearman.text()} | {one.random_95:.2f} | {one.beaten:.0%} | "
            f"{one.p:.4f} | {one.norm.text()} | {one.above_norm.text()} |"
        )
    return lines


def latency_table(latency: Latency) -> list[str]:
    """Microseconds a token of each way, and against the unsteered model of the same round."""
    lines = ["| way | microseconds a token | against unsteered |", "|---|---|---|"]
    for way, one in latency.items():
        low, median, high = np.quantile(one["ratios"], [0.25, 0.5, 0.75])
        lines.append(f"| {way} | {1e6 * np.median(one['seconds']):.0f} | {median:.3f} ({low:.3f}-{high:.3f}) |")
    return lines


def text(
    doses: Mapping[str, Dose], pairs: Pairs, found: Mapping[str, Mapping[str, Predicted]], latency: Latency
) -> str:
    """The report in Markdown."""
    claims = [*dose_claims(doses), pair_claim(pairs), *prediction_claims(found[settings.PRIMARY]), speed_claim(latency)]
    models = found[settings.PRIMARY][POOLED].n // len(settings.TRAITS)
    other = next(quantity for quantity in QUANTITIES if quantity != settings.PRIMARY)
    lines = [
        "# Directions in weight space: what is claimed of them",
        "",
        f"`python -m benchmarks.weight_personas`, models/tiny-persona. Seeds {', '.join(map(str, settings.SEEDS))}, "
        "each with directions of its own training; 100 held-out questions a seed, scored by the rule-based oracle. "
        "Thresholds and settings were committed before the run; seed 100 and development questions chose them.",
        "",
        "| claim | threshold | found | |",
        "|---|---|---|---|",
        *(claim.row() for claim in claims),
        "",
        "## 1. Dose",
        "",
        "Trait score with its 95% interval (questions resampled) / coherence, at each coefficient.",
        "",
        *dose_table(doses),
        "",
        "![Dose curves](weight_personas.png)",
        "",
        "## 2. Two at once",
        "",
        "Trait score minus unsteered, question by question; shares from seed 100.",
        "",
        *pair_table(pairs),
        "",
        "## 3. Predicting finetuned models",
        "",
        f"{models} models of {found[settings.PRIMARY][POOLED].n_clusters} data sets (odd rows; training seeds "
        f"{', '.join(map(str, settings.FINETUNING_SEEDS))}), on the mean of the directions of the "
        f"{len(settings.SEEDS)} seeds (even rows). Intervals resample data sets; "
        f"{settings.N_RANDOM_PROJECTIONS} random directions, each with the sign that suits it. "
        "Pooled: z-scored in each trait.",
        "",
    ]
    for quantity, role in ((settings.PRIMARY, "primary"), (other, "also")):
        lines += [f"### {QUANTITIES[quantity]} ({role})", "", *prediction_table(found[quantity]), ""]
    lines += ["## 4. Speed", "", f"{settings.LATENCY_PROMPTS} prompts, {settings.LATENCY_TOKENS} tokens each.", ""]
    return "\n".join([*lines, *latency_table(latency)]) + "\n"


def figure(doses: Mapping[str, Dose]) -> Figure:
    """Each trait's curve, and the range of its random directions."""
    from persona_vectors.plots import RANDOM, VECTOR, canvas

    drawn, axes = canvas(len(doses), sharey=True, n_rows=2)
    drawn.set_size_inches(13, 6)
    for axis, (trait, one) in zip(axes, doses.items(), strict=True):
        lows, highs = zip(*one.random_range, strict=True)
        axis.fill_between(
            one.coefs, lows, highs, color=RANDOM, alpha=0.3, linewidth=0, label="random directions: range"
        )
        means = [mean.mean for mean in one.means]
        axis.fill_between(
            one.coefs, [m.low for m in one.means], [m.high for m in one.means], color=VECTOR, alpha=0.2, linewidth=0
        )
        axis.plot(one.coefs, means, color=VECTOR, marker="o", label="trait score, 95% interval")
        axis.plot(one.coefs, one.coherence, color=RANDOM, linestyle=":", marker="x", label="coherence")
        axis.set(title=trait, ylim=(-3, 103), xticks=one.coefs, xlabel="coefficient of the direction")
    axes[0].set_ylabel("oracle score")
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return drawn


def predictions(columns: Mapping[str, Mapping[str, Columns]], data_sets: Sequence[str]) -> dict[str, Any]:
    """Quantity -> trait (and pooled) -> its correlation."""
    found = {}
    for quantity, by_trait in columns.items():
        own = {trait: predicted(one, data_sets) for trait, one in by_trait.items()}
        whole = predicted(pooled(list(by_trait.values())), list(data_sets) * len(by_trait))
        found[quantity] = {POOLED: whole, **own}
    return found


def write_report(
    doses: Mapping[str, Dose],
    pairs: Pairs,
    columns: Mapping[str, Mapping[str, Columns]],
    data_sets: Sequence[str],
    latency: Latency,
    output: Path,
) -> str:
    """The text, which is written with the numbers and the figure."""
    from persona_vectors.files import provenance, write_bytes_atomic, write_json_atomic, write_text_atomic
    from persona_vectors.plots import png_bytes

    found = predictions(columns, data_sets)
    told = text(doses, pairs, found, latency)
    points = {
        trait: {"total": one.x.tolist(), "score": one.y.tolist(), "norm": one.norm.tolist()}
        for trait, one in columns["total"].items()
    }
    numbers = {
        "doses": {trait: asdict(one) for trait, one in doses.items()},
        "pairs": [{"traits": [asdict(one) for one in pair], "coherence": c} for pair, c in pairs],
        "predictions": {q: {trait: asdict(one) for trait, one in each.items()} for q, each in found.items()},
        "points": {"data_sets": list(data_sets), **points},
        "latency": latency,
        "settings": settings_of(settings),
    }
    write_bytes_atomic(output.with_suffix(".png"), png_bytes(figure(doses)))
    write_json_atomic(output.with_suffix(".json"), {**numbers, **provenance()})
    write_text_atomic(output.with_suffix(".md"), told)
    return told
