"""The report of the study of weight personas: a table of claims first, then what each rests on; and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import weight_personas_settings as settings
from benchmarks.study import settings_of
from benchmarks.weight_personas_claims import (
    Claim,
    Columns,
    Dose,
    Predicted,
    pair_holds,
    pooled,
    predicted,
    speed,
)
from benchmarks.weight_personas_tables import (
    Latency,
    Pairs,
    dose_table,
    figure,
    latency_table,
    pair_table,
    prediction_table,
)
from persona_vectors.correlation import pearson

QUANTITIES = {"total": "projection of dW on D", "cosine": "cosine of dW with D"}
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


def others_of(by_trait: Mapping[str, Columns]) -> dict[str, list[float]]:
    """Trait -> r of its score with the projections on each other trait's direction."""
    return {
        trait: [pearson(other.x, own.y) for name, other in by_trait.items() if name != trait]
        for trait, own in by_trait.items()
    }


def text(
    doses: Mapping[str, Dose],
    pairs: Pairs,
    found: Mapping[str, Mapping[str, Predicted]],
    others: Mapping[str, Mapping[str, Sequence[float]]],
    latency: Latency,
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
        "Trait score with its 95% interval (questions resampled) / coherence, at each coefficient. The oracle's floor "
        "is 10, of answers that say nothing about the trait: steps below 0 are of hundredths, and the strict rule is "
        f"easily lost there. Random shifts are over {settings.RANDOM_QUESTIONS} questions; random directions of the "
        "same singular values change the modules' outputs less than a trait's direction does (LOG.md).",
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
        "Pooled: z-scored in each trait. Two to four of the data sets teach a trait and all others leave it near its "
        "floor, so that a single trait's r rests on few data sets, its interval is wide, and ranks are mostly noise "
        "(Spearman). The last column was added after the run.",
        "",
    ]
    for quantity, role in ((settings.PRIMARY, "primary"), (other, "also")):
        lines += [f"### {QUANTITIES[quantity]} ({role})", "", *prediction_table(found[quantity], others[quantity]), ""]
    lines += ["## 4. Speed", "", f"{settings.LATENCY_PROMPTS} prompts, {settings.LATENCY_TOKENS} tokens each.", ""]
    return "\n".join([*lines, *latency_table(latency)]) + "\n"


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
    others = {quantity: others_of(by_trait) for quantity, by_trait in columns.items()}
    told = text(doses, pairs, found, others, latency)
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
