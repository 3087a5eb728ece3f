"""Figures of many personas' vectors: each function returns a Plotly Figure, and writes it as a page with `save_path`.

Blue is the assistant's end of a scale and orange the role-play's; grey is what chance gives. Figures have no background
of their own, and every persona is named where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_vectors.alignment import Centre, JointPca, joint_pca, orthogonal_map, same_personas
from persona_vectors.axis import (
    Vectors,
    assistant_mask,
    centred_cosines,
    compute_axes,
    fit_pca,
    persona_rows,
    present_assistants,
)
from persona_vectors.axis_statistics import label_permutation
from persona_vectors.figure_pages import save_figure
from persona_vectors.label_places import place_labels
from persona_vectors.persona_clusters import persona_tree
from persona_vectors.plots import INK, RANDOM, SERIES, VECTOR, plotly_figure, plotly_line

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROLE = SERIES[5]
_POINTS = ((0.0, ROLE), (0.5, RANDOM), (1.0, VECTOR))
"""From role-play to the assistant, on markers: grey in the middle is seen on light and on dark."""
_CELLS = ((0.0, ROLE), (0.5, "rgba(139,145,155,0.06)"), (1.0, VECTOR))
"""On cells: the middle lets the page through."""
_MARKERS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")
_COLORS = (VECTOR, SERIES[1], SERIES[3], SERIES[4], SERIES[5], RANDOM, INK)
_WIDTH, _HEIGHT = 980, 720
_MARGIN = {"l": 70, "r": 24, "t": 104, "b": 60}
_FONT = 12
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
    figure = _heatmap(centred_cosines(rows, rows), order, order)
    _title(figure, "Which personas are alike", [_what(model, layer, len(order), n_questions), "cosine, mean taken off"])
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
    PC1 beside that of other sets of as many personas.

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
    xy = _plane(pca.scores)
    most = float(np.abs(axes["assistant_proj"]).max())
    marker = {
        "size": [15 if one else 12 for one in mask],
        "symbol": ["diamond" if one else "circle" for one in mask],
        "color": axes["assistant_proj"].tolist(),
        "colorscale": list(_POINTS),
        "cmin": -most,
        "cmax": most,
        "colorbar": _colorbar("on the assistant axis"),
    }
    figure = _scatter_figure([_markers(xy, names, "", marker, axes["assistant_proj"])], xy, pca.shares, right=130)
    _write_names(figure, xy, names, marker=8)
    cosine, _ = label_permutation(rows, mask)
    median, high = np.quantile(cosine.null, [0.5, 0.95])
    agreement = (
        f"cosine of PC1 and assistant axis (◆ against ●) {axes['cosine_sim']:.2f}; any other {mask.sum()} as the "
        f"assistant: median {median:.2f}, 95th percentile {high:.2f}"
    )
    _title(figure, "Personas on their first two components", [_what(model, layer, len(names), n_questions), agreement])
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
            annotation={"text": f"{level:.0%}: {needed} component{'s' * (needed > 1)}", "font": {"size": _FONT}},
            annotation_position="bottom right",
        )
    figure.update_xaxes(dtick=max(1, round(len(shares) / 12)))
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    figure.update_layout(width=820, height=520, margin=_MARGIN, hovermode="x unified", legend=_legend())
    first = f"PC1 alone {shares[0]:.0%}"
    _title(figure, "How many components personas need", [_what(model, layer, len(names), n_questions), first])
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
    points = _plane(joint.scores.reshape(-1, joint.scores.shape[-1])).reshape(len(labels), len(joint.names), 2)
    traces = [_joined(points)]
    for number, label in enumerate(labels):
        look = {"color": _COLORS[number % len(_COLORS)], "symbol": _MARKERS[number % len(_MARKERS)], "size": 10}
        traces.append(_markers(points[number], joint.names, label, look))
    figure = _scatter_figure(traces, points.reshape(-1, 2), joint.shares)
    _write_names(figure, points[0], joint.names, others=points[1:].reshape(-1, 2), marker=6)
    figure.update_layout(legend=_legend())
    about = _what("", layer, len(joint.names), n_questions, len(labels))
    _title(figure, f"The same personas in {' / '.join(labels)}", [about, _spaces(joint, centre)])
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
    figure = _heatmap(cosines, order, order, xlabel=label_b, ylabel=label_a)
    n = len(names)
    same, other = cosines.trace() / n, (cosines.sum() - cosines.trace()) / (n * (n - 1))
    how = "each model's mean taken off" if centre == "model" else "joint mean taken off"
    how += ", through an orthogonal map (fitted on these)" * mapped
    mean = f"cosine, {how}; same persona {same:.2f} on average, another {other:.2f}"
    _title(figure, f"Personas of {label_a} against {label_b}", [_what("", layer, n, n_questions, 2), mean])
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


def _plane(scores: np.ndarray) -> np.ndarray:
    """The first two columns; the second is 0 where there is one."""
    return scores[:, :2] if scores.shape[1] > 1 else np.column_stack([scores[:, 0], np.zeros(len(scores))])


def _markers(
    xy: np.ndarray, names: Sequence[str], label: str, marker: Mapping[str, Any], values: np.ndarray | None = None
) -> Any:
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


def _joined(points: np.ndarray) -> Any:
    """A line a persona through its points of all models, as one trace."""
    import plotly.graph_objects as go

    xs, ys = ([number for line in points[:, :, side].T.tolist() for number in [*line, None]] for side in (0, 1))
    line = {"color": "rgba(128,134,145,0.55)", "width": 1}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def _scatter_figure(traces: list[Any], xy: np.ndarray, shares: np.ndarray, right: int = 0) -> go.Figure:
    """Axes with room around the points, so that labels can be placed for this very picture."""
    second = shares[1] if len(shares) > 1 else 0.0
    figure = plotly_figure(traces, f"PC1 ({shares[0]:.0%} of the variance)", f"PC2 ({second:.0%})")
    margin = {**_MARGIN, "r": _MARGIN["r"] + right}
    figure.update_layout(width=_WIDTH + right, height=_HEIGHT, margin=margin, hovermode="closest", dragmode="pan")
    for update, column in ((figure.update_xaxes, xy[:, 0]), (figure.update_yaxes, xy[:, 1])):
        room = 0.09 * (float(np.ptp(column)) or 1.0)
        update(range=[float(column.min()) - room, float(column.max()) + room], automargin=False)
    return figure


def _write_names(
    figure: go.Figure, xy: np.ndarray, names: Sequence[str], marker: float, others: np.ndarray | None = None
) -> None:
    """The names beside their points, without covering each other; a line leads to those that stand further off."""
    width = _WIDTH - _MARGIN["l"] - _MARGIN["r"]
    height = _HEIGHT - _MARGIN["t"] - _MARGIN["b"]
    low, high = (np.array([axis.range[end] for axis in (figure.layout.xaxis, figure.layout.yaxis)]) for end in (0, 1))  # pyright: ignore
    to_pixels = np.array([width, height]) / (high - low)
    further = None if others is None else (others - low) * to_pixels
    places = place_labels((xy - low) * to_pixels, names, (width, height), others=further, font=_FONT, marker=marker)
    for (x, y), name, place in zip(xy.tolist(), names, places, strict=True):
        figure.add_annotation(
            x=x,
            y=y,
            text=name,
            font={"size": _FONT},
            ax=place.dx,
            ay=-place.dy,
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor="rgba(128,134,145,0.7)" if place.leader else "rgba(0,0,0,0)",
            standoff=marker,
            borderpad=0,
        )


def _heatmap(
    cosines: np.ndarray, down: Sequence[str], across: Sequence[str], xlabel: str = "", ylabel: str = ""
) -> go.Figure:
    import plotly.graph_objects as go

    trace = go.Heatmap(
        z=cosines.tolist(),
        x=list(across),
        y=list(down),
        zmin=-1,
        zmax=1,
        colorscale=list(_CELLS),
        colorbar=_colorbar("cosine"),
        xgap=1,
        ygap=1,
        hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
    )
    figure = plotly_figure([trace], xlabel, ylabel)
    side = max(360, 26 * len(down))
    longest = 7 * max(len(name) for name in [*down, *across])
    figure.update_xaxes(tickangle=-45, showgrid=False, dtick=1, side="bottom")
    figure.update_yaxes(autorange="reversed", showgrid=False, dtick=1, scaleanchor="x", constrain="domain")
    margin = {"l": longest + 40, "r": 110, "t": _MARGIN["t"], "b": longest + 40}
    figure.update_layout(width=side + longest + 150, height=side + longest + 144, margin=margin, hovermode="closest")
    return figure


def _colorbar(title: str) -> dict[str, Any]:
    return {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0, "len": 0.8}


def _legend() -> dict[str, Any]:
    return {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}


def _what(model: str, layer: int | None, n_personas: int, n_questions: int | None, n_models: int = 1) -> str:
    """`tiny-persona, layer 3, 23 personas × 18 questions`."""
    told = [model] * bool(model) + [f"layer {layer}"] * (layer is not None)
    told += [f"{n_models} models"] * (n_models > 1)
    return ", ".join([*told, f"{n_personas} personas" + f" × {n_questions} questions" * (n_questions is not None)])


def _spaces(joint: JointPca, centre: Centre) -> str:
    """What the subtitle of a joint PCA says about centring and maps."""
    if joint.aligned:
        return "widths differ: models turned onto the first by an orthogonal map fitted on these personas"
    if centre == "model":
        return "each model's own mean taken off"
    return f"joint mean taken off; {joint.between:.0%} of the variance lies between the models' means"


def _title(figure: go.Figure, title: str, lines: Sequence[str]) -> None:
    subtitle = {"text": "<br>".join(lines), "font": {"size": 13}}
    place = {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14}}
    figure.update_layout(title={"text": title, "font": {"size": 18}, "subtitle": subtitle, **place})


def _done(figure: go.Figure, save_path: str | Path | None, model: str, layer: int | None) -> go.Figure:
    if save_path is not None:
        save_figure(figure, save_path, {"model": model, "layer": layer})
    return figure
