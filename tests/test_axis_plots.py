"""Figures of personas: the expected points, pages that need no network, labels that do not cover each other."""

from __future__ import annotations

import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors import axis_plots
from persona_vectors.axis import compute_axes
from persona_vectors.label_places import place_labels

DEFAULTS = ["default", "default_assistant", "default_llm", "default_helpful"]
NAMES = [*DEFAULTS, "analyst", "bard", "cynic", "ghost", "jester", "oracle", "rebel", "trader"]


def made(seed: int = 0, d: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(NAMES), d, generator=generator)
    rows[1:4] = rows[0] + 0.05 * rows[1:4]
    return dict(zip(NAMES, rows, strict=True))


ABOUT = {"model": "tiny", "layer": 3, "n_questions": 5}
PLOTS = {
    "heatmap": lambda path: axis_plots.plot_cosine_similarity_heatmap(
        made(), path, model="tiny", layer=3, n_questions=5
    ),
    "pca": lambda path: axis_plots.plot_pca_projection(made(), path, **ABOUT),
    "variance": lambda path: axis_plots.plot_pca_variance_explained(made(), path, **ABOUT),
    "pair": lambda path: axis_plots.plot_pca_comparison(made(), made(1), "tiny", "other", path, layer=3, n_questions=5),
    "cross": lambda path: axis_plots.plot_cosine_cross_similarity(
        made(), made(1), "tiny", "other", path, layer=3, n_questions=5
    ),
    "nway": lambda path: axis_plots.plot_pca_comparison_nway(
        [made(), made(1), made(2)], ["tiny", "other", "third"], path, layer=3, n_questions=5
    ),
}


def titled(figure: go.Figure) -> str:
    layout = figure.layout
    return f"{layout.title.text} {layout.title.subtitle.text}"  # pyright: ignore


@pytest.mark.parametrize("kind", PLOTS)
def test_every_figure_is_a_page_that_needs_no_network(kind, tmp_path):
    path = tmp_path / "deep" / f"{kind}.html"
    figure = PLOTS[kind](path)
    assert isinstance(figure, go.Figure)
    title = titled(figure)
    assert "tiny" in title and "layer 3" in title and "12 personas × 5 questions" in title
    page = path.read_text()
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "src=" not in outside and "http" not in outside and "Plotly.newPlot" in page
    assert "prefers-color-scheme: dark" in page and len(page) > 3_000_000
    assert json.loads((tmp_path / "deep" / f"{kind}.html.json").read_text())["layer"] == 3
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"  # pyright: ignore


@pytest.mark.parametrize("kind", PLOTS)
def test_without_a_path_nothing_is_written(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PLOTS[kind](None)
    assert not list(tmp_path.iterdir())


def test_a_page_must_be_html_and_the_earlier_one_survives(tmp_path):
    with pytest.raises(ValueError, match="must end in .html"):
        axis_plots.plot_pca_projection(made(), tmp_path / "x.png")
    page = tmp_path / "x.html"
    page.write_text("before")
    with pytest.raises(ValueError, match="NaN"):
        axis_plots.plot_pca_projection({**made(), "bard": torch.full((16,), torch.nan)}, page)
    assert page.read_text() == "before"


def points(trace) -> np.ndarray:
    return np.column_stack([trace.x, trace.y]).astype(float)


def test_the_scatter_shows_pc1_with_the_assistant_at_the_right():
    vectors = made()
    figure = axis_plots.plot_pca_projection(vectors)
    axes = compute_axes(vectors, DEFAULTS)
    trace = figure.data[0]
    assert list(trace.text) == NAMES
    np.testing.assert_allclose(points(trace)[:, 0], axes["pc1_proj"], atol=1e-5)
    np.testing.assert_allclose(trace.marker.color, axes["assistant_proj"], atol=1e-6)
    assert points(trace)[:4, 0].mean() > points(trace)[4:, 0].mean()
    assert {symbol for name, symbol in zip(NAMES, trace.marker.symbol, strict=True) if name in DEFAULTS} == {"diamond"}
    assert sorted(note.text for note in figure.layout.annotations) == sorted(NAMES)  # pyright: ignore
    assert f"{axes['cosine_sim']:.2f}" in titled(figure) and "median" in titled(figure)


def test_the_heatmap_puts_like_next_to_like():
    figure = axis_plots.plot_cosine_similarity_heatmap(made())
    trace = figure.data[0]
    assert sorted(trace.x) == sorted(NAMES) and tuple(trace.x) == tuple(trace.y)
    cosines = np.array(trace.z, dtype=float)
    np.testing.assert_allclose(np.diag(cosines), 1)
    np.testing.assert_allclose(cosines, cosines.T, atol=1e-12)
    where = sorted(list(trace.x).index(name) for name in DEFAULTS)
    assert where == list(range(where[0], where[0] + 4))


def test_the_variance_rises_to_one_above_its_control():
    figure = axis_plots.plot_pca_variance_explained(made())
    shuffled, real = (np.array(trace.y, dtype=float) for trace in figure.data)
    assert len(real) == len(NAMES) - 1 and real[-1] == pytest.approx(1) and (np.diff(real) >= 0).all()
    assert real[0] > shuffled[0]
    lines = [shape.y0 for shape in figure.layout.shapes]  # pyright: ignore
    assert lines == [0.90, 0.99]
    needed = int(np.argmax(real >= 0.9)) + 1
    assert figure.layout.annotations[0].text == f"90%: {needed} components"  # pyright: ignore


def test_comparisons_have_a_marker_a_model_and_a_line_a_persona():
    figure = axis_plots.plot_pca_comparison_nway([made(), made(1), made(2)], ["x", "y", "z"])
    lines, *markers = figure.data
    assert [trace.name for trace in markers] == ["x", "y", "z"]
    assert len({trace.marker.symbol for trace in markers}) == 3
    assert all(list(trace.text) == NAMES for trace in markers)
    assert list(lines.x).count(None) == len(NAMES)
    for number, trace in enumerate(markers):
        np.testing.assert_allclose(points(trace)[:, 0], [x for i, x in enumerate(lines.x) if i % 4 == number])
    assert len(figure.layout.annotations) == len(NAMES)  # pyright: ignore
    assert "between the models" in titled(figure)


def test_a_pair_of_equal_models_lies_on_the_diagonal():
    figure = axis_plots.plot_cosine_cross_similarity(made(), made(), "x", "y")
    np.testing.assert_allclose(np.diag(np.array(figure.data[0].z, dtype=float)), 1)
    assert "same persona 1.00" in titled(figure)
    one, other = axis_plots.plot_pca_comparison(made(), made(), "x", "y").data[1:]
    np.testing.assert_allclose(points(one), points(other), atol=1e-6)


def test_models_of_other_widths_are_compared_through_a_map_and_say_so():
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)))[0][:16]
    wide = {name: vector @ turn for name, vector in made().items()}
    assert "orthogonal map" in titled(axis_plots.plot_pca_comparison(made(), wide, "x", "y"))
    cross = axis_plots.plot_cosine_cross_similarity(made(), wide, "x", "y")
    assert "orthogonal map" in titled(cross)
    np.testing.assert_allclose(np.diag(np.array(cross.data[0].z, dtype=float)), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: axis_plots.plot_pca_projection({n: v for n, v in made().items() if n not in DEFAULTS}),
            "no assistant",
        ),
        (lambda: axis_plots.plot_cosine_similarity_heatmap(dict(list(made().items())[:2])), "2 personas"),
        (lambda: axis_plots.plot_pca_comparison(made(), dict(list(made().items())[1:])), "different personas"),
        (lambda: axis_plots.plot_pca_comparison_nway([], []), "0 models"),
    ],
)
def test_errors_are_one_line(draw, message):
    with pytest.raises(ValueError, match=message) as error:
        draw()
    assert "\n" not in str(error.value)


