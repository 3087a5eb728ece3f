"""What a calibration says: lines for the terminal, the sidecar's entry, and a figure beside the vector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.calibration import N_RANDOM, PERCENTILE, Calibration, LayerRange, Point, Work
from eval.calibration_bounds import LEAST
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
    limits = work.limits
    what = (
        f"mean coherence >= {limits.min_coherence:g}"
        if limits.criterion == "coherence"
        else f"p{PERCENTILE:g} token KL <= {limits.max_kl:g} nat"
    )
    n = len(work.questions)
    told = [
        f"{work.trait}: coefficients with {what}, on {n} questions (in brackets: of the mean residual norm)",
        f"{'layer':>5}  {'range of coefficients':>24}  {'residual norms':>16}  {'trait there':>11}",
        *(_range_line(one) for one in found.ranges),
    ]
    if found.chosen is None:
        return [*told, f"no layer: even {LEAST:g} residual norms along the vector cross the limit"]
    if found.points:
        told += ["", *_confirmed(found, work)]
    return [*told, "", *_verdict(found, work, what)]


def _range_line(one: LayerRange) -> str:
    low, high = one.range
    sizes = f"{-one.down.passed:.2f} to {one.up.passed:.2f}{'+' if math.isinf(one.up.failed) else ''}"
    trait = "-" if one.trait is None else f"{one.trait:.1f}"
    return f"{one.layer:>5}  {f'{low:.3g} to {high:.3g}':>24}  {sizes:>16}  {trait:>11}"


def _confirmed(found: Calibration, work: Work) -> Iterator[str]:
    yield f"layer {found.layer} on the other {len(work.confirming)} questions; means, with 95% intervals by question"
    yield f"{'coef':>7}  {work.trait:>20}  {'coherence':>20}   {N_RANDOM} random directions: {work.trait}, coherence"
    for point in (point for point in found.points if not point.control):
        random = [other for other in found.points if other.control and other.coef == point.coef]
        beside = ", ".join(_spread([getattr(other, name).mean for other in random]) for name in ("trait", "coherence"))
        yield f"{point.coef:>7.3g}  {point.trait.text():>20}  {point.coherence.text():>20}   {beside if random else ''}"
    yield ""
    for name, one in found.steerable.items():
        yield (
            f"{name or 'vector':>7}: {one.slope.text(sign=True)} points of {work.trait} a sample and unit of "
            f"coefficient; {100 * one.wrong_way.mean:.0f}% of {one.n_used} samples move the wrong way"
        )
    if work.others:
        yield from _crosstalk(found)


def _spread(values: list[float]) -> str:
    """Mean, lowest and highest."""
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else ""


def _crosstalk(found: Calibration) -> Iterator[str]:
    """What the other traits' judges say at the coefficient that is kept, or else at the largest."""
    own = [point for point in found.points if not point.control]
    last = next((point for point in own if point.coef == found.coef), own[-1])
    random = [point for point in found.points if point.control and point.coef == last.coef]
    told = (
        f"{name} {shift.mean:+.1f} (random {max(abs(p.shifts[name].mean) for p in random):.1f} at most)"
        for name, shift in last.shifts.items()
    )
    yield f"crosstalk at {last.coef:g}, shift of other traits: {', '.join(told)}"


def _verdict(found: Calibration, work: Work, what: str) -> Iterator[str]:
    assert found.chosen is not None
    low, high = found.chosen.range
    if found.coef is None:
        yield (
            f"layer {found.layer}: {low:.3g} to {high:.3g} held on the questions that found it and on none of the "
            "others: no coefficient is kept"
        )
        return
    size = found.coef * found.chosen.vector_norm / found.chosen.norm
    yield (
        f"kept: layer {found.layer}, coefficient {found.coef:g} ({size:.2f} of the mean residual norm "
        f"{found.chosen.norm:.3g}); {what} from {low:.3g} to {high:.3g} on the questions that found it"
    )
    if found.kl is not None:
        yield f"p{PERCENTILE:g} token KL to the unsteered model there: {found.kl:.2f} nats"
    if not found.points:
        yield (
            "no judge was asked: neither trait nor coherence is known there, and the layer is the one that can be "
            "pushed furthest"
        )
        return
    at = {point.control: point for point in found.points if point.coef == found.coef}
    chance = max(abs(point.trait.mean - found.points[0].trait.mean) for name, point in at.items() if name)
    gain = at[""].trait.mean - found.points[0].trait.mean
    verdict = "more" if gain > chance else "NOT more"
    yield f"{work.trait} rises by {gain:.1f} there, {verdict} than the {chance:.1f} of the strongest random direction"


def entry(found: Calibration, work: Work) -> dict[str, Any]:
    """What the vector's sidecar keeps under `calibration`."""
    chosen = found.chosen
    return {
        "trait": work.trait,
        "layer": found.layer,
        "coef": found.coef,
        "range": None if chosen is None else list(chosen.range),
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
        png = path.with_name(f"{path.stem}_calibration.png")
        write_bytes_atomic(png, plots.png_bytes(_figure(found, work)))
        write_sidecar(png, {"kind": "figure of a calibration", "vector": str(path), KEY: told})
        said.append(f"figure: {png}")
    return said


def _figure(found: Calibration, work: Work) -> Figure:
    """Trait and coherence over the coefficient, the vector beside random directions."""
    own = [point for point in found.points if not point.control]
    random = [[p for p in found.points if p.coef == point.coef and p.control] or [point] for point in own]

    def bands(name: str) -> tuple[plots.Band, plots.Band]:
        mine = [getattr(point, name) for point in own]
        theirs = [[getattr(point, name).mean for point in several] for several in random]
        return (
            plots.Band([i.mean for i in mine], [i.low for i in mine], [i.high for i in mine]),
            plots.Band([sum(t) / len(t) for t in theirs], [min(t) for t in theirs], [max(t) for t in theirs]),
        )

    return plots.steering_png(
        [point.coef for point in own], {work.trait: bands("trait"), "coherence": bands("coherence")}
    )
