"""What a selection of a layer says: a table, sentences, and the entry in the vector's sidecar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.select_layer_choice import N_BOOT, Selection, Value, Verdict
from eval.sweep_summary import described

if TYPE_CHECKING:
    from eval.select_layer import Asked
    from eval.select_layer_answers import Scored
    from persona_vectors.statistics import Interval

KEY = "layer_selection"
COARSE = 10.0
"""Points of trait between coefficients, above the best coefficient that was run, that a reader is told of."""


def columns(trait: str) -> list[str]:
    """The headings of `cells`."""
    return ["steered at", "coef", f"{trait} [95%]", "coherence [95%]", "random: mean, highest", "between", "chosen"]


def cells(selection: Selection) -> list[list[str]]:
    """A row a layer, then all layers, then unsteered: values of the reporting half."""
    rows = []
    for kind in ("layer", "incremental", "unsteered"):
        for one in selection.of(kind):
            random = [
                r.trait.mean for r in selection.of(kind, random=True) if r.place.layer == one.place.layer and r.trait.n
            ]
            share = selection.chosen.get(one.place.name)
            rows.append(
                [
                    one.place.name,
                    "-" if one.setting is None or kind == "unsteered" else f"{one.coef:g}",
                    one.trait.text() if one.setting is not None else "not coherent",
                    one.coherence.text() if one.setting is not None else "",
                    f"{np.mean(random):.1f}, {max(random):.1f}" if random else "",
                    ""
                    if one.between is None or kind == "unsteered"
                    else f"{one.between[1]:.1f} ({one.between[0]:.2f})",
                    "" if share is None or kind != "layer" else f"{share:.0%}",
                ]
            )
    return rows


def table_lines(selection: Selection, trait: str) -> list[str]:
    """The table as text, and what its numbers are."""
    rows = [columns(trait), *cells(selection)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        *legend(selection),
    ]


def legend(selection: Selection) -> list[str]:
    """What the table's columns are."""
    n_choose, n_report = _n(selection)
    return [
        f"coef: chosen on {n_choose} questions; the numbers are of the other {n_report}, but for the last column.",
        "between: the highest trait on straight lines between coefficients that keeps the coherence (at which coef).",
        f"chosen: share of {N_BOOT} draws of the {n_choose} choosing questions in which the layer is the best.",
    ]


def sentences(selection: Selection, trait: str, asked: Asked) -> list[str]:
    """What was found, the recommendation first."""
    found = [recommendation(selection, trait, asked)]
    if selection.layer.best.setting is not None:
        found.append(_how_sure(selection, trait))
    if selection.incremental is not None:
        found.append(_together(selection, selection.incremental, trait, asked))
    return found


def recommendation(selection: Selection, trait: str, asked: Asked) -> str:
    """Where to steer, or that nothing is recommended and why."""
    best, rival, gap = selection.layer.best, selection.layer.rival, selection.layer.difference
    if best.setting is None:
        return (
            "Recommendation: none. At no layer and coefficient is the mean coherence of the "
            f"{_n(selection)[0]} choosing questions {asked.min_coherence:g} or more; give smaller --coefs."
        )
    value = f"{trait} {best.trait.text()} at coherence {best.coherence.text()}"
    against = f"{_rival(selection.layer, selection)} has {rival.trait.text()}, so the difference is {_signed(gap)}"
    if not selection.layer.holds:
        return (
            f"Recommendation: none. The best layer, {best.place.layer} at coef {best.coef:g}, has {value} on "
            f"{_n(selection)[1]} questions that took no part in the choice. {against}: its whole interval does not lie "
            "above 0."
        )
    return (
        f"Recommendation: steer at layer {best.place.layer} with coef {best.coef:g}. It has {value} on "
        f"{_n(selection)[1]} questions that took no part in the choice (on the {_n(selection)[0]} that chose it "
        f"{best.chosen_trait:.1f}: the choice itself raises that). {against}."
    )


def _rival(verdict: Verdict, selection: Selection) -> str:
    if verdict.rival.place.kind == "unsteered":
        return "What is highest without the vector, the unsteered answers,"
    n = len(selection.of(verdict.rival.place.kind, random=True))
    if verdict.rival.place.kind == "incremental":
        return f"The highest of {n} sets of random increments of the same norms"
    where = f" (at {verdict.rival.place.name})" if verdict.rival.place.kind == "layer" else ""
    return f"The highest of {n} random directions of the same norms{where}"


