"""The figures and numbers of several models' persona vectors: of each, of each pair, and of all together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.model_variants import ByQuestion, load_by_question, tag
from eval.text_table import aligned
from persona_vectors import axis_plots
from persona_vectors.alignment import LEAST_ALIGNED, Alignment, Centre, align
from persona_vectors.axis import Vectors, assistant_mask, present_assistants
from persona_vectors.axis_statistics import AxisEvidence, axis_evidence
from persona_vectors.files import read_sidecar, write_json_atomic, write_sidecar
from persona_vectors.persona_clusters import Clusters, cluster_personas
from persona_vectors.persona_files import load_persona_vectors
from persona_vectors.traits import read_json


@dataclass(frozen=True)
class SavedVectors:
    """One model's persona vectors, from its file.

    Attributes:
        by_question: for intervals; None where the file has none beside it.
        layer, n_questions: as the file's sidecar says; None where it says nothing.
    """

    name: str
    path: Path
    vectors: Vectors
    by_question: ByQuestion | None
    layer: int | None
    n_questions: int | None


@dataclass(frozen=True)
class Findings:
    """What the figures show, in numbers: of each model, and of each pair (absent with too few personas)."""

    models: dict[str, AxisEvidence]
    clusters: dict[str, Clusters]
    pairs: dict[tuple[str, str], Alignment]


def load_saved(name: str, path: str | Path) -> SavedVectors:
    """The vectors of a file with what its sidecar says of them.

    Raises:
        ValueError: no such file, or not one of persona vectors.
    """
    vectors, told = load_persona_vectors(path), read_sidecar(path)
    layer, n_questions = told.get("layer"), told.get("n_questions")
    return SavedVectors(name, Path(path), vectors, load_by_question(path), layer, n_questions)


def remember(models: Sequence[SavedVectors], data_dir: Path, experiment: str) -> Path:
    """The list of the experiment's files, model -> file, for `remembered`."""
    path = write_json_atomic(_list_path(data_dir, experiment), {one.name: str(one.path) for one in models})
    write_sidecar(path, {"kind": "files of an experiment", "name": experiment})
    return path


def remembered(data_dir: Path, experiment: str) -> dict[str, str]:
    """Model -> its file of vectors, as the experiment listed them.

    Raises:
        ValueError: it has not run here.
    """
    listed = _list_path(data_dir, experiment)
    if not listed.is_file():
        run = f"run experiments/001_olmo3_variants.py --name {experiment}"
        raise ValueError(f"{listed} is not there; {run}, or give --vectors")
    return read_json(listed)


def _list_path(data_dir: Path, experiment: str) -> Path:
    return data_dir / "persona_vectors" / f"{experiment}_files.json"


def draw(models: Sequence[SavedVectors], folder: Path, experiment: str, centre: Centre = "joint") -> list[Path]:
    """The pages written: three a model, two a pair, and the joint PCA of all, by both ways of centring."""
    paths = []
    for one in models:
        about = {"model": one.name, "layer": one.layer, "n_questions": one.n_questions}
        for kind, plot in _OF_ONE.items():
            paths.append(folder / f"{kind}_{experiment}_{tag(one.name)}.html")
            plot(one.vectors, paths[-1], **about)
    for a, b in itertools.combinations(models, 2):
        about = {"centre": centre, "layer": _common(a.layer, b.layer)}
        for kind, plot in _OF_TWO.items():
            paths.append(folder / f"{kind}_{experiment}_{tag(a.name)}_vs_{tag(b.name)}.html")
            plot(a.vectors, b.vectors, a.name, b.name, paths[-1], n_questions=a.n_questions, **about)
    if len(models) > 1:
        vectors, names = [one.vectors for one in models], [one.name for one in models]
        layer = _common(*(one.layer for one in models))
        for ending, how in (("", "joint"), ("_own_mean", "model")):
            paths.append(folder / f"pca_nway_{experiment}{ending}.html")
            about = {"centre": how, "layer": layer, "n_questions": models[0].n_questions}
            axis_plots.plot_pca_comparison_nway(vectors, names, paths[-1], **about)
    return paths


