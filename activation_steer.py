"""Steer a model's hidden states while it generates or reads text.

    with ActivationSteerer(model, vector, coeff=2.0, layer_idx=19, positions="response"):
        model.generate(**inputs)

`layer_idx` is a block index (the published name): the output of block 19 is `layer` 20, so commands pass
`block_index(layer)`. -1 is the last block.

Positions are token masks. `all`: every token. `prompt`: the prompt's tokens. `response`: the last prompt token (it
produces the first response token) and every later one. They are learned from the arguments of the module that holds the
blocks, anew in every forward pass, so they mean the same under left padding and with a 1-token prompt:

- with `prompt_lens` (real tokens of each row's prompt): exactly, in any call: teacher-forced, generation, a prompt that
  continues a prefix cache (count the prefix in), chunked prefill, assisted decoding, generation without a cache;
- without it, a call on an empty cache is the prompt, so `response` means its last real token (as published), and a
  call of one token on a filled cache is a decoding step. A call of several tokens on a filled cache could be a
  prompt's next chunk or a draft: it raises and asks for `prompt_lens`. Two cases cannot be told from a plain prompt
  and also need `prompt_lens`: the first chunk of a chunked prefill, and `generate(use_cache=False)`.

In training with gradient checkpointing, blocks are run again in the backward pass with the masks of the latest forward
pass: run backward before the next forward pass.

torch.compile: steering works before or after compiling. The first steering in a process makes compiled code watch hooks
(`torch._dynamo.config.skip_nnmodule_hook_guards = False`) and drops what was compiled before; otherwise a hook added
after a compiled model's first call would be ignored, and one removed would go on steering, both silently.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from persona_vectors import interventions
from persona_vectors.blocks import (
    decoder_blocks,
    hidden_of,
    hidden_size,
    inner_decoder,
    model_label,
    watch_hooks,
    with_hidden,
)
from persona_vectors.interventions import PerRow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intervention:
    """One thing done to one block's output. `make_intervention` checks and builds it."""

    vector: Float[Tensor, "*batch d_model"]
    """float32; (d_model,), or (batch, d_model) for one a row"""
    coef: Float[Tensor, "*batch"]
    """float32; (), or (batch,) for one a row"""
    block_idx: int
    """0..n_blocks-1"""
    positions: str = "all"
    kind: str = "add"
    floor: PerRow | None = None
    ceiling: PerRow | None = None

    @property
    def is_off(self) -> bool:
        return self.coef.ndim == 0 and float(self.coef) == 0.0

    def apply(
        self, hidden: Float[Tensor, "batch seq d_model"], mask: Tensor | None
    ) -> Float[Tensor, "batch seq d_model"]:
        """The changed hidden state, out of place, in its own dtype and on its own device."""
        if self.kind == "ablate":
            return interventions.ablate(hidden, self.vector, mask, self.coef)
        if self.kind == "cap":
            return interventions.cap(hidden, self.vector, self.floor, self.ceiling, mask, self.coef)
        return interventions.add(hidden, self.vector, self.coef, mask)


def make_intervention(
    model: nn.Module,
    steering_vector: Tensor | Sequence[float],
    *,
    coeff: PerRow | Sequence[float] = 1.0,
    layer_idx: int = -1,
    positions: str = "all",
    kind: str = "add",
    floor: PerRow | None = None,
    ceiling: PerRow | None = None,
    per_row: bool | None = None,
) -> Intervention:
    """A checked intervention for the model; the arguments are those of `ActivationSteerer`.

    Raises:
        ValueError: one line, for whatever does not fit the model or does not make sense.
    """
    blocks = decoder_blocks(model)
    block_idx = _check_block(layer_idx, len(blocks), model_label(model))
    interventions.check_positions(positions)
    if kind not in interventions.KINDS:
        raise ValueError(f"kind {kind!r} is unknown; expected {', '.join(interventions.KINDS)}")
    if kind == "cap":
        interventions.check_bounds(floor, ceiling)
    elif floor is not None or ceiling is not None:
        raise ValueError(f"floor and ceiling belong to kind='cap'; got kind={kind!r}")
    vector = torch.as_tensor(steering_vector).detach().to(torch.float32)
    interventions.check_vector(vector, hidden_size(model), kind=kind, label=model_label(model))
    if per_row is None and vector.ndim == 2 and vector.shape[0] == len(blocks) + 1:
        raise ValueError(
            f"steering vector has {len(blocks) + 1} rows, as a file of all layers has: index it by layer, "
            "or pass per_row=True for one vector a batch row"
        )
    if per_row is False and vector.ndim != 1:
        raise ValueError(f"steering vector has shape {tuple(vector.shape)}; expected ({vector.shape[-1]},)")
    device = next((p.device for p in blocks[block_idx].parameters() if p.device.type != "meta"), vector.device)
    return Intervention(vector.to(device), _check_coef(coeff).to(device), block_idx, positions, kind, floor, ceiling)


