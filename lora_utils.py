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

import math
import operator
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from persona_vectors.blocks import model_label, unwrap
from persona_vectors.weight_deltas import as_direction_of_deltas
from persona_vectors.weight_direction import WeightDirection, spectrum
from persona_vectors.weight_files import load_adapter, load_direction, save_adapter
from persona_vectors.weight_hooks import DynamicWeights, Placed, find_modules, is_transposed, place
from persona_vectors.weight_projection import Projection, project
from persona_vectors.weight_shifts import AdapterShift, open_shift

Direction = WeightDirection | str | Path
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


def as_direction(lora_diff: Direction) -> WeightDirection:
    """The direction itself, or the one in an adapter folder or `.pt` file."""
    return lora_diff if isinstance(lora_diff, WeightDirection) else load_direction(lora_diff)


@dataclass(frozen=True)
class _Backup:
    """What a merge touches of one module, as it was before."""

    module: Any
    weight: nn.Parameter
    original: Tensor
    """a copy of the weight; of a tied one the parameter itself, which is never written to"""
    is_tied: bool
    bias: nn.Parameter | None

    def restore(self) -> None:
        """The module has its parameters again, with their bits."""
        if self.is_tied:
            self.module.weight = self.weight
        else:
            self.weight.data.copy_(self.original)
        self.module.bias = self.bias


class LoRAMerger:
    """Adds directions to a model's weights in place, and takes them out again bit for bit.

    A second merge replaces the first: the weights are always `original + sum(coef * D)`, from one copy of the modules
    that a direction changes, kept until `restore_original_weights`. As a context manager it restores at the end.

    A weight that is tied to another module's (an output head that is the embedding) is untied while merged, so that
    only the named module changes. A module without a bias gets one while a direction with biases is merged.

    Args:
        model: a causal language model with floating-point weights; PEFT, torch.compile, sharding may wrap it.
        backup_device: where copies are kept; by default where the weights are. "cpu" spares GPU memory.
    """

    def __init__(self, model: nn.Module, backup_device: str | None = None):
        self.model = model
        self._device = backup_device
        self._backups: dict[str, _Backup] = {}
        self._directions: list[WeightDirection] = []
        self._placed: dict[str, Placed] = {}
        self._shared: set[int] = set()

    @torch.no_grad()
    def merge_lora_diff(
        self, lora_diff: Direction | Sequence[Direction], coefficient: float | Sequence[float] = 1.0
    ) -> int:
        """The number of modules that now carry `coefficient * lora_diff`, in place of what was merged before.

        Args:
            lora_diff: a direction, or its adapter folder or `.pt` file; or several of them. A sweep is faster with the
                same direction object: its factors are cast and placed once.
            coefficient: a number, or one a direction. With 0 the weights are the original ones, to the bit.

        Raises:
            ValueError: another model's direction, a weight that is not floating-point, a coefficient or a result that
                is not finite; the weights are then the original ones.
        """
        try:
            parts = _parts(lora_diff, coefficient)
            modules: dict[str, nn.Module] = {}
            for direction, _ in parts:
                modules |= find_modules(self.model, direction)
            acting = [(direction, coef) for direction, coef in parts if coef]
            self._place([direction for direction, _ in acting], modules)
            for name in set(self._backups) - set(self._placed):
                self._backups.pop(name).restore()
            coefs = torch.tensor([coef for _, coef in acting])
            for name, placed in self._placed.items():
                self._merge(name, placed, coefs)
        except BaseException:
            self.restore_original_weights()
            raise
        return len(modules)

    def _place(self, directions: list[WeightDirection], modules: dict[str, nn.Module]) -> None:
        """Makes `_placed` the directions' factors, unless it is that already."""
        if not self._backups:
            self._shared = _shared_parameters(self.model)
        if len(directions) == len(self._directions) and all(map(operator.is_, directions, self._directions)):
            return
        self._directions, self._placed = [], {}
        names = dict.fromkeys(name for direction in directions for name in direction.modules)
        for name in names:
            self._check_writable(name, modules[name])
        self._placed = {name: place(name, modules[name], directions) for name in names}
        self._directions = directions

    def _merge(self, name: str, placed: Placed, coefs: Float[Tensor, " k"]) -> None:
        module: Any = placed.module
        if name not in self._backups:
            self._backups[name] = self._back_up(module)
        kept = self._backups[name]
        if kept.is_tied and module.weight is kept.weight:
            module.weight = nn.Parameter(torch.empty_like(kept.weight), requires_grad=kept.weight.requires_grad)
        weight, original = module.weight, kept.original.to(module.weight.device)
        coefs = coefs.to(weight.device)
        A, B = placed.A, (placed.B * coefs[placed.owner]).to(weight.dtype)
        torch.addmm(original, *((A.T, B.T) if is_transposed(module) else (B, A)), out=weight.data)
        if placed.biases is not None:
            added = (coefs @ placed.biases.float()).to(weight.dtype)
            total = added if kept.bias is None else kept.bias.detach() + added
            module.bias = nn.Parameter(total, requires_grad=False)
        if _may_overflow(A, B) and not torch.isfinite(weight.data).all():
            raise ValueError(f"{name} is not finite with the direction merged at this coefficient; use a smaller one")

    def _check_writable(self, name: str, module: Any) -> None:
        weight = module.weight
        if not weight.is_floating_point() or weight.is_meta:
            stored = "offloaded" if weight.is_meta else weight.dtype
            raise ValueError(
                f"{name} of {model_label(self.model)} is {stored}, and nothing can be added to it; load it whole and "
                'unquantised, or use LoRASteerer(mode="dynamic")'
            )

    def _back_up(self, module: Any) -> _Backup:
        weight = module.weight
        tied = id(weight) in self._shared
        original = weight.detach() if tied else weight.detach().to(self._device or weight.device, copy=True)
        return _Backup(module, weight, original, tied, module.bias)

    @torch.no_grad()
    def restore_original_weights(self) -> None:
        """Every weight has the bits it had before the first merge, and the copies are gone."""
        while self._backups:
            self._backups.popitem()[1].restore()
        self._directions, self._placed = [], {}

    def __enter__(self) -> LoRAMerger:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.restore_original_weights()


