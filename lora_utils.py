"""Steer by weights: a persona as a low-rank change of the model's matrices, `W' = W + coef * D`.

    merger = LoRAMerger(model)
    merger.merge_lora_diff("persona_loras/tiny-persona/evil/evil_lora_diff", 0.5)
    model.generate(**inputs)
    merger.restore_original_weights()          # bit for bit

    with LoRASteerer(model, "persona_loras/tiny-persona/evil/evil_lora_diff", coefficient=[0, 0.5, 1], mode="dynamic"):
        model.generate(**inputs)               # one batch, a coefficient a row

D points from neg to pos, so coef > 0 moves towards the trait. Merged, a forward pass costs what it always does;
dynamic adds `coef * (x A^T) B^T` beside each module's output, leaves the weights alone and can differ by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from persona_vectors.weight_deltas import as_direction_of_deltas
from persona_vectors.weight_direction import WeightDirection, spectrum
from persona_vectors.weight_files import Direction, as_direction, load_adapter, save_adapter
from persona_vectors.weight_hooks import DynamicWeights
from persona_vectors.weight_merge import LoRAMerger
from persona_vectors.weight_projection import Projection, project
from persona_vectors.weight_shifts import AdapterShift, open_shift

Mode = Literal["pre_merge", "dynamic"]


def load_lora_adapter(path: str | Path) -> WeightDirection:
    """What the PEFT adapter in a folder adds to its base's weights; see `persona_vectors.weight_files.load_adapter`."""
    return load_adapter(path)


def analyze_lora_singular_values(lora_diff: Direction) -> dict[str, dict[str, Any]]:
    """For each module the singular values of its delta_w (largest first), its Frobenius norm, and its effective rank.

    The effective rank is `exp(H(p))` with `p_i = s_i^2 / sum s^2`: how many directions carry the change. All of it is
    from the factors; delta_w is never made.
    """
    found = {}
    for name, module in as_direction(lora_diff).modules.items():
        s = spectrum(module).s
        shares = s.square() / s.square().sum().clamp_min(torch.finfo(s.dtype).tiny)
        entropy = -(shares * shares.clamp_min(torch.finfo(s.dtype).tiny).log()).sum()
        found[name] = {
            "singular_values": s.tolist(),
            "norm": float(s.norm()),
            "effective_rank": float(entropy.exp()) if s.numel() else 0.0,
        }
    return found


class LoRASteerer:
    """While the context is open, the model acts as if `coefficient * lora_diff` were part of its weights.

    Args:
        model: a causal language model.
        lora_diff_path: a direction, its adapter folder or `.pt` file; or several.
        coefficient: a number, or one a direction. In dynamic mode also (batch,) for one direction, or (batch, k) for k:
            a coefficient a row, in batch order.
        mode: pre_merge changes the weights and restores them at the end, bit for bit: nothing is slower meanwhile.
            dynamic leaves them alone and adds `coef * (x A^T) B^T` to each module's output.

    Raises:
        ValueError: see `LoRAMerger.merge_lora_diff`; coefficients a row in pre_merge mode; an unknown mode.
    """

    def __init__(
        self,
        model: nn.Module,
        lora_diff_path: Direction | Sequence[Direction],
        coefficient: float | Sequence[float] | Tensor = 1.0,
        mode: Mode = "pre_merge",
    ):
        if mode not in ("pre_merge", "dynamic"):
            raise ValueError(f"mode {mode!r} is unknown; expected pre_merge or dynamic")
        given = [lora_diff_path] if isinstance(lora_diff_path, (WeightDirection, str, Path)) else list(lora_diff_path)
        if not given:
            raise ValueError("no direction given; give at least one")
        self.model, self.mode = model, mode
        self.directions = [as_direction(one) for one in given]
        self.coefs = _coefs(coefficient, len(given))
        if mode == "pre_merge" and self.coefs.ndim == 2:
            raise ValueError("a coefficient a row needs mode dynamic: merged weights are the same for every row")
        self._open: ExitStack | None = None

    def __enter__(self) -> LoRASteerer:
        if self._open is not None:
            raise RuntimeError("this steerer is already active; make a second one to steer twice")
        with ExitStack() as stack:
            if self.mode == "dynamic":
                stack.enter_context(DynamicWeights(self.model, self.directions).applied(self.coefs))
            else:
                stack.enter_context(LoRAMerger(self.model)).merge_lora_diff(self.directions, self.coefs.tolist())
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Ends the steering; a second call does nothing."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _coefs(coefficient: float | Sequence[float] | Tensor, k: int) -> Float[Tensor, "*batch k"]:
    """(k,), or (batch, k) where rows have their own."""
    try:
        coefs = torch.as_tensor(coefficient).detach().to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"coefficient {coefficient!r} is not a number, nor one a row") from error
    if not torch.isfinite(coefs).all():
        raise ValueError(f"coefficient {coefficient!r} is not finite")
    if coefs.ndim == 0:
        return coefs.expand(k)
    if coefs.ndim == 1 and k == 1:
        return coefs[:, None] if len(coefs) > 1 else coefs
    if coefs.shape[-1] != k or coefs.ndim > 2:
        raise ValueError(f"coefficient has shape {tuple(coefs.shape)}; expected ({k},) or (batch, {k})")
    return coefs


