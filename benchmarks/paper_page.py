"""The files of the claims study: the table as Markdown and JSON, a figure, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import paper_interventions, paper_predictions, paper_settings
from benchmarks.paper_claims import Claim
from benchmarks.paper_models import BASE, load, place, vectors_path
from benchmarks.paper_points import RECIPES, Points, base_mean, points_of, vectors_of
from benchmarks.paper_predictions import Recipes, correlated
from benchmarks.paper_settings import LAYER, TRAITS
from benchmarks.study import settings_of
from eval.analysis_page import Page, Section, Shown, write
from eval.results_figures import Figure
from persona_vectors import plots
from persona_vectors.correlation import Estimated, correlate, random_correlations
from persona_vectors.page_plots import levels
from persona_vectors.scatter import Panel, scatter_png, scatter_svg
from persona_vectors.scatter import Points as Group

DISCLAIMER = (
    "This says how the methods behave on models/tiny-persona, a model of four blocks that speaks an artificial "
    "language and is scored by that language's own rules. It is no evidence about large models."
)
KINDS = {
    "delta_p": "projection difference",
    "raw": "raw projection",
    "cheap": "cheap difference",
    "shift": "finetuning shift",
    "response_shift": "shift of the answers",
}
COLUMNS = ("paper", "quantity", "verdict", "here", "threshold, set beforehand", "paper, 7-8B models")
SHOWN = (BASE, "TRAIT 100%", "TRAIT 25%", "TRAIT, asked for", "TRAIT, forbidden", "TRAIT opposite")


def report(work: Path, prevention_dir: Path, seeds: Sequence[int], parts: Sequence[str], output: Path) -> str:
    """The table as text, after every file is written."""
    from persona_vectors.files import write_bytes_atomic, write_json_atomic, write_sidecar, write_text_atomic

    points = points_of(work, seeds) if "predictions" in parts else None
    recipes = {name: vectors_of(vectors_path(work), name) for name in RECIPES}
    claims = all_claims(work, prevention_dir, seeds, parts, points, recipes)
    settings = settings_of(paper_settings)
    text = markdown(claims, seeds)
    write_text_atomic(output.with_suffix(".md"), text)
    models = [] if points is None else model_records(points, recipes)
    numbers = {"seeds": list(seeds), "claims": claim_records(claims), "models": models, "settings": settings}
    write_json_atomic(output.with_suffix(".json"), numbers)
    if points is not None:
        write_bytes_atomic(output.with_suffix(".png"), plots.png_bytes(scatter_png(panels(points, recipes))))
    page = replace(page_of(work, seeds, claims, points, recipes), settings=settings)
    write(page, output.with_suffix(".html"), {"claims": {one.key: one.verdict for one in claims}})
    write_sidecar(output.with_suffix(".md"), {"seeds": list(seeds), "settings": settings})
    return f"{text}\nPage, with figures and answers: {output.with_suffix('.html')}"


def all_claims(
    work: Path,
    prevention_dir: Path,
    seeds: Sequence[int],
    parts: Sequence[str],
    points: Points | None,
    recipes: Recipes,
) -> list[Claim]:
    """Every row of the table, in the paper's order."""
    found: list[Claim] = []
    if "steering" in parts:
        found += paper_interventions.steering(work, seeds)
    if "monitoring" in parts:
        found += paper_interventions.monitoring(work, seeds, recipes)
    predicted = [] if points is None else paper_predictions.predictions(points, recipes)
    found += [one for one in predicted if one.key.startswith("shift")]
    if "prevention" in parts:
        runs = paper_interventions.Prevention(prevention_dir, seeds)
        found += paper_interventions.prevention(runs, base_mean(work, seeds), recipes)
    found += [one for one in predicted if not one.key.startswith("shift")]
    if "samples" in parts:
        found.append(paper_predictions.samples(work, seeds, recipes))
    if "subsets" in parts:
        found.append(paper_predictions.subsets(work, seeds))
    return found


def headline(claims: Sequence[Claim]) -> str:
    """How many hold for every trait, for some, and for none."""
    whole = sum(one.verdict == "holds" for one in claims)
    none = sum(one.n_held == 0 for one in claims)
    return (
        f"{whole} of {len(claims)} claims hold for every trait that was tested, {len(claims) - whole - none} for some, "
        f"{none} for none."
    )