def _shared_parameters(model: nn.Module) -> set[int]:
    """The ids of parameters that several modules have, such as an output head that is the embedding."""
    counts = Counter(id(own) for module in unwrap(model).modules() for own in module.parameters(recurse=False))
    return {key for key, count in counts.items() if count > 1}


def _may_overflow(A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"]) -> bool:
    """Whether a weight + B @ A could leave the dtype's range: a bound without a pass over the weight."""
    if not len(A):
        return False
    factor, rank = float(B.abs().max()), len(A)
    largest = factor * max(1.0, rank * float(A.abs().max()))
    return not largest < torch.finfo(A.dtype).max / 4  # weights themselves are far below that


def _parts(
    lora_diff: Direction | Sequence[Direction], coefficient: float | Sequence[float]
) -> list[tuple[WeightDirection, float]]:
    """Each direction with its coefficient.

    Raises:
        ValueError: another number of coefficients, or one that is not finite.
    """
    given = [lora_diff] if isinstance(lora_diff, (WeightDirection, str, Path)) else list(lora_diff)
    coefs = [float(coefficient)] * len(given) if isinstance(coefficient, (int, float)) else list(coefficient)
    if len(coefs) != len(given) or not given:
        raise ValueError(f"{len(coefs)} coefficients for {len(given)} directions; give one number, or one each")
    if wrong := [coef for coef in coefs if not math.isfinite(coef)]:
        raise ValueError(f"coefficient {wrong[0]} is not finite")
    return [(as_direction(one), float(coef)) for one, coef in zip(given, coefs, strict=True)]


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
