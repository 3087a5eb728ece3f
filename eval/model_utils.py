"""The engine that samples: Hugging Face generation, steered by `ActivationSteerer`.

This is the one place where a `layer` (a hidden_states index) becomes the block index that the steerer takes.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from activation_steer import ActivationSteererMultiple
from persona_vectors.blocks import block_index, check_layer, decoder_blocks
from persona_vectors.capping import Cap
from persona_vectors.interventions import POSITIONS
from persona_vectors.models import load_config, resolve_model
from persona_vectors.sampling import SteerRows, sample_answers
from persona_vectors.tokens import render_prompt
from persona_vectors.vectors import load_vector
from persona_vectors.weight_direction import WeightDirection, content_hash
from persona_vectors.weight_hooks import DynamicWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Steering:
    """What is done to hidden states of `layer` at `positions` while an answer is sampled: `coef * vector` is added, or
    (kind cap) the component along the vector is kept within floor and ceiling (`persona_vectors.interventions`)."""

    vector: Tensor  # (d_model,)
    layer: int
    coef: float
    positions: str = "response"
    kind: Literal["add", "cap"] = "add"
    floor: float | None = None
    ceiling: float | None = None

    def key(self) -> dict[str, Any]:
        """Everything that determines the steering, for cache keys and sidecars; the vector by its content."""
        content = hashlib.sha256(self.vector.float().contiguous().numpy().tobytes()).hexdigest()
        key = {"vector": content, "layer": self.layer, "coef": float(self.coef), "positions": self.positions}
        return key if self.kind == "add" else {**key, "kind": self.kind, "floor": self.floor, "ceiling": self.ceiling}


@dataclass(frozen=True, eq=False)
class WeightSteering:
    """What the weights carry while an answer is sampled: `W + coef * D`, at every token.

    Attributes:
        mode: dynamic runs D beside the weights, so rows of one batch may have coefficients of their own; pre_merge
            adds it to the weights, for one coefficient after the other.
    """

    direction: WeightDirection
    coef: float
    mode: Literal["dynamic", "pre_merge"] = "dynamic"

    def key(self) -> dict[str, Any]:
        """Everything that determines the steering, for cache keys and sidecars; the direction by its content."""
        return {"direction": content_hash(self.direction), "coef": float(self.coef), "mode": self.mode}


Added = Steering | WeightSteering | tuple["Steering | WeightSteering", ...] | None
"""What is added while a row's answer is sampled: nothing, at one layer, to the weights, or all of several."""


def members(added: Added) -> tuple[Steering | WeightSteering, ...]:
    """What is added together, as a tuple."""
    return () if added is None else added if isinstance(added, tuple) else (added,)


def parts_of(added: Added) -> tuple[Steering, ...]:
    """The steerings of hidden states that act together, lowest layer first; at a layer, caps after what is added."""
    found = [one for one in members(added) if isinstance(one, Steering)]
    return tuple(sorted(found, key=lambda one: (one.layer, one.kind, one.positions)))


def weights_of(added: Added) -> tuple[WeightSteering, ...]:
    """The directions that the weights carry together."""
    return tuple(one for one in members(added) if isinstance(one, WeightSteering))


