"""Scatter figures with labelled points, as PNG and as SVG for pages: arrays in, figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona_vectors.page_plots import HIGH, LOW, Series, chart, split_look
from persona_vectors.plots import INK, RANDOM, SERIES, VECTOR, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Sequence[float] | np.ndarray
COLORS = {"s0": VECTOR, "s1": SERIES[1], "s2": SERIES[3], "s3": SERIES[4], "s4": SERIES[5], "random": RANDOM}
MARKERS = {"s0": "o", "s1": "^", "s2": "D", "s3": "v", "s4": "P", "random": "s"}
MOST_LABELS = 24
"""Points of a panel whose labels are written in a PNG, those that find room: more would hide the points."""


@dataclass(frozen=True)
class Points:
    """A group of points that the legend names once.

    Attributes:
        xs, ys: NaN leaves a point out.
        labels: what each point is; written beside it in a PNG, shown on pointing at it on a page.
        look: s0 to s4, random, or one of `graded_looks` for groups in an order (`persona_vectors.page_plots`).
    """

    name: str
    xs: Numbers
    ys: Numbers
    labels: Sequence[str] = ()
    look: str = "s0"


@dataclass(frozen=True)
class Panel:
    """Groups of points over one pair of axes."""

    groups: Sequence[Points]
    xlabel: str
    ylabel: str
    fit: bool = True
    """draw the least-squares line through all points"""


def fitted(groups: Sequence[Points]) -> tuple[np.ndarray, np.ndarray] | None:
    """Both ends of the least-squares line through all points, or None where it does not exist."""
    xs = np.concatenate([np.asarray(one.xs, dtype=float) for one in groups])
    ys = np.concatenate([np.asarray(one.ys, dtype=float) for one in groups])
    there = np.isfinite(xs) & np.isfinite(ys)
    if there.sum() < 3 or np.ptp(xs[there]) == 0:
        return None
    slope, height = np.polyfit(xs[there], ys[there], 1)
    ends = np.array([xs[there].min(), xs[there].max()])
    return ends, height + slope * ends


def scatter_png(panels: Mapping[str, Panel], n_rows: int = 1) -> Figure:
    """A panel for each title, row by row."""
    figure, axes = canvas(len(panels), n_rows=n_rows)
    figure.set_size_inches(4.6 * -(-len(panels) // n_rows), 4.0 * n_rows)
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        line = fitted(panel.groups) if panel.fit else None
        if line is not None:
            axis.plot(*line, color=INK, linewidth=0.9, linestyle=":")
        for group in panel.groups:
            marker = MARKERS.get(split_look(group.look)[0], "o")
            axis.scatter(group.xs, group.ys, s=26, color=_color(group.look), marker=marker, label=group.name)
        if sum(len(group.labels) for group in panel.groups) <= MOST_LABELS:
            _write_labels(axis, panel.groups)
        axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel, title=title)
        if len(panel.groups) > 1:
            axis.legend(frameon=False, fontsize=7, loc="best")
    return figure


def _color(look: str) -> str:
    """A look's colour; of a graded one that far from LOW's to HIGH's."""
    from matplotlib.colors import to_hex, to_rgb

    plain, grade = split_look(look)
    if grade is None:
        return COLORS.get(plain, INK)
    red, green, blue = (a + grade * (b - a) for a, b in zip(to_rgb(COLORS[LOW]), to_rgb(COLORS[HIGH]), strict=True))
    return to_hex((red, green, blue))


_PLACES = [(x, y) for y in (3, -9, 10, -16) for x in (3, -3)]
"""Where a label may stand beside its point, in points of 1/72 inch, the best place first; x < 0 is left of it."""
_LABEL_SIZE = 6


def _write_labels(axis: Axes, groups: Sequence[Points]) -> None:
    """Each label at the first of _PLACES where it covers no point and no label; one that has no room is left out."""
    to_points = 72 / axis.get_figure(root=True).dpi  # pyright: ignore
    left, right = (axis.transAxes.transform((side, 0))[0] * to_points for side in (0, 1))
    named = [
        (xy, axis.transData.transform(xy) * to_points, label)
        for group in groups
        for *xy, label in zip(group.xs, group.ys, group.labels, strict=False)
        if np.isfinite(xy).all()
    ]
    taken: list[tuple[float, float, float, float]] = [(x - 2, y - 2, 4, 4) for _, (x, y), _ in named]
    for xy, (x, y), label in named:
        width = 0.55 * _LABEL_SIZE * len(label)
        for dx, dy in _PLACES:
            box = (x + (dx if dx > 0 else dx - width), y + dy, width, _LABEL_SIZE)
            inside = left <= box[0] and box[0] + width <= right
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                side = "left" if dx > 0 else "right"
                axis.annotate(
                    label,
                    (xy[0], xy[1]),
                    (dx, dy),
                    textcoords="offset points",
                    fontsize=_LABEL_SIZE,
                    color=INK,
                    ha=side,
                )
                break


def _overlap(box: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two (x, y, width, height) share any room."""
    return all(box[side] < other[side] + other[side + 2] and other[side] < box[side] + box[side + 2] for side in (0, 1))


def scatter_svg(panel: Panel, label: str) -> str:
    """One panel as SVG; pointing at a marker says which point it is.

    Raises:
        ValueError: no point has both its numbers.
    """
    series = [Series(one.name, one.xs, one.ys, look=one.look, notes=one.labels, line=False) for one in panel.groups]
    line = fitted(panel.groups) if panel.fit else None
    if line is not None:
        series.insert(0, Series("least squares", *line, look="base", dots=False))
    return chart(series, panel.xlabel, panel.ylabel, label)
