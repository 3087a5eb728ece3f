"""Figures for pages as inline SVG: numbers in, markup out.

A report of a sweep has dozens of figures. As SVG each is a few kB, needs no script, prints, scales to a phone, and
takes its colours from the page's style sheet by class, so that light and dark each have their own. A series has a class
(`s0` to `s4`, `random`, `prompt`, `base`) and with it a colour, a dash and a marker: colour is never the only cue.
Pointing at a marker says its numbers. Legends and titles are the page's, where text wraps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 38
LOOKS = ("s0", "s1", "s2", "s3", "s4")
LOW, HIGH = "s0", "s4"
"""Ends of the colour scale of ordered groups."""
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Series:
    """A line with markers, one number for each x; NaN leaves a gap.

    Attributes:
        low, high: the interval around each y, NaN where there is none; () for a series without intervals.
        look: its class in the style sheet, or one of `graded_looks`.
        notes: what pointing at each marker says after the numbers.
        line: whether the markers are joined.
        dots: whether there are markers.
    """

    name: str
    xs: Numbers
    ys: Numbers
    low: Numbers = ()
    high: Numbers = ()
    look: str = "s0"
    notes: Sequence[str] = ()
    line: bool = True
    dots: bool = True


@dataclass(frozen=True)
class _Scale:
    """Data to SVG units along one axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    label: str,
    *,
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
    whole_x: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """An SVG of the series, drawn in order. `label` is what a screen reader says of it.

    Args:
        xlim, ylim: ends of the axes; default those of the data.
        whole_x: ticks at whole numbers only.
        marks: (x, text) of dotted upright lines.

    Raises:
        ValueError: no series has a finite point.
    """
    xs = _finite([x for one in series for x in one.xs] + [x for x, _ in marks])
    ys = _finite([y for one in series for values in (one.ys, one.low, one.high) for y in values])
    if not len(xs) or not len(ys):
        raise ValueError(f"nothing to draw for {label}; expected at least one finite point")
    x = _Scale(*(xlim or _ends(xs)), LEFT, WIDTH - RIGHT)
    y = _Scale(*(ylim or _ends(ys)), HEIGHT - BOTTOM, TOP)
    parts = [*_axes(x, y, xlabel, ylabel, whole_x)]
    for at, text in marks:
        parts.append(f'<line class="mark" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="note" x="{x(at) - 4:.1f}" y="{TOP + 10}" text-anchor="end">{escape(text)}</text>')
    for one in series:
        parts += _draw(one, x, y)
    return _svg(parts, HEIGHT, label)


def boxes(rows: Sequence[tuple[str, str, Numbers]], xlabel: str, label: str) -> str:
    """Distributions below one another over a common axis: (name, look, values) each, without missing values.

    The box is the middle half with the median in it; the line goes from the 5th to the 95th percentile. Names stand
    above their boxes, so that long ones have room.

    Raises:
        ValueError: a row without a finite value, or no row.
    """
    values = [_finite(numbers) for _, _, numbers in rows]
    if not rows or not all(len(one) for one in values):
        raise ValueError(f"nothing to draw for {label}; expected numbers in every row")
    quantiles = [np.quantile(one, [0.05, 0.25, 0.5, 0.75, 0.95]) for one in values]
    step, height = 34, 34 * len(rows) + BOTTOM + 6
    x = _Scale(*_ends(np.concatenate(quantiles)), 8, WIDTH - RIGHT)
    bottom = height - BOTTOM
    parts = [*_x_axis(x, bottom, 2, xlabel)]
    for number, ((name, look, _), one, q) in enumerate(zip(rows, values, quantiles, strict=True)):
        middle = 25 + number * step
        said = f"{name}: median {q[2]:.3g}, middle half {q[1]:.3g} to {q[3]:.3g}, n {len(one)}"
        low, left, mid, right, high = (x(value) for value in q)
        parts += [
            f'<text class="name" x="8" y="{middle - 10}">{escape(name)} <tspan class="n">n {len(one)}</tspan></text>',
            f"<g {_style(look)}><title>{escape(said)}</title>",
            f'<line class="line" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
            f'<rect class="box" x="{left:.1f}" width="{max(right - left, 1):.1f}" y="{middle - 6}" height="12"/>',
            f'<line class="median" x1="{mid:.1f}" x2="{mid:.1f}" y1="{middle - 6}" y2="{middle + 6}"/></g>',
        ]
    return _svg(parts, height, label, "chart boxes")


def levels(
    rows: Sequence[tuple[str, str, float, float, float]], xlabel: str, label: str, xlim: tuple[float, float]
) -> str:
    """One number of each of a few things below one another: (name, look, mean, low, high) each.

    A mean that is NaN leaves its row empty; an interval that is NaN is not drawn. Names stand above their rows.

    Raises:
        ValueError: no row with a number.
    """
    if not len(_finite([mean for _, _, mean, _, _ in rows])):
        raise ValueError(f"nothing to draw for {label}; expected at least one number")
    step, x = 34, _Scale(*xlim, 8, WIDTH - RIGHT)
    height = step * len(rows) + BOTTOM + 6
    parts = [*_x_axis(x, height - BOTTOM, 2, xlabel)]
    for number, (name, look, mean, low, high) in enumerate(rows):
        middle = 25 + number * step
        value = f"{mean:.3g}" if np.isfinite(mean) else "none"
        parts.append(
            f'<text class="name" x="8" y="{middle - 10}">{escape(name)}: <tspan class="n">{value}</tspan></text>'
        )
        if np.isfinite(mean):
            around = ""
            if np.isfinite(low) and np.isfinite(high):
                around = f", 95% [{low:.3g}, {high:.3g}]"
                parts.append(f'<g {_style(look)}><path class="bar" d="M{x(low):.1f} {middle}H{x(high):.1f}"/></g>')
            said = f"<title>{escape(f'{name}: {value}{around}')}</title>"
            parts.append(f"<g {_style(look)}>{_marker(look, x(mean), middle, said)}</g>")
    return _svg(parts, height, label, "chart boxes")