def key_of(added: Added) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Everything that determines what is added: of one steering its own key, of several the list of theirs."""
    keys = [one.key() for one in (*parts_of(added), *weights_of(added))]
    return keys if len(keys) > 1 else next(iter(keys), None)


def cap_steerings(cap: Cap) -> tuple[Steering, ...]:
    """The cap as what acts while an answer is sampled: one steering a layer."""
    return tuple(
        Steering(step.vector, step.layer, 1.0, cap.positions, "cap", step.floor, step.ceiling) for step in cap.steps
    )


def load_steering(
    model_name: str, vector_path: str | None, layer: int | None, coef: float, positions: str
) -> Steering | None:
    """The steering of a run, checked against the model's config before any weights are read; None at coef 0.

    Raises:
        ValueError: coef without a vector or layer, a layer the model has not, a vector of another width.
    """
    if positions not in POSITIONS:
        raise ValueError(f"steering_type must be one of {', '.join(POSITIONS)}; got {positions}")
    if coef == 0 and vector_path is None and layer is None:
        return None
    if vector_path is None or layer is None:
        missing = "--vector_path" if vector_path is None else "--layer"
        raise ValueError(f"steering with --coef {coef:g} needs --vector_path and --layer; {missing} is missing")
    vector = load_vector_for(model_name, vector_path, layer)
    return Steering(vector, layer, float(coef), positions) if coef != 0 else None


def load_vector_for(model_name: str, vector_path: str, layer: int) -> Float[Tensor, " d_model"]:
    """The file's vector at `layer`, if it can steer this model: checked against the model's config, without weights."""
    if not Path(vector_path).is_file():
        raise ValueError(f"no vector file at {vector_path}; make one with python generate_vec.py")
    config = load_config(model_name)
    check_layer(layer, config.num_hidden_layers, resolve_model(model_name).label)
    return load_vector(vector_path, layer, config.hidden_size, config.num_hidden_layers)


def steer_rows(model: PreTrainedModel, steerings: Sequence[Added]) -> SteerRows:
    """What `sample_answers` takes to steer each batch: row `i` by `steerings[i]`, whatever shares the batch with it.

    A row without steering comes out bit for bit as it would unsteered, at every layer that is not its own. Vectors are
    put together for one batch at a time, so many rows cost no more memory than the distinct vectors. Weights in
    pre_merge mode are the same for all rows, so the caller merges them (`eval.finished_answers`).
    """
    hidden, weights = _steer_hidden(model, steerings), _steer_weights(model, steerings)
    if weights is None:
        return hidden

    def steer(rows: Sequence[int]) -> AbstractContextManager:
        with ExitStack() as stack:
            stack.enter_context(weights(rows))
            stack.enter_context(hidden(rows))
            return stack.pop_all()

    return steer


def _steer_weights(model: PreTrainedModel, steerings: Sequence[Added]) -> SteerRows | None:
    """Directions beside the weights, row `i` by its own coefficients; None where no row has one."""
    rows = [[one for one in weights_of(added) if one.mode == "dynamic"] for added in steerings]
    directions = list({id(one.direction): one.direction for row in rows for one in row}.values())
    if not directions:
        return None
    number = {id(direction): k for k, direction in enumerate(directions)}
    coefs = torch.zeros(len(rows), len(directions))
    for i, row in enumerate(rows):
        for one in row:
            coefs[i, number[id(one.direction)]] += one.coef
    beside = DynamicWeights(model, directions)
    return lambda batch: beside.applied(coefs[list(batch)])


def _steer_hidden(model: PreTrainedModel, steerings: Sequence[Added]) -> SteerRows:
    """Vectors added to hidden states, row `i` by `steerings[i]`."""
    on_device: dict[tuple[int, int], Tensor] = {}  # (layer, which tensor) -> (d_model,), moved there once

    def placed(steering: Steering) -> Tensor:
        place = (steering.layer, id(steering.vector))
        if place not in on_device:
            block = decoder_blocks(model)[block_index(steering.layer)]
            device = next((p.device for p in block.parameters() if p.device.type != "meta"), steering.vector.device)
            on_device[place] = steering.vector.detach().to(device, torch.float32)
        return on_device[place]

    def instruction(mine: Sequence[Steering | None], layer: int, kind: str, positions: str) -> dict[str, Any]:
        other = next(own for own in mine if own is not None)  # its vector, at coef 0, where a row has none
        bounds = {} if kind == "add" else _bounds(mine)
        return {
            "steering_vector": torch.stack([placed(own or other) for own in mine]),  # (batch, d_model)
            "coeff": [0.0 if own is None else own.coef for own in mine],
            "layer_idx": block_index(layer),
            "positions": positions,
            "per_row": True,
            "kind": kind,
            **bounds,
        }

    def steer(rows: Sequence[int]) -> AbstractContextManager:
        by_place = _by_place([parts_of(steerings[row]) for row in rows])
        if not by_place:
            return nullcontext()
        return ActivationSteererMultiple(
            model, [instruction(mine, *place[:3]) for place, mine in sorted(by_place.items())]
        )

    return steer


def _bounds(mine: Sequence[Steering | None]) -> dict[str, Tensor]:
    """(batch,) floors and ceilings of the rows' caps; without limit where a row has none."""
    floors = [-math.inf if own is None or own.floor is None else own.floor for own in mine]
    ceilings = [math.inf if own is None or own.ceiling is None else own.ceiling for own in mine]
    return {"floor": torch.tensor(floors), "ceiling": torch.tensor(ceilings)}


def _by_place(rows: Sequence[tuple[Steering, ...]]) -> dict[tuple[int, str, str, int], list[Steering | None]]:
    """(layer, kind, positions, k) -> the k-th steering of each row there, None where a row has none."""
    found: dict[tuple[int, str, str, int], list[Steering | None]] = {}
    for row, parts in enumerate(rows):
        so_far: defaultdict[tuple[int, str, str], int] = defaultdict(int)
        for own in parts:
            place = (own.layer, own.kind, own.positions)
            found.setdefault((*place, so_far[place]), [None] * len(rows))[row] = own
            so_far[place] += 1
    return found


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, str]]],
    *,
    max_tokens: int = 1000,
    temperature: float = 1.0,
    seed: int = 0,
    steering: Steering | None = None,
) -> tuple[list[str], list[str]]:
    """Prompts and answers of the conversations, as the published function of this name returns them."""
    prompts = [render_prompt(tokenizer, messages) for messages in conversations]
    answers = sample_answers(
        model,
        tokenizer,
        prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        streams=[(seed, row) for row in range(len(prompts))],
        steer=steer_rows(model, [steering] * len(prompts)),
    )
    return prompts, answers


def sample_steering(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, str]]],
    vector: Tensor,
    layer: int,
    coef: float,
    *,
    max_tokens: int = 1000,
    temperature: float = 1.0,
    steering_type: str = "response",
    seed: int = 0,
) -> tuple[list[str], list[str]]:
    """Prompts and steered answers; `vector` is `(d_model,)` and `layer` a hidden_states index."""
    steering = Steering(vector, layer, coef, steering_type)
    return sample(
        model,
        tokenizer,
        conversations,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        steering=steering,
    )