def _check_block(layer_idx: int, n_blocks: int, label: str) -> int:
    if isinstance(layer_idx, bool) or not isinstance(layer_idx, int) or not -n_blocks <= layer_idx < n_blocks:
        raise ValueError(
            f"layer_idx {layer_idx!r} is not a block of {label}; expected a block index 0..{n_blocks - 1} (layer - 1), "
            f"or -1..-{n_blocks} from the end"
        )
    return layer_idx % n_blocks


def _check_coef(coeff: PerRow | Sequence[float]) -> Float[Tensor, "*batch"]:
    try:
        coef = torch.as_tensor(coeff).detach().to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"coeff {coeff!r} is not a number, nor one number a batch row") from error
    if coef.ndim > 1:
        raise ValueError(f"coeff has shape {tuple(coef.shape)}; expected a number, or (batch,) for one a row")
    if not torch.isfinite(coef).all():
        raise ValueError(f"coeff {coeff!r} is not finite")
    return coef


def _check_prompt_lens(prompt_lens: Tensor | Sequence[int] | None) -> Int[Tensor, " batch"] | None:
    if prompt_lens is None:
        return None
    lens = torch.as_tensor(prompt_lens)
    if lens.ndim != 1 or lens.is_floating_point() or lens.numel() == 0 or int(lens.min()) < 1:
        raise ValueError(f"prompt_lens {prompt_lens!r}: expected one whole number >= 1 a batch row, without padding")
    return lens.long()


