"""Directions in weight space on a model's modules: which those are, and their part beside each module's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from persona_vectors.blocks import model_label, unwrap, watch_hooks
from persona_vectors.weight_direction import LowRank, WeightDirection, combine, norm


def skeleton(name: str) -> nn.Module:
    """The model that a name means, on the meta device: its modules' names and shapes, and no weights.

    Raises:
        ValueError: no config there, or one of no causal language model.
    """
    from transformers import AutoModelForCausalLM

    from persona_vectors.models import load_whole_config, resolve_model

    config = load_whole_config(name)  # as from_pretrained: one of text and images has its text model under other names
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.name_or_path = resolve_model(name).label
    return model


def check_fits(model: str, directions: Mapping[str, WeightDirection]) -> None:
    """Refuses, with a ValueError, directions (by their path) that are zero or do not fit the model's modules.

    Only the model's config is read.
    """
    modules = skeleton(model)
    for path, direction in directions.items():
        if not norm(direction) > 0:
            raise ValueError(f"{path} is zero everywhere; it would not steer")
        find_modules(modules, direction)


def find_modules(model: nn.Module, direction: WeightDirection) -> dict[str, nn.Module]:
    """The model's modules that the direction changes, by name: every one of them, with its shape checked.

    Under PEFT it is the module inside the adapter's. The model may be compiled, or sharded over devices.

    Raises:
        ValueError: a module that the model has not, or one of another shape or kind; names what was looked for.
    """
    base = unwrap(model)
    there = {_plain(name): module for name, module in base.named_modules()}
    missing = [name for name in direction.modules if name not in there]
    if missing:
        linear = [name for name, module in there.items() if isinstance(module, nn.Linear)]
        raise ValueError(
            f"{len(direction.modules) - len(missing)} of {len(direction.modules)} modules of the direction "
            f"(made for {direction.base or 'an unnamed model'}) are in {model_label(model)}; it has no {missing[0]}; "
            f"its linear modules are called {linear[0] if linear else 'otherwise'}, ..."
        )
    found = {}
    for name, change in direction.modules.items():
        module: Any = there[name]
        module = module.base_layer if hasattr(module, "base_layer") else module
        _check_shape(name, module, change, model)
        found[name] = module
    return found


def _plain(name: str) -> str:
    """A module's name without what compiling puts into it."""
    return name.replace("_orig_mod.", "")


def _check_shape(name: str, module: Any, change: LowRank, model: nn.Module) -> None:
    features = _features(module)
    if features is None:
        raise ValueError(f"{name} of {model_label(model)} is a {type(module).__name__}; expected a linear module")
    if features != change.shape:
        raise ValueError(
            f"{name} of {model_label(model)} maps {features[1]} to {features[0]} features, and the direction "
            f"{change.shape[1]} to {change.shape[0]}; use a direction of this model"
        )


def _features(module: Any) -> tuple[int, int] | None:
    """(d_out, d_in) of a linear module, GPT-2's Conv1D and quantised ones included; None for another kind."""
    if hasattr(module, "out_features") and hasattr(module, "in_features"):
        return module.out_features, module.in_features
    return (module.weight.shape[1], module.weight.shape[0]) if is_transposed(module) else None


def is_transposed(module: Any) -> bool:
    """Whether the module's weight is (d_in, d_out), as in GPT-2."""
    return type(module).__name__ == "Conv1D"


@dataclass(frozen=True)
class Placed:
    """One module's factors of k directions side by side, where its weight is and in the weight's dtype.

    Attributes:
        owner: (r,) the number of the direction that a column of B is of.
        biases: None where no direction has a bias there.
    """

    module: Any
    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]
    owner: Tensor
    biases: Float[Tensor, "k d_out"] | None


class DynamicWeights:
    """Directions ready to run beside a model's modules, without touching its weights; factors are placed once.

    Args:
        model: a causal language model, in any floating-point or quantised form.
        directions: k of them.
    """

    def __init__(self, model: nn.Module, directions: Sequence[WeightDirection]):
        self.n_directions = len(directions)
        joined = combine([(one, 1.0) for one in directions])
        modules = find_modules(model, joined)
        watch_hooks()
        self._placed = [place(name, module, directions) for name, module in modules.items()]

    @contextmanager
    def applied(self, coefs: Float[Tensor, "*batch k"]) -> Iterator[None]:
        """Within the context module(x) is `W x + sum_i coef_i * D_i x`.

        Args:
            coefs: (k,) for all rows, or (batch, k). A row of zeros comes out bit for bit as without.
        """
        handles = []
        try:
            if coefs.any():
                handles = [one.module.register_forward_hook(_adding(one, coefs)) for one in self._placed]
            yield
        finally:
            for handle in handles:
                handle.remove()


def place(name: str, module: Any, directions: Sequence[WeightDirection]) -> Placed:
    """The factors of those of the directions that change the module of this name; float32 beside quantised weights."""
    own = [(k, one.modules[name]) for k, one in enumerate(directions) if name in one.modules]
    weight = module.weight
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    where = {"device": weight.device, "dtype": dtype}
    biases = None
    if any(change.bias is not None for _, change in own):
        biases = torch.zeros(len(directions), own[0][1].shape[0], **where)
        for k, change in own:
            if change.bias is not None:
                biases[k] = change.bias
    return Placed(
        module,
        torch.cat([change.A for _, change in own]).to(**where),
        torch.cat([change.B for _, change in own], dim=1).to(**where),
        torch.cat([torch.full((change.rank,), k) for k, change in own]).to(weight.device),
        biases,
    )


def _adding(one: Placed, coefs: Float[Tensor, "*batch k"]) -> Any:
    """The forward hook that adds the directions' part to a module's output."""
    coefs = coefs.to(one.A)
    columns = coefs[..., one.owner]  # (r,) or (batch, r)
    constant = None if one.biases is None else coefs @ one.biases  # (d_out,) or (batch, d_out)
    if coefs.ndim == 2:
        columns, constant = columns[:, None], None if constant is None else constant[:, None]

    def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = args[0]
        if coefs.ndim == 2 and (x.ndim != 3 or x.shape[0] != len(coefs)):
            raise RuntimeError(
                f"{len(coefs)} rows have coefficients, and a {type(module).__name__} got an input of shape "
                f"{tuple(x.shape)}; expected (rows, tokens, features)"
            )
        inner = torch.nn.functional.linear(x.to(one.A.dtype), one.A) * columns  # (batch, seq, r)
        added = torch.nn.functional.linear(inner, one.B, None)
        added = added if constant is None else added + constant
        return output + added.to(output.dtype)

    return add
