"""A Plotly figure as a page of its own: one HTML file that needs no network, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors.files import check_output_path, write_sidecar, write_text_atomic

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light; --paper: #ffffff; --ink: #1d2430 }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; --paper: #14171c; --ink: #e4e7ec }} }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }}
main {{ padding: 1rem; overflow-x: auto }}
</style>
<script>{plotly}</script>
</head>
<body>
<main>
{figure}
<noscript><p>This figure is drawn by a script, which is switched off here.</p></noscript>
</main>
<script>
(function () {{
  var dark = window.matchMedia("screen and (prefers-color-scheme: dark)");
  function paint() {{
    var grid = dark.matches ? "rgba(255,255,255,0.12)" : "rgba(0,0,0,0.10)";
    var ink = dark.matches ? "#c3c9d2" : "#3f4855";
    document.querySelectorAll(".plotly-graph-div").forEach(function (plot) {{
      Plotly.relayout(plot, {{
        "font.color": ink, "xaxis.gridcolor": grid, "yaxis.gridcolor": grid,
        "xaxis.linecolor": grid, "yaxis.linecolor": grid,
        "hoverlabel.bgcolor": dark.matches ? "#262b34" : "#ffffff", "hoverlabel.font.color": ink
      }});
    }});
  }}
  paint();
  dark.addEventListener("change", paint);
}})();
</script>
</body>
</html>
"""


def save_figure(figure: go.Figure, path: str | Path, record: Mapping[str, Any] | None = None) -> Path:
    """The figure's page at `path`, whole or not at all, and a sidecar with `record` and what produced it.

    Raises:
        ValueError: a path that is a folder or does not end in .html.
        OSError: a path that cannot be written.
    """
    from plotly.offline import get_plotlyjs

    check_output_path(path, [".html"])
    title = str(figure.layout.title.text or "Figure")  # pyright: ignore
    config = {"displaylogo": False, "responsive": False}
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    text = _PAGE.format(title=escape(title), plotly=get_plotlyjs(), figure=drawn)
    written = write_text_atomic(path, text)
    write_sidecar(written, {"title": title, **(record or {})})
    return written
