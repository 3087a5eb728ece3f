"""How sure the agreement of assistant axis and PC1 is: intervals from resampling questions.

Personas are not resampled: a role drawn twice counts twice in PC1, and intervals come out that do not hold the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from persona_vectors.axis import in_their_span
from persona_vectors.correlation import Estimated
from persona_vectors.statistics import expanded_percentiles


def over_questions(
    names: Sequence[str], by_question: Mapping[str, Tensor], mask: np.ndarray, n_boot: int, seed: int
) -> dict[str, Estimated]:
    """95% intervals of `agreement`'s three; the same questions are resampled for all personas.

    Args:
        by_question: persona -> (n_questions, d_model).

    Raises:
        ValueError: other personas than `names`, different shapes, or NaN.
    """
    if set(by_question) != set(names):
        raise ValueError(
            f"vectors by question are of {', '.join(by_question) or 'nobody'}; expected {', '.join(names)}"
        )
    shapes = {tuple(by_question[name].shape) for name in names}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"vectors by question have shapes {sorted(shapes)}; expected (n_questions, d_model) for all")
    n_questions, d = next(iter(shapes))
    wide = np.stack([by_question[name].detach().cpu().double().numpy() for name in names])  # (n, n_questions, d)
    if not np.isfinite(wide).all():
        raise ValueError("NaN or infinite numbers in the vectors by question; extract them again")
    answers = in_their_span(wide.reshape(-1, d)).reshape(len(names), n_questions, -1)
    counts = np.random.default_rng(seed).multinomial(n_questions, np.full(n_questions, 1 / n_questions), size=n_boot)
    drawn = np.array([agreement(np.einsum("q,nqd->nd", one / n_questions, answers), mask) for one in counts])
    return _intervals(agreement(answers.mean(1), mask), drawn, n_questions)


def _intervals(values: Sequence[float], drawn: Float[np.ndarray, "n_boot 3"], k: int) -> dict[str, Estimated]:
    names = ("cosine", "r_squared", "var_explained")
    if k < 2:
        return {name: Estimated(value, None, None) for name, value in zip(names, values, strict=True)}
    ends = [expanded_percentiles(column[np.isfinite(column)], k, 0.95) for column in drawn.T]
    return {name: Estimated(value, *two) for name, value, two in zip(names, values, ends, strict=True)}


def agreement(rows: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """|cosine| and R² of axis and PC1, and PC1's share of the variance; NaN where all rows are equal."""
    centred = rows - rows.mean(0)
    _, sizes, components = np.linalg.svd(centred, full_matrices=False)
    axis = rows[mask].mean(0) - rows[~mask].mean(0)
    length = np.linalg.norm(axis)
    if length == 0 or sizes[0] == 0:
        return math.nan, math.nan, math.nan
    along, on_axis = centred @ components[0], centred @ axis
    correlation = (along @ on_axis) / (np.linalg.norm(along) * np.linalg.norm(on_axis))
    cosine, share = abs(axis @ components[0]) / length, sizes[0] ** 2 / (sizes**2).sum()
    return float(cosine), float(correlation**2), float(share)
