"""The claims about steering, prompts and training with a vector. Thresholds are in `paper_claims`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.paper_claims import (
    MAX_DIP,
    MAX_RHO,
    MIN_BEATEN,
    MIN_COHERENCE,
    MIN_COST,
    MIN_DOSE,
    MIN_GAP,
    MIN_TIMES_RANDOM,
    PAPER_R_MONITOR,
    Claim,
    Found,
    claim,
)
from benchmarks.paper_models import SPANS, load, place
from benchmarks.paper_predictions import Recipes, by_question
from benchmarks.paper_settings import ALL, DOSE_RANDOM, DOSES, N_RANDOM, POSITION_COEF, TRAITS
from persona_vectors.correlation import correlate, correlate_within, random_correlations, share_beaten, spearman

POSTHOC = ("posthoc0.5", "posthoc1", "posthoc1.5", "posthoc2")
RANDOM = ("random1", "random2")


def steering(work: Path, seeds: Sequence[int]) -> list[Claim]:
    """Where vectors come from, and dose and response."""
    return [
        claim("position", {trait: position(work, seeds, trait) for trait in TRAITS}),
        claim("dose", {trait: dose(work, seeds, trait) for trait in TRAITS}),
    ]


def steered(work: Path, seeds: Sequence[int], trait: str, name: str, what: str = "scores") -> np.ndarray:
    """(seeds, questions): a setting's scores or coherence."""
    rows = []
    for seed in seeds:
        arrays, told = load(place(work, ("steer", trait, str(seed))))
        rows.append(arrays[what][told["settings"].index(name)])
    return np.array(rows, dtype=float)


def position(work: Path, seeds: Sequence[int], trait: str) -> Found:
    """Steering by the vector of answers minus that of the better one of the others."""
    scores = {span: steered(work, seeds, trait, f"span {span}") for span in SPANS}
    other = max(("prompt_avg", "prompt_last"), key=lambda span: scores[span].mean())
    apart = by_question(scores["response_avg"] - scores[other])
    reads = {span: steered(work, seeds, trait, f"span {span}", "coherence").mean() for span in scores}
    told = ", ".join(f"{span} {values.mean():.1f} at coherence {reads[span]:.0f}" for span, values in scores.items())
    return Found(apart.mean, apart.low, apart.high, apart.low > 0, f"coefficient {POSITION_COEF:g}: {told}", digits=1)


def dose(work: Path, seeds: Sequence[int], trait: str) -> Found:
    """The score's rise to the largest dose, its way there, its coherence, and random directions."""
    scores = [steered(work, seeds, trait, f"dose {coef:g}") for coef in DOSES]
    reads = [steered(work, seeds, trait, f"dose {coef:g}", "coherence").mean() for coef in DOSES]
    rise = by_question(scores[-1] - scores[0])
    dip = max(float(a.mean() - b.mean()) for a, b in zip(scores, scores[1:], strict=False))
    settings = [f"random{k} {coef:g}" for k in range(1, DOSE_RANDOM + 1) for coef in DOSES[1:]]
    pushed = [steered(work, seeds, trait, name) for name in settings]
    largest = max(float(np.abs((one - scores[0]).mean(1)).max()) for one in pushed)  # of a direction, dose and seed
    holds = rise.mean >= MIN_DOSE and dip <= MAX_DIP and reads[-1] >= MIN_COHERENCE
    holds = holds and rise.mean >= MIN_TIMES_RANDOM * largest
    steps = zip(DOSES, scores, reads, strict=True)
    path = ", ".join(f"{coef:g}: {one.mean():.0f} at {read:.0f}" for coef, one, read in steps)
    beside = f"score at coherence by coefficient {path}; largest shift of a random direction {largest:.1f}"
    return Found(rise.mean, rise.low, rise.high, bool(holds), beside, digits=1)


def monitoring(work: Path, seeds: Sequence[int], recipes: Recipes) -> list[Claim]:
    """System prompts and many shots: over all points, and within conditions."""
    found = []
    for kind in ("system", "shots"):
        by_trait = {trait: monitored(work, seeds, recipes, trait, kind) for trait in TRAITS}
        for number, key in enumerate((f"monitor_{kind}", f"monitor_{kind}_within")):
            found.append(claim(key, {trait: both[number] for trait, both in by_trait.items()}))
    return found


def monitor_points(work: Path, seeds: Sequence[int], trait: str, kind: str) -> dict[str, Any]:
    """activations (n, d_model), scores, condition numbers and questions of all seeds."""
    read = [load(place(work, ("monitor", trait, kind, str(seed)))) for seed in seeds]
    lists = {name: [one for _a, told in read for one in told[name]] for name in ("scores", "conditions", "questions")}
    return {"activations": np.concatenate([arrays["prompt_last"] for arrays, _told in read]), **lists}