def _how_sure(selection: Selection, trait: str) -> str:
    """How often the layer is chosen, the runner-up, and what the other half would have chosen."""
    best, second, behind = selection.layer.best, selection.runner_up, selection.behind
    said = (
        f"Layer {best.place.layer} is the best in {selection.chosen.get(best.place.name, 0):.0%} of {N_BOOT} draws of "
    )
    said += f"the {_n(selection)[0]} choosing questions"
    if second is not None and behind is not None:
        apart = (
            "" if behind.low > 0 else ", so the two cannot be told apart" if behind.high > 0 else ", so it is better"
        )
        said += (
            f"; second comes layer {second.place.layer} (coef {second.coef:g}), and layer {best.place.layer} minus "
            f"layer {second.place.layer} is {_signed(behind)} points of {trait} on the other questions{apart}"
        )
    swapped = selection.swapped
    if swapped.setting is None:
        return f"{said}. With the halves exchanged no layer is coherent enough."
    same = "the same layer" if swapped.place == best.place else f"layer {swapped.place.layer}"
    return (
        f"{said}. With the halves exchanged {same} is chosen (coef {swapped.coef:g}: {trait} {swapped.trait.text()} on "
        "the other half)."
    )


def _together(selection: Selection, verdict: Verdict, trait: str, asked: Asked) -> str:
    """Increments at all layers beside the best layer and beside random increments."""
    best, gap = verdict.best, selection.all_minus_single
    if best.setting is None:
        return (
            "Increments at all layers (v_L - v_(L-1) at layer L, which sum to v_n - v_0) keep coherence "
            f"{asked.min_coherence:g} at no coefficient."
        )
    said = (
        f"Increments at all layers (v_L - v_(L-1) at layer L, which sum to v_n - v_0), coef {best.coef:g}: {trait} "
        f"{best.trait.text()} at coherence {best.coherence.text()}, chosen and reported the same way"
    )
    if gap is not None and not math.isnan(gap.mean):
        apart = " (not told apart)" if gap.low <= 0 <= gap.high else ""
        said += f"; minus layer {selection.layer.best.place.layer}: {_signed(gap)}{apart}"
    holds = "" if verdict.holds else ", which does not lie above 0"
    rival = f"{_rival(verdict, selection)} has {verdict.rival.trait.text()}"
    return f"{said}. {rival}: difference {_signed(verdict.difference)}{holds}."


def notes_of(asked: Asked, scored: Scored, selection: Selection) -> list[str]:
    """What a reader must know beside the findings."""
    from eval.model_utils import parts_of

    notes = [*_edges(selection), *_finer(selection), *_below(selection, asked.min_coherence)]
    norms = {
        setting.place.layer: float(parts_of(setting.added)[0].vector.norm())
        for setting in scored.settings
        if setting.place.kind == "layer" and not setting.place.control
    }
    if len(norms) > 1:
        said = ", ".join(f"{norm:.3g} at layer {layer}" for layer, norm in norms.items())
        notes.append(
            f"A coefficient counts in lengths of the vector at its layer, and these differ ({said}): layers are "
            "compared by the best trait over the coefficients, not at one coefficient."
        )
    missing = int(np.isnan(scored.trait).sum() + np.isnan(scored.coherence).sum())
    if missing:
        notes.append(
            f"{missing} of {2 * scored.trait.size} scores are missing: the judge gave none; means leave them out."
        )
    if asked.judge_model == asked.model:
        notes.append("The judge is the steered model itself, unsteered, so read the answers too.")
    return notes


def _edges(selection: Selection) -> list[str]:
    own = [one for kind in ("layer", "incremental") for one in selection.of(kind) if one.edge]
    notes = []
    for end, advice in (("last", "larger"), ("first", "smaller")):
        names = [one.place.name for one in own if one.edge == end]
        if names:
            notes.append(
                f"The best coefficient is the {end} of the list at {', '.join(names)}: the best may lie beyond it, so "
                f"extend --coefs by {advice} ones."
            )
    return notes


