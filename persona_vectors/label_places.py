"""Where labels may stand beside points without covering points or each other: pixels in, pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_ANGLES = np.deg2rad([0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202, 67, 112, 247, 292])
_DISTANCES = (0.0, 9.0, 20.0, 33.0, 48.0, 65.0, 84.0)
_ROUNDS = 4
MOST_LEADERS = 60
_ON_LABEL, _ON_POINT, _NEAR_POINT, _ON_LINE, _CROSSING, _OUTSIDE = 60.0, 40.0, 0.8, 1.5, 250.0, 1000.0
"""What a place costs: each pixel (square root of the area) on a label, on a point, where it could be taken for another
point's, or on a line; a leader across a point; the edge. A pixel of distance costs 1."""


@dataclass(frozen=True)
class Place:
    """The middle of a label, relative to its point, in pixels; y grows upwards.

    `leader`: the label is so far from its point that a line should join them.
    """

    dx: float
    dy: float
    leader: bool


def place_labels(
    points: Float[np.ndarray, "n 2"],
    texts: Sequence[str],
    size: tuple[float, float],
    *,
    others: Float[np.ndarray, "m 2"] | None = None,
    lines: Float[np.ndarray, "l 2 2"] | None = None,
    font: float = 12.0,
    marker: float = 6.0,
) -> list[Place | None]:
    """A place for each point's label, as near as there is room; None for one that would cover another.

    Among more than MOST_LEADERS points only the places next to a point are tried, and a label that would cover a point
    is left out too.

    Each label in turn takes the cheapest of 112 places around its point (16 directions, 7 distances), those in the
    densest surroundings first; then all are placed again a few times with the others where they are by then. What still
    overlaps is left out, one label at a time. The same input gives the same output.

    Args:
        points: pixels from the lower left corner of the plot.
        size: width and height of the plot.
        others: further markers that no label should cover.
        lines: both ends of lines that labels should rather not lie on.
        font: size of the text in pixels; a letter is taken to be 0.62 of it wide.
        marker: radius of a marker.
    """
    if len(points) == 0:
        return []
    markers = points if others is None or not len(others) else np.vstack([points, others])
    half = np.array([[0.31 * font * len(text) + 2, 0.58 * font] for text in texts])  # (n, 2): half width and height
    crowded = len(points) > MOST_LEADERS
    offsets, reach = _candidates(half, marker, _DISTANCES[:2] if crowded else _DISTANCES)  # (n, c, 2), (c,)
    centres = points[:, None] + offsets
    on_lines = _sampled(lines)

    def not_own(i: int) -> np.ndarray:
        return np.delete(markers, i, axis=0)

    fixed = reach + np.stack(
        [
            _OUTSIDE * _outside(centres[i], half[i], size)
            + _ON_POINT * _overlap(centres[i], half[i], markers, np.full((len(markers), 2), marker)).sum(1)
            + _NEAR_POINT * _overlap(centres[i], half[i], not_own(i), np.full((len(markers) - 1, 2), marker + 6)).sum(1)
            + _ON_LINE * _overlap(centres[i], half[i], on_lines, np.full((len(on_lines), 2), 1.5)).sum(1)
            + _CROSSING * _crossed(points[i], centres[i], markers, marker, reach)
            for i in range(len(points))
        ]
    )  # (n, c): what does not depend on the other labels
    near = np.linalg.norm(points[:, None] - points[None], axis=-1)
    crowded_first = np.argsort(np.sort(near, axis=1)[:, : min(4, len(points))].sum(1), kind="stable")
    placed = np.full((len(points), 2), np.inf)
    chosen = np.zeros(len(points), dtype=int)
    for _ in range(_ROUNDS):
        for i in crowded_first:
            placed[i] = np.inf
            cost = fixed[i] + _ON_LABEL * _overlap(centres[i], half[i], placed, half).sum(1)
            chosen[i] = cost.argmin()
            placed[i] = centres[i, chosen[i]]
    places: list[Place | None] = []
    for i, c in enumerate(chosen):
        alone = placed[i].copy()
        placed[i] = np.inf
        covers = _overlap(alone[None], half[i], placed, half).max() > 0
        if crowded:
            covers |= _overlap(alone[None], half[i], markers, np.full((len(markers), 2), marker / 2)).max() > 0
        if not covers:
            placed[i] = alone
        places.append(None if covers else Place(*offsets[i, c].tolist(), leader=bool(reach[c] >= 15)))
    return places


def _candidates(half: np.ndarray, marker: float, distances: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the label's middle from its point (n, c, 2), and how far each is from the nearest place (c,)."""
    directions = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # (16, 2)
    preference = 0.25 * np.arange(len(_ANGLES))  # beside the point rather than above, above rather than slanted
    steps = np.array(distances)[:, None, None]
    offsets = [directions * (one + marker + 1) + directions * steps for one in half]  # (distances, 16, 2) each
    reach = (np.array(distances)[:, None] + preference).ravel()
    return np.stack(offsets).reshape(len(half), -1, 2), reach


def _overlap(centres: np.ndarray, half: np.ndarray, others: np.ndarray, other_half: np.ndarray) -> np.ndarray:
    """(c, m): square root of the area that a box at each centre shares with each other box."""
    with np.errstate(invalid="ignore"):  # labels not placed yet stand at infinity
        shared = half + other_half[None] - np.abs(centres[:, None] - others[None])  # (c, m, 2)
    shared = np.clip(np.nan_to_num(shared, nan=0.0, neginf=0.0), 0, 2 * np.minimum(half, other_half)[None])
    return np.sqrt(shared.prod(-1))


def _sampled(lines: np.ndarray | None, step: float = 8.0) -> np.ndarray:
    """Points along the lines, `step` pixels from each other: (s, 2)."""
    if lines is None or not len(lines):
        return np.empty((0, 2))
    counts = (np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1) / step).astype(int).tolist()
    return np.vstack([np.linspace(one[0], one[1], n + 2) for one, n in zip(lines, counts, strict=True)])


def _outside(centres: np.ndarray, half: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """(c,) whether a box leaves the plot."""
    return np.asarray(((centres - half < 0) | (centres + half > np.array(size))).any(axis=1))


def _crossed(
    point: np.ndarray, centres: np.ndarray, markers: np.ndarray, marker: float, reach: np.ndarray
) -> np.ndarray:
    """(c,): markers that a line from the point to the label's middle runs over, where it is far enough to be drawn."""
    line = centres - point  # (c, 2)
    away = markers - point
    away = away[np.linalg.norm(away, axis=1) > marker]  # markers on the point itself are not crossed
    along = np.clip((away @ line.T) / (line**2).sum(1), 0, 1)  # (m, c)
    gaps = np.linalg.norm(away[:, None] - along[..., None] * line[None], axis=-1)  # (m, c)
    return (gaps < marker).sum(0) * (reach >= 15)
