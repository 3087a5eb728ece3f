"""Figures carry the arrays they were given, in both libraries, and refuse what cannot be drawn."""

import json
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from persona_vectors import plots
from persona_vectors.plots import Band

COEFS = [0, 0.5, 1, 1.5, 2]
V = Band([10, 20, 40, 70, 80], [8, 17, 35, 62, 75], [12, 23, 45, 78, 85])
R = Band([10, 10, 11, 12, 11], [9, 8, 8, 9, 5], [11, 12, 14, 15, 19])


def drawn(axis, label):
    return next(line for line in axis.get_lines() if line.get_label() == label).get_ydata()


def trace(figure, start):
    return next(t for t in figure.data if (t.name or "").startswith(start))


def test_steering_png_draws_both_lines_in_each_panel():
    figure = plots.steering_png(COEFS, {"evil": (V, R), "coherence": (R, None)})
    left, right = figure.axes
    np.testing.assert_array_equal(drawn(left, plots._VECTOR_LABEL), V.mean)
    np.testing.assert_array_equal(drawn(left, plots._RANDOM_LABEL), R.mean)
    assert len(right.get_lines()) == 1
    assert (left.get_title(), right.get_title()) == ("evil", "coherence")


def test_steering_plotly_has_the_interval_as_an_area():
    figure = plots.steering_plotly(COEFS, V, R, "evil")
    assert list(trace(figure, "vector").y) == V.mean
    areas = [t for t in figure.data if t.fill == "toself"]
    assert len(areas) == 2
    assert list(areas[1].y) == [*V.high, *V.low[::-1]]
    assert list(areas[1].x) == [*COEFS, *COEFS[::-1]]


def test_layer_auc_in_both():
    layers, v, mean, high = range(5), [0.7, 0.9, 0.95, 0.99, 0.98], [0.6] * 5, [0.8] * 5
    (axis,) = plots.layer_auc_png(layers, v, mean, high, steered=3).axes
    np.testing.assert_array_equal(drawn(axis, "difference of means, held out"), v)
    assert axis.get_ylim()[0] < 0.5
    figure = plots.layer_auc_plotly(layers, v, mean, high, steered=3)
    assert list(trace(figure, "difference").y) == v and list(trace(figure, "random").y) == mean


def test_an_auc_below_chance_stays_in_the_picture():
    (axis,) = plots.layer_auc_png([0, 1], [0.2, 0.9], [0.5, 0.5], [0.6, 0.6]).axes
    assert axis.get_ylim()[0] < 0.2


def test_layer_norms_in_both():
    norms = {"evil": np.arange(5.0), "humorous": np.arange(5.0) * 2}
    (axis,) = plots.layer_norms_png(range(5), norms).axes
    np.testing.assert_array_equal(drawn(axis, "humorous"), norms["humorous"])
    assert list(trace(plots.layer_norms_plotly(range(5), norms), "evil").y) == norms["evil"].tolist()


def test_histograms_share_bins_have_area_one_and_skip_missing_values():
    rng = np.random.default_rng(0)
    groups = {"coef 0": [*rng.normal(size=200), float("nan")], "coef 2": rng.normal(size=300) + 3}
    figure = plots.projections_plotly(groups)
    for name in groups:
        x, y = np.array(trace(figure, name).x), np.array(trace(figure, name).y)
        assert np.sum(np.diff(x) * y[:-1]) == pytest.approx(1)
        np.testing.assert_array_equal(x, np.array(figure.data[0].x))
    assert len(plots.projections_png(groups).axes[0].patches) == 4


@pytest.mark.parametrize("groups", [{}, {"coef 0": [1.0], "coef 1": [float("nan")]}])
def test_an_empty_histogram_is_refused(groups):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.projections_plotly(groups)


def test_png_bytes_are_an_image_and_no_global_state_is_left():
    before = "matplotlib.pyplot" in sys.modules
    data = plots.png_bytes(plots.layer_norms_png(range(3), {"v": [0, 1, 2]}))
    import io

    assert Image.open(io.BytesIO(data)).size[0] > 400
    assert ("matplotlib.pyplot" in sys.modules) == before
    assert matplotlib.get_backend  # importing the module chose no backend


def test_plotly_json_holds_plain_numbers():
    content = json.loads(plots.layer_norms_plotly(range(3), {"v": np.array([0, 1.5, 2])}).to_json())
    assert content["data"][0]["y"] == [0, 1.5, 2]


def test_vector_and_random_differ_in_more_than_colour():
    figure = plots.steering_plotly(COEFS, V, R, "evil")
    v, random = trace(figure, "vector"), trace(figure, "random")
    assert v.line.dash != random.line.dash and v.marker.symbol != random.marker.symbol
