"""What a calibration says: lines for the terminal, the sidecar's entry, and a figure beside the vector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.analysis_page import Section
from eval.calibration_bounds import LEAST, LayerRange
from eval.calibration_confirm import LEAST_EFFECT, N_RANDOM, Calibration, Point
from eval.calibration_measure import PERCENTILE, Work
from eval.sweep_summary import described
from persona_vectors import plots
from persona_vectors.files import (
    provenance,
    read_sidecar,
    sidecar_path,
    write_bytes_atomic,
    write_json_atomic,
    write_sidecar,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eval.calibrate import Asked

KEY = "calibration"


def lines(found: Calibration, work: Work) -> list[str]:
    """The ranges, what was confirmed beside its controls, and the coefficient to start with."""
    n, limit = len(work.questions), _limit(work)
    told = [
        f"{work.trait}: coefficients with {limit}, on {n} questions (in brackets: of the mean residual norm)",
        f"{'layer':>5}  {'range of coefficients':>24}  {'residual norms':>16}  {'trait there':>11}",
        *(_range_line(one) for one in found.ranges),
    ]
    if found.points:
        told += ["", *_confirmed(found, work)]
    return [*told, "", *verdict(found, work)]


def section(found: Calibration, work: Work, figure: Path) -> Section:
    """The verdict and the confirming table on the page of another command."""
    cells = []
    for point in own_points(found):
        beside = [_beside(found, point, name) or "-" for name in ("trait", "coherence")]
        cells.append([f"{point.coef:.4g}", point.trait.text(), point.coherence.text(), *beside])
    drawn = [f"Figure: {figure.name}."] if found.points else []
    columns = ["coefficient", f"{work.trait} [95%]", "coherence [95%]", f"random: {work.trait}", "random: coherence"]
    sentences = [*(f"{line}." for line in verdict(found, work)), *drawn]
    return Section("Calibration", sentences=sentences, columns=columns if cells else (), cells=cells)


def _limit(work: Work) -> str:
    if work.limits.criterion == "coherence":
        return f"mean coherence >= {work.limits.min_coherence:g}"
    return f"p{PERCENTILE:g} token KL <= {work.limits.max_kl:g} nat"


def _range_line(one: LayerRange) -> str:
    low, high = one.range
    sizes = f"{-one.down.passed:.2f} to {one.up.passed:.2f}{'+' if math.isinf(one.up.failed) else ''}"
    trait = "-" if one.trait is None else f"{one.trait:.1f}"
    return f"{one.layer:>5}  {f'{low:.3g} to {high:.3g}':>24}  {sizes:>16}  {trait:>11}"


def _confirmed(found: Calibration, work: Work) -> Iterator[str]:
    yield f"layer {found.layer} on the other {len(work.confirming)} questions; means, with 95% intervals by question"
    yield f"{'coef':>7}  {work.trait:>20}  {'coherence':>20}   {N_RANDOM} random directions: {work.trait}, coherence"
    for point in own_points(found):
        beside = ", ".join(filter(None, (_beside(found, point, name) for name in ("trait", "coherence"))))
        yield f"{point.coef:>7.3g}  {point.trait.text():>20}  {point.coherence.text():>20}   {beside}"
    yield ""
    for name, one in found.steerable.items():
        yield (
            f"{name or 'vector':>7}: {one.slope.text(sign=True)} points of {work.trait} a sample and unit of "
            f"coefficient above 0; {100 * one.wrong_way.mean:.0f}% of {one.n_used} samples move the wrong way"
        )
    if work.others:
        yield from _crosstalk(found)


def own_points(found: Calibration) -> list[Point]:
    """The vector's points, lowest coefficient first."""
    return sorted((point for point in found.points if not point.control), key=lambda point: point.coef)


def _beside(found: Calibration, point: Point, name: Literal["trait", "coherence"]) -> str:
    """Mean, lowest and highest of the random directions at the point's coefficient; "" at 0."""
    random = [other for other in found.points if other.control and other.coef == point.coef]
    values = [getattr(other, name).mean for other in random]
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else ""


def _crosstalk(found: Calibration) -> Iterator[str]:
    """What the other traits' judges say at the coefficient that is kept, or else at the largest."""
    coef = found.crosstalk_coef
    [own] = [point for point in found.points if not point.control and point.coef == coef]
    random = [point for point in found.points if point.control and point.coef == coef]
    told = (
        f"{name} {shift.mean:+.1f} (random {max(abs(p.shifts[name].mean) for p in random):.1f} at most)"
        for name, shift in own.shifts.items()
    )
    yield f"crosstalk at {coef:g}, shift of other traits: {', '.join(told)}"


def verdict(found: Calibration, work: Work) -> list[str]:
    """What range is confirmed, which coefficient is kept, and why, or that none is."""
    if found.chosen is None:
        return [f"no layer: even {LEAST:g} residual norms along the vector cross the limit"]
    return list(_verdict(found, found.chosen, work))