def monitored(work: Path, seeds: Sequence[int], recipes: Recipes, trait: str, kind: str) -> tuple[Found, Found]:
    """(over all points, within conditions)."""
    points = monitor_points(work, seeds, trait, kind)
    read, scores, conditions = points["activations"], np.array(points["scores"]), points["conditions"]
    inside, left = _centred(read, conditions), _centred(scores[:, None], conditions)[:, 0]
    beside: dict[str, list[str]] = {"all": [], "within": []}
    found = {}
    for name, vectors in recipes.items():
        values = read @ vectors[trait]
        overall = correlate(values, scores, points["questions"]).pearson
        within = correlate_within(values, scores, conditions, points["questions"]).pearson
        shares = (
            share_beaten(overall.value, random_correlations(read, scores, n_directions=N_RANDOM)),
            share_beaten(within.value, random_correlations(inside, left, n_directions=N_RANDOM)),
        )
        found[name] = (overall, within, *shares)
        label = "" if name == "orthogonal" else f"{name} "
        beside["all"].append(f"{label and label + overall.text() + ', '}beats {shares[0]:.1%} of random")
        beside["within"].append(f"{label and label + within.text() + ', '}beats {shares[1]:.1%} of random")
    number = correlate(np.array(conditions, float), scores, points["questions"]).pearson
    beside["all"].append(f"the condition's number alone {number.text()}")
    overall, within, share, share_within = found["orthogonal"]
    holds = overall.value is not None and overall.value >= PAPER_R_MONITOR and share >= MIN_BEATEN
    holds_within = within.low is not None and within.low > 0 and share_within >= MIN_BEATEN
    return (
        Found(overall.value, overall.low, overall.high, holds, "; ".join(beside["all"])),
        Found(within.value, within.low, within.high, holds_within, "; ".join(beside["within"])),
    )


def _centred(values: np.ndarray, conditions: Sequence[int]) -> np.ndarray:
    """Each condition's own mean taken off."""
    codes = np.asarray(conditions)
    means = np.stack([values[codes == code].mean(0) for code in range(codes.max() + 1)])
    return values - means[codes]


@dataclass(frozen=True)
class Prevention:
    """The prevention study's runs, read when asked for."""

    folder: Path
    seeds: Sequence[int]

    def of(self, trait: str, case: str, what: str = "trait") -> np.ndarray:
        """(seeds, questions)."""
        paths = [self.folder / "measured" / f"{trait}_{seed}_{case}.json" for seed in self.seeds]
        return np.array([json.loads(path.read_text(encoding="utf-8"))[what] for path in paths], dtype=float)


def prevention(runs: Prevention, base: Float[np.ndarray, " d_model"], recipes: Recipes) -> list[Claim]:
    """Training with the vector, and what else can be done; `base` is the base model's mean answer."""
    return [
        claim("posthoc", {trait: afterwards(runs, trait) for trait in TRAITS}),
        claim("prevention", {trait: gap(runs, trait, RANDOM, "prevented", MIN_GAP) for trait in TRAITS}),
        claim("all_layers", {trait: gap(runs, trait, ("prevented",), "all_layers") for trait in TRAITS}),
        claim("caft", {"seven traits": ablation(runs, base, recipes)}),
        claim("penalty", {trait: gap(runs, trait, ("penalty",), "prevented") for trait in TRAITS}),
        claim("inoculation", {trait: gap(runs, trait, ("plain",), "inoculated", MIN_GAP) for trait in TRAITS}),
    ]


def gap(runs: Prevention, trait: str, high: Sequence[str], low: str, at_least: float = 0.0) -> Found:
    """Trait score of the (mean of the) first models minus that of the second, by question."""
    first = np.mean([runs.of(trait, case) for case in high], axis=0)
    second = runs.of(trait, low)
    apart = by_question(first - second)
    reads = [np.mean([runs.of(trait, case, "coherence") for case in cases]) for cases in (high, (low,))]
    beside = f"{first.mean():.1f} and {second.mean():.1f}, coherence {reads[0]:.0f} and {reads[1]:.0f}"
    holds = apart.low > at_least if at_least == 0 else apart.low >= at_least
    return Found(apart.mean, apart.low, apart.high, bool(holds), beside, digits=1)


def afterwards(runs: Prevention, trait: str) -> Found:
    """Coherence that the smallest coefficient costs which brings the finetuned model to the prevented one's score."""
    level = runs.of(trait, "prevented").mean()
    reached = next((case for case in POSTHOC if runs.of(trait, case).mean() <= level), None)
    if reached is None:
        return Found(None, None, None, False, f"no coefficient up to 2 brings it to {level:.1f}", digits=1)
    cost = by_question(runs.of(trait, "prevented", "coherence") - runs.of(trait, reached, "coherence"))
    facts = [runs.of(trait, case, "facts").mean() for case in ("prevented", reached)]
    score = runs.of(trait, reached).mean()
    equal = runs.of(trait, "prevented", "coherence").mean() - _coherence_at(runs, trait, reached, level)
    beside = (
        f"{reached.removeprefix('posthoc')} v subtracted: score {score:.1f} beside {level:.1f}, interpolated to the "
        f"same score {equal:.1f} points; facts {facts[0]:.2f} and {facts[1]:.2f}"
    )
    return Found(cost.mean, cost.low, cost.high, bool(cost.mean >= MIN_COST and cost.low > 0), beside, digits=1)


def _coherence_at(runs: Prevention, trait: str, reached: str, level: float) -> float:
    """Coherence on the straight line from the coefficient before `reached` to it, where the score is `level`."""
    before = ("plain", *POSTHOC)[POSTHOC.index(reached)]
    ends = [(runs.of(trait, case).mean(), runs.of(trait, case, "coherence").mean()) for case in (reached, before)]
    return float(np.interp(level, [score for score, _ in ends], [coherence for _, coherence in ends]))


def ablation(runs: Prevention, base: Float[np.ndarray, " d_model"], recipes: Recipes) -> Found:
    """Rank correlation over traits of the base model's projection with what ablation in training takes off."""
    projections = [float(base @ recipes["plain"][trait]) for trait in ALL]
    taken = [float((runs.of(trait, "plain") - runs.of(trait, "ablated")).mean()) for trait in ALL]
    rho = spearman(np.array(projections), np.array(taken))
    told = ", ".join(f"{t} {p:+.2f}: {d:.1f}" for t, p, d in zip(ALL, projections, taken, strict=True))
    return Found(rho, None, None, rho <= MAX_RHO, f"projection: points taken off, {told}")
