"""What example.py prints and draws of a run: where each persona stands on the assistant axis, and what chance gives."""

from __future__ import annotations

from pathlib import Path

from eval.axis_run import AxisRun, Read
from eval.text_table import aligned
from persona_vectors.axis import compute_axes
from persona_vectors.axis_plots import (
    plot_cosine_similarity_heatmap,
    plot_pca_projection,
    plot_pca_variance_explained,
)
from persona_vectors.axis_statistics import AxisEvidence
from persona_vectors.personas import ASSISTANT_PERSONAS


def lines(run: AxisRun, read: Read, evidence: AxisEvidence) -> list[str]:
    """The table of projections, from the assistant's end down, then the evidence with its controls."""
    axes = compute_axes(read.vectors, ASSISTANT_PERSONAS)
    order = sorted(range(len(axes["names"])), key=lambda row: -axes["assistant_proj"][row])
    counts, adherence = read.record["n_answers"], read.record["adherence"]
    head = ["persona", "on the axis", "on PC1", "answers"]
    table = [head + ["fully/somewhat/none/unjudged"] * (adherence is not None)]
    for row in order:
        name = axes["names"][row]
        judged = "/".join(map(str, adherence[name].values())) if adherence and name in adherence else ""
        cells = [name + " *" * (name in ASSISTANT_PERSONAS), f"{axes['assistant_proj'][row]:+.2f}"]
        cells += [f"{axes['pc1_proj'][row]:+.2f}", str(counts[name])]
        table.append(cells + [judged] * (adherence is not None))
    norm = float(read.axis[read.layer].norm())
    return [
        f"{run.slug}, layer {read.layer}: the axis points from role-play to the assistant (*), norm {norm:.2f}",
        *aligned(table),
        *evidence.sentences(),
        *read.notes,
    ]


def draw(run: AxisRun, read: Read) -> list[Path]:
    """The pages of the three figures."""
    said = {"model": run.slug, "layer": read.layer, "n_questions": len(run.cast.questions)}
    paths = {name: run.image(name) for name in ("cosine", "pca", "variance")}
    plot_cosine_similarity_heatmap(read.vectors, paths["cosine"], **said)
    plot_pca_projection(read.vectors, paths["pca"], assistant_personas=ASSISTANT_PERSONAS, **said)
    plot_pca_variance_explained(read.vectors, paths["variance"], **said)
    return list(paths.values())
