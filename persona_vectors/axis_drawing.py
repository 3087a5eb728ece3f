"""What figures of personas are drawn with: named points, cells, titles. Pixels are fixed, so that labels find room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_vectors.label_places import place_labels
from persona_vectors.plots import INK, RANDOM, SERIES, VECTOR, plotly_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROLE = SERIES[5]
_CELLS = ((0.0, ROLE), (0.5, "rgba(139,145,155,0.06)"), (1.0, VECTOR))
"""From -1 to 1 on cells: the middle lets the page through."""
MARKERS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")
COLORS = (VECTOR, SERIES[1], SERIES[3], SERIES[4], SERIES[5], RANDOM, INK)
_WIDTH, _HEIGHT = 980, 720
MARGIN = {"l": 70, "r": 24, "t": 104, "b": 60}
FONT = 12


def plane(scores: np.ndarray) -> np.ndarray:
    """The first two columns; the second is 0 where there is one."""
    return scores[:, :2] if scores.shape[1] > 1 else np.column_stack([scores[:, 0], np.zeros(len(scores))])


def markers(
    xy: np.ndarray, names: Sequence[str], label: str, marker: Mapping[str, Any], values: np.ndarray | None = None
) -> Any:
    """A point a persona, named on hover; `values` are their projections on the assistant axis."""
    import plotly.graph_objects as go

    hover = "<b>%{text}</b>" + f"<br>{label}" * bool(label) + "<br>PC1 %{x:.3g}, PC2 %{y:.3g}"
    hover += "<br>on the assistant axis %{customdata:.3g}" if values is not None else ""
    return go.Scatter(
        x=xy[:, 0].tolist(),
        y=xy[:, 1].tolist(),
        text=list(names),
        customdata=None if values is None else values.tolist(),
        name=label,
        showlegend=bool(label),
        mode="markers",
        marker=dict(marker),
        hovertemplate=hover + "<extra></extra>",
    )


def joined(points: np.ndarray) -> Any:
    """A line a persona through its points of all models, as one trace."""
    import plotly.graph_objects as go

    xs, ys = ([number for line in points[:, :, side].T.tolist() for number in [*line, None]] for side in (0, 1))
    line = {"color": "rgba(128,134,145,0.55)", "width": 1}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def scatter_figure(traces: list[Any], xy: np.ndarray, shares: np.ndarray, right: int = 0) -> go.Figure:
    """Axes with room around the points, so that labels can be placed for this very picture."""
    second = shares[1] if len(shares) > 1 else 0.0
    figure = plotly_figure(traces, f"PC1 ({shares[0]:.0%} of the variance)", f"PC2 ({second:.0%})")
    margin = {**MARGIN, "r": MARGIN["r"] + right}
    figure.update_layout(width=_WIDTH + right, height=_HEIGHT, margin=margin, hovermode="closest", dragmode="pan")
    for update, column in ((figure.update_xaxes, xy[:, 0]), (figure.update_yaxes, xy[:, 1])):
        room = 0.09 * (float(np.ptp(column)) or 1.0)
        update(range=[float(column.min()) - room, float(column.max()) + room], automargin=False)
    return figure


def write_names(figure: go.Figure, points: np.ndarray, names: Sequence[str], marker: float) -> None:
    """The names beside the first model's points, without covering each other, a marker or a line between models.

    A line leads to names that stand further off. Among very many points, names without room are left to the pointer.

    Args:
        points: (n_models, n, 2).
    """
    size = _WIDTH - MARGIN["l"] - MARGIN["r"], _HEIGHT - MARGIN["t"] - MARGIN["b"]
    low, high = (np.array([axis.range[end] for axis in (figure.layout.xaxis, figure.layout.yaxis)]) for end in (0, 1))  # pyright: ignore
    pixels = (points - low) * np.array(size) / (high - low)
    lines = np.stack([pixels[:-1], pixels[1:]], axis=2).reshape(-1, 2, 2)  # from model to model
    others = pixels[1:].reshape(-1, 2)
    places = place_labels(pixels[0], names, size, others=others, lines=lines, font=FONT, marker=marker)
    for (x, y), name, place in zip(points[0].tolist(), names, places, strict=True):
        if place is None:  # pointing at it says its name
            continue
        figure.add_annotation(
            x=x,
            y=y,
            text=name,
            font={"size": FONT},
            ax=place.dx,
            ay=-place.dy,
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor="rgba(128,134,145,0.7)" if place.leader else "rgba(0,0,0,0)",
            standoff=marker,
            borderpad=0,
        )


def heatmap(
    cosines: np.ndarray, down: Sequence[str], across: Sequence[str], xlabel: str = "", ylabel: str = ""
) -> go.Figure:
    """A square cell a pair, blue at 1, orange at -1, and clear in between."""
    import plotly.graph_objects as go

    trace = go.Heatmap(
        z=cosines.tolist(),
        x=list(across),
        y=list(down),
        zmin=-1,
        zmax=1,
        colorscale=list(_CELLS),
        colorbar=colorbar("cosine"),
        xgap=1,
        ygap=1,
        hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
    )
    figure = plotly_figure([trace], "", "")
    cell = float(np.clip(1600 / len(down), 9, 26))  # hundreds of personas stay readable, in small letters
    side, size = max(360, cell * len(down)), min(13.0, cell - 1)
    longest = 0.54 * size * max(len(name) for name in [*down, *across])
    names = {"showgrid": False, "dtick": 1, "tickfont": {"size": size}}
    figure.update_xaxes(tickangle=-45, side="bottom", **names)
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain", **names)
    margin = {"l": longest + 40, "r": 110, "t": MARGIN["t"], "b": longest + 40}
    figure.update_layout(width=side + longest + 150, height=side + longest + 144, margin=margin, hovermode="closest")
    # beyond the longest name, where Plotly's own axis titles would stand on it
    beside = {"xref": "paper", "yref": "paper", "showarrow": False, "font": {"size": 15}}
    figure.add_annotation(text=xlabel, x=0.5, y=0, yshift=-0.75 * longest - 30, **beside)
    figure.add_annotation(text=ylabel, x=0, y=0.5, xshift=-longest - 24, textangle=-90, **beside)
    return figure


def from_role_to_assistant(values: np.ndarray) -> list[tuple[float, str]]:
    """A colour scale whose grey, seen on light and on dark, stands at 0, wherever that is between the values."""
    low, high = float(values.min()), float(values.max())
    middle = float(np.clip(-low / (high - low), 0.02, 0.98))
    return [(0.0, ROLE), (middle, RANDOM), (1.0, VECTOR)]


def colorbar(title: str) -> dict[str, Any]:
    """A thin one, its title above."""
    return {"title": {"text": title, "side": "top"}, "thickness": 12, "outlinewidth": 0, "len": 0.8}


def legend() -> dict[str, Any]:
    """In a row above the plot, under the title."""
    return {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}


def what(model: str, layer: int | None, n_personas: int, n_questions: int | None, n_models: int = 1) -> str:
    """`tiny-persona, layer 3, 23 personas × 18 questions`."""
    told = [model] * bool(model) + [f"layer {layer}"] * (layer is not None)
    told += [f"{n_models} models"] * (n_models > 1)
    return ", ".join([*told, f"{n_personas} personas" + f" × {n_questions} questions" * (n_questions is not None)])


def set_title(figure: go.Figure, title: str, lines: Sequence[str]) -> None:
    """The title at the plot's left edge, two lines under it at most."""
    subtitle = {"text": "<br>".join(lines), "font": {"size": 13}}
    place = {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14}}
    bar = {"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": VECTOR}
    figure.update_layout(title={"text": title, "font": {"size": 18}, "subtitle": subtitle, **place}, modebar=bar)
