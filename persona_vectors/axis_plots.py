"""Figures of many personas' vectors: each function returns a Plotly Figure, and writes it as a page with `save_path`.

Blue is the assistant's end of a scale and orange the role-play's; grey is what chance gives. Figures have no background
of their own, and every persona is named where it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from persona_vectors.alignment import Centre, JointPca, joint_pca, orthogonal_map, same_personas
from persona_vectors.axis import (
    Vectors,
    assistant_mask,
    centred_cosines,
    compute_axes,
    fit_pca,
    in_their_span,
    persona_rows,
    present_assistants,
)
from persona_vectors.axis_drawing import (
    COLORS,
    FONT,
    MARGIN,
    MARKERS,
    colorbar,
    from_role_to_assistant,
    heatmap,
    joined,
    legend,
    markers,
    plane,
    scatter_figure,
    set_title,
    what,
    write_names,
)
from persona_vectors.axis_statistics import counted_alike, label_permutation
from persona_vectors.figure_pages import save_figure
from persona_vectors.label_places import MOST_LEADERS
from persona_vectors.persona_clusters import persona_tree
from persona_vectors.plots import INK, RANDOM, VECTOR, plotly_figure, plotly_line

if TYPE_CHECKING:
    import plotly.graph_objects as go

N_SHUFFLED = 20


def plot_cosine_similarity_heatmap(
    persona_vectors: Vectors,
    save_path: str | Path | None = None,
    *,
    model: str = "",
    layer: int | None = None,
    n_questions: int | None = None,
) -> go.Figure:
    """Cosine between each two personas after the mean of all is taken off, like personas next to each other.

    The order is that of the leaves of a tree (average linkage of 1 - cosine).

    Args:
        save_path: an .html file.
        model, layer, n_questions: what the title says the vectors are of.

    Raises:
        ValueError: as `axis.persona_rows`, or a persona that equals the mean of all.
    """
    order = persona_tree(persona_vectors)[1]
    _, rows = persona_rows({name: persona_vectors[name] for name in order})
    figure = heatmap(centred_cosines(rows, rows), order, order)
    set_title(
        figure, "Which personas are alike", [what(model, layer, len(order), n_questions), "cosine, mean taken off"]
    )
    return _done(figure, save_path, model, layer)


def plot_pca_projection(
    persona_vectors: Vectors,
    save_path: str | Path | None = None,
    *,
    assistant_personas: Sequence[str] | None = None,
    model: str = "",
    layer: int | None = None,
    n_questions: int | None = None,
) -> go.Figure:
    """Personas on PC1 and PC2, coloured by their projection on the assistant axis; diamonds are the assistant's.

    PC1 is signed to agree with the axis, so the assistant stands on the right. Under the title: the cosine of axis and
    PC1 beside two controls of `persona_vectors.axis_statistics`, `labels` and `counted_alike`.

    Args:
        assistant_personas: those of `personas.ASSISTANT_PERSONAS` that have a vector, if None.

    Raises:
        ValueError: as `axis.compute_axes`.
    """
    chosen = present_assistants(list(persona_vectors), assistant_personas)
    axes = compute_axes(persona_vectors, chosen)
    names, rows = persona_rows(persona_vectors)
    mask = assistant_mask(names, chosen)
    pca = fit_pca(rows, names, toward=axes["assistant_axis"].double().numpy())
    xy = plane(pca.scores)
    marker = {
        "size": [15 if one else 12 if len(names) <= MOST_LEADERS else 8 for one in mask],
        "symbol": ["diamond" if one else "circle" for one in mask],
        "color": axes["assistant_proj"].tolist(),
        "colorscale": from_role_to_assistant(axes["assistant_proj"]),
        "cmin": float(axes["assistant_proj"].min()),
        "cmax": float(axes["assistant_proj"].max()),
        "opacity": 1,
        "line": {"width": 0},
        "colorbar": colorbar("on the assistant axis"),
    }
    figure = scatter_figure([markers(xy, names, "", marker, axes["assistant_proj"])], xy, pca.shares, right=130)
    write_names(figure, xy[None], names, marker=8)
    short = in_their_span(rows)
    high = np.quantile(label_permutation(short, mask)[0].null, 0.95)
    alike = np.median(counted_alike(short, mask).null)
    times = f" counted {mask.sum()} times" if mask.sum() > 1 else ""
    agreement = (
        f"cosine of PC1 and assistant axis (◆ against ●) {axes['cosine_sim']:.2f}; chance: other labels {high:.2f} "
        f"(95th percentile), a role{times} in its place {alike:.2f} (median)"
    )
    set_title(
        figure, "Personas on their first two components", [what(model, layer, len(names), n_questions), agreement]
    )
    return _done(figure, save_path, model, layer)


def plot_pca_variance_explained(
    persona_vectors: Vectors,
    save_path: str | Path | None = None,
    *,
    model: str = "",
    layer: int | None = None,
    n_questions: int | None = None,
) -> go.Figure:
    """Variance between personas that the first components explain together, with lines at 90% and 99%.

    The control is the same after each coordinate is shuffled between personas: what components explain where nothing
    goes together (mean of 20 shuffles).

    Raises:
        ValueError: as `axis.persona_rows`, or vectors that are all equal.
    """
    names, rows = persona_rows(persona_vectors)
    shares = fit_pca(rows, names).shares
    numbers = np.arange(1, len(shares) + 1)
    together = np.cumsum(shares)
    figure = plotly_figure(
        [
            plotly_line(numbers, _shuffled_shares(rows), RANDOM, "coordinates shuffled", dash="dash", symbol="square"),
            plotly_line(numbers, together, VECTOR, "these personas"),
        ],
        "components",
        "variance explained together",
    )
    for level in (0.90, 0.99):
        needed = int(np.searchsorted(together, level - 1e-12)) + 1
        figure.add_hline(
            level,
            line={"color": INK, "width": 1, "dash": "dot"},
            annotation={"text": f"{level:.0%}: {needed} component{'s' * (needed > 1)}", "font": {"size": FONT}},
            annotation_position="bottom left",
        )
    figure.update_xaxes(tick0=1, dtick=max(1, round(len(shares) / 12)), range=[0.4, len(shares) + 0.6])
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    figure.update_layout(width=820, height=520, margin=MARGIN, hovermode="x unified", legend=legend())
    first = f"PC1 alone {shares[0]:.0%}"
    set_title(figure, "How many components personas need", [what(model, layer, len(names), n_questions), first])
    return _done(figure, save_path, model, layer)


def plot_pca_comparison(
    vectors_a: Vectors,
    vectors_b: Vectors,
    label_a: str = "Model A",
    label_b: str = "Model B",
    save_path: str | Path | None = None,
    *,
    assistant_personas: Sequence[str] | None = None,
    centre: Centre = "joint",
    layer: int | None = None,
    n_questions: int | None = None,
) -> go.Figure:
    """`plot_pca_comparison_nway` of two models."""
    return plot_pca_comparison_nway(
        [vectors_a, vectors_b],
        [label_a, label_b],
        save_path,
        assistant_personas=assistant_personas,
        centre=centre,
        layer=layer,
        n_questions=n_questions,
    )


def plot_pca_comparison_nway(
    all_vectors: Sequence[Vectors],
    labels: Sequence[str],
    save_path: str | Path | None = None,
    *,
    assistant_personas: Sequence[str] | None = None,
    centre: Centre = "joint",
    layer: int | None = None,
    n_questions: int | None = None,
) -> go.Figure:
    """The same personas of several models on the components of all of them: a marker a model, a line a persona.

    Args:
        assistant_personas: those of `personas.ASSISTANT_PERSONAS` that have a vector, if None; they sign PC1.
        centre: "joint" takes off the mean of all points (as published), "model" each model's own mean, which leaves
            out what sets the models apart.

    Raises:
        ValueError: as `alignment.joint_pca`.
    """
    chosen = present_assistants(list(all_vectors[0]), assistant_personas) if all_vectors else []
    joint = joint_pca(all_vectors, labels, chosen, centre=centre)
    points = plane(joint.scores.reshape(-1, joint.scores.shape[-1])).reshape(len(labels), len(joint.names), 2)
    traces = [joined(points)]
    for number, label in enumerate(labels):
        look = {"color": COLORS[number % len(COLORS)], "symbol": MARKERS[number % len(MARKERS)], "size": 10}
        traces.append(markers(points[number], joint.names, label, look))
    figure = scatter_figure(traces, points.reshape(-1, 2), joint.shares)
    write_names(figure, points, joint.names, marker=6)
    figure.update_layout(legend=legend())
    about = what("", layer, len(joint.names), n_questions, len(labels))
    set_title(figure, f"The same personas in {' / '.join(labels)}", [about, _spaces(joint, centre)])
    return _done(figure, save_path, ", ".join(labels), layer)


def plot_cosine_cross_similarity(
    vectors_a: Vectors,
    vectors_b: Vectors,
    label_a: str = "Model A",
    label_b: str = "Model B",
    save_path: str | Path | None = None,
    *,
    centre: Centre = "joint",
    layer: int | None = None,
    n_questions: int | None = None,
) -> go.Figure:
    """Cosine between each persona of model a (rows) and each of model b (columns), in the order of a's tree.

    Models of different widths are compared through an orthogonal map fitted on all personas, which the subtitle says.

    Args:
        centre: "joint" takes off the mean of all points (as published), "model" each model's own mean.

    Raises:
        ValueError: as `alignment.same_personas`, or a persona that equals the mean of all.
    """
    names, (rows_a, rows_b) = same_personas([vectors_a, vectors_b], [label_a, label_b])
    order = persona_tree(vectors_a)[1]
    place = [names.index(name) for name in order]
    mapped = rows_a.shape[1] != rows_b.shape[1]
    if mapped:
        rows_a = orthogonal_map(rows_a, rows_b, len(names)).points(rows_a)
    if centre == "model":
        rows_a, rows_b = rows_a - rows_a.mean(0), rows_b - rows_b.mean(0)
    cosines = centred_cosines(rows_a[place], rows_b[place])
    figure = heatmap(cosines, order, order, xlabel=label_b, ylabel=label_a)
    n = len(names)
    same, other = cosines.trace() / n, (cosines.sum() - cosines.trace()) / (n * (n - 1))
    how = "each model's mean taken off" if centre == "model" else "joint mean taken off"
    how += ", through an orthogonal map (fitted on these)" * mapped
    mean = f"cosine, {how}; same persona {same:.2f} on average, another {other:.2f}"
    set_title(figure, f"Personas of {label_a} against {label_b}", [what("", layer, n, n_questions, 2), mean])
    return _done(figure, save_path, f"{label_a}, {label_b}", layer)


def _shuffled_shares(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """Cumulative shares of the variance, each column's values shuffled between rows: the mean over N_SHUFFLED."""
    rng = np.random.default_rng(seed)
    shares = []
    for _ in range(N_SHUFFLED):
        shuffled = rng.permuted(rows, axis=0)
        sizes = np.linalg.svd(shuffled - shuffled.mean(0), compute_uv=False) ** 2
        shares.append(np.cumsum(sizes) / sizes.sum())
    return np.mean(shares, axis=0)[: min(len(rows) - 1, rows.shape[1])]


def _spaces(joint: JointPca, centre: Centre) -> str:
    """What the subtitle of a joint PCA says about centring and maps."""
    if joint.aligned:
        return "widths differ: models turned onto the first by an orthogonal map fitted on these personas"
    if centre == "model":
        return "each model's own mean taken off"
    return f"joint mean taken off; {joint.between:.0%} of the variance lies between the models' means"


def _done(figure: go.Figure, save_path: str | Path | None, model: str, layer: int | None) -> go.Figure:
    if save_path is not None:
        save_figure(figure, save_path, {"model": model, "layer": layer})
    return figure
