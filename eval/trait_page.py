"""The figures and pages of persona_vector_analysis.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.analysis_page import Page, Section, plotly_panel, write
from eval.page import visible
from eval.quick_figures import auc_plotly, columns, separation_plotly
from eval.quick_report import table_cells
from eval.results_figures import Figure
from eval.trait_profile import Profile
from eval.trait_scoring import SCORINGS
from eval.trait_vectors import ItemVectors, projections, sentences, with_words
from persona_vectors import plots
from persona_vectors.files import write_bytes_atomic, write_csv_atomic, write_sidecar
from persona_vectors.radar import Outline, radar_plotly, radar_png

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Png

_LOOKS = (
    ("#2b83c6", "solid", "circle"),
    ("#e69f00", "dashdot", "triangle-up"),
    ("#009e73", "dot", "diamond"),
    ("#cc79a7", "dash", "circle"),
    ("#d55e00", "dashdot", "diamond"),
)
MAX_OUTLINES = 1 + len(_LOOKS)


def write_analysis(vectors: ItemVectors, folder: Path, lead: str, settings: Mapping[str, Any]) -> list[Path]:
    """`persona_vector_analysis_<trait>.png` and `.html`, with their sidecars."""
    base, found, said = folder / f"persona_vector_analysis_{vectors.trait}", vectors.found, sentences(vectors)
    drawn = write_bytes_atomic(base.with_suffix(".png"), plots.png_bytes(_analysis_png(vectors)))
    write_sidecar(drawn, {"kind": "analysis of persona vectors", "sentences": said, "settings": dict(settings)})
    panels = []
    if found.best is not None:
        groups = {name: values.numpy() for name, values in projections(vectors, found.best.layer).items()}
        drawings = {
            "AUC on held-out items": auc_plotly(found),
            "separation, held out": separation_plotly(found),
            f"projections at layer {found.best.layer}, in sample": plots.projections_plotly(groups),
        }
        panels = [(title, plotly_panel(drawing)) for title, drawing in drawings.items()]
    heads, cells = table_cells(with_words(vectors))
    page = Page(
        title=f"{vectors.trait}: high against low responses",
        lead=lead,
        sentences=said,
        sections=[Section("By layer", figures=[Figure("", panels, [])], columns=heads, cells=cells)],
        found=None if found.best is None else found.best.beats_random,
        notes=["Items that made a direction never judge it; the AUC in sample, where they do, is circular."],
        settings=settings,
        interactive=True,
    )
    return [drawn, write(page, base.with_suffix(".html"))]


def _analysis_png(vectors: ItemVectors) -> Png:
    """AUC and mean difference by layer, and the projections at the best layer."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = plots.canvas(3)
    own, layers, best = columns(vectors.found), vectors.layers, vectors.found.best
    random = {"color": plots.RANDOM, "linestyle": "--", "marker": "s", "markersize": 4}
    axes[0].axhline(0.5, color=plots.INK, linewidth=0.8, linestyle=":")
    axes[0].fill_between(layers, own["auc_random_mean"], own["auc_random_95"], color=plots.RANDOM, alpha=0.25)
    axes[0].plot(layers, own["auc_random_mean"], label="random: mean to 95th percentile", **random)
    axes[0].fill_between(layers, own["auc_low"], own["auc_high"], color=plots.VECTOR, alpha=0.2)
    axes[0].plot(layers, own["auc"], color=plots.VECTOR, marker="o", label="held out, 95% interval")
    axes[0].set(xlabel="layer", title="AUC on held-out items", ylim=(min(0.4, np.nanmin([*own["auc_low"], 0.4])), 1.03))
    gaps = [one.high[0] - one.low[0] for one in vectors.found.layers]
    axes[1].plot(layers, gaps, color=plots.VECTOR, marker="o")
    axes[1].set(xlabel="layer", title="mean difference (norm of the vector)")
    axes[1].set_ylim(bottom=0)
    for axis in axes[:2]:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    groups = projections(vectors, layers[0] if best is None else best.layer)
    edges = np.histogram_bin_edges(np.concatenate([values.numpy() for values in groups.values()]), 24).tolist()
    for (name, values), color in zip(groups.items(), plots.SERIES, strict=False):  # as on the page
        axes[2].hist(values.numpy(), edges, color=color, alpha=0.5, label=f"{name} responses")
    axes[2].set(xlabel="projection", title=f"layer {layers[0] if best is None else best.layer}, in sample")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    axes[2].legend(frameon=False, fontsize=8, loc="upper center")
    figure.suptitle(f"{vectors.trait}: {vectors.found.n_questions} items", fontsize=10)
    return figure


