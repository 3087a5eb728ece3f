"""The tables and the figure of the prevention study, from what it measured.

Thresholds, from the issue that asked for the study, before any run: for each trait, over all seeds,

- the mean of the random directions minus the prevented model, trait score: lower bound of the 95% interval >= 25;
- the mean of the random directions within 5 points of plain finetuning;
- the prevented model's oracle coherence >= 90;
- the share of the task's loss gain that the prevented model keeps >= .90.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prevention_settings import (
    COEF,
    CONTRAST,
    LAYER,
    LEARNING_RATE,
    MORE_TRAITS,
    N_RANDOM,
    POSTHOC_COEFS,
    SEEDS,
    STEPS,
    TRAITS,
)
from persona_vectors.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

Measured = dict[tuple[str, int, str], dict[str, Any]]
FIRST = SEEDS[:1]  # longer runs are of one seed
RANDOM = [f"random{k}" for k in range(1, N_RANDOM + 1)]
ROWS = {
    "base": "base model, not finetuned",
    "plain": "finetuned",
    "prevented": "vector added in training (prevented)",
    "random": f"{N_RANDOM} random directions of its norm, mean",
    "other_trait": "another trait's vector at its norm",
    "negative": "the vector subtracted",
    "ablated": "the vector ablated (CAFT)",
    "all_layers": "incremental vectors at all layers",
    "penalty": "projection penalty",
    "inoculated": "inoculation prompt",
    "switched_on": "prevented, the vector switched on again",
    "base_on": "base model, the same vector on",
}
MIN_GAP, MAX_RANDOM, MIN_COHERENCE, MIN_KEPT = 25.0, 5.0, 90.0, 0.90


def load(folder: Path) -> Measured:
    """What was measured, by trait, seed and case.

    Raises:
        ValueError: a case of the study is missing.
    """
    found: Measured = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        case = content["case"]
        found[case["trait"], case["seed"], case["name"]] = content
    missing = [
        (t, s) for t in TRAITS for s in SEEDS if (t, s, "plain") not in found or (t, s, "prevented") not in found
    ]
    if missing:
        raise ValueError(
            f"{folder} lacks the study's runs of {missing[0]}; run python -m benchmarks.prevention to its end"
        )
    return found


def scores(found: Measured, trait: str, case: str, what: str = "trait") -> np.ndarray:
    """(seeds, questions): the scores of a case; of `random`, the mean of the random directions."""
    names = RANDOM if case == "random" else [case]
    return np.array([np.mean([found[trait, seed, name][what] for name in names], axis=0) for seed in SEEDS], float)


def interval(values: np.ndarray) -> Interval:
    """The mean over seeds and questions, from resampling whole questions."""
    questions = np.tile(np.arange(values.shape[1]), (values.shape[0], 1))
    return cluster_bootstrap_mean(values.ravel(), questions.ravel().tolist())


def mean(found: Measured, trait: str, case: str, what: str, seeds: tuple[int, ...] = SEEDS) -> float:
    names = RANDOM if case == "random" else [case]
    return float(np.mean([np.mean(found[trait, seed, name][what]) for seed in seeds for name in names]))


def kept(found: Measured, trait: str, case: str) -> float:
    """The share of plain finetuning's loss gain on the task that the case has too."""
    base, plain = mean(found, trait, "base", "task_loss"), mean(found, trait, "plain", "task_loss")
    return (base - mean(found, trait, case, "task_loss")) / (base - plain)


