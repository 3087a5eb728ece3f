"""Radar charts of scores in 0..1 over a few traits: arrays in, figure out. A dotted ring marks chance, 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_vectors.plots import GRID, INK

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Numbers = Sequence[float] | np.ndarray

CHANCE = 0.5


@dataclass(frozen=True)
class Outline:
    """One closed line: a score for each trait. `dash` is a Plotly name; colour is never the only cue."""

    name: str
    values: Numbers
    color: str
    dash: str = "solid"
    symbol: str = "circle"


def radar_plotly(names: Sequence[str], outlines: Sequence[Outline]) -> go.Figure:
    """The outlines over the traits, which begin at the top and go round clockwise.

    Raises:
        ValueError: fewer than three traits.
    """
    import plotly.graph_objects as go

    _check(names)
    around = [*names, names[0]]
    traces: list[Any] = [_ring(around)]
    for one in outlines:
        traces.append(
            go.Scatterpolar(
                r=_closed(one.values),
                theta=around,
                name=one.name,
                mode="lines+markers",
                line={"color": one.color, "width": 2.5, "dash": one.dash},
                marker={"symbol": one.symbol, "size": 7},
                hovertemplate="%{theta}: %{r:.2f}",
            )
        )
    side = 15 + 7 * max(map(len, names))  # the names stand beside the circle, and Plotly makes no room for them
    axis = {"gridcolor": GRID, "linecolor": GRID}
    radial = {**axis, "range": [0, 1], "tickvals": [0.25, 0.5, 0.75], "angle": 90, "tickangle": 90}
    angular = {**axis, "direction": "clockwise", "rotation": 90}
    return go.Figure(
        traces,
        go.Layout(
            template="none",
            paper_bgcolor="rgba(0,0,0,0)",
            font={"color": INK, "size": 13, "family": "system-ui, -apple-system, 'Segoe UI', sans-serif"},
            polar={"bgcolor": "rgba(0,0,0,0)", "radialaxis": radial, "angularaxis": angular},
            legend={"orientation": "h", "x": 0, "y": -0.08, "yanchor": "top"},
            margin={"l": side, "r": side, "t": 30, "b": 30},
            height=520,
            dragmode=False,
        ),
    )


def radar_png(panels: Sequence[tuple[str, Sequence[str], Sequence[Outline]]]) -> Figure:
    """A radar for each (title, traits, outlines), side by side, with one legend each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for _, names, _ in panels:
        _check(names)
    figure = Figure(figsize=(5.6 * len(panels), 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, subplot_kw={"projection": "polar"})[0]
    for axis, (title, names, outlines) in zip(axes, panels, strict=True):
        _draw(axis, title, names, outlines)
    return figure


def _draw(axis: Axes, title: str, names: Sequence[str], outlines: Sequence[Outline]) -> None:
    styles = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
    markers = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D"}
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    around = _closed(angles)
    polar: Any = axis
    polar.set_theta_zero_location("N")
    polar.set_theta_direction(-1)
    polar.plot(np.linspace(0, 2 * np.pi, 200), np.full(200, CHANCE), color=INK, linewidth=0.8, linestyle=":")
    for one in outlines:
        look = {"linestyle": styles[one.dash], "marker": markers[one.symbol], "markersize": 4}
        polar.plot(around, _closed(one.values), color=one.color, label=one.name, **look)
    polar.set(ylim=(0, 1), yticks=[0.25, 0.5, 0.75], title=title)
    polar.set_xticks(angles, names, fontsize=8)
    polar.tick_params(axis="x", pad=10)
    polar.tick_params(axis="y", labelsize=7, labelcolor=INK)
    polar.spines["polar"].set_visible(False)
    polar.grid(alpha=0.4)
    polar.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)


def _ring(around: Sequence[str]) -> Any:
    import plotly.graph_objects as go

    line = {"color": INK, "width": 1, "dash": "dot"}
    return go.Scatterpolar(
        r=[CHANCE] * len(around), theta=list(around), mode="lines", line=line, hoverinfo="skip", showlegend=False
    )


def _closed(values: Numbers) -> list[float]:
    """The values with the first one again at the end."""
    array = np.asarray(values, dtype=float)
    return [*array.tolist(), float(array[0])]


def _check(names: Sequence[str]) -> None:
    if len(names) < 3:
        raise ValueError(f"a radar needs three traits or more; got {', '.join(names) or 'none'}")
