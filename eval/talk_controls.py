"""What a person can change in a steered conversation, the same at the terminal and on the page.

Each function returns lines that say what holds now, or raises a ValueError and leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.talk import Session
from eval.talk_prompts import example_prompts
from eval.talk_settings import Part, Settings
from eval.talk_start import STRENGTHS, Start, calibration_of, origin_lines, start, trait_of
from persona_vectors.vector_files import Numbering, read_vector_file


@dataclass(eq=False)
class Desk:
    """A session and what its person works with.

    Attributes:
        numbering: how layer numbers in vector files are read.
        examples: prompts on offer; examples_from: where they are from.
        written: transcripts saved by this session, which it may replace.
    """

    session: Session
    model_name: str
    numbering: Numbering = "hidden_states"
    examples: list[str] = field(default_factory=list)
    examples_from: str = ""
    written: set[Path] = field(default_factory=set)

    @property
    def settings(self) -> Settings:
        return self.session.settings


def strengths_for(begun: Start, given: Sequence[float] | None) -> tuple[float, tuple[float, ...]]:
    """(the strength to go on with, those side by side): as given, or by the calibration, or the published ones.

    Without a calibration it is 1 where that is among them, otherwise the highest.
    """
    calibrated = begun.calibrated
    compared = tuple(given) if given is not None else calibrated.strengths if calibrated else STRENGTHS
    usual = 1.0 if 1.0 in compared or not compared else max(compared)
    coef = calibrated.coef if calibrated and (given is None or calibrated.coef in compared) else usual
    return coef, compared


def use_file(desk: Desk, path: str, layer: int | None = None) -> list[str]:
    """Another vector file, at a layer of its own; a name without a file is looked for beside the present file.

    A calibrated vector brings its strengths; otherwise they stay.
    """
    file = read_vector_file(_beside(desk, path), desk.numbering)
    begun = start(file, desk.settings.shape, None if layer is None else str(layer))
    trait = trait_of(file, desk.model_name)
    fields: dict = {"file": file, "trait": trait, "layer": begun.layer}
    if begun.calibrated is not None:
        fields["strength"], compared = strengths_for(begun, None)
        fields["compared"] = compared if desk.settings.compared else ()
    desk.session.change(**fields)
    desk.examples, desk.examples_from = example_prompts(trait, desk.model_name)
    return [file.line, *origin_lines(file, desk.model_name), *begun.lines, *desk.settings.lines()[:2]]


def use_layer(desk: Desk, layer: int) -> list[str]:
    desk.session.change(layer=layer)
    return desk.settings.lines()[:1] + _outside(desk, [])


def use_strength(desk: Desk, strength: float) -> list[str]:
    """One answer a turn, at this strength."""
    desk.session.change(strength=strength, compared=())
    return desk.settings.lines()[1:2] + _outside(desk, [strength])


def compare(desk: Desk, strengths: Sequence[float]) -> list[str]:
    """Answers side by side; the strength that the conversation goes on with stays, or becomes the nearest of them."""
    if not strengths:
        raise ValueError("/strengths needs numbers, such as /strengths -2 -1 0 1 2")
    nearest = min(strengths, key=lambda one: (abs(one - desk.settings.strength), one))
    desk.session.change(compared=tuple(strengths), strength=nearest)
    return desk.settings.lines()[1:2] + _outside(desk, strengths)


def add(desk: Desk, path: str, layer: int, coef: float) -> list[str]:
    """One vector more in every answer, whatever its strength."""
    file = read_vector_file(_beside(desk, path), desk.numbering)
    part = Part(file, layer, coef)
    desk.session.change(added=(*desk.settings.added, part))
    return [file.line, f"added to every answer: {part.line}"]


def remove(desk: Desk, number: int) -> list[str]:
    """Takes the vector of this number, from 1, out of what is added to every answer."""
    added = desk.settings.added
    if not 1 <= number <= len(added):
        have = f"there are 1 to {len(added)}" if added else "nothing is added; /add FILE LAYER COEF does"
        raise ValueError(f"no added vector has number {number}; {have}")
    desk.session.change(added=added[: number - 1] + added[number:])
    return [f"no longer added: {added[number - 1].line}"]


def keep(desk: Desk, strength: float) -> list[str]:
    """The conversation goes on with the last turn's answer at this strength, and later ones at it, too."""
    desk.session.keep(strength)
    return [f"the conversation goes on with the answer at strength {strength:g}"]


def undo(desk: Desk) -> list[str]:
    turn = desk.session.undo()
    return [f"taken back: {turn.user!r} and its answers; turns left: {len(desk.session.turns)}"]


def reset(desk: Desk) -> list[str]:
    desk.session.reset()
    return ["a new conversation; the settings stay"]


def _beside(desk: Desk, path: str) -> Path:
    """The path itself, or that of the present file with the trait's name replaced by this one."""
    here = desk.settings.file.path
    if not Path(path).exists() and desk.settings.trait in here.name:
        sibling = here.with_name(here.name.replace(desk.settings.trait, path))
        if "/" not in path and sibling.is_file():
            return sibling
    return Path(path)


def _outside(desk: Desk, strengths: Sequence[float]) -> list[str]:
    """A note where strengths lie outside of the range in which the vector was seen to leave the model coherent."""
    found = calibration_of(desk.settings.file)
    if found is None:
        return []
    if found.layer != desk.settings.layer:
        return [f"note: {desk.settings.file.path.name} is calibrated for layer {found.layer} only"]
    low, high = found.range
    outside = [f"{one:g}" for one in strengths if not low <= one <= high]
    if not outside:
        return []
    return [f"note: {', '.join(outside)} is outside the calibrated range, {low:g} to {high:g}, where {found.limit}"]