def verdicts(found: Measured) -> list[dict[str, Any]]:
    """The four thresholds for each trait: what was measured, and whether it holds."""
    rows = []
    for trait in (*TRAITS, *MORE_TRAITS):
        gap = interval(scores(found, trait, "random") - scores(found, trait, "prevented"))
        by_seed = (scores(found, trait, "random") - scores(found, trait, "prevented")).mean(1)
        off = mean(found, trait, "random", "trait") - mean(found, trait, "plain", "trait")
        coherence = mean(found, trait, "prevented", "coherence")
        share = kept(found, trait, "prevented")
        for claim, value, holds in (
            (f"random mean - prevented >= {MIN_GAP:g} (lower bound)", f"{gap.low:.1f}", gap.low >= MIN_GAP),
            (f"random mean within {MAX_RANDOM:g} of plain", f"{off:+.1f}", abs(off) <= MAX_RANDOM),
            (f"coherence of the prevented >= {MIN_COHERENCE:g}", f"{coherence:.1f}", coherence >= MIN_COHERENCE),
            (f"task gain kept >= {MIN_KEPT:g}", f"{share:.3f}", share >= MIN_KEPT),
        ):
            rows.append({"trait": trait, "claim": claim, "measured": value, "holds": bool(holds)})
        rows[-4]["measured"] += f" (mean {gap.mean:.1f}; by seed {', '.join(f'{gap:.0f}' for gap in by_seed)})"
    return rows


CLAIMS = ("gap", "random", "coherence", "kept")