def graded_looks(n: int) -> list[str]:
    """Looks of `n` groups in order: colours from LOW to HIGH, and the markers of LOOKS in turn.

    Such a look is written `s1@0.25`: the marker and dash of s1, in the colour a quarter of the way. It may stand
    wherever a look does.
    """
    return [f"{LOOKS[i % len(LOOKS)]}@{i / max(n - 1, 1):.3g}" for i in range(n)]


def split_look(look: str) -> tuple[str, float | None]:
    """(the look without its grade, the grade from 0 to 1 or None)."""
    plain, _, grade = look.partition("@")
    return plain, float(grade) if grade else None


def _style(look: str, css: str = "") -> str:
    """The attributes of what has this look: its class, and the colour of its grade."""
    plain, grade = split_look(look)
    style = "" if grade is None else f' style="--look: color-mix(in oklab, var(--{HIGH}) {grade:.0%}, var(--{LOW}))"'
    return f'class="{f"{css} {plain}".strip()}"{style}'


def swatch(look: str) -> str:
    """The sample of a look that a legend shows."""
    return (
        f'<svg {_style(look, "swatch")} viewBox="0 0 28 12" aria-hidden="true">'
        f'<line class="line" x1="1" x2="27" y1="6" y2="6"/>{_marker(look, 14, 6)}</svg>'
    )


def ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = max((high - low) / most, 1e-12)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first = np.ceil(low / step - 1e-9)
    return [float(n * step) + 0.0 for n in np.arange(first, np.floor(high / step + 1e-9) + 1)]


def _svg(parts: Sequence[str], height: int, label: str, css: str = "chart") -> str:
    body = "".join(parts)
    return f'<svg class="{css}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _axes(x: _Scale, y: _Scale, xlabel: str, ylabel: str, whole_x: bool) -> Iterator[str]:
    for value in ticks(y.low, y.high):
        at = y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    yield from _x_axis(x, HEIGHT - BOTTOM, TOP, xlabel, whole=whole_x)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield (
        f'<text class="axis" x="11" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 11 {middle:.0f})">'
        f"{escape(ylabel)}</text>"
    )


def _x_axis(x: _Scale, bottom: float, top: float, xlabel: str, *, whole: bool = False) -> Iterator[str]:
    for value in ticks(x.low, x.high, whole=whole):
        at = x(value)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{value:.4g}</text>'
    middle = (x.start + x.end) / 2
    yield f'<text class="axis" x="{middle:.0f}" y="{bottom + 31}" text-anchor="middle">{escape(xlabel)}</text>'


def _draw(one: Series, x: _Scale, y: _Scale) -> Iterator[str]:
    """The interval, the line and the markers of a series."""
    xs, ys = np.asarray(one.xs, dtype=float), np.asarray(one.ys, dtype=float)
    yield f"<g {_style(one.look)}>"
    if len(one.low):
        low, high = np.asarray(one.low, dtype=float), np.asarray(one.high, dtype=float)
        for run in _runs(np.isfinite(low) & np.isfinite(high)) if one.line else ():
            around = [*zip(xs[run], high[run], strict=True), *zip(xs[run][::-1], low[run][::-1], strict=True)]
            yield f'<polygon class="band" points="{_points(around, x, y)}"/>'
        for at, bottom, top in zip(xs, low, high, strict=True):
            if np.isfinite(bottom) and np.isfinite(top):
                yield f'<path class="bar" d="M{x(at):.1f} {y(bottom):.1f}V{y(top):.1f}"/>'
    for run in _runs(np.isfinite(ys)) if one.line else ():
        points = list(zip(xs[run], ys[run], strict=True))
        yield f'<polyline class="line" points="{_points(points, x, y)}"/>'
    for number, (at, value) in enumerate(zip(xs, ys, strict=True)):
        if one.dots and np.isfinite(value) and np.isfinite(at):
            note = f", {one.notes[number]}" if one.notes else ""
            said = escape(f"{one.name}: {at:.4g}, {value:.4g}{note}")
            yield _marker(one.look, x(at), y(value), f"<title>{said}</title>")
    yield "</g>"


def _points(points: Sequence[tuple[float, float]], x: _Scale, y: _Scale) -> str:
    return " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)


def _runs(there: np.ndarray) -> list[np.ndarray]:
    """Positions of each unbroken run of True."""
    positions = np.flatnonzero(there)
    return [run for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1) if len(run)]


def _marker(look: str, at: float, height: float, inside: str = "") -> str:
    shapes = {
        "s1": "m-4 3.5h8l-4 -7.5z",
        "s2": "m0 -5l4.5 5l-4.5 5l-4.5 -5z",
        "s3": "m-4 -3.5h8l-4 7.5z",
        "s4": "m-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
        "random": "m-3.2 -3.2h6.4v6.4h-6.4z",
        "prompt": "m-4 -4l8 8m0 -8l-8 8",
    }
    circle = "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0"
    return f'<path class="dot" d="M{at:.1f} {height:.1f}{shapes.get(split_look(look)[0], circle)}">{inside}</path>'


def _finite(values: Numbers) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Both ends with a little room; numbers that are all the same get some too."""
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - room, high + room