# labels


def boxes(at, texts, places):
    """(left, low, right, high) of each label, as drawn."""
    half = np.array([[0.28 * 12 * len(text), 0.5 * 12] for text in texts])
    centres = np.array(at) + [[place.dx, place.dy] for place in places]
    return np.hstack([centres - half, centres + half])


def overlaps(one, other) -> bool:
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_labels_of_scattered_points_cover_neither_each_other_nor_points(seed):
    rng = np.random.default_rng(seed)
    at = rng.uniform([40, 30], [760, 500], size=(23, 2))
    texts = [f"persona number {i}"[: rng.integers(4, 16)] for i in range(23)]
    places = place_labels(at, texts, (800, 540))
    drawn = boxes(at, texts, places)
    assert not any(overlaps(drawn[i], drawn[j]) for i in range(23) for j in range(i))
    assert (drawn[:, :2] >= 0).all() and (drawn[:, 2:] <= [800, 540]).all()
    for i, box in enumerate(drawn):
        covered = [(box[:2] < point).all() and (point < box[2:]).all() for j, point in enumerate(at) if j != i]
        assert not any(covered)


def test_labels_of_coinciding_points_move_apart_with_leaders():
    at = np.tile([[400.0, 270.0]], (6, 1)) + 0.2 * np.arange(6)[:, None]
    places = place_labels(at, DEFAULTS + ["assistant", "generalist"], (800, 540))
    drawn = boxes(at, DEFAULTS + ["assistant", "generalist"], places)
    assert not any(overlaps(drawn[i], drawn[j]) for i in range(6) for j in range(i))
    assert any(place is not None and place.leader for place in places)
    assert places == place_labels(at, DEFAULTS + ["assistant", "generalist"], (800, 540))


def test_among_very_many_points_names_without_room_are_left_to_the_pointer():
    rng = np.random.default_rng(0)
    texts = [f"persona_{i}" for i in range(150)]
    at = rng.normal([400, 270], [90, 60], size=(150, 2))
    places = place_labels(at, texts, (800, 540))
    there = [i for i, place in enumerate(places) if place is not None]
    drawn = boxes(at[there], [texts[i] for i in there], [places[i] for i in there])
    assert 10 < len(there) < 150
    assert not any(overlaps(drawn[i], drawn[j]) for i in range(len(there)) for j in range(i))


def test_a_label_stands_beside_its_line_not_on_it():
    at = np.array([[400.0, 270.0]])
    (free,) = place_labels(at, ["generalist"], (800, 540))
    (beside,) = place_labels(at, ["generalist"], (800, 540), lines=np.array([[[400.0, 270.0], [700.0, 270.0]]]))
    assert free is not None and free.dx > 0 and free.dy == 0
    assert beside is not None and (beside.dx < 0 or abs(beside.dy) > 6)


def test_no_points_no_labels():
    assert place_labels(np.empty((0, 2)), [], (10, 10)) == []
