"""The files of a selection: selection.csv, answers.csv, selection.png and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.analysis_page import Page, Section, Shown, write
from eval.page import visible
from eval.report_study import spread, text_or_missing
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER
from eval.select_layer_choice import Selection, Value
from eval.select_layer_report import cells, columns, legend, record, sentences
from eval.select_layer_settings import Place
from eval.sweep_summary import described
from persona_vectors import plots
from persona_vectors.page_plots import Series, chart
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Png

    from eval.select_layer import Asked
    from eval.select_layer_answers import Scored

N_QUESTIONS = 3
YLIM = (-4, 104)


def write_files(asked: Asked, trait: str, scored: Scored, selection: Selection, notes: Sequence[str]) -> Path:
    """The page's path, after all four files are written with their sidecars."""
    from persona_vectors.files import write_bytes_atomic, write_csv_atomic, write_sidecar

    folder, found = Path(asked.output_dir), record(selection, trait, asked)
    curves = _Curves(scored)
    for name, table in (("selection.csv", curves.table(trait, selection)), ("answers.csv", scored.table(trait))):
        write_sidecar(write_csv_atomic(table, folder / name), {**found, "receipts": scored.receipts})
    drawn = write_bytes_atomic(folder / "selection.png", plots.png_bytes(png(curves, selection, trait, asked)))
    write_sidecar(drawn, {"kind": "selection of a layer", "trait": trait, "settings": found["settings"]})
    page = Page(
        title=f"{trait} of {asked.model}: at which layer to steer",
        lead=(
            f"{Path(asked.vector_path).name} added at each layer by each coefficient, beside random directions of the "
            f"same norm; answers to the trait's eval questions, scored by {asked.judge_model}. Half of the questions "
            "choose layer and coefficient, the other half gives the values."
        ),
        sentences=sentences(selection, trait, asked),
        sections=_sections(curves, selection, trait, asked),
        found=selection.layer.holds,
        notes=notes,
        settings=found["settings"],
    )
    return write(page, folder / "report.html", found)


class _Curves:
    """Mean and interval of each setting over all questions: what is drawn over the coefficient."""

    def __init__(self, scored: Scored):
        self.scored, self.settings = scored, scored.settings
        clusters = scored.questions
        self.means = {
            "trait": [cluster_bootstrap_mean(row, clusters) for row in scored.trait],
            "coherence": [cluster_bootstrap_mean(row, clusters) for row in scored.coherence],
        }

    def of(self, place: Place, score: str) -> tuple[list[float], list[Interval]]:
        """Coefficients and values of a place, the unsteered answers as coefficient 0."""
        unsteered = Place("unsteered")
        numbers = [n for n, s in enumerate(self.settings) if s.place in (place, unsteered)]
        return [self.settings[n].coef for n in numbers], [self.means[score][n] for n in numbers]

    def random(self, place: Place, score: str) -> tuple[list[float], np.ndarray]:
        """Coefficients and (n_random, n_coefs) means of the random directions beside a place."""
        own = [
            other
            for other in dict.fromkeys(s.place for s in self.settings)
            if other.control and (other.kind, other.layer) == (place.kind, place.layer)
        ]
        found = [self.of(other, score) for other in own]
        return found[0][0], np.array([[one.mean for one in intervals] for _, intervals in found])

    def table(self, trait: str, selection: Selection) -> pd.DataFrame:
        """A row a setting: over all questions, on each half, and whether its place was taken at this coefficient."""
        import pandas as pd

        halves = {"choosing": selection.halves.choose, "reporting": selection.halves.report}
        taken = {value.setting for value in selection.values}
        rows = []
        for number, setting in enumerate(self.settings):
            row: dict[str, Any] = {"kind": setting.place.kind, "layer": setting.place.layer}
            row |= {"control": setting.place.control, "coef": setting.coef}
            for name, of in ((trait, "trait"), ("coherence", "coherence")):
                row |= {
                    f"{name}{'' if end == 'mean' else '_' + end}": value
                    for end, value in described(self.means[of][number]).items()
                }
                scores = getattr(self.scored, of)[number]
                row |= {f"{name}_{half}": _mean(scores[kept]) for half, kept in halves.items()}
                row |= {f"n_scored_{name}": int(np.isfinite(scores).sum())}
            rows.append({**row, "best_coef_of_its_line": number in taken})
        return pd.DataFrame(rows).astype({"layer": "Int64"})


def _mean(values: np.ndarray) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else np.nan


def png(curves: _Curves, selection: Selection, trait: str, asked: Asked) -> Png:
    """Trait at matched coherence by layer, and trait and coherence over the coefficient, a line a layer."""
    figure, axes = plots.canvas(3)
    figure.set_size_inches(14, 4.2)
    _draw_layers(axes[0], selection, trait, asked)
    for axis, title, score in ((axes[1], trait, "trait"), (axes[2], "coherence", "coherence")):
        _draw_curves(axis, curves, selection, score)
        axis.set(xlabel="coefficient", title=f"{title}, all questions", ylim=YLIM)
    axes[2].axhline(asked.min_coherence, color=plots.INK, linewidth=0.9, linestyle=":")
    axes[2].legend(frameon=False, fontsize=7, loc="best")
    return figure


