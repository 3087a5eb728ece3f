"""Figures and page of a quick extraction: AUC, separation and norm by layer, and every answer's projection."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.analysis_page import Page, Section, Shown, plotly_panel, write
from eval.page import visible
from eval.quick_extract import Asked, Reading
from eval.quick_report import head, sentences, table_cells
from eval.results_figures import Figure
from eval.results_page import MAX_ANSWER
from persona_vectors import plots
from persona_vectors.files import write_bytes_atomic, write_sidecar
from persona_vectors.separation import BANDS, HOW, Separations

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure as Png

HIGH, LOW = "#c4532d", "#2b83c6"
N_SHOWN = 4
MOST_LAYERS = 40
"""Layers whose projections a page holds; more would make it slow."""


def projections(reading: Reading, row: int) -> tuple[np.ndarray, np.ndarray]:
    """(pos, neg) projections of the answers on the unit vector of a layer that was read, in sample: (n,) each."""
    pos, neg = reading.pos[:, row].double().numpy(), reading.neg[:, row].double().numpy()
    vector = pos.mean(0) - neg.mean(0)
    unit = vector / max(float(np.linalg.norm(vector)), 1e-30)
    return pos @ unit, neg @ unit


def columns(found: Separations) -> dict[str, np.ndarray]:
    """What is drawn by layer, NaN where there is nothing."""
    rows = [one.record() for one in found.layers]
    return {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0] if name != "auc_is"}


def png(reading: Reading, found: Separations) -> Png:
    """The published picture: AUC, separation, norm by layer, and the answers' projections at the best layer."""
    from matplotlib.ticker import MaxNLocator

    layers, own = [one.layer for one in found.layers], columns(found)
    figure, axes = plots.canvas(4, n_rows=2)
    figure.set_size_inches(10, 6.6)
    _draw_auc(axes[0], layers, own)
    axes[1].plot(layers, own["separation"], color=plots.VECTOR, marker="o", label="difference of means")
    axes[1].plot(
        layers,
        own["separation_random_95"],
        color=plots.RANDOM,
        linestyle="--",
        marker="s",
        label="random: 95th percentile",
    )
    axes[1].set(xlabel="layer", title="separation, held out (standard deviations)")
    axes[1].set_ylim(bottom=min(0.0, float(np.nanmin([*own["separation"], 0.0]))))
    axes[2].plot(layers, own["vector_magnitude"], color=plots.VECTOR, marker="o")
    axes[2].set(xlabel="layer", title="norm of the vector")
    axes[2].set_ylim(bottom=0)
    for axis in axes[:3]:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    best = found.best or found.layers[0]
    pos, neg = projections(reading, found.layers.index(best))
    for name, values, color in (("pos (high)", pos, HIGH), ("neg (low)", neg, LOW)):
        axes[3].hist(values, bins=np.histogram_bin_edges([*pos, *neg], 24).tolist(), color=color, alpha=0.5, label=name)
    axes[3].set(
        xlabel="projection on the unit vector", ylabel="answers", title=f"answers at layer {best.layer}, in sample"
    )
    for axis in (axes[0], axes[1], axes[3]):
        axis.legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(f"{reading.name}: {found.n_pairs} pairs of answers, {found.n_questions} questions", fontsize=10)
    return figure


def _draw_auc(axis: Any, layers: Sequence[int], own: dict[str, np.ndarray]) -> None:
    axis.axhline(0.5, color=plots.INK, linewidth=0.8, linestyle=":")
    axis.fill_between(layers, own["auc_random_mean"], own["auc_random_95"], color=plots.RANDOM, alpha=0.3, linewidth=0)
    axis.plot(
        layers,
        own["auc_random_mean"],
        color=plots.RANDOM,
        linestyle="--",
        marker="s",
        markersize=4,
        label="random: mean to 95th percentile",
    )
    axis.plot(
        layers,
        own["auc_permuted_95"],
        color=plots.INK,
        linestyle=":",
        marker="x",
        markersize=4,
        label="swapped labels: 95th",
    )
    axis.fill_between(layers, own["auc_low"], own["auc_high"], color=plots.VECTOR, alpha=0.2, linewidth=0)
    axis.plot(layers, own["auc"], color=plots.VECTOR, marker="o", label="difference of means, 95% interval")
    axis.set(xlabel="layer", title="AUC on held-out questions")
    axis.set_ylim(min(0.45, float(np.nanmin([*own["auc_low"], 0.45]))), 1.03)


def auc_plotly(found: Separations) -> go.Figure:
    """Held-out AUC by layer, with what random directions and swapped labels give, and the in-sample one."""
    layers, own = [one.layer for one in found.layers], columns(found)
    random = plots.Band(own["auc_random_mean"], own["auc_random_mean"], own["auc_random_95"])
    name = "random: mean to 95th percentile"
    traces = plots.plotly_band(layers, random, plots.RANDOM, name, dash="dash", symbol="square")
    swapped = "swapped labels: 95th percentile"
    traces.append(plots.plotly_line(layers, own["auc_permuted_95"], plots.INK, swapped, dash="dot", symbol="x"))
    traces.append(
        plots.plotly_line(layers, own["auc_in_sample"], "#e69f00", "in sample (circular)", "dot", "triangle-up")
    )
    held_out = plots.Band(own["auc"], own["auc_low"], own["auc_high"])
    traces += plots.plotly_band(layers, held_out, plots.VECTOR, "held out, 95% interval")
    figure = plots.plotly_figure(traces, "layer", "AUC")
    for least, word in BANDS:
        figure.add_hline(least, line={"color": plots.GRID, "width": 1}, annotation={"text": word, "font": {"size": 10}})
    figure.update_xaxes(dtick=max(1, round(len(layers) / 8)))
    return figure.update_yaxes(range=[min(0.4, float(np.nanmin([*own["auc_low"], 0.4]))), 1.03])


