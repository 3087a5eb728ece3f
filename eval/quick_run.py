"""A quick extraction from plan to files, for every command that does one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from eval import calibrate, calibration_report, quick_methods, quick_steering
from eval.analysis_page import Section
from eval.quick_extract import Asked, Plan, Reading, plan, read_traits
from eval.quick_figures import write_figures
from eval.quick_report import head, layer_lines, sentences, write_files
from persona_vectors.separation import Separations, separations
from persona_vectors.store import Store


def run(asked: Asked) -> dict[str, Separations]:
    """Trait -> what was found, after every line is printed and every file written.

    Raises:
        ValueError: a mistake in what was asked, before the model is loaded; traits that failed, such as for want of
            pairs that count, after the others were written.
        cli.Unfinished: judge calls that failed.
    """
    names = quick_methods.wanted(asked.methods or (["all"] if asked.compare_steering else None))
    quick_steering.check_coefs(asked)
    work = plan(asked)
    for note in work.notes:
        print(note, flush=True)
    with Store() as store:
        readings, failures = read_traits(asked, work, store)
    found = {}
    for number, one in enumerate(readings):
        try:
            found[one.name], sections = _report(asked, work, readings, number, names)
            if asked.calibrate:
                write_figures(asked, one, found[one.name], [*sections, _calibrate(asked, work, one)])
        except ValueError as error:  # the other traits' answers are there
            failures.append(f"{one.name}: {error}")
    if failures:
        raise ValueError("; ".join(failures))
    return found


def _report(
    asked: Asked, work: Plan, readings: Sequence[Reading], number: int, names: list[str]
) -> tuple[Separations, list[Section]]:
    """One trait's part, without its calibration: what was found, and sections of the page."""
    reading = readings[number]
    found = separations(reading.pos, reading.neg, reading.questions, work.layers, seed=asked.seed)
    said = [head(reading, found), *layer_lines(found), *(f"- {text}" for text in sentences(found))]
    print("\n" + "\n".join(said), flush=True)
    (written, notes), sections = write_files(asked, work, reading, found), []
    for note in notes:
        print(f"note: {note}", flush=True)
    if names and found.best is not None:
        more, sections = _compare(asked, work, readings, number, found, names)
        written += more
    written += write_figures(asked, reading, found, sections)
    print("saved " + ", ".join(str(path) for path in written), flush=True)
    return found, sections


def _calibrate(asked: Asked, work: Plan, reading: Reading) -> Section:
    """The vectors' ranges of coefficients, found and written by the command that does just this, for the page."""
    base = reading.plan.base
    print(f"\ncalibrating {reading.name}", flush=True)
    vectors = base.with_name(f"{base.name}_vectors.npz")
    found = calibrate.run(
        calibrate.Asked(
            model=asked.model_name,
            vector_file=str(vectors),
            trait=reading.plan.given,
            judge_model=asked.judge_model,
            layers=[layer for layer in work.layers if layer] if len(work.layers) <= 8 else None,
            max_tokens=asked.max_tokens,
            seed=asked.seed,
        ),
        work.engine,
    )
    return calibration_report.section(*found, calibration_report.figure_path(vectors))


def _compare(
    asked: Asked, work: Plan, readings: Sequence[Reading], number: int, found: Separations, names: list[str]
) -> tuple[list[Path], list[Section]]:
    """Methods side by side, by AUC and, where asked for, by what they steer: the files written, and the page's part."""
    reading, alone = readings[number], len(readings) == 1 and "mean_centred" in names
    with tqdm(total=len(names) * len(work.layers), desc="methods", unit="direction", leave=False) as bar:
        scores = quick_methods.score_methods(names, work, readings, number, asked.seed, bar)
    print("\n" + "\n".join(quick_methods.lines(scores, found, alone)), flush=True)
    written = quick_methods.write_methods(asked, work, reading, found, scores)
    sections = [quick_methods.section(scores, found, alone)]
    if asked.compare_steering and found.best is not None:
        layer = found.best.layer if asked.steer_layer is None else asked.steer_layer
        vectors = {one.method: one.vector for one in scores if one.layer == layer}
        steered = quick_steering.compare(asked, work, reading, layer, vectors)
        print("\n" + "\n".join(quick_steering.lines(steered, reading.name)), flush=True)
        written += quick_steering.write_steering(asked, reading, steered)
        sections.append(quick_steering.section(steered, reading.name))
    return written, sections