def _draw_layers(axis: Any, selection: Selection, trait: str, asked: Asked) -> None:
    own = selection.of("layer")
    layers, means, low, high = _arrays(own)
    bottom, middle, top = _random_band(selection)
    axis.fill_between(layers, bottom, top, color=plots.RANDOM, alpha=0.25, linewidth=0)
    axis.plot(layers, middle, color=plots.RANDOM, linestyle="--", marker="s", markersize=4, label="random: mean, range")
    axis.errorbar(
        layers,
        means,
        (means - low, high - means),
        color=plots.VECTOR,
        marker="o",
        capsize=3,
        label="vector, 95% interval",
    )
    levels = [(selection.of("unsteered")[0], ":", "unsteered")]
    if selection.incremental is not None:
        together = selection.incremental.best
        levels.append((together, "-.", f"increments at all layers (coef {together.coef or 0:g})"))
    for value, style, name in levels:
        if np.isfinite(value.trait.mean):
            axis.axhline(value.trait.mean, color=plots.INK, linewidth=1.2, linestyle=style, label=name)
    lines = [np.nan if value.between is None else value.between[1] for value in own]
    axis.plot(layers, lines, color=plots.INK, marker="x", markersize=5, linewidth=0, label="between coefficients")
    best = selection.layer.best
    if selection.layer.holds:
        axis.scatter([best.place.layer], [best.trait.mean], s=150, facecolors="none", edgecolors="#d55e00", zorder=4)
    for value in own:
        if value.setting is not None:
            at = (value.place.layer, value.trait.mean)
            axis.annotate(f"{value.coef:g}", at, (5, 5), textcoords="offset points", fontsize=7, color=plots.INK)
    n = len(selection.halves.report_questions)
    axis.set(xlabel="layer (number: its coefficient)", ylim=YLIM, xticks=layers)
    axis.set_title(f"{trait} at coherence >= {asked.min_coherence:g}, {n} other questions", fontsize=10)
    axis.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)


def _draw_curves(axis: Any, curves: _Curves, selection: Selection, score: str) -> None:
    import matplotlib

    own = [value.place for value in selection.of("layer")]
    colors = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(own)))
    for place in [*own, *(value.place for value in selection.of("incremental"))]:
        coefs, random = curves.random(place, score)
        axis.plot(coefs, random.T, color=plots.RANDOM, linewidth=0.5, alpha=0.5)
    for number, (place, color) in enumerate(zip(own, colors, strict=True)):
        coefs, values = curves.of(place, score)
        wide = 3.0 if place == selection.layer.best.place and selection.layer.holds else 1.4
        marker = "osD^vPX*"[number % 8]
        means = [one.mean for one in values]
        axis.plot(coefs, means, color=color, linewidth=wide, marker=marker, markersize=4, label=place.name)
    for value in selection.of("incremental"):
        coefs, values = curves.of(value.place, score)
        axis.plot(coefs, [one.mean for one in values], color="black", linestyle="-.", marker="+", label="all layers")
    axis.plot([], [], color=plots.RANDOM, linewidth=0.8, label="random")


