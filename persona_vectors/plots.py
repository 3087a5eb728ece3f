"""Figures: arrays in, figure out. matplotlib for PNG files, Plotly for pages; each figure exists in both, but for
the quality report's, which is a file of its own.

Blue is the persona vector and grey what random directions of its norm do; the two also differ in dash and marker, so
that colour is never the only cue. Figures have no background of their own, and greys that read on light and on dark.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Numbers = Sequence[float] | np.ndarray

VECTOR = "#2b83c6"
RANDOM = "#8b919b"
SERIES = ("#8b919b", "#e69f00", "#2b83c6", "#009e73", "#cc79a7", "#d55e00")  # Okabe and Ito's, the greys and blue ours
INK = "#6b7280"
GRID = "rgba(128,134,145,0.25)"
_GRID_MPL = (0.5, 0.525, 0.57, 0.25)


@dataclass(frozen=True)
class Band:
    """A line and the range around it, one number for each x. For random directions: their mean, lowest and highest."""

    mean: Numbers
    low: Numbers
    high: Numbers


def steering_png(coefs: Numbers, panels: Mapping[str, tuple[Band, Band | None]]) -> Figure:
    """Scores (0-100) against the steering coefficient, one panel a score: the vector, and random directions beside it.

    `panels` maps the score's name to (the vector's band, the random directions' band or None).
    """
    figure, axes = canvas(len(panels), sharey=True)
    for axis, (name, (vector, random)) in zip(axes, panels.items(), strict=True):
        if random is not None:
            axis.fill_between(coefs, random.low, random.high, color=RANDOM, alpha=0.25, linewidth=0)
            axis.plot(coefs, random.mean, color=RANDOM, linestyle="--", marker="s", markersize=4, label=_RANDOM_LABEL)
        axis.fill_between(coefs, vector.low, vector.high, color=VECTOR, alpha=0.2, linewidth=0)
        axis.plot(coefs, vector.mean, color=VECTOR, marker="o", label=_VECTOR_LABEL)
        axis.set(xlabel="steering coefficient", title=name, ylim=(-3, 103), xticks=coefs)
    axes[0].set_ylabel("judge score")
    _legend(axes[0])
    return figure


def layer_auc_png(
    layers: Numbers, vector: Numbers, random_mean: Numbers, random_high: Numbers, steered: int | None = None
) -> Figure:
    """Held-out AUC against the layer: the vector refit by fold, and random directions (mean and 95th percentile)."""
    figure, (axis,) = canvas(1)
    axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
    if steered is not None:
        axis.axvline(steered, color=INK, linewidth=0.8, linestyle=":")
        axis.annotate(
            "steered", (steered, 0.02), xycoords=("data", "axes fraction"), color=INK, fontsize=8, ha="center"
        )
    axis.fill_between(layers, random_mean, random_high, color=RANDOM, alpha=0.25, linewidth=0)
    axis.plot(layers, random_mean, color=RANDOM, linestyle="--", marker="s", markersize=4, label=_RANDOM_AUC_LABEL)
    axis.plot(layers, vector, color=VECTOR, marker="o", label="difference of means, held out")
    axis.set(xlabel="layer", ylabel="AUC", ylim=_auc_range(vector, random_mean))
    _whole_numbers(axis)
    _legend(axis)
    return figure


def layer_norms_png(layers: Numbers, norms: Mapping[str, Numbers]) -> Figure:
    """The norm of each vector against the layer."""
    figure, (axis,) = canvas(1)
    for number, (name, values) in enumerate(norms.items()):
        axis.plot(layers, values, color=_contrast(number), marker="os^Dv"[number % 5], label=name)
    axis.set(xlabel="layer", ylabel="norm of the vector")
    axis.set_ylim(bottom=0)
    _whole_numbers(axis)
    _legend(axis)
    return figure


def quality_png(
    layers: Numbers, relative_norm: Numbers, split_half: Numbers, auc: Band, random_auc: Band, title: str = ""
) -> Figure:
    """A trait's vectors by layer: norm, split-half cosine, and held-out AUC beside that of random directions.

    NaN is left out. `random_auc` holds the mean, the mean again, and the 95th percentile.
    """
    figure, axes = canvas(3)
    axes[0].plot(layers, relative_norm, color=VECTOR, marker="o")
    axes[0].set(xlabel="layer", title="norm / mean answer's norm")
    axes[0].set_ylim(0, 1.06 * float(np.nanmax([*relative_norm, 1e-9])))
    axes[1].plot(layers, split_half, color=VECTOR, marker="o")
    axes[1].set(xlabel="layer", title="split-half cosine, corrected")
    axes[1].set_ylim(min(-0.03, float(np.nanmin([*split_half, 0.0])) - 0.03), 1.03)
    axes[2].axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
    axes[2].fill_between(layers, random_auc.low, random_auc.high, color=RANDOM, alpha=0.3, linewidth=0)
    axes[2].plot(
        layers, random_auc.mean, color=RANDOM, linestyle="--", marker="s", markersize=4, label=_RANDOM_AUC_LABEL
    )
    axes[2].fill_between(layers, auc.low, auc.high, color=VECTOR, alpha=0.2, linewidth=0)
    axes[2].plot(layers, auc.mean, color=VECTOR, marker="o", label=_VECTOR_LABEL)
    axes[2].set(xlabel="layer", title="AUC on held-out questions")
    axes[2].set_ylim(_auc_range([*auc.low, 0.5], [*random_auc.mean, 0.5]))
    for axis in axes:
        _whole_numbers(axis)
    _legend(axes[2])
    figure.suptitle(title, fontsize=10)
    return figure


def projections_png(groups: Mapping[str, Numbers], xlabel: str = "projection on the vector") -> Figure:
    """Histograms of projections, one outline a group, over common bins, each with an area of 1."""
    figure, (axis,) = canvas(1)
    edges = _edges(groups)
    for number, (name, values) in enumerate(groups.items()):
        color = SERIES[number % len(SERIES)]
        axis.hist(_finite(values), list(edges), density=True, histtype="stepfilled", color=color, alpha=0.25)
        axis.hist(_finite(values), list(edges), density=True, histtype="step", color=color, linewidth=1.6, label=name)
    axis.set(xlabel=xlabel, ylabel="density")
    _legend(axis)
    return figure


def levels_png(
    names: Sequence[str], colors: Sequence[str], panels: Mapping[str, tuple[Band, tuple[float, float]]]
) -> Figure:
    """One number of each of a few things below one another, a panel a measurement: title -> (numbers, axis ends).

    The first stands at the top. NaN leaves a row empty; where there is no interval, give the mean for both ends.
    """
    figure, axes = canvas(len(panels), sharey=True)
    figure.set_size_inches(2.4 + 3.2 * len(panels), 1.2 + 0.3 * len(names))
    heights = np.arange(len(names))
    for axis, (title, (band, ends)) in zip(axes, panels.items(), strict=True):
        mean, low, high = (np.asarray(values, dtype=float) for values in (band.mean, band.low, band.high))
        axis.hlines(heights, low, high, colors=list(colors), linewidth=2)
        axis.scatter(mean, heights, c=list(colors), s=36, zorder=3)
        axis.set(title=title, xlim=ends, ylim=(len(names) - 0.5, -0.5))
    axes[0].set_yticks(heights, list(names))
    return figure


def png_bytes(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG file, on white: it may be shown on any page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def steering_plotly(coefs: Numbers, vector: Band, random: Band | None, score: str) -> go.Figure:
    """One score (0-100) against the steering coefficient: the vector, and random directions beside it."""
    traces = []
    if random is not None:
        traces += plotly_band(coefs, random, RANDOM, _RANDOM_LABEL, dash="dash", symbol="square")
    traces += plotly_band(coefs, vector, VECTOR, _VECTOR_LABEL)
    figure = plotly_figure(traces, "steering coefficient", score)
    return figure.update_yaxes(range=[-3, 103])


def layer_auc_plotly(
    layers: Numbers, vector: Numbers, random_mean: Numbers, random_high: Numbers, steered: int | None = None
) -> go.Figure:
    """Held-out AUC against the layer: the vector refit by fold, and random directions (mean and 95th percentile)."""
    band = Band(random_mean, random_mean, random_high)
    traces = plotly_band(layers, band, RANDOM, _RANDOM_AUC_LABEL, dash="dash", symbol="square")
    traces.append(plotly_line(layers, vector, VECTOR, "difference of means, held out"))
    figure = plotly_figure(traces, "layer", "AUC")
    figure.add_hline(0.5, line={"color": INK, "width": 1, "dash": "dot"})
    if steered is not None:
        figure.add_vline(
            steered,
            line={"color": INK, "width": 1, "dash": "dot"},
            annotation={"text": "steered", "font": {"color": INK}},
            annotation_position="bottom right",
        )
    figure.update_xaxes(dtick=max(1, round(len(layers) / 8)))
    return figure.update_yaxes(range=_auc_range(vector, random_mean))


def layer_norms_plotly(layers: Numbers, norms: Mapping[str, Numbers]) -> go.Figure:
    """The norm of each vector against the layer."""
    traces = [
        plotly_line(
            layers, values, _contrast(number), name, symbol=("circle", "square", "triangle-up", "diamond")[number % 4]
        )
        for number, (name, values) in enumerate(norms.items())
    ]
    figure = plotly_figure(traces, "layer", "norm of the vector")
    figure.update_xaxes(dtick=max(1, round(len(layers) / 8)))
    return figure.update_yaxes(rangemode="tozero")


def projections_plotly(groups: Mapping[str, Numbers], xlabel: str = "projection on the vector") -> go.Figure:
    """Histograms of projections, one outline a group, over common bins, each with an area of 1."""
    import plotly.graph_objects as go

    edges = _edges(groups)
    traces = []
    for number, (name, values) in enumerate(groups.items()):
        color = SERIES[number % len(SERIES)]
        density = np.histogram(_finite(values), edges, density=True)[0]
        xs, ys = np.repeat(edges, 2), np.concatenate([[0], np.repeat(density, 2), [0]])
        line = {"color": color, "width": 2}
        area = {"fill": "tozeroy", "fillcolor": _faint(color)}
        traces.append(go.Scatter(x=_list(xs), y=_list(ys), name=name, mode="lines", line=line, **area))
    return plotly_figure(traces, xlabel, "density")


_SYMBOLS = ("circle", "square", "triangle-up", "diamond")
_VECTOR_LABEL = "vector, 95% interval"
_RANDOM_LABEL = "random, same norm: mean, range"
_RANDOM_AUC_LABEL = "random: mean to 95th percentile"


def canvas(n_panels: int, *, sharey: bool = False, n_rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot's global state, its axes plain and light, row by row; what is left of a row is empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 if n_panels == 1 else 4.2 * n_panels, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(n_rows, -(-n_panels // n_rows), squeeze=False, sharey=sharey).ravel())
    for axis in axes[n_panels:]:
        axis.remove()
    axes = axes[:n_panels]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=_GRID_MPL, linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _legend(axis: Axes) -> None:
    axis.legend(frameon=False, fontsize=8, loc="best")


def _whole_numbers(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _contrast(number: int) -> str:
    """A colour for the `number`-th of a few equal series: the grey is for controls."""
    return ("#2b83c6", "#e69f00", "#009e73", "#cc79a7", "#d55e00")[number % 5]


def _auc_range(*lines: Numbers) -> tuple[float, float]:
    return min(0.45, float(np.nanmin([np.nanmin(line) for line in lines])) - 0.05), 1.02


def _finite(values: Numbers) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def _edges(groups: Mapping[str, Numbers], bins: int = 28) -> np.ndarray:
    """Bin edges common to all groups.

    Raises:
        ValueError: no group, or a group without a finite number.
    """
    empty = [name for name, values in groups.items() if not len(_finite(values))]
    if empty or not groups:
        raise ValueError(f"nothing to draw for {', '.join(empty) or 'no group'}; expected projections that are numbers")
    return np.histogram_bin_edges(np.concatenate([_finite(values) for values in groups.values()]), bins)


def _list(values: Any) -> list[float]:
    """Plain numbers: Plotly writes arrays as base64, which only its newest readers take."""
    return np.asarray(values, dtype=float).tolist()


def _faint(color: str, alpha: float = 0.18) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def plotly_line(xs: Numbers, ys: Numbers, color: str, name: str, dash: str = "solid", symbol: str = "circle") -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=_list(xs),
        y=_list(ys),
        name=name,
        mode="lines+markers",
        line={"color": color, "width": 2.5, "dash": dash},
        marker={"symbol": symbol, "size": 7},
        hovertemplate="%{y:.3g}",
    )


def plotly_band(
    xs: Numbers, band: Band, color: str, name: str, dash: str = "solid", symbol: str = "circle"
) -> list[Any]:
    import plotly.graph_objects as go

    around = go.Scatter(
        x=_list(np.concatenate([_list(xs), _list(xs)[::-1]])),
        y=_list(np.concatenate([_list(band.high), _list(band.low)[::-1]])),
        mode="lines",
        fill="toself",
        fillcolor=_faint(color),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
    return [around, plotly_line(xs, band.mean, color, name, dash, symbol)]


def plotly_figure(traces: list[Any], xlabel: str, ylabel: str) -> go.Figure:
    import plotly.graph_objects as go

    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True}
    return go.Figure(
        traces,
        go.Layout(
            template="none",
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            font={"color": INK, "size": 13, "family": "system-ui, -apple-system, 'Segoe UI', sans-serif"},
            xaxis={**axis, "title": {"text": xlabel}},
            yaxis={**axis, "title": {"text": ylabel}},
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            margin={"l": 52, "r": 12, "t": 20, "b": 48},
            height=340,
            hovermode="x unified",
            dragmode=False,  # a finger on a figure scrolls the page
        ),
    )
