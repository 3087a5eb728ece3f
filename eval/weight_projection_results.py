"""Weight projections as a person reads them: a table, sentences, a CSV, a scatter figure, and the JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from eval.text_table import aligned
from eval.weight_projection_measure import Record
from eval.weight_projection_scores import GROUP, estimated, random_text, score_of, traits_of
from persona_vectors.files import sidecar_path, write_bytes_atomic, write_csv_atomic, write_json_atomic, write_sidecar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = ("s0", "s1", "s2", "s3", "s4")
MOST_PANELS = 12
_OF_SEED = ", from the direction's seed"
COLUMNS = (
    *("model_name", "direction", "total_projection", "average_projection", "cosine", "weight_shift_norm"),
    *("direction_norm", "num_parameters", "modules_in_common", "modules_of_direction"),
)


@dataclass(frozen=True)
class Results:
    """What a run found."""

    settings: Mapping[str, Any]
    records: Sequence[Record]
    correlations: Sequence[Record] = ()
    scores: pd.DataFrame | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    """hashes of what was read"""


def lines(results: Results) -> list[str]:
    """The tables and notes that the command prints: of each direction the highest projection first."""
    table = [["model", "direction", "projection", "cosine", "random |cos| mean, max", "|dW|", "modules"]]
    order = {name: i for i, name in enumerate(one["direction"] for one in results.records)}
    for one in sorted(results.records, key=lambda one: (order[one["direction"]], -one["total_projection"])):
        control = one["control"]
        random = f"{control['mean']:.4f}, {control['max']:.4f}" if "max" in control else "-"
        cosine = "not defined" if one["cosine"] is None else f"{one['cosine']:+.4f}"
        modules = f"{one['modules_in_common']} of {one['modules_of_direction']}"
        size = f"{one['weight_shift_norm']:.4g}"
        table.append(
            [one["model_name"], one["direction"], f"{one['total_projection']:+.4g}", cosine, random, size, modules]
        )
    found = aligned(table)
    if results.correlations:
        found += ["", *_correlation_lines(results.correlations)]
    found += [f"skipped {name}: {why}" for name, why in results.skipped.items()]
    return found + [f"note: {note}" for note in results.notes]


def _correlation_lines(correlations: Sequence[Record]) -> list[str]:
    first = ["direction", "score", "models", "Pearson r", "Spearman", "r of cosine", "r of |dW| alone"]
    table = [[*first, f"random directions: |r| {_random_heading(correlations)}", "have a smaller |r|"]]
    for one in correlations:
        kinds = (one["pearson"], one["spearman"], one["cosine"], one["weight_shift_norm"])
        level = one["random"]
        beaten = "-" if level is None else f"{level['share_below']:.0%} of {level['n']}"
        if level is not None and level["p95"] is None:
            beaten = f"{round(level['share_below'] * level['n'])} of {level['n']}"
        count = f"{one['n_models']}"
        if one["n_clusters"] != one["n_models"]:
            count += f" in {one['n_clusters']} groups"
        table.append([one["direction"], one["trait"], count, *(estimated(kind).text() for kind in kinds)])
        table[-1] += [random_text(level), beaten]
    return aligned(table)


def _random_heading(correlations: Sequence[Record]) -> str:
    """What `random_text` gives: a 95th percentile, or of few directions the ends."""
    few = any(one["random"] is not None and one["random"]["p95"] is None for one in correlations)
    return "lowest to highest" if few else "median, 95th percentile"


def write(results: Results, output_path: str) -> list[Path]:
    """The JSON file, the same as a CSV beside it, and with scores a scatter figure; each with its sidecar."""
    path = Path(output_path)
    table = pd.DataFrame([{name: one[name] for name in COLUMNS} | _control(one) for one in results.records])
    if results.scores is not None:
        table = table.join(
            results.scores.add_prefix("score_").rename(columns={f"score_{GROUP}": GROUP}), on="model_name"
        )
    written = [write_csv_atomic(table, path.with_suffix(".csv"))]
    drawn = path.with_suffix(".png")
    if results.scores is not None:
        from persona_vectors.plots import png_bytes

        written.append(write_bytes_atomic(drawn, png_bytes(figure(results))))
    elif sidecar_path(drawn).exists():  # an earlier run's, which would be taken for this one's
        drawn.unlink(missing_ok=True)
        sidecar_path(drawn).unlink()
    written.append(write_json_atomic(path, content(results)))
    for one in written:
        write_sidecar(
            one, {"settings": dict(results.settings), "sources": dict(results.sources), "notes": list(results.notes)}
        )
    return written


def content(results: Results) -> dict[str, Any]:
    """Of one model and one direction its record; otherwise all of them under `projections`."""
    if len(results.records) == 1 and results.settings.get("finetuned_model"):
        return {**results.records[0], "notes": list(results.notes)}
    return {
        "projections": list(results.records),
        "correlations": list(results.correlations),
        "skipped": dict(results.skipped),
        "notes": list(results.notes),
    }


def _control(one: Record) -> Record:
    return {f"random_abs_cosine_{name}": one["control"].get(name) for name in ("min", "mean", "max")}


def figure(results: Results) -> Figure:
    """Score against projection, a panel for each direction and trait: a row a direction."""
    from persona_vectors.scatter import Panel, scatter_png

    assert results.scores is not None
    directions = list(dict.fromkeys(one["direction"] for one in results.records))
    panels: dict[str, Panel] = {}
    for one in results.correlations[:MOST_PANELS]:
        title = f"{one['direction']}, {one['trait']}\nr {estimated(one['pearson']).text()}"
        title += f"\n|dW| alone: r {estimated(one['weight_shift_norm']).text()}"
        if one["random"] is not None:
            title += f"\nrandom |r| {random_text(one['random'])}"
            title += "" if one["random"]["p95"] is None else " (median, 95%)"
        panels[title] = Panel(
            _points(results, one["direction"], one["trait"]), "projection <dW, L> / |L|", one["trait"]
        )
    whole = len(results.correlations) <= MOST_PANELS
    return scatter_png(panels, n_rows=len(directions) if whole else 3)


def _points(results: Results, direction: str, trait: str) -> list[Any]:
    from persona_vectors.scatter import Points

    table = results.scores
    assert table is not None and trait in traits_of(table)
    own = [one for one in results.records if one["direction"] == direction and one["model_name"] in table.index]
    groups: dict[str, list[Record]] = {}
    for one in own:
        name = str(table[GROUP][one["model_name"]]) if GROUP in table.columns else "models"
        groups.setdefault(name + _OF_SEED * one["shares_seed"], []).append(one)
    if len(groups) > len(LOOKS):
        groups = {}
        for one in own:
            groups.setdefault("models" + _OF_SEED * one["shares_seed"], []).append(one)
    return [
        Points(
            name,
            [one["total_projection"] for one in some],
            [score_of(table, one["model_name"], trait) for one in some],
            _labels(some, table),
            look,
        )
        for (name, some), look in zip(groups.items(), LOOKS, strict=False)
    ]


def _labels(records: Sequence[Record], table: pd.DataFrame) -> list[str]:
    """Each model's name; with groups, the group's at its furthest model alone, since its models lie together."""
    if GROUP not in table.columns:
        return [one["model_name"] for one in records]
    groups = [str(table.loc[one["model_name"], GROUP]) for one in records]
    furthest: dict[str, Record] = {}
    for one, group in zip(records, groups, strict=True):
        if abs(one["total_projection"]) >= abs(furthest.get(group, one)["total_projection"]):
            furthest[group] = one
    return [group if furthest[group] is one else "" for one, group in zip(records, groups, strict=True)]