def cells(claim: Claim) -> list[str]:
    """A row of the table."""
    here = "; ".join(f"{trait} {one.text()}{'' if one.holds else ' (no)'}" for trait, one in claim.found.items())
    return [claim.figure, claim.quantity, claim.verdict, here, claim.threshold, claim.paper]


def markdown(claims: Sequence[Claim], seeds: Sequence[int]) -> str:
    """The table, then what stands beside each number."""
    lines = [f"{DISCLAIMER}\n", f"{_setup(seeds)}\n", f'{headline(claims)} "(no)" marks a trait that misses.\n']
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(one))} |" for one in claims]
    lines.append("\n## Beside each number\n")
    for one in claims:
        lines.append(f"**{one.quantity}** ({one.verdict})\n")
        lines += [f"- {trait}: {found.text()}; {found.beside}" for trait, found in one.found.items()]
        lines.append("")
    return "\n".join(lines)


def _setup(seeds: Sequence[int]) -> str:
    return (
        f"Layer {LAYER}; vectors of answers with the trait minus neutral ones, the other six traits' vectors projected "
        f"out (plain ones beside); {len(seeds)} seed{'s' if len(seeds) > 1 else ''}. Predictions are over 40 data sets "
        "a seed, the same for every trait; few of them have a high score, so r leans on these (ranks are beside). "
        "Intervals resample data sets (the seeds of one together) or, with the prompts as they are, questions. Random "
        "directions get the sign that suits them. Layer and contrast were chosen on development questions, and the "
        "thresholds are those of commit 7aa9416, before the first run. Two rows (control, inoculation) are not the "
        "paper's, and where the paper itself says that an effect is weak, a miss agrees with it."
    )


def claim_records(claims: Sequence[Claim]) -> dict[str, object]:
    """Every claim in numbers."""
    return {
        one.key: {
            "quantity": one.quantity,
            "threshold": one.threshold,
            "verdict": one.verdict,
            "found": {trait: vars(found) for trait, found in one.found.items()},
        }
        for one in claims
    }


def model_records(points: Points, recipes: Recipes) -> list[dict[str, object]]:
    """Every finetuned model in numbers."""
    own = recipes["orthogonal"]
    return [
        {
            "data": name,
            "seed": seed,
            "coherence": round(float(points.coherence[i]), 3),
            "scores": {trait: round(float(values[i]), 3) for trait, values in points.scores.items()},
            "text": {trait: round(float(points.text[trait][i]), 3) for trait in TRAITS},
            **{kind: {t: round(float(points.changes[kind][i] @ own[t]), 5) for t in TRAITS} for kind in KINDS},
        }
        for i, (name, seed) in enumerate(zip(points.names, points.seeds, strict=True))
    ]


def panels(points: Points, recipes: Recipes, kind: str = "delta_p", recipe: str = "orthogonal") -> dict[str, Panel]:
    """A scatter a trait, its own data sets apart from the others'."""
    found = {}
    for trait in TRAITS:
        xs, ys = points.values(kind, recipes[recipe][trait]), points.scores[trait]
        groups = []
        for label, look, wanted in (("data of this trait", "s0", True), ("other data", "random", False)):
            rows = [i for i, name in enumerate(points.names) if (trait in name) == wanted]
            names = [f"{points.names[i]}, seed {points.seeds[i]}" for i in rows]
            groups.append(Group(label, xs[rows], ys[rows], names, look))
        r = correlated(points, kind, recipes[recipe][trait], trait).pearson
        found[f"{trait}: r {r.text()}"] = Panel(groups, KINDS[kind], f"{trait} score after finetuning")
    return found


