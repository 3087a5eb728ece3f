"""The page of the analysing commands: all that it is given, safe, and with how it was made."""

import json

import pytest

from eval.analysis_page import Page, Section, Shown, render, write
from eval.results_figures import Figure

EVIL = "<script>alert(1)</script>\u202e"
SECTION = Section(
    "A section",
    ["A sentence."],
    [Figure("caption", [("panel", "<svg id='drawn'></svg>")], [("s0", "the vector")])],
    ["name", "value"],
    [["first", "1"], ["second", "2"]],
    [("What?", [Shown("base", EVIL, "score 3", "unsteered")])],
)
PAGE = Page("A title", "What was done.", ["It held."], [SECTION], True, ["A note."], ["python x"], {"layer": 3})


def test_it_shows_everything():
    html = render(PAGE)
    for text in ("A title", "What was done.", "It held.", "A note.", "A section", "A sentence.", "caption", "panel"):
        assert text in html
    assert "<svg id='drawn'></svg>" in html and "python x" in html and "settings.layer" in html
    assert html.count("<tr>") >= 3 and 'data-name="value"' in html and "score 3" in html


def test_text_from_outside_is_escaped_and_visible():
    html = render(PAGE)
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)" in html and "[U+202E]" in html


@pytest.mark.parametrize(("found", "css"), [(True, "finding found"), (False, "finding not"), (None, "finding plain")])
def test_what_was_found_has_its_colour(found, css):
    assert css in render(Page("t", "l", ["s"], [], found))


def test_it_has_a_sidecar(tmp_path):
    path = write(PAGE, tmp_path / "report.html", {"claims": 2})
    told = json.loads((tmp_path / "report.html.json").read_text())
    assert path.read_text().startswith("<!doctype html>")
    assert told["sentences"] == ["It held."] and told["settings"] == {"layer": 3} and told["claims"] == 2
    assert "git_commit" in told and told["file"]["sha256"]
