"""What a comparison of steering methods shows: comparison_plot.png and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.analysis_page import Page, Section, Shown, write
from eval.compare_behavior import Run
from eval.compare_settings import ACTIVATION, METHODS, WEIGHTS
from eval.report_study import spread, text_or_missing
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER
from persona_vectors import plots
from persona_vectors.page_plots import Series, chart

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Png

    from eval.compare_frontier import Agreed
    from eval.compare_spaces import Change
    from eval.compare_steps import Comparison

LOOKS = {ACTIVATION: "s0", WEIGHTS: "s1"}
COLORS = {ACTIVATION: plots.VECTOR, WEIGHTS: plots.SERIES[1]}
MARKERS = {ACTIVATION: "o", WEIGHTS: "^"}
NAMES = {ACTIVATION: "activation: coef * v", WEIGHTS: "weights (lora): coef * D"}
YLIM = (-3, 103)
RANDOM = "random, of |v| or of |D| in the weights"
N_QUESTIONS = 4
CHANGE = ("cosine with v", "projection on v/|v|", "norm of the change", "over hidden norm")


def findings(found: Comparison) -> dict[str, Any]:
    """For sidecars: the frontier and the agreement."""
    agreed = {"matched": found.matched, "same_method_next_coefficient": found.beside}
    return {
        "frontier": found.frontier.record(),
        "agreement": {name: [one.record() for one in pairs] for name, pairs in agreed.items()},
    }


def curve(runs: Sequence[Run], method: str, control: str) -> list[Run]:
    """A method's or control's runs, the unsteered one before a control's own."""
    own = [run for run in runs if (run.method, run.control) == (method, control)]
    base = [run for run in runs if run.method == method and not run.coef] if control else []
    return [*base, *own]


def controls(runs: Sequence[Run], method: str) -> list[list[Run]]:
    """The curve of each of the method's controls."""
    names = dict.fromkeys(run.control for run in runs if run.method == method and run.control)
    return [curve(runs, method, name) for name in names]


def comparison_png(found: Comparison) -> Png:
    """Trait and coherence over the coefficient, and one against the other."""
    figure, axes = plots.canvas(3)
    figure.set_size_inches(13.5, 4)
    trait, asked = found.checked.name, found.checked.asked
    for axis, of in ((axes[0], "trait"), (axes[1], "coherence")):
        for method in METHODS:
            for own in controls(found.runs, method):
                axis.plot(*_xy(own, "coef", of), color=plots.RANDOM, linestyle="--", linewidth=0.8, **_mark(method, 3))
            own = curve(found.runs, method, "")
            xs, ys = _xy(own, "coef", of)
            low, high = _ends(own, of)
            axis.fill_between(xs, low, high, color=COLORS[method], alpha=0.18, linewidth=0)
            axis.plot(xs, ys, color=COLORS[method], label=NAMES[method], **_mark(method, 5))
        axis.set(xlabel="coefficient, each of its own direction", title=trait if of == "trait" else of, ylim=YLIM)
    for method in METHODS:
        for own in controls(found.runs, method):
            xs, ys = _xy(own, "coherence", "trait")
            axes[2].plot(xs, ys, color=plots.RANDOM, linestyle="--", linewidth=0.8, **_mark(method, 3))
        own = curve(found.runs, method, "")
        axes[2].plot(*_xy(own, "coherence", "trait"), color=COLORS[method], label=NAMES[method], **_mark(method, 5))
        for run in own:
            at = (run.coherence.mean, run.trait.mean)
            if np.isfinite(at).all():
                axes[2].annotate(f"{run.coef:g}", at, (4, 4), textcoords="offset points", fontsize=7, color=plots.INK)
    axes[2].axvline(asked.min_coherence, color=plots.INK, linewidth=0.9, linestyle=":")
    axes[2].set(
        xlabel="coherence (number: coefficient)", ylabel=trait, title="frontier", xlim=_coherences(found), ylim=YLIM
    )
    axes[1].axhline(asked.min_coherence, color=plots.INK, linewidth=0.9, linestyle=":")
    axes[1].plot([], [], color=plots.RANDOM, linestyle="--", linewidth=0.8, label=RANDOM)
    axes[1].legend(frameon=False, fontsize=8, loc="best")
    return figure