def _finer(selection: Selection) -> list[str]:
    """Where the list of coefficients is too coarse: the lines between them reach well above the best that was run."""
    own = [one for kind in ("layer", "incremental") for one in selection.of(kind)]
    skipped = [
        f"{one.place.name} (coef {one.chosen_between[0]:.2f}: {one.chosen_between[1]:.1f}, not {one.chosen_trait:.1f})"
        for one in own
        if one.chosen_between is not None and one.setting is not None
        if one.chosen_between[1] - one.chosen_trait > COARSE
    ]
    notes = []
    if skipped:
        notes.append(
            f"The list of coefficients skips what would be best on the choosing questions at {', '.join(skipped)}, by "
            "straight lines between coefficients: add --coefs there."
        )
    other = selection.best_between
    if other is not None and other.place != selection.layer.best.place:
        notes.append(f"By those lines {other.place.name} would be chosen: the list is too coarse to settle it.")
    return notes


def _below(selection: Selection, min_coherence: float) -> list[str]:
    own = [one for kind in ("layer", "incremental") for one in selection.of(kind)]
    names = [f"{one.place.name} ({one.coherence.mean:.1f})" for one in own if one.coherence.mean < min_coherence]
    notes = []
    if names:
        notes.append(
            f"On the reporting half the coherence is below {min_coherence:g} at {', '.join(names)}, where the choosing "
            "half had more."
        )
    unsteered = selection.of("unsteered")[0].coherence
    if unsteered.mean < min_coherence:
        notes.append(f"Unsteered answers have coherence {unsteered.text()}, below --min_coherence {min_coherence:g}.")
    return notes


def record(selection: Selection, trait: str, asked: Asked) -> dict[str, Any]:
    """What was found, for JSON: the recommendation (layer and coef are null where there is none) and its evidence."""
    from persona_vectors.files import sha256_of_file

    verdict, together, halves = selection.layer, selection.incremental, selection.halves
    best = verdict.best
    return {
        "trait": trait,
        "recommended": verdict.holds,
        "layer": best.place.layer if verdict.holds else None,
        "coef": best.coef if verdict.holds else None,
        "recommendation": recommendation(selection, trait, asked),
        "best": _value(best),
        "highest_without_the_vector": _value(verdict.rival),
        "difference": described(verdict.difference),
        "runner_up": None if selection.runner_up is None else _value(selection.runner_up),
        "best_minus_runner_up": None if selection.behind is None else described(selection.behind),
        "how_often_chosen": selection.chosen,
        "halves_exchanged": _value(selection.swapped),
        "all_layers": None
        if together is None or selection.all_minus_single is None
        else {
            "best": _value(together.best),
            "highest_without_the_vector": _value(together.rival),
            "difference": described(together.difference),
            "minus_best_layer": described(selection.all_minus_single),
        },
        "split": {
            "choosing_questions": list(halves.choose_questions),
            "reporting_questions": list(halves.report_questions),
        },
        "vector_sha256": sha256_of_file(asked.vector_path),
        "settings": {key: value for key, value in asdict(asked).items() if key not in ("output_dir", "write_sidecar")},
    }


def remember(asked: Asked, trait: str, selection: Selection) -> str:
    """Writes the recommendation into the vector's sidecar, unless the very same stands there; says where it is."""
    from persona_vectors.files import append_to_sidecar, read_sidecar, sidecar_path

    entry = record(selection, trait, asked)
    where = f"{sidecar_path(asked.vector_path)} under {KEY}"
    before = read_sidecar(asked.vector_path).get(KEY, [])
    if any({name: old.get(name) for name in entry} == entry for old in before):
        return f"The recommendation stands in {where} already."
    append_to_sidecar(Path(asked.vector_path), KEY, entry)
    said = "The recommendation is" if selection.layer.holds else "That none is recommended is"
    return f"{said} written into {where}."


def _value(one: Value) -> dict[str, Any]:
    return {
        **{"kind": one.place.kind, "layer": one.place.layer, "control": one.place.control, "coef": one.coef},
        "trait": described(one.trait),
        "coherence": described(one.coherence),
        "n_scored": one.trait.n,
        "n_questions": one.trait.n_clusters,
        "on_the_choosing_half": _finite({"trait": one.chosen_trait, "coherence": one.chosen_coherence}),
        "edge_of_coefs": one.edge or None,
        "between_coefs": None if one.between is None else {"coef": one.between[0], "trait": one.between[1]},
    }


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def _signed(interval: Interval) -> str:
    return "unknown" if math.isnan(interval.mean) else interval.text(sign=True)


def _n(selection: Selection) -> Sequence[int]:
    return len(selection.halves.choose_questions), len(selection.halves.report_questions)
