"""Which settings a run with directions of weights asks for: each direction, or all at once, and random ones beside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.model_utils import WeightSteering, sample
from eval.sweep import TOGETHER, Setting, check_once, random_seed, short_name, shown_names
from lora_utils import Direction, LoRASteerer, as_direction
from persona_vectors.weight_adapters import base_note
from persona_vectors.weight_direction import WeightDirection, combine, crosstalk, random_like
from persona_vectors.weight_hooks import check_fits

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from eval.finished_answers import Engine
    from eval.questions import Question
    from persona_vectors.store import Store

Mode = Literal["dynamic", "pre_merge"]


def read_directions(model: str, paths: Sequence[str]) -> dict[str, WeightDirection]:
    """The directions by path, checked against the model's config, without its weights; another model's are named."""
    check_once("lora_diff_path", paths)
    directions = {path: as_direction(path) for path in paths}
    check_fits(model, directions)
    say_other_bases(model, directions)
    return directions


def say_other_bases(model: str, directions: Mapping[str, WeightDirection]) -> None:
    """Prints a note on each direction (by its path) that is not known to be one of this model."""
    for path, direction in directions.items():
        if note := base_note(path, direction.base, model):
            print(note)


def together(directions: dict[str, WeightDirection], shares: Sequence[float] | None) -> dict[str, WeightDirection]:
    """The directions as one, `sum_i share_i * D_i`, under their names; shares are 1 by default.

    Raises:
        ValueError: fewer than two directions, or another number of shares.
    """
    if len(directions) < 2:
        raise ValueError("--compose puts directions together; give at least two as --lora_diff_path")
    shares = [1.0] * len(directions) if shares is None else list(shares)
    if len(shares) != len(directions) or not all(share and math.isfinite(share) for share in shares):
        raise ValueError(f"--compose_shares needs a number other than 0 for each of {len(directions)} directions")
    return {TOGETHER.join(directions): combine(list(zip(directions.values(), shares, strict=True)))}


def expand(
    directions: dict[str, WeightDirection], coefs: Sequence[float], mode: Mode, n_random: int, seed: int
) -> list[Setting]:
    """Every setting once: unsteered (coef 0), then by direction its coefficients and those of its random controls.

    Random directions have the direction's singular values, and are the same for every trait that is scored; numbers go
    on from one direction to the next.
    """
    found = [Setting()] if 0 in coefs else []
    pushes = [float(coef) for coef in coefs if coef]
    for place, (path, direction) in enumerate(directions.items()):
        found += [Setting(coef, None, path, steering=WeightSteering(direction, coef, mode)) for coef in pushes]
        first = random_seed(seed, "", 0, short_name(path))
        for number in range(n_random):
            random = random_like(direction, first + number)
            control = f"random{1 + place * n_random + number}"
            for coef in pushes:
                steering = WeightSteering(random, coef, mode)
                found.append(Setting(coef, None, control=control, matched=path, steering=steering))
    return found


def crosstalk_lines(table: dict[str, dict[str, float]]) -> list[str]:
    """A line for every two directions: how much of one the other carries."""
    names = shown_names(table)
    paths = list(names)
    return [
        f"cosine of {names[one]} and {names[other]} in weight space: {table[one][other]:+.3f}"
        for place, one in enumerate(paths)
        for other in paths[place + 1 :]
    ]


def crosstalk_of(directions: dict[str, WeightDirection]) -> dict[str, dict[str, float]]:
    """Cosine of every two of several directions; nothing of a single one."""
    return crosstalk(directions) if len(directions) > 1 else {}


def sample_baseline(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, str]]],
    **how: Any,
) -> tuple[list[str], list[str]]:
    """Prompts and answers of the model as it is; `how` as in `eval.model_utils.sample`."""
    return sample(model, tokenizer, conversations, **how)


def sample_with_lora_steering(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, str]]],
    lora_diff: Direction,
    lora_coef: float,
    **how: Any,
) -> tuple[list[str], list[str]]:
    """Prompts and answers with `lora_coef * lora_diff` in the weights, which are as before afterwards."""
    with LoRASteerer(model, lora_diff, lora_coef):
        return sample(model, tokenizer, conversations, **how)


def eval_batched_lora(
    questions: Sequence[Question], engine: Engine, store: Store, lora_diff: Direction, lora_coef: float, **how: Any
) -> pd.DataFrame:
    """The response table of all questions with the direction in the weights; `how` as in `eval_batched`."""
    from eval.eval_persona import eval_batched

    direction = as_direction(lora_diff)
    check_fits(engine.name, {str(lora_diff) if isinstance(lora_diff, (str, Path)) else "direction": direction})
    steering = WeightSteering(direction, float(lora_coef)) if lora_coef else None
    return eval_batched(questions, engine, store, steering=steering, **how)
