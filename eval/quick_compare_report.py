"""A comparison of quick extractions as lines, a table file and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval.analysis_page import Page, Section, plotly_panel, write
from eval.quick_compare import Cosines, Extracted
from eval.results_figures import Figure
from persona_vectors import plots
from persona_vectors.files import write_csv_atomic, write_sidecar

if TYPE_CHECKING:
    import plotly.graph_objects as go

HOW = (
    "AUC and separation are of questions that made no direction, at the layer with the highest AUC, which flatters it; "
    "random is the 95th percentile of random directions, and a band counts where the AUC's whole interval lies above it"
)


def table(found: Sequence[Extracted]) -> pd.DataFrame:
    """A row an extraction."""
    return pd.DataFrame([one.table_row() for one in found])


def lines(found: Sequence[Extracted], compared: Sequence[Cosines]) -> list[str]:
    """The table and the cosines for the terminal."""
    width = max(len(one.trait) for one in found)
    told = [HOW + ":"]
    for model in dict.fromkeys(one.model for one in found):
        told.append(f"\n{model}")
        told += [f"  {one.trait:<{width}}  {_numbers(one)}" for one in found if one.model == model]
    for one in compared:
        told += ["", f"cosines, {one.title} (95% of random directions below {one.chance:.2f})"]
        longest = max(len(name) for name in one.names)
        for name, row in zip(one.names, one.matrix, strict=True):
            told.append(f"  {name:<{longest}}  {'  '.join(f'{value:+.2f}' for value in row)}")
    return told


def _numbers(one: Extracted) -> str:
    row = one.table_row()
    if row["auc"] is None:
        return "no AUC could be had"
    return (
        f"layer {row['layer']:>2}: AUC {row['auc']:.3f} [{row['auc_low']:.2f}, {row['auc_high']:.2f}] (random "
        f"{row['auc_random_95']:.3f}), separation {_some(row['separation'])} (random "
        f"{_some(row['separation_random_95'])}), {row['band']}"
    )


def _some(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_comparison(save_dir: str | Path, found: Sequence[Extracted]) -> Path:
    """`<save_dir>/comparison.csv`, with its sidecar."""
    path = write_csv_atomic(table(found), Path(save_dir) / "comparison.csv")
    write_sidecar(path, {"kind": "quick extractions compared", "how": HOW, **made(found)})
    return path


def made(found: Sequence[Extracted]) -> dict[str, Any]:
    """How the extractions were made, by their sidecars: the arguments that all share, and those of each alone."""
    own = {f"{one.trait} of {one.model}": dict(one.file.sidecar.get("arguments", {})) for one in found}
    first, *others = own.values()
    shared = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    shared = {name: value for name, value in shared.items() if value is not None}
    differing = {
        key: {name: value for name, value in arguments.items() if name not in shared and value is not None}
        for key, arguments in own.items()
    }
    return {"of all": shared, **differing}


def write_report(save_dir: str | Path, found: Sequence[Extracted], compared: Sequence[Cosines]) -> Path:
    """`<save_dir>/report.html`: the table, and cosines as heatmaps."""
    columns = ["model", "trait", "layer", "AUC [95%]", "random", "separation", "random", "split-half", "p", "band"]
    cells = [_cells(one.table_row()) for one in found]
    sections = [Section("Best layers", sentences=[HOW], columns=columns, cells=cells)]
    sections += [_section(one) for one in compared]
    beating = [one for one in found if one.beats_random]
    n_models = len({one.model for one in found})
    page = Page(
        title="Persona directions",
        lead=f"{len(found)} quick extractions of {n_models} model{'s' * (n_models > 1)}, in {save_dir}.",
        sentences=[
            f"{len(beating)} of {len(found)} directions tell held-out answers apart better than 95% of random "
            "directions do, by the whole interval of their AUC."
        ],
        sections=sections,
        commands=[
            f"each direction's own page: {one.path.name.replace('_vectors.npz', '_analysis.html')}" for one in found
        ],
        settings=made(found),
        interactive=True,
    )
    return write(page, Path(save_dir) / "report.html")


def _cells(row: dict[str, Any]) -> list[str]:
    auc = "-" if row["auc"] is None else f"{row['auc']:.3f} [{row['auc_low']:.2f}, {row['auc_high']:.2f}]"
    names = ("auc_random_95", "separation", "separation_random_95", "split_half")
    p = "-" if row["p"] is None else f"{row['p']:.3f}"
    return [row["model"], row["trait"], str(row["layer"]), auc, *(_some(row[name]) for name in names), p, row["band"]]


def _section(one: Cosines) -> Section:
    text = f"|cosine| of random directions of this width: 95% below {one.chance:.2f}."
    figure = Figure(caption=text, panels=[("", plotly_panel(_heatmap(one)))], legend=[])
    return Section(f"Cosines, {one.title}", figures=[figure])


def _heatmap(one: Cosines) -> go.Figure:
    """Cosines from -1 (blue) through 0 (white) to 1 (red), each with its number."""
    import plotly.graph_objects as go

    values = one.matrix.round(2).tolist()
    heatmap = go.Heatmap(
        z=values,
        x=list(one.names),
        y=list(one.names),
        zmin=-1,
        zmax=1,
        colorscale="RdBu_r",
        text=values,
        texttemplate="%{text:+.2f}",
        hovertemplate="%{y} and %{x}: %{z:+.2f}<extra></extra>",
    )
    figure = plots.plotly_figure([heatmap], "", "")
    return figure.update_yaxes(autorange="reversed").update_layout(height=120 + 44 * len(one.names))