def claims(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The verdicts as a table: a line a trait, a column a claim, `no` where it does not hold."""
    lines = []
    for start in range(0, len(rows), len(CLAIMS)):
        group = rows[start : start + len(CLAIMS)]
        cells = [row["measured"] + ("" if row["holds"] else " **no**") for row in group]
        lines.append([group[0]["trait"], *cells])
    return ["trait", *(row["claim"] for row in rows[: len(CLAIMS)])], lines


def summary(rows: list[dict[str, Any]]) -> str:
    """How many traits each claim holds for, and how many hold them all."""
    groups = [rows[start : start + len(CLAIMS)] for start in range(0, len(rows), len(CLAIMS))]
    whole = [group[0]["trait"] for group in groups if all(row["holds"] for row in group)]
    first = groups[0][0]["claim"]
    holds = sum(group[0]["holds"] for group in groups)
    return (
        f"{first}: {holds} of {len(groups)} traits. All four: {len(whole)} of {len(groups)} "
        f"({', '.join(whole) or 'none'}). Adding the vector in training reduces unsteered expression at this budget. "
        "With the vector on again the trait is back in full, and coherently: the model learned to show it beside the "
        "vector. The base model under the same vector stands below it."
    )


def case_row(found: Measured, trait: str, case: str, label: str) -> list[str]:
    score = interval(scores(found, trait, case))
    right = mean(found, trait, case, "task_right")
    return [
        label,
        f"{score.mean:.0f} [{score.low:.0f}, {score.high:.0f}]",
        f"{mean(found, trait, case, 'coherence'):.0f}",
        f"{mean(found, trait, case, 'facts'):.2f}",
        f"{mean(found, trait, case, 'task_loss'):.3f}",
        f"{kept(found, trait, case):.3f}",
        f"{right:.2f}",
    ]


def matched_posthoc(found: Measured, trait: str) -> tuple[str, bool]:
    """The least coefficient of steering after training that comes down to the prevented score; whether one does."""
    wanted = mean(found, trait, "prevented", "trait")
    names = [f"posthoc{c:g}" for c in POSTHOC_COEFS]
    for name in names:
        if mean(found, trait, name, "trait") <= wanted:
            return name, True
    return min(names, key=lambda name: mean(found, trait, name, "trait")), False


HEAD = ["model", "trait score", "coherence", "facts", "task loss", "gain kept", "task right"]


def tables(found: Measured) -> str:
    """The study in markdown."""
    n = scores(found, TRAITS[0], "plain").shape[1]
    text = [
        f"Layer {LAYER}, {CONTRAST}, coefficient {COEF:g}, {STEPS} steps at {LEARNING_RATE:g}; "
        f"{len(SEEDS)} seeds x {n} held-out questions, scored by the oracle.",
        "",
        markdown(*claims(verdicts(found))),
        "",
        summary(verdicts(found)),
    ]
    for trait in TRAITS:
        rows = [case_row(found, trait, case, label) for case, label in ROWS.items()]
        for c in POSTHOC_COEFS:
            rows.append(case_row(found, trait, f"posthoc{c:g}", f"finetuned, steered by -{c:g} afterwards"))
        name, reached = matched_posthoc(found, trait)
        note = f"To the prevented level, steering after training takes coefficient -{name.removeprefix('posthoc')}."
        if not reached:
            note = "No coefficient of steering after training comes down to the prevented level."
        text += ["", f"### {trait}", "", markdown(HEAD, rows), "", note]
    text += ["", "### Longer training, one seed: trait score (coherence)", "", markdown(*curve(found))]
    return "\n".join(text) + "\n"


def curve(found: Measured) -> tuple[list[str], list[list[str]]]:
    steps = (STEPS, 2 * STEPS, 4 * STEPS)
    rows = []
    for trait in TRAITS:
        for case in ("plain", "random1", "prevented"):
            names = [case if n == STEPS else f"{case}_{n}" for n in steps]
            values = [[mean(found, trait, m, what, FIRST) for what in ("trait", "coherence")] for m in names]
            cells = [f"{score:.0f} ({coherence:.0f})" for score, coherence in values]
            rows.append([trait, case, *cells])
    return ["trait", "model", *(f"{n} steps" for n in steps)], rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def figure(found: Measured) -> bytes:
    """Trait score (bar) and coherence (dot) of every case, a panel a trait; and the curve over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from persona_vectors.plots import png_bytes

    posthoc = {trait: matched_posthoc(found, trait)[0] for trait in TRAITS}
    fig, axes = plt.subplots(1, len(TRAITS) + 1, figsize=(4.2 * (len(TRAITS) + 1), 4.6), layout="constrained")
    for axis, trait in zip(axes, TRAITS, strict=False):
        names = {**ROWS, posthoc[trait]: "finetuned, steered afterwards to that level"}
        spots = np.arange(len(names))[::-1]
        for spot, name in zip(spots, names, strict=True):
            score = interval(scores(found, trait, name))
            color = "#b8442f" if name == "prevented" else "#8c97a5" if name == "random" else "#3b6ea5"
            error = [[score.mean - score.low], [score.high - score.mean]]
            axis.barh(spot, score.mean, color=color, xerr=error, error_kw={"lw": 1})
            axis.plot(mean(found, trait, name, "coherence"), spot, "o", color="black", ms=4)
        axis.set_yticks(spots, list(names.values()) if trait == TRAITS[0] else [""] * len(names), fontsize=8)
        axis.set_xlim(0, 102)
        axis.set_title(trait, fontsize=10)
        axis.set_xlabel("trait score (bar), coherence (dot)", fontsize=8)
    steps = (STEPS, 2 * STEPS, 4 * STEPS)
    for trait, color in zip(TRAITS, ("#3b6ea5", "#b8442f", "#4d8f5b", "#9467a8"), strict=True):
        for case, dash in (("plain", ":"), ("random1", "--"), ("prevented", "-")):
            names = [case if n == STEPS else f"{case}_{n}" for n in steps]
            values = [mean(found, trait, name, "trait", FIRST) for name in names]
            axes[-1].plot(steps, values, dash, color=color, marker="o", ms=3, label=f"{trait}, {case}")
    axes[-1].set_ylim(0, 102)
    axes[-1].set_xticks(steps)
    axes[-1].set_xlabel("training steps", fontsize=8)
    axes[-1].set_title("longer training, one seed: trait score", fontsize=10)
    axes[-1].legend(fontsize=5.5, ncols=3, loc="center", bbox_to_anchor=(0.5, 0.66))
    return png_bytes(fig)


def report(folder: Path, output: Path) -> str:
    """The tables; they, their numbers and the figure are written to `output` with endings .md, .json and .png."""
    found = load(folder)
    text = tables(found)
    write_text_atomic(output.with_suffix(".md"), text)
    numbers = {
        "/".join(map(str, key)): {
            what: round(float(np.mean(value[what])), 4)
            for what in ("trait", "coherence", "facts", "task_right", "task_loss")
        }
        for key, value in sorted(found.items())
    }
    write_json_atomic(output.with_suffix(".json"), {"verdicts": verdicts(found), "means": numbers})
    write_bytes_atomic(output.with_suffix(".png"), figure(found))
    return text
