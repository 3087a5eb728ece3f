"""Scatter figures: every point that has both its numbers, a line through all of them, and labels that cover nothing."""

import re

import numpy as np
import pytest

from persona_vectors.plots import png_bytes
from persona_vectors.scatter import Panel, Points, fitted, scatter_png, scatter_svg

XS, YS = [0.0, 1.0, 2.0, np.nan], [1.0, 3.0, 5.0, 7.0]
GROUPS = [Points("one", XS, YS, ["a", "b", "c & d", "lost"]), Points("two", [3.0], [7.0], ["e"], look="random")]
PANEL = Panel(GROUPS, "projection", "score")


def test_the_line_is_least_squares_through_all_groups():
    ends, heights = fitted(GROUPS)
    np.testing.assert_allclose(ends, [0, 3])
    np.testing.assert_allclose(heights, [1, 7])


@pytest.mark.parametrize("groups", [[Points("few", [1, 2], [1, 2])], [Points("same", [1, 1, 1], [1, 2, 3])]])
def test_there_is_no_line_where_there_is_none(groups):
    assert fitted(groups) is None


def test_an_svg_has_a_marker_for_every_whole_point_and_says_which():
    svg = scatter_svg(PANEL, "what it shows")
    assert len(re.findall('class="dot"', svg)) == 4
    assert "c &amp; d" in svg and "lost" not in svg and 'aria-label="what it shows"' in svg
    assert len(re.findall("<polyline", svg)) == 1
    assert "<polyline" not in scatter_svg(Panel(GROUPS, "x", "y", fit=False), "no line")


def test_a_png_names_groups_points_and_axes():
    figure = scatter_png({"first": PANEL, "second": PANEL})
    axis = figure.axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("projection", "score", "first")
    assert {text.get_text() for text in axis.texts} == {"a", "b", "c & d", "e"}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one", "two"]
    assert png_bytes(figure)[:4] == b"\x89PNG"


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="nothing to draw for empty"):
        scatter_svg(Panel([Points("none", [np.nan], [1.0])], "x", "y"), "empty")
