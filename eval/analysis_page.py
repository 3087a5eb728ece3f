"""One page for the commands that analyse: what was found, figures, tables, answers, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.page import environment
from eval.results_figures import Figure
from eval.results_page import flat
from persona_vectors.page_plots import swatch

if TYPE_CHECKING:
    import plotly.graph_objects as go

TEMPLATE, INTERACTIVE = "analysis.html.j2", "interactive.html.j2"


@dataclass(frozen=True)
class Shown:
    """An answer, or a training row, as the page shows it. `css` is "", unsteered, steered, random or prompt."""

    name: str
    text: str
    note: str = ""
    css: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; everything but the title may be left out.

    Attributes:
        sentences: what was found, in words.
        figures: SVG panels with caption and legend (`eval.results_figures.Figure`).
        columns, cells: a table, a list of texts a row.
        samples: (question, what is shown side by side below it).
    """

    title: str
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    columns: Sequence[str] = ()
    cells: Sequence[Sequence[str]] = ()
    samples: Sequence[tuple[str, Sequence[Shown]]] = ()


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        lead: what was done, to whom, scored by whom.
        sentences: what was found; `found` colours them: True held, False did not, None neither.
        notes: what a reader must know beside it.
        settings: the command's arguments.
        interactive: the page holds Plotly's script (4.5 MB), for panels made by `plotly_panel`.
    """

    title: str
    lead: str
    sentences: Sequence[str]
    sections: Sequence[Section]
    found: bool | None = None
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    interactive: bool = False


def plotly_panel(figure: go.Figure) -> str:
    """The markup of a Plotly figure, for a panel of an interactive page."""
    config = {"displayModeBar": False, "responsive": True, "scrollZoom": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=config)


def render(page: Page) -> str:
    """The page as HTML, whole in itself."""
    from persona_vectors.files import provenance

    shown = {"page": page, "provenance": flat({"settings": dict(page.settings), **provenance()}), "swatch": swatch}
    if not page.interactive:
        return environment().get_template(TEMPLATE).render(shown)
    from plotly.offline import get_plotlyjs

    return environment().get_template(INTERACTIVE).render(shown, plotly_js=get_plotlyjs())


def write(page: Page, path: str | Path, record: Mapping[str, Any] | None = None) -> Path:
    """The page at `path`, and its sidecar with what was found."""
    from persona_vectors.files import write_sidecar, write_text_atomic

    written = write_text_atomic(path, render(page))
    told = {"title": page.title, "sentences": list(page.sentences), "notes": list(page.notes)}
    write_sidecar(written, {**told, "settings": dict(page.settings), **(record or {})})
    return written