_OF_ONE = {
    "cosine_sim": axis_plots.plot_cosine_similarity_heatmap,
    "pca": axis_plots.plot_pca_projection,
    "pca_var": axis_plots.plot_pca_variance_explained,
}
_OF_TWO = {
    "pca_comparison": axis_plots.plot_pca_comparison,
    "cross_similarity": axis_plots.plot_cosine_cross_similarity,
}


def _common(*layers: int | None) -> int | None:
    """The layer, where all are of the same one."""
    return layers[0] if len(set(layers)) == 1 else None


def measure(models: Sequence[SavedVectors], seed: int = 0) -> Findings:
    """Axis and PC1 of each model beside their controls, and how each pair's spaces match."""
    of_each = {
        one.name: axis_evidence(one.vectors, present_assistants(list(one.vectors)), one.by_question, seed=seed)
        for one in models
    }
    clusters = {one.name: cluster_personas(one.vectors, n_random=50, seed=seed) for one in models}
    pairs = {}
    for a, b in itertools.combinations(models, 2):
        chosen = present_assistants(list(a.vectors))
        if (~assistant_mask(list(a.vectors), chosen)).sum() >= LEAST_ALIGNED:
            pairs[a.name, b.name] = align(a.vectors, b.vectors, chosen, seed=seed)
    return Findings(of_each, clusters, pairs)


def _interval(found: AxisEvidence) -> str:
    """The cosine, with its interval over questions where there is one."""
    return found.intervals["cosine"].text() if found.intervals else f"{found.cosine.value:.2f}"


def table(findings: Findings) -> list[str]:
    """The numbers as lines for a terminal."""
    head = ["model", "cosine(axis, PC1)", "other labels 95th", "p", "roles counted alike, p", "R²", "PC1"]
    head += ["cosine(axis, PC1 of roles)", "clusters", "silhouette"]
    rows = [head]
    for name, one in findings.models.items():
        high = one.cosine.record()["chance_95th"]
        groups, alike, interval = findings.clusters[name], one.counted_alike, _interval(one)
        rows.append(
            [name, interval, f"{high:.2f}", f"{one.cosine.p:.2g}", f"{alike.p:.2g}", f"{one.r_squared.value:.2f}"]
            + [f"{one.var_explained:.0%}", f"{one.held_out.value:.2f} (p {one.held_out.p:.2g})"]
            + [str(groups.n_clusters), f"{groups.silhouette.value:.2f} (p {groups.silhouette.p:.2g})"]
        )
    lines = aligned(rows)
    if findings.pairs:
        head = ["models", "held-out cosine, mapped", "shuffled 95th", "p", "unmapped", "axes, mapped", "nearest itself"]
        rows = [head]
        for (a, b), pair in findings.pairs.items():
            high = pair.cosine.record()["chance_95th"]
            plain = "widths differ" if pair.unmapped is None else f"{pair.unmapped:.2f}"
            rows.append(
                [f"{a} / {b}", f"{pair.cosine.value:.2f}", f"{high:.2f}", f"{pair.cosine.p:.2g}", plain]
                + [f"{pair.axis_cosine.value:.2f} (p {pair.axis_cosine.p:.2g})", f"{pair.nearest.value:.0%}"]
            )
        lines += ["", *aligned(rows)]
    return lines


def write_findings(findings: Findings, path: Path, models: Sequence[SavedVectors]) -> Path:
    """The numbers as JSON, with a sidecar that says of which files."""
    of_each = {
        name: {**one.record(), "clusters": findings.clusters[name].record(), "sentences": one.sentences()}
        for name, one in findings.models.items()
    }
    pairs = [
        {"models": list(names), **pair.record(), "sentences": pair.sentences()}
        for names, pair in findings.pairs.items()
    ]
    write_json_atomic(path, {"models": of_each, "pairs": pairs})
    write_sidecar(path, {"vectors": {one.name: str(one.path) for one in models}})
    return path
