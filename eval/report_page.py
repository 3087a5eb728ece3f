"""The report of a demo run: one HTML file that opens offline, on a phone, in light or dark.

Figures are Plotly's, its script inlined once; without JavaScript the same figures show as images. Text from models
and arguments is escaped and hidden characters are written out, as on every page (`eval.page`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.analysis_page import plotly_panel
from eval.findings import COLUMNS, Findings, table_rows
from eval.page import environment
from eval.prevention_page import shown
from persona_vectors import plots
from persona_vectors.page_plots import swatch
from persona_vectors.plots import Band

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

    from eval.demo_weights_page import WeightsPage
    from eval.prevention_rows import Comparison

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class PageFigure:
    """A figure for the page (Plotly), the same as a PNG file's bytes, and what it shows."""

    name: str
    caption: str
    interactive: list[go.Figure]
    png: bytes


@dataclass(frozen=True)
class Report:
    """What the page says.

    Attributes:
        findings: one a trait.
        samples: trait -> questions with answers by coefficient (`eval.findings.samples`).
        projections: trait -> coefficient -> projections of the answers.
        commands: the equivalent published command of each step, in order.
        settings: what the run was asked for.
        provenance: what produced it: versions, commit, time.
        notes: limits that a reader must know.
        finetuned: the comparison of finetuned models, where there is one.
        weights: what a direction of weights did, where there is one.
    """

    model: str
    judge: str
    findings: Sequence[Findings]
    samples: Mapping[str, Sequence[dict[str, Any]]]
    projections: Mapping[str, Mapping[str, Sequence[float]]]
    commands: Sequence[str]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=tuple)
    finetuned: Comparison | None = None
    weights: WeightsPage | None = None


def trait_figures(findings: Findings, projections: Mapping[str, Sequence[float]]) -> list[PageFigure]:
    """The figures of one trait: steering curve, held-out AUC, projections."""
    figures = [_steering(findings)]
    if (auc := findings.auc) is not None:
        arrays = (range(len(auc.vector)), auc.vector, auc.random_mean, auc.random_high, findings.layer)
        figures.append(
            _figure(
                f"{findings.trait}_auc",
                "How well a projection tells answers with the trait from answers without, on questions that did not "
                "make the direction. Word choice alone lets random directions do well too; what counts is the gap.",
                [plots.layer_auc_plotly(*arrays)],
                plots.layer_auc_png(*arrays),
            )
        )
    if any(np.isfinite(np.asarray(values, dtype=float)).any() for values in projections.values()):
        drawn = {name: values for name, values in projections.items() if np.isfinite(np.asarray(values)).any()}
        label = f"projection on the {findings.trait} vector"
        figures.append(
            _figure(
                f"{findings.trait}_projections",
                f"The steered answers, read without steering at layer {findings.layer}: the further right, the further "
                "the text itself goes along the vector.",
                [plots.projections_plotly(drawn, label)],
                plots.projections_png(drawn, label),
            )
        )
    return figures


def norms_figure(findings: Sequence[Findings]) -> PageFigure:
    """The vectors' norms by layer, one line a trait."""
    norms = {item.trait: item.norms for item in findings}
    layers = range(len(findings[0].norms))
    caption = "How long each trait's vector is at each layer: a coefficient of 1 adds this much."
    return _figure("norms", caption, [plots.layer_norms_plotly(layers, norms)], plots.layer_norms_png(layers, norms))


def _steering(findings: Findings) -> PageFigure:
    coefs = [point.coef for point in findings.points]
    panels = {
        f"{findings.trait} score": (
            _band([point.score for point in findings.points]),
            _random_band([point.random_scores for point in findings.points]),
        ),
        "coherence": (
            _band([point.coherence for point in findings.points]),
            _random_band([point.random_coherences for point in findings.points]),
        ),
    }
    return _figure(
        f"{findings.trait}_steering",
        "Judge scores of answers to questions that did not make the vector, steered by the vector and by random "
        "directions of its norm.",
        [plots.steering_plotly(coefs, vector, random, name) for name, (vector, random) in panels.items()],
        plots.steering_png(coefs, panels),
    )


def _band(intervals: Sequence[Any]) -> Band:
    """Means with their intervals; a mean without an interval has no width."""
    mean = np.array([interval.mean for interval in intervals])
    low = np.array([interval.low for interval in intervals])
    high = np.array([interval.high for interval in intervals])
    return Band(mean, np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high))


def _random_band(values: Sequence[np.ndarray]) -> Band:
    return Band([v.mean() for v in values], [v.min() for v in values], [v.max() for v in values])


def _figure(name: str, caption: str, interactive: list[go.Figure], static: Figure) -> PageFigure:
    return PageFigure(name, caption, interactive, plots.png_bytes(static))


def render(report: Report, figures: Mapping[str, Sequence[PageFigure]], norms: PageFigure) -> str:
    """The page as HTML; `figures` maps each trait to its figures.

    Raises:
        jinja2.UndefinedError: a name in the template that the report does not have.
    """
    from plotly.offline import get_plotlyjs

    templates = environment()
    templates.filters["figure"] = plotly_panel
    templates.filters["data_uri"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return templates.get_template(TEMPLATE).render(
        report=report,
        figures=figures,
        norms=norms,
        columns=COLUMNS,
        rows={findings.trait: table_rows(findings) for findings in report.findings},
        plotly_js=get_plotlyjs(),
        finetuned=None if report.finetuned is None else shown(report.finetuned),
        weights=report.weights,
        swatch=swatch,
    )
