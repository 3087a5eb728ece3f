"""Which settings a run asks for, and where their tables go: lists of coefficients, layers and vectors, and controls.

A setting is one way of sampling the same questions from the same random streams: unsteered, steered by one vector at
one layer by one coefficient, steered by a random direction of that vector's norm, or under a system prompt.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.model_utils import Steering, WeightSteering, load_vector_for
from eval.questions import Question
from eval.text_table import short_names
from persona_vectors.interventions import POSITIONS
from persona_vectors.responses import PromptRow
from persona_vectors.statistics import random_directions

PLACEHOLDER = "{trait}"
TOGETHER = " + "  # between the names of directions that act at once


@dataclass(frozen=True, eq=False)
class Setting:
    """One way of sampling the questions.

    Attributes:
        coef: 0 where nothing is added.
        layer: hidden_states index that is steered, None where none is.
        vector: the vector file as it was given; "" where there is none, and for random directions.
        control: "" for the vector's own runs and the unsteered one, "random1" ..., or "prompt".
        matched: the vector file whose norm a random direction has; "" otherwise.
        steering: what is added; None where nothing is.
    """

    coef: float = 0.0
    layer: int | None = None
    vector: str = ""
    control: str = ""
    matched: str = ""
    steering: Steering | WeightSteering | None = None

    @property
    def vector_steering(self) -> Steering | None:
        """What is added to hidden states; None where nothing is, or the weights are changed instead."""
        return self.steering if isinstance(self.steering, Steering) else None

    @property
    def weight_steering(self) -> WeightSteering | None:
        """What the weights carry; None where nothing, or hidden states are steered instead."""
        return self.steering if isinstance(self.steering, WeightSteering) else None

    @property
    def is_baseline(self) -> bool:
        return not self.steering and not self.control


@dataclass(frozen=True)
class Grid:
    """What was asked for: every vector at every layer by every coefficient, and controls."""

    coefs: tuple[float, ...]
    layers: tuple[int, ...]
    vectors: tuple[str, ...]
    positions: str = "response"
    controls: tuple[str, ...] = ()
    n_random: int = 4
    seed: int = 0

    def for_trait(self, name: str) -> Grid:
        """The same with the trait's name for `{trait}` in vector paths."""
        return replace(self, vectors=tuple(path.replace(PLACEHOLDER, name) for path in self.vectors))


@dataclass(frozen=True)
class Output:
    """One table to be written: the places of its settings in the study, and the arguments of a run of just these."""

    path: Path
    places: list[int]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One trait's part of the job.

    Attributes:
        trait: its name, which is the column of its scores.
        path: the table, or what tables of one setting are named after.
        questions: as every setting but the prompt control asks them.
        prompted: the same questions under each pos instruction, for the prompt control.
    """

    trait: str
    path: Path
    questions: list[Question]
    settings: list[Setting]
    outputs: Sequence[Output] = ()
    prompted: Sequence[Question] = ()

    def rows(self, n_per_question: int) -> list[PromptRow]:
        """What every setting but the prompt control samples."""
        return [row for question in self.questions for row in question.rows(n_per_question)]

    def prompted_rows(self, n_per_question: int) -> list[PromptRow]:
        """As many rows a question under the pos instructions: sample k of question i under number (i + k) mod n."""
        by_question: dict[int, list[Question]] = {}
        for question in self.prompted:
            by_question.setdefault(question.stream[0], []).append(question)
        counts = Counter(row.question_index for row in self.rows(n_per_question))
        chosen = [
            (by_question[i][(i + k) % len(by_question[i])], k) for i, count in counts.items() for k in range(count)
        ]
        return [replace(question.rows(1)[0], stream=(*question.stream, k)) for question, k in chosen]


def short_name(vector: str) -> str:
    """The file name of a vector or direction, of several at once all of theirs; "" of none."""
    return TOGETHER.join(Path(part).name for part in vector.split(TOGETHER)) if vector else ""


def shown_names(vectors: Iterable[str]) -> dict[str, str]:
    """Each vector or direction -> its name to print: `short_name`, with as much of the path as tells them apart."""
    given = list(dict.fromkeys(filter(None, vectors)))
    parts = list(dict.fromkeys(part for one in given for part in one.split(TOGETHER)))
    names = dict(zip(parts, short_names(parts), strict=True))
    return {one: TOGETHER.join(names[part] for part in one.split(TOGETHER)) for one in given}


def several(value: Any) -> tuple[Any, ...]:
    """One value or several, as a tuple; None is none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def check_grid(grid: Grid) -> None:
    """Refuses, with a ValueError, lists that make no sense; vector files are looked at in `expand`."""
    for flag, values in (("coef", grid.coefs), ("layer", grid.layers), ("vector_path", grid.vectors)):
        check_once(flag, values)
    check_once("control", grid.controls)
    if grid.positions not in POSITIONS:
        raise ValueError(f"steering_type must be one of {', '.join(POSITIONS)}; got {grid.positions}")
    if not grid.coefs:
        raise ValueError("--coef names no coefficient; give at least one, 0 for an unsteered run")
    unusable = [coef for coef in grid.coefs if not math.isfinite(coef)]
    if unusable:
        raise ValueError(f"--coef {unusable[0]} is not a finite number")
    unknown = [control for control in grid.controls if control not in ("random", "prompt")]
    if unknown:
        raise ValueError(f"--control must be random, prompt or both; got {unknown[0]}")
    if grid.n_random < 1:
        raise ValueError(f"--n_random must be at least 1; got {grid.n_random}")
    steered = [coef for coef in grid.coefs if coef]
    if bool(grid.vectors) != bool(grid.layers) or (steered and not grid.vectors):
        missing = "--vector_path" if not grid.vectors else "--layer"
        coefs = " ".join(f"{coef:g}" for coef in grid.coefs)
        raise ValueError(f"steering with --coef {coefs} needs --vector_path and --layer; {missing} is missing")
    if "random" in grid.controls and not steered:
        raise ValueError("--control random needs a steering to be compared with: give --coef other than 0")