class WeightProjector:
    """How far a finetuning moved the weights along a direction; see `persona_vectors.weight_projection`.

    Args:
        lora_diff: a direction, or its adapter folder or `.pt` file.
    """

    def __init__(self, lora_diff: Direction):
        self.direction = as_direction(lora_diff)

    def compute_projection(
        self, finetuned: Direction, original: str | None = None, layers: Sequence[int] | None = None
    ) -> float:
        """`<dW, L> / |L|` of what the finetuning changed; > 0 is towards the trait.

        Args:
            finetuned: an adapter folder, a training folder, a direction, its `.pt` file, or a full model.
            original: the model that a full one was finetuned from; adapters need none.
            layers: hidden_states indices of the blocks to look at (block i is layer i + 1); None is everything.

        Raises:
            ValueError: a full model without an original, or nothing in common; see `weight_projection.project`.
        """
        return self.measure(finetuned, original, layers).total

    def compute_layer_projections(
        self, finetuned: Direction, original: str | None = None, layers: Sequence[int] | None = None
    ) -> dict[int | None, float]:
        """Layer -> `<dW, L>` in its block over the whole `|L|`: they add up to `compute_projection`.

        None is what lies outside of blocks, where the direction changes that.
        """
        return self.measure(finetuned, original, layers).layer_projections()

    def measure(
        self,
        finetuned: Direction,
        original: str | None = None,
        layers: Sequence[int] | None = None,
        n_random: int = 0,
        seed: int = 0,
    ) -> Projection:
        """Projection, cosine and norm, in all and by module, beside `n_random` random directions."""
        shifts = {"finetuned": open_shift(finetuned, original)}
        directions = {"lora_diff": self.direction}
        found = project(shifts, directions, layers=layers, n_random=n_random, seed=seed)
        return found["finetuned", "lora_diff"]


def compute_finetuning_weight_delta(original_model: str, finetuned: str, rank: int = 64) -> WeightDirection:
    """What a finetuning changed, as a direction: exactly for an adapter; for a full model delta_w of each linear
    module at rank `rank` at most, `record["residuals"]` saying how far that is from it.

    Raises:
        ValueError: see `persona_vectors.weight_deltas.as_direction_of_deltas`.
    """
    shift = open_shift(finetuned, original_model)
    if isinstance(shift, AdapterShift):
        return shift.direction
    direction, residuals = as_direction_of_deltas(original_model, finetuned, rank)
    return replace(direction, record={**direction.record, "residuals": residuals})


def finetuning_as_adapter(original_model: str, finetuned: str, folder: str | Path, rank: int = 64) -> Path:
    """The folder, now a LoRA adapter of the original model that adds what a full finetuning changed, at this rank."""
    return save_adapter(compute_finetuning_weight_delta(original_model, finetuned, rank), folder)