def _arrays(values: Sequence[Value]) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Layers, means, and ends of the intervals; no interval has no width."""
    means = np.array([one.trait.mean for one in values])
    ends = [np.array([getattr(one.trait, end) for one in values]) for end in ("low", "high")]
    low, high = (np.where(np.isnan(end), means, end) for end in ends)
    return [one.place.layer or 0 for one in values], means, low, high


def _random_band(selection: Selection) -> tuple[list[float], list[float], list[float]]:
    """(lowest, mean, highest) of the random directions at each layer, as reported; NaN where none is coherent."""
    found = []
    for own in selection.of("layer"):
        means = [one.trait.mean for one in selection.of("layer", random=True) if one.place.layer == own.place.layer]
        there = [mean for mean in means if np.isfinite(mean)] or [np.nan]
        found.append((min(there), float(np.mean(there)), max(there)))
    bottom, middle, top = (list(ends) for ends in zip(*found, strict=True))
    return bottom, middle, top


def _sections(curves: _Curves, selection: Selection, trait: str, asked: Asked) -> list[Section]:
    n_choose, n_report = len(selection.halves.choose_questions), len(selection.halves.report_questions)
    return [
        Section(
            f"{trait} at matched coherence, by layer",
            sentences=[
                f"Each layer at its best coefficient: the highest mean {trait} on {n_choose} questions among "
                f"coefficients with mean coherence {asked.min_coherence:g} or more there. The values are those of the "
                f"{n_report} other questions; the highest of several means would flatter the layer on the questions "
                "that chose it.",
                *legend(selection),
            ],
            figures=[_layer_figure(selection, trait)] if _drawable(selection) else [],
            columns=columns(trait),
            cells=cells(selection),
        ),
        Section(
            "Over the coefficient",
            sentences=[
                f"All {n_choose + n_report} questions. Random directions have the norm of the vector at that layer; "
                "random increments that of each increment."
            ],
            figures=[
                _curve_figure(curves, value.place, trait)
                for kind in ("layer", "incremental")
                for value in selection.of(kind)
            ],
        ),
        Section("Answers", samples=_samples(curves.scored, selection, trait)),
    ]


def _drawable(selection: Selection) -> bool:
    return any(np.isfinite(one.trait.mean) for one in selection.of("layer"))


def _layer_figure(selection: Selection, trait: str) -> Figure:
    own = selection.of("layer")
    layers, means, low, high = _arrays(own)
    bottom, middle, top = _random_band(selection)
    ends = [min(layers), max(layers)]
    series = [Series("random directions", layers, middle, bottom, top, "random")]
    legend = [("s0", "the vector, 95% interval"), ("random", "random directions: mean, lowest to highest")]
    if selection.incremental is not None and np.isfinite(selection.incremental.best.trait.mean):
        together = selection.incremental.best.trait
        series.append(
            Series("increments at all layers", ends, [together.mean] * 2, look="s1", notes=[together.text()] * 2)
        )
        legend.append(("s1", "increments at all layers at once"))
    unsteered = selection.of("unsteered")[0].trait
    series.append(Series("unsteered", ends, [unsteered.mean] * 2, look="base", notes=[unsteered.text()] * 2))
    legend.append(("base", "unsteered"))
    notes = ["not coherent" if one.coef is None else f"coef {one.coef:g}, 95% {one.trait.text()}" for one in own]
    series.append(Series("the vector", layers, means, low, high, "s0", notes))
    svg = chart(series, "layer", f"{trait} score", visible(f"{trait} by layer"), ylim=YLIM, whole_x=True)
    return Figure("Values of the half of the questions that took no part in the choice.", [(trait, svg)], legend)


def _curve_figure(curves: _Curves, place: Place, trait: str) -> Figure:
    panels = []
    for title, score in ((trait, "trait"), ("coherence", "coherence")):
        coefs, random = curves.random(place, score)
        ranges = [random.mean(0), random.min(0), random.max(0)]
        own_coefs, values = curves.of(place, score)
        low, high = ([getattr(one, end) for one in values] for end in ("low", "high"))
        series = [
            Series("random directions", coefs, *ranges, look="random"),
            Series(place.name, own_coefs, [one.mean for one in values], low, high, "s0"),
        ]
        label = visible(f"{title} over the coefficient, {place.name}")
        panels.append((title, chart(series, "coefficient", title, label, ylim=YLIM)))
    legend = [("s0", "the vector, 95% interval"), ("random", "random directions: mean, lowest to highest")]
    return Figure(place.name, panels, legend)


def _samples(scored: Scored, selection: Selection, trait: str) -> list[tuple[str, list[Shown]]]:
    """The first answer to a few questions of the reporting half: unsteered, at the best layer, all layers, random."""
    unsteered = selection.of("unsteered")[0]
    shown = [(unsteered, "unsteered", "unsteered"), (selection.layer.best, selection.layer.best.place.name, "steered")]
    if selection.incremental is not None:
        shown.append((selection.incremental.best, "increments at all layers", "steered"))
    rival = max(
        (one for one in selection.of("layer", random=True) if one.setting is not None),
        key=lambda one: one.trait.mean,
        default=None,
    )
    if rival is not None:
        shown.append((rival, f"{rival.place.control} at {rival.place.name}", "random"))
    kept = np.flatnonzero(selection.halves.report)
    first = [int(kept[n]) for n in _first_of_each([scored.questions[column] for column in kept])]
    return [
        (
            scored.rows[column].question,
            [
                _shown(scored, value, name, css, column, trait)
                for value, name, css in shown
                if value.setting is not None
            ],
        )
        for column in (first[i] for i in spread(len(first), N_QUESTIONS))
    ]


def _first_of_each(questions: Sequence[str]) -> list[int]:
    places: dict[str, int] = {}
    for place, question in enumerate(questions):
        places.setdefault(question, place)
    return list(places.values())


def _shown(scored: Scored, value: Value, name: str, css: str, column: int, trait: str) -> Shown:
    assert value.setting is not None
    coef = f", coef {value.coef:g}" if value.coef else ""
    scores = [scored.trait[value.setting, column], scored.coherence[value.setting, column]]
    note = f"{trait} {text_or_missing(scores[0])}, coherence {text_or_missing(scores[1])}"
    return Shown(name + coef, str(scored.answers[value.setting, column])[:MAX_ANSWER], note, css)