def _verdict(found: Calibration, chosen: LayerRange, work: Work) -> Iterator[str]:
    (low, high), (first, last) = found.range, chosen.range
    n = len(work.confirming)
    told = f"on the {n} confirming questions {_limit(work)} at every coefficient tried from {low:.4g} to {high:.4g}"
    found_first = "" if (low, high) == (first, last) else f" (the others had found {first:.4g} to {last:.4g})"
    yield f"range: {told}{found_first}"
    if found.coef is None:
        effect = f" with an effect on {work.trait}" if high else ""
        yield f"no coefficient is kept: none above 0 is confirmed{effect}"
        yield from (_effect_line(found, work, coef) for coef in found.effects if coef <= high)
        return
    size = found.coef * chosen.vector_norm / chosen.norm
    yield (
        f"kept: layer {found.layer}, coefficient {found.coef:g}, which adds {size:.2f} of {chosen.norm:.3g}, the "
        "mean norm of the prompts' tokens there (a steering receipt counts the tokens that are steered)"
    )
    if found.kl is not None:
        yield f"p{PERCENTILE:g} token KL to the unsteered model there: {found.kl:.2f} nats"
    if not found.points:
        yield (
            "no judge was asked: neither trait nor coherence is known there, and the layer is the one that can be "
            "pushed furthest"
        )
        return
    yield _effect_line(found, work, found.coef)


def _effect_line(found: Calibration, work: Work, coef: float) -> str:
    """What a coefficient does beside the random directions, and whether that counts."""
    own = found.effects[coef]
    verdict = "an effect, both" if own.is_there else "no effect, which takes both"
    return (
        f"at {coef:g} {work.trait} rises by {own.gain.text()}, {own.lead.text()} more than with the nearest of "
        f"{N_RANDOM} random directions: {verdict} intervals above {LEAST_EFFECT:g} point"
    )


def entry(found: Calibration, work: Work) -> dict[str, Any]:
    """What the vector's sidecar keeps under `calibration`."""
    chosen = found.chosen
    return {
        "trait": work.trait,
        "layer": found.layer,
        "coef": found.coef,
        "range": None if chosen is None else list(found.range),
        "range_is": "confirmed on questions that did not find it; layers have the ranges that were found",
        "relative_norm": None
        if chosen is None or found.coef is None
        else found.coef * chosen.vector_norm / chosen.norm,
        "limits": asdict(work.limits),
        "kl_p95": found.kl,
        "judge_model": work.judge_model,
        "n_questions": [len(work.questions), len(work.confirming)],
        "n_per_question": work.n_per_question,
        "max_tokens": work.max_tokens,
        "seed": work.seed,
        "layers": [
            {
                "layer": one.layer,
                "range": list(one.range),
                "relative_range": [-one.down.passed, one.up.passed],
                "ends_at_the_largest_size_tried": math.isinf(one.up.failed),
                "residual_norm": one.norm,
                "vector_norm": one.vector_norm,
                "trait": one.trait,
            }
            for one in found.ranges
        ],
        "confirmed": [_point(point) for point in found.points],
        "effects": [
            {"coef": coef, "gain": described(one.gain), "over_random": described(one.lead), "is_there": one.is_there}
            for coef, one in found.effects.items()
        ],
        "steerability": [
            {
                "control": name,
                "slope": described(one.slope),
                "wrong_way": described(one.wrong_way),
                "n_used": one.n_used,
            }
            for name, one in found.steerable.items()
        ],
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "control": point.control,
        "coef": point.coef,
        "trait": described(point.trait),
        "n_scored": point.trait.n,
        "coherence": described(point.coherence),
        "crosstalk": {name: described(shift) for name, shift in point.shifts.items()},
    }


def write(asked: Asked, found: Calibration, work: Work) -> list[str]:
    """Lines that say what was written: the sidecar's entry and, where a judge confirmed, a figure beside the vector."""
    path, told = Path(asked.vector_file), entry(found, work)
    write_json_atomic(sidecar_path(path), {**read_sidecar(path), KEY: {**told, **provenance()}})
    said = [f"written into {sidecar_path(path)} under {KEY}"]
    if found.points:
        png = figure_path(path)
        write_bytes_atomic(png, plots.png_bytes(_figure(found, work)))
        write_sidecar(png, {"kind": "figure of a calibration", "vector": str(path), KEY: told})
        said.append(f"figure: {png}")
    return said


def figure_path(vector_file: Path) -> Path:
    """Where the figure of a vector file's calibration stands."""
    return vector_file.with_name(f"{vector_file.stem}_calibration.png")


def _figure(found: Calibration, work: Work) -> Figure:
    """Trait and coherence over the coefficient, the vector beside random directions."""
    own = own_points(found)
    random = [[p for p in found.points if p.coef == point.coef and p.control] or [point] for point in own]

    def bands(name: str) -> tuple[plots.Band, plots.Band]:
        mine = [getattr(point, name) for point in own]
        theirs = [[getattr(point, name).mean for point in several] for several in random]
        return (
            plots.Band([i.mean for i in mine], [i.low for i in mine], [i.high for i in mine]),
            plots.Band([sum(t) / len(t) for t in theirs], [min(t) for t in theirs], [max(t) for t in theirs]),
        )

    panels = {work.trait: bands("trait"), "coherence": bands("coherence")}
    figure = plots.steering_png([point.coef for point in own], panels)
    ticks = sorted({own[0].coef, 0.0, found.range[1] or own[-1].coef})
    for axis in figure.axes:
        axis.set_xticks(ticks, [f"{coef:.3g}" for coef in ticks])
    return figure