def separation_plotly(found: Separations) -> go.Figure:
    """Held-out separation by layer, and that of random directions."""
    layers, own = [one.layer for one in found.layers], columns(found)
    traces = [
        plots.plotly_line(
            layers, own["separation_random_95"], plots.RANDOM, "random: 95th percentile", dash="dash", symbol="square"
        ),
        plots.plotly_line(layers, own["separation"], plots.VECTOR, "difference of means"),
    ]
    figure = plots.plotly_figure(traces, "layer", "separation (standard deviations)")
    figure.update_xaxes(dtick=max(1, round(len(layers) / 8)))
    return figure.update_yaxes(rangemode="tozero")


def answers_plotly(reading: Reading, found: Separations) -> go.Figure:
    """Every answer by question, at its projection on the unit vector; a slider goes through the layers."""
    import plotly.graph_objects as go

    shown = list(range(len(found.layers)))[:MOST_LAYERS]
    start = found.layers.index(found.best) if found.best in [found.layers[row] for row in shown] else 0
    questions = {question: i for i, question in enumerate(dict.fromkeys(reading.questions))}
    places = [questions[question] for question in reading.questions]
    traces: list[Any] = []
    for row in shown:
        sides = (("pos", "pos (high)", HIGH, 0.12, "circle"), ("neg", "neg (low)", LOW, -0.12, "diamond"))
        for (side, name, color, shift, symbol), values in zip(sides, projections(reading, row), strict=True):
            traces.append(
                go.Scatter(
                    x=values.tolist(),
                    y=[place + shift for place in places],
                    mode="markers",
                    name=name,
                    visible=row == start,
                    marker={"color": color, "symbol": symbol, "size": 8, "opacity": 0.75},
                    text=[_hover(reading, side, i) for i in range(len(values))],
                    hovertemplate="%{text}<br>projection %{x:.3g}<extra></extra>",
                )
            )
    figure = plots.plotly_figure(traces, "projection on the unit vector (in sample)", "question")
    steps = [
        {
            "method": "update",
            "label": str(found.layers[row].layer),
            "args": [{"visible": [trace // 2 == row for trace in range(len(traces))]}],
        }
        for row in shown
    ]
    slider = {"active": start, "currentvalue": {"prefix": "layer "}, "steps": steps, "pad": {"t": 40}}
    figure.update_layout(sliders=[slider], hovermode="closest", height=460)
    return figure.update_yaxes(tickvals=list(questions.values()), ticktext=[str(q + 1) for q in questions])


def _hover(reading: Reading, side: str, row: int) -> str:
    pair = reading.pairs.iloc[row]
    told = [str(pair["question"]), f"instruction {pair['instruction'] + 1}, {side}", str(pair[f"{side}_answer"])]
    lines = [line for text in told for line in wrap(shorten(visible(text), 200), 70)]
    return "<br>".join(escape(line) for line in lines)


def write_figures(asked: Asked, reading: Reading, found: Separations, more: Sequence[Section] = ()) -> list[Path]:
    """The picture and the page, with their sidecars; the files written."""
    base = reading.plan.base
    picture = write_bytes_atomic(base.with_name(f"{base.name}_analysis.png"), plots.png_bytes(png(reading, found)))
    told = {"kind": "quick extraction", "trait": reading.name, "said": sentences(found)}
    write_sidecar(picture, {**told, "arguments": vars(asked)})
    whole = page(asked, reading, found, more)
    return [picture, write(whole, base.with_name(f"{base.name}_analysis.html"), {"trait": reading.name})]


def page(asked: Asked, reading: Reading, found: Separations, more: Sequence[Section]) -> Page:
    """The page; `more` stands after the figures."""
    names, cells = table_cells(found)
    panels = [("AUC on held-out questions", auc_plotly(found)), ("Separation, held out", separation_plotly(found))]
    by_layer = Figure("", [(title, plotly_panel(figure)) for title, figure in panels if found.best], [])
    each = Figure(
        "Every answer. Pointing at one shows its question and how it begins; the slider chooses the layer.",
        [("", plotly_panel(answers_plotly(reading, found)))],
        [],
    )
    how = [f"{name}: {text}." for name, text in HOW.items()]
    layers = Section("By layer", figures=[by_layer], columns=names, cells=cells)
    return Page(
        title=f"{reading.name} of {asked.model_name}: quick extraction",
        lead=f"{head(reading, found)}. The vector is the difference of the mean activations of both sides.",
        sentences=sentences(found),
        sections=[
            layers,
            Section("Answers on the vector", figures=[each]),
            *more,
            Section("Some answers", samples=_samples(reading)),
            Section("What the numbers are", sentences=how),
        ],
        found=None if found.best is None else found.best.beats_random,
        settings={name: value for name, value in vars(asked).items() if value is not None},
        interactive=True,
    )


def _samples(reading: Reading) -> list[tuple[str, list[Shown]]]:
    """The first pair of a few questions, side by side."""
    first = reading.pairs.drop_duplicates("question_index").head(N_SHOWN)
    return [
        (
            str(row["question"]),
            [
                Shown("pos instruction", str(row["pos_answer"])[:MAX_ANSWER], css="steered"),
                Shown("neg instruction", str(row["neg_answer"])[:MAX_ANSWER], css="unsteered"),
            ],
        )
        for _, row in first.iterrows()
    ]