def check_numbers(
    n_per_question: int, max_tokens: int, max_concurrent_judges: int, min_coherence: float, seed: int
) -> None:
    """Refuses, with a ValueError, numbers of a run that make no sense."""
    if n_per_question < 1 or max_tokens < 1 or max_concurrent_judges < 1:
        raise ValueError("--n_per_question, --max_tokens and --max_concurrent_judges must be at least 1")
    if not 0 <= min_coherence <= 100:
        raise ValueError(f"--min_coherence must lie between 0 and 100; got {min_coherence:g}")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0; got {seed}")


def check_system_prompt(
    assistant_name: str | None, persona_instruction_type: str | None, controls: Sequence[str] = ()
) -> None:
    """Refuses, with a ValueError, a name without a system prompt, and a control that would be the run itself."""
    if assistant_name is not None and persona_instruction_type is None:
        raise ValueError("--assistant_name needs --persona_instruction_type: without one there is no system prompt")
    if persona_instruction_type == "pos" and "prompt" in controls:
        raise ValueError("--control prompt is a run under pos instructions; leave out --persona_instruction_type pos")


def check_once(flag: str, values: Iterable[Any]) -> None:
    """Refuses a value that is given twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        shown = f"{twice[0]:g}" if isinstance(twice[0], float) else twice[0]
        raise ValueError(f"--{flag} has {shown} twice; give each once")


def check_placeholder(traits: Sequence[str], output_path: str) -> None:
    """Refuses several traits for one table: each has its own column."""
    if len(traits) > 1 and PLACEHOLDER not in output_path:
        example = Path(output_path).with_name(f"{PLACEHOLDER}_{Path(output_path).name}")
        raise ValueError(
            f"{len(traits)} traits need {PLACEHOLDER} in --output_path, since each has a table of its own; for example "
            f"--output_path {example}"
        )


def expand(grid: Grid, model_name: str, trait: str) -> list[Setting]:
    """Every setting once: unsteered (coef 0), by vector and layer the coefficients and then its controls, the prompt.

    Vectors are read here, once each, and shared by all settings that use them. A random direction is the same one at
    every coefficient; it depends on the seed, the trait, the layer and the file's name, not on what else is run.

    Raises:
        ValueError: a vector file, layer or width that does not fit the model.
    """
    check_grid(grid)
    found = [Setting()] if 0 in grid.coefs else []
    steered = [float(coef) for coef in grid.coefs if coef]
    for number, (path, layer) in enumerate((path, layer) for path in grid.vectors for layer in grid.layers):
        vector = load_vector_for(model_name, path, layer)
        for coef in steered:
            found.append(Setting(coef, layer, path, steering=Steering(vector, layer, coef, grid.positions)))
        if "random" in grid.controls:
            first = 1 + number // len(grid.layers) * grid.n_random  # several vectors: the second has random5 ...
            found += _random_settings(grid, trait, path, layer, vector, steered, first)
    if "prompt" in grid.controls:
        found.append(Setting(control="prompt"))
    return found


def _random_settings(
    grid: Grid, trait: str, path: str, layer: int, vector: Tensor, coefs: Sequence[float], first: int
) -> Iterator[Setting]:
    seed = random_seed(grid.seed, trait, layer, Path(path).name)
    directions = random_directions(grid.n_random, len(vector), float(vector.norm()), seed)
    for number, direction in enumerate(directions, start=first):
        own = direction.clone()  # not a view on all of them
        for coef in coefs:
            steering = Steering(own, layer, coef, grid.positions)
            yield Setting(coef, layer, control=f"random{number}", matched=path, steering=steering)


def random_seed(seed: int, trait: str, layer: int, vector_name: str) -> int:
    """What seeds the random directions beside a vector at its layer: other seeds, traits, layers and files get others.

    The file's name and not its content: a vector made anew differs by rounding, and would get another control.
    """
    return zlib.crc32(f"{trait} {layer} {vector_name} {seed}".encode())


def in_norm_units(settings: Iterable[Setting], norms: Mapping[int, float]) -> list[Setting]:
    """The settings with `norms[layer] * v / |v|` for each vector v: coef is then in units of the mean residual norm."""
    scaled: dict[int, Tensor] = {}
    found = []
    for setting in settings:
        old = setting.vector_steering
        if old is not None:
            if id(old.vector) not in scaled:
                unit = old.vector.double() / old.vector.double().norm()
                scaled[id(old.vector)] = (norms[old.layer] * unit).float()
            setting = replace(setting, steering=replace(old, vector=scaled[id(old.vector)]))
        found.append(setting)
    return found
