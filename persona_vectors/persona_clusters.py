"""Which personas lie together: a tree of their centred vectors, and clusters beside what Gaussian rows would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_vectors.axis import Vectors, in_their_span, persona_rows
from persona_vectors.axis_statistics import Chance


@dataclass(frozen=True)
class Clusters:
    """Groups of personas by the cosine of their centred vectors (average linkage).

    Attributes:
        order: personas as the leaves of the tree, neighbours next to each other.
        labels: cluster of each persona, 1.., in the order given.
        silhouette: how much nearer a persona is to its own cluster than to the next (-1 to 1), beside the best
            silhouette found the same way in Gaussian rows of the same covariance, which have no clusters.
    """

    order: list[str]
    labels: dict[str, int]
    silhouette: Chance

    @property
    def n_clusters(self) -> int:
        return len(set(self.labels.values()))

    def record(self) -> dict[str, object]:
        """For a sidecar."""
        return {"order": self.order, "labels": self.labels, "silhouette": self.silhouette.record()}


def cluster_personas(vectors: Vectors, *, most: int = 8, n_random: int = 100, seed: int = 0) -> Clusters:
    """The clusters whose number (2 to `most`) has the best silhouette.

    Raises:
        ValueError: as `axis.persona_rows`, or a persona that equals the mean of all.
    """
    names, wide = persona_rows(vectors)
    rows = in_their_span(wide)
    tree, order = persona_tree(vectors)
    silhouette, labels = _best_cut(rows, tree, most)
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(n_random):
        # the Gaussian of the same covariance: columns are uncorrelated in these coordinates, with these spreads
        control = rng.normal(size=rows.shape) * rows.std(0)
        null.append(_best_cut(control - control.mean(0), _linkage(control - control.mean(0)), most)[0])
    labelled = dict(zip(names, labels.tolist(), strict=True))
    return Clusters(order, labelled, Chance(silhouette, np.array(null)))


def persona_tree(vectors: Vectors) -> tuple[Float[np.ndarray, "n_minus_1 4"], list[str]]:
    """scipy's linkage (average, of 1 - cosine of the centred vectors), and the personas in the order of its leaves.

    Raises:
        ValueError: as `axis.persona_rows`, or a persona that equals the mean of all.
    """
    from scipy.cluster.hierarchy import leaves_list

    names, wide = persona_rows(vectors)
    tree = _linkage(in_their_span(wide), names)
    return tree, [names[leaf] for leaf in leaves_list(tree)]


def _linkage(centred: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    from scipy.cluster.hierarchy import linkage

    lengths = np.linalg.norm(centred, axis=1)
    if (middle := np.flatnonzero(lengths <= 1e-9 * lengths.max())).size:
        named = ", ".join(names[i] for i in middle.tolist()) if names else f"row {middle[0]}"
        raise ValueError(f"{named}: equal to the mean of all personas, so at no angle to any; leave it out")
    return linkage(_condensed(centred), method="average", optimal_ordering=bool(names))


def _condensed(centred: np.ndarray) -> np.ndarray:
    """1 - cosine of each pair, as scipy wants it; rounding below 0 is cut off."""
    from scipy.spatial.distance import pdist

    return np.clip(pdist(centred, "cosine"), 0, 2)


def _best_cut(centred: np.ndarray, tree: np.ndarray, most: int) -> tuple[float, np.ndarray]:
    """The best mean silhouette over cuts of the tree, and that cut's labels."""
    from scipy.cluster.hierarchy import fcluster
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    distances = squareform(_condensed(centred))
    best: tuple[float, np.ndarray] = (-1.0, np.ones(len(centred), dtype=int))
    for k in range(2, min(most, len(centred) - 1) + 1):
        labels = fcluster(tree, k, "maxclust")
        if 1 < len(np.unique(labels)) < len(centred):
            found = float(silhouette_score(distances, labels, metric="precomputed"))
            best = (found, labels) if found > best[0] else best
    return best