def write_scores(profiles: Sequence[Profile], base: Path, record: Mapping[str, Any]) -> list[Path]:
    """`<base>.csv`, a row a condition and trait, and `<base>_items.csv`, a row an item, with their sidecars."""
    import pandas as pd

    tables: dict[Path, pd.DataFrame] = {
        base.with_suffix(".csv"): pd.concat([one.table() for one in profiles], ignore_index=True),
        base.with_name(f"{base.name}_items.csv"): pd.concat([one.items() for one in profiles], ignore_index=True),
    }
    for path, table in tables.items():
        write_sidecar(write_csv_atomic(table, path), {"kind": "questionnaire scores", **record})
    return list(tables)


def write_profile(
    profiles: Sequence[Profile], base: Path, lead: str, notes: Sequence[str], settings: Mapping[str, Any]
) -> list[Path]:
    """`<base>.png` and `<base>.html`: the radar of each way of scoring, and its table."""
    panels = [(f"scored by {one.scoring}", one.traits, outlines(one)) for one in profiles]
    drawn = write_bytes_atomic(base.with_suffix(".png"), plots.png_bytes(radar_png(panels)))
    write_sidecar(drawn, {"kind": "personality profile", "settings": dict(settings)})
    page = Page(
        title="Personality profile",
        lead=lead,
        sentences=[f"Scored by {one.scoring}: {said}" for one in profiles for said in one.sentences()],
        sections=[_section(one, names, lines) for one, (_, names, lines) in zip(profiles, panels, strict=True)],
        notes=[
            *notes,
            "0.5 is chance: what the labels give when they are swapped, or a reader who goes by place. In round "
            "brackets: 95% of the scores of that condition with swapped labels.",
        ],
        settings=settings,
        interactive=True,
    )
    return [drawn, write(page, base.with_suffix(".html"))]


def _section(profile: Profile, names: Sequence[str], lines: Sequence[Outline]) -> Section:
    drawn = plotly_panel(radar_plotly(names, lines))
    n_left = len(profile.of("told") + profile.of("steered")) - (MAX_OUTLINES - 1)
    left = f" The table has {n_left} more conditions than the figure." if n_left > 0 else ""
    figure = Figure(f"P(high) of each trait; {SCORINGS[profile.scoring]}.{left}", [("", drawn)], [])
    return Section(f"Scored by {profile.scoring}", figures=[figure], columns=profile.columns(), cells=profile.cells())


def outlines(profile: Profile) -> list[Outline]:
    """Unsteered, told and steered conditions, as many as can be told apart, and the mean of the random directions."""

    def scores(number: int) -> list[float]:
        return [own.score.score.mean for own in profile.scored[number]]

    shown = [number for kind in ("told", "steered") for number in profile.of(kind)][: MAX_OUTLINES - 1]
    found = [Outline(profile.conditions[0].name, scores(0), plots.INK, "solid", "square")]
    if randoms := profile.of("random"):
        found.append(
            Outline(
                "random directions, mean", np.mean([scores(n) for n in randoms], axis=0), plots.RANDOM, "dash", "square"
            )
        )
    for number, look in zip(shown, _LOOKS, strict=False):
        found.append(Outline(visible(profile.conditions[number].name), scores(number), *look))
    return found