class SteeringHandle:
    """Hooks that carry out interventions on a model from when it is made until `remove()`.

    Several interventions on one block act in the order given. Handles may be nested; hooks act in the order added.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Sequence[Intervention],
        *,
        prompt_lens: Tensor | Sequence[int] | None = None,
        debug: bool = False,
    ):
        self._prompt_lens = _check_prompt_lens(prompt_lens)
        self._plan = [step for step in plan if not step.is_off]
        self._debug = debug
        self._masks: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        decoder, blocks = inner_decoder(model), decoder_blocks(model)
        self._argument_names = tuple(inspect.signature(decoder.forward).parameters)
        self._positions = sorted({step.positions for step in self._plan} - {"all"})
        watch_hooks()
        try:
            if self._positions:
                self._hooks.append(decoder.register_forward_pre_hook(self._learn_positions, with_kwargs=True))
            for block_idx in sorted({step.block_idx for step in self._plan}):
                steps = [step for step in self._plan if step.block_idx == block_idx]
                self._hooks.append(blocks[block_idx].register_forward_hook(self._block_hook(steps)))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Takes the hooks away; a second call does nothing."""
        while self._hooks:
            self._hooks.pop().remove()
        self._masks = {}

    def _learn_positions(self, _decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments = dict(zip(self._argument_names, args, strict=False)) | kwargs
        self._masks = interventions.call_masks(self._positions, arguments, self._prompt_lens)

    def _block_hook(self, steps: Sequence[Intervention]):
        def steer(_block: nn.Module, _args: tuple, output: Any) -> Any:
            hidden = hidden_of(output)
            for step in steps:
                mask = None if step.positions == "all" else self._mask_for(step, hidden)
                if self._debug:
                    n_tokens = hidden.shape[:-1].numel() if mask is None else int(mask.sum())
                    log.info("block %d: %s at %d tokens (%s)", step.block_idx, step.kind, n_tokens, step.positions)
                hidden = step.apply(hidden, mask)
            return with_hidden(output, hidden)

        return steer

    def _mask_for(self, step: Intervention, hidden: Tensor) -> Tensor:
        mask = self._masks.get(step.positions)
        if mask is None or mask.shape != hidden.shape[:-1]:
            raise RuntimeError(
                f"block {step.block_idx} ran on {tuple(hidden.shape[:-1])} tokens its decoder did not announce, so "
                "their positions are unknown; call the whole model, and backward before the next forward pass"
            )
        return mask


class _Steerer:
    """A context manager over one SteeringHandle."""

    def __init__(
        self, model: nn.Module, plan: Sequence[Intervention], prompt_lens: Tensor | Sequence[int] | None, debug: bool
    ):
        self.model = model
        self.plan = tuple(plan)
        self.prompt_lens = _check_prompt_lens(prompt_lens)
        self.debug = debug
        self._handle: SteeringHandle | None = None

    def __enter__(self):
        if self._handle is not None:
            raise RuntimeError("this steerer is already active; make a second one to steer twice")
        self._handle = SteeringHandle(self.model, self.plan, prompt_lens=self.prompt_lens, debug=self.debug)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Ends the steering; a second call does nothing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


class ActivationSteerer(_Steerer):
    """Adds coeff·steering_vector to the output of one block while the context is open (arXiv 2507.21509).

    With a vector that points from neg to pos, coeff > 0 moves towards the trait. The vector keeps its length. Sum and
    hidden state have the hidden state's dtype; earlier blocks are untouched; coeff 0 is bit-identical.

    Args:
        model: a causal language model; PEFT, torch.compile and sharding over devices may wrap it.
        steering_vector: (d_model,), or (batch, d_model): one vector a batch row.
        coeff: a number, or (batch,): one a batch row, in batch order.
        layer_idx: a BLOCK index (layer - 1); negative counts from the end.
        positions: all, prompt or response (see the module).
        debug: log what is steered in every forward pass (logger "activation_steer").
        kind: add; ablate, which takes coeff times the component along the vector away; cap, which keeps that
            component within floor and ceiling (arXiv 2601.10387). See persona_vectors.interventions.
        floor, ceiling: bounds of a cap, in units of the projection h·v/|v|; a number, or (batch,).
        prompt_lens: (batch,) real tokens of each row's prompt; needed to tell prompt from response in teacher-forced
            passes.
        per_row: True says that a 2-D vector is one a row even where it has as many rows as a file of all layers.

    Raises:
        ValueError: a vector of another shape or width, or with NaN; a zero vector to ablate or cap; a block the model
            does not have; unknown positions or kind. In a forward pass: as many rows given as the batch has not.
    """

    def __init__(
        self,
        model: nn.Module,
        steering_vector: Tensor | Sequence[float],
        *,
        coeff: PerRow | Sequence[float] = 1.0,
        layer_idx: int = -1,
        positions: str = "all",
        debug: bool = False,
        kind: str = "add",
        floor: PerRow | None = None,
        ceiling: PerRow | None = None,
        prompt_lens: Tensor | Sequence[int] | None = None,
        per_row: bool | None = None,
    ):
        step = make_intervention(
            model,
            steering_vector,
            coeff=coeff,
            layer_idx=layer_idx,
            positions=positions,
            kind=kind,
            floor=floor,
            ceiling=ceiling,
            per_row=per_row,
        )
        super().__init__(model, [step], prompt_lens, debug)


class ActivationSteererMultiple(_Steerer):
    """Carries out several interventions while the context is open; those on one block act in the order given.

    Args:
        instructions: dicts with steering_vector and, optionally, coeff [0.0], layer_idx [-1], positions ["all"], and
            kind, floor, ceiling, per_row; each as in `ActivationSteerer`.
        prompt_lens: as in `ActivationSteerer`, for all of them.

    Raises:
        ValueError: as in `ActivationSteerer`; an instruction without a vector or with a key not named here.
    """

    _KEYS = ("steering_vector", "coeff", "layer_idx", "positions", "kind", "floor", "ceiling", "per_row")

    def __init__(
        self,
        model: nn.Module,
        instructions: Sequence[Mapping[str, Any]],
        *,
        debug: bool = False,
        prompt_lens: Tensor | Sequence[int] | None = None,
    ):
        plan = []
        for number, instruction in enumerate(instructions):
            unknown = sorted(set(instruction) - set(self._KEYS))
            if unknown:
                raise ValueError(f"instruction {number} has unknown key {unknown[0]!r}; have {', '.join(self._KEYS)}")
            if "steering_vector" not in instruction:
                raise ValueError(f"instruction {number} has no steering_vector")
            arguments: dict[str, Any] = {"coeff": 0.0} | dict(instruction)
            plan.append(make_intervention(model, **arguments))
        super().__init__(model, plan, prompt_lens, debug)