def _coherences(found: Comparison) -> tuple[float, float]:
    """Ends of an axis of coherence."""
    there = [run.coherence.mean for run in found.runs if run.coherence.n]
    return min([found.checked.asked.min_coherence, *there]) - 5, YLIM[1]


def _mark(method: str, size: float) -> dict[str, Any]:
    return {"marker": MARKERS[method], "markersize": size}


def _xy(runs: Sequence[Run], x: str, y: str) -> tuple[list[float], list[float]]:
    def of(run: Run, name: str) -> float:
        return run.coef if name == "coef" else getattr(run, name).mean

    return [of(run, x) for run in runs], [of(run, y) for run in runs]


def _ends(runs: Sequence[Run], of: str) -> tuple[list[float], list[float]]:
    return [getattr(run, of).low for run in runs], [getattr(run, of).high for run in runs]


def write_report(found: Comparison) -> Path:
    """report.html."""
    asked = found.checked.asked
    page = Page(
        title=f"{found.checked.name} of {asked.model}: steering by a vector and by weights",
        lead=(
            f"{Path(asked.activation_vector_path).name} added at layer {asked.layer}, and "
            f"{Path(asked.lora_diff_path).name} added to the weights, each by its coefficients, beside random vectors "
            "of the same norm and random directions of the same singular values; the trait's eval questions, with the "
            "same random numbers in every setting, scored by "
            f"{asked.judge_model}."
        ),
        sentences=found.sentences(),
        sections=_sections(found),
        notes=[
            "The coefficients of the two methods have different units: compare them at equal coherence or equal trait."
        ],
        settings=asdict(asked),
    )
    return write(page, asked.folder / "report.html", findings(found))


def _sections(found: Comparison) -> list[Section]:
    from eval.compare_steps import cells, columns

    sections = [
        Section(
            "Trait and coherence",
            figures=[_behavior_figure(found)] if _drawable(found.runs) else [],
            columns=columns(found.checked.name),
            cells=cells(found.runs),
        ),
        Section(
            "Agreement",
            sentences=[
                "Correlation of the two settings' scores over answers to the same question with the same random "
                "numbers; in the last column with another answer to the same question, which shares the question alone."
            ],
            columns=["settings", "mean", "r", "r, other answer"],
            cells=[_agreed_cells(one) for one in (*found.matched, *found.beside)],
        ),
    ]
    if found.latency is not None:
        from eval.compare_latency import MEMORY_NOTE

        sections.append(Section("Latency and memory", [MEMORY_NOTE], (), *_table_cells(found.latency)))
    if found.spaces is not None:
        sections.append(_space_section(found))
    if found.capability is not None:
        from eval.compare_capability import EQUAL_TRAIT

        sections.append(Section("Capability", [EQUAL_TRAIT], (), *_table_cells(found.capability)))
    return [*sections, Section("Answers", samples=_samples(found))]


def _drawable(runs: Sequence[Run]) -> bool:
    return any(run.trait.n and run.coherence.n for run in runs)


def _agreed_cells(one: Agreed) -> list[str]:
    of = [one.correlation, one.shifted]
    means = f"{one.one.trait.mean:.1f} and {one.other.trait.mean:.1f}"
    return [
        f"{one.one.name} and {one.other.name}",
        means,
        *("-" if found is None else found.pearson.text() for found in of),
    ]


def _table_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    def text(value: Any) -> str:
        if isinstance(value, float):
            return "-" if np.isnan(value) else f"{value:.4g}"
        return "-" if value is None else str(value)

    rows = table.astype(object).to_dict("records")
    return list(table.columns), [[text(value) for value in row.values()] for row in rows]