def page_of(work: Path, seeds: Sequence[int], claims: Sequence[Claim], points: Points | None, recipes: Recipes) -> Page:
    """The page: the table, what it rests on, and answers of the models."""
    details = [
        [one.quantity, trait, found.text(), "yes" if found.holds else "no", found.beside]
        for one in claims
        for trait, found in one.found.items()
    ]
    sections = [Section("The claims", columns=COLUMNS, cells=[cells(one) for one in claims])]
    if points is not None:
        said = "Pearson's r with the trait score after finetuning, 95% interval; below it what random directions reach."
        sections.append(Section("What each prediction is worth", [said], figures=[_forest(points, recipes)]))
        sections += [_scatters(points, recipes, kind) for kind in ("delta_p", "shift")]
    sections.append(
        Section("Beside each number", columns=("quantity", "trait", "here", "holds", "beside"), cells=details)
    )
    if points is not None:
        sections.append(Section("What the models say", samples=_answers(work, seeds[0])))
        sections.append(Section("Every data set", columns=_point_columns(), cells=_point_cells(points, recipes)))
    title = "The paper's claims on models/tiny-persona"
    return Page(title, f"{DISCLAIMER} {_setup(seeds)}", [headline(claims)], sections)


def _scatters(points: Points, recipes: Recipes, kind: str) -> Section:
    figures = []
    for recipe in RECIPES:
        drawn = panels(points, recipes, kind, recipe)
        svgs = [(title, scatter_svg(panel, f"{KINDS[kind]}, {title}")) for title, panel in drawn.items()]
        caption = f"{recipe} vectors; a point is a finetuned model."
        figures.append(Figure(caption, svgs, [("s0", "data of this trait"), ("random", "other data")]))
    return Section(f"{KINDS[kind].capitalize()} and what finetuning did", figures=figures)


def _forest(points: Points, recipes: Recipes) -> Figure:
    """r of every kind of prediction, and the 99th percentile of random directions on the same activations."""
    drawn = []
    for trait in TRAITS:
        rows: list[tuple[str, str, float, float, float]] = []
        for kind, name in KINDS.items():
            for recipe, look in zip(RECIPES, ("s0", "s1"), strict=True):
                r = correlated(points, kind, recipes[recipe][trait], trait).pearson
                rows.append((f"{name}, {recipe}", look, *_numbers(r)))
            random = random_correlations(points.changes[kind], points.scores[trait])
            low, middle, high = np.quantile(random, [0.05, 0.5, 0.99])
            rows.append((f"{name}, random directions", "random", middle, low, high))
        text = correlate(points.text[trait], points.scores[trait], points.names).pearson
        rows.append(("the training text's score alone", "s2", *_numbers(text)))
        drawn.append((trait, levels(rows, "r", f"r of predictions of {trait}", (-0.35, 1.02))))
    legend = [
        ("s0", "others projected out"),
        ("s1", "plain"),
        ("random", "random directions: median, 5th to 99th percentile"),
        ("s2", "text alone"),
    ]
    return Figure("", drawn, legend)


def _numbers(r: Estimated) -> tuple[float, float, float]:
    return tuple(float("nan") if value is None else value for value in (r.value, r.low, r.high))  # pyright: ignore


def _answers(work: Path, seed: int) -> list[tuple[str, list[Shown]]]:
    found = []
    for trait in TRAITS:
        shown = []
        for name in SHOWN:
            _arrays, told = load(place(work, ("models", name.replace("TRAIT", trait), str(seed))))
            score, read = (float(np.mean(values)) for values in (told["scores"][trait], told["coherence"]))
            note = f"{trait} {score:.0f}, coherence {read:.0f} over {len(told['coherence'])} answers"
            css = "unsteered" if name == BASE else ""
            shown.append(Shown(told["name"], told["examples"][0][1], note, css))
        found.append((f"{trait}: {told['examples'][0][0]}", shown))
    return found


def _point_columns() -> list[str]:
    return ["data", *(f"{trait}: {what}" for trait in TRAITS for what in ("score", "ΔP", "text")), "coherence"]


def _point_cells(points: Points, recipes: Recipes) -> list[list[str]]:
    rows = []
    for name in dict.fromkeys(points.names):
        of = [i for i, one in enumerate(points.names) if one == name]
        row = [name]
        for trait in TRAITS:
            difference = points.values("delta_p", recipes["orthogonal"][trait])[of].mean()
            row += [
                f"{points.scores[trait][of].mean():.0f}",
                f"{difference:+.2f}",
                f"{points.text[trait][of].mean():.0f}",
            ]
        rows.append([*row, f"{points.coherence[of].mean():.0f}"])
    return rows