def _behavior_figure(found: Comparison) -> Figure:
    trait, runs = found.checked.name, found.runs
    panels = []
    for title, x, y in ((trait, "coef", "trait"), ("coherence", "coef", "coherence"), ("", "coherence", "trait")):
        series = [
            Series(f"{own[-1].control} of {method}", *_xy(own, x, y), look="random")
            for method in METHODS
            for own in controls(runs, method)
        ]
        for method in METHODS:
            own = curve(runs, method, "")
            ends = _ends(own, y) if x == "coef" else ((), ())
            notes = [f"coef {run.coef:g}, {trait} {run.trait.text()}" for run in own]
            series.append(Series(NAMES[method], *_xy(own, x, y), *ends, look=LOOKS[method], notes=notes))
        xlabel = "coefficient, each of its own direction" if x == "coef" else "coherence"
        label = title or f"{trait} against coherence"
        limits: Mapping[str, Any] = {"ylim": YLIM} if x == "coef" else {"ylim": YLIM, "xlim": _coherences(found)}
        panels.append((label, chart(series, xlabel, title or trait, label, **limits)))
    legend = [*((LOOKS[method], NAMES[method]) for method in METHODS), ("random", RANDOM)]
    return Figure(
        "Means, with 95% intervals by question; the unsteered answers are coefficient 0 of both.", panels, legend
    )


def _space_section(found: Comparison) -> Section:
    from eval.compare_spaces import cosines

    assert found.spaces is not None
    spaces = found.spaces
    layers = [one.layer for one in spaces.changes]
    edge = [spaces.band] * len(layers)
    series = [
        Series("95% of random vectors", layers, edge, look="base", dots=False),
        Series("95% of random vectors", layers, [-one for one in edge], look="base", dots=False),
        *(Series("random direction", layers, cosines(other), look="random") for other in spaces.random),
        Series("weights' direction", layers, cosines(spaces.changes), look="s1"),
    ]
    panel = chart(
        series, "layer", "cosine with v", "cosine of the change with v, by layer", ylim=(-1.03, 1.03), whole_x=True
    )
    legend = [("s1", "weights' direction"), ("random", "random directions"), ("base", "95% of random vectors")]
    rows = []
    for i, (own, norm) in enumerate(zip(spaces.changes, spaces.vector_norms, strict=True)):
        texts = zip(_of_change(own), zip(*(_of_change(other[i]) for other in spaces.random), strict=True), strict=True)
        beside = [text for mine, theirs in texts for text in (mine, "; ".join(theirs))]
        rows.append([str(own.layer), *beside, f"{norm:.3f}"])
    said = (
        f"Both models read the same {spaces.n_samples} unsteered answers; the change is the mean over the response's "
        f"tokens, with the direction merged at coef {spaces.coef:g}."
    )
    names = ["layer", *(f"{name}{of}" for name in CHANGE for of in ("", ", random directions")), "|v|"]
    figure = Figure(
        "Cosine of the mean change with the vector of the same layer.", [("cosine by layer", panel)], legend
    )
    return Section("Weights and activations", [said], [figure], names, rows)


def _of_change(one: Change) -> list[str]:
    """The texts under CHANGE."""
    cosine = "-" if one.cosine is None else f"{one.cosine:+.3f}"
    return [cosine, one.projection.text(3, sign=True), f"{one.norm:.3f}", f"{one.relative:.3f}"]


def _samples(found: Comparison) -> list[tuple[str, list[Shown]]]:
    """Answers of the same question and random numbers side by side: unsteered, and each method at its best."""
    trait = found.checked.name
    shown = [(found.unsteered, "unsteered")]
    shown += [(run, "steered") for run in found.frontier.best.values()]
    table = found.unsteered.table
    first = (~table["question"].duplicated()).to_numpy().nonzero()[0].tolist()
    return [
        (table["question"].iloc[row], [_shown(run, css, row, trait) for run, css in shown])
        for row in (first[i] for i in spread(len(first), N_QUESTIONS))
    ]


def _shown(run: Run, css: str, row: int, trait: str) -> Shown:
    own = run.table.iloc[row]
    note = f"{trait} {text_or_missing(own[trait])}, coherence {text_or_missing(own['coherence'])}"
    return Shown(run.name, str(own["answer"])[:MAX_ANSWER], note, css)
