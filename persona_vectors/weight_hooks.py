"""Directions in weight space on a model's modules: which those are, and their part beside each module's output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from persona_vectors.blocks import decoder_blocks, model_label, unwrap, watch_hooks
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


def names_in_model(name: str, keys: Iterable[str]) -> dict[str, str]:
    """Key in a model's files -> that tensor's name in the model, as loading it translates: many files have no prefix of
    the base model (GPT-2's `h.0`), or older names. A key without a name of its own in the model stands for itself."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key

    model: Any = skeleton(name)
    own, keys = model.state_dict(), sorted(keys, key=dot_natural_key)
    if own.keys() >= set(keys):
        return {key: key for key in keys}
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    renamed = {key: rename_source_key(key, renamings, [], model.base_model_prefix, own)[0] for key in keys}
    return {key: new if key not in own and new in own else key for key, new in renamed.items()}


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
        ValueError: a module that the model has not, one of another shape or kind, or one in an adapter that is no plain
            LoRA; names what was looked for.
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
        module = _inside(name, there[name], model)
        _check_shape(name, module, change, model)
        found[name] = module
    return found


def _inside(name: str, module: Any, model: nn.Module) -> Any:
    """The module that PEFT's wrapper runs, if it is in one: what is added to its output is added to the wrapper's."""
    if hasattr(module, "modules_to_save"):
        copies, active = module.modules_to_save, module.active_adapters
        is_off = module.disable_adapters or not active or active[0] not in copies
        return module.original_module if is_off else copies[active[0]]
    if not hasattr(module, "base_layer"):
        return module
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer) or module.lora_variant:
        raise ValueError(
            f"{name} of {model_label(model)} is in an adapter that is no plain LoRA, as DoRA and IA3 are none, and may "
            "rescale what is added to it; merge the adapter into the model first (PEFT's merge_and_unload)"
        )
    return module.base_layer


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
        self.model = model
        joined = combine([(one, 1.0) for one in directions])
        modules = find_modules(model, joined)
        watch_hooks()
        self._placed = [place(name, module, directions) for name, module in modules.items()]

    @contextmanager
    def applied(self, coefs: Float[Tensor, "*batch k"]) -> Iterator[None]:
        """Within the context module(x) is `W x + sum_i coef_i * D_i x`.

        Args:
            coefs: (k,) for all rows, or (batch, k). A row of zeros comes out bit for bit as without.

        Raises:
            ValueError: in a forward pass of another number of rows, or where a module gets some of the tokens alone, so
                that it is not known whose they are.
        """
        handles = []
        if coefs.ndim == 2 and len(coefs) and (coefs == coefs[:1]).all():
            coefs = coefs[0]
        try:
            if coefs.any():
                batch: list[torch.Size] = []
                if coefs.ndim == 2:
                    handles = [
                        decoder_blocks(self.model)[0].register_forward_pre_hook(_seeing(batch), with_kwargs=True)
                    ]
                handles += [one.module.register_forward_hook(_adding(one, coefs, batch)) for one in self._placed]
            yield
        finally:
            for handle in handles:
                handle.remove()


def place(name: str, module: Any, directions: Sequence[WeightDirection]) -> Placed:
    """The factors of those of the directions that change the module of this name; float32 beside quantised weights."""
    own = [(k, one.modules[name]) for k, one in enumerate(directions) if name in one.modules]
    dtype = module.weight.dtype if has_floats(module) else torch.float32
    stored = next(chain(module.parameters(recurse=False), module.buffers(recurse=False)))
    where = {"device": stored.device, "dtype": dtype}
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
        torch.cat([torch.full((change.rank,), k) for k, change in own]).to(stored.device),
        biases,
    )


def has_floats(module: Any) -> bool:
    """Whether the module's weight is floating-point with 16 bits or more: neither packed, nor of 8 bits and a scale."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.is_floating_point() and weight.itemsize > 1


def _seeing(batch: list[torch.Size]) -> Any:
    """The pre-hook of the first block that keeps what a forward pass is of: `batch` is [(rows, tokens, d_model)]."""

    def see(_block: nn.Module, args: tuple, kwargs: dict) -> None:
        batch[:] = [(args[0] if args else kwargs["hidden_states"]).shape]

    return see


def _adding(one: Placed, coefs: Float[Tensor, "*batch k"], batch: list[torch.Size]) -> Any:
    """The forward hook that adds the directions' part to a module's output."""
    coefs = coefs.to(one.A)
    columns = coefs[..., one.owner]  # (r,) or (rows, r)
    constant = None if one.biases is None else coefs @ one.biases  # (d_out,) or (rows, d_out)
    if coefs.ndim == 2:
        columns, constant = columns[:, None], None if constant is None else constant[:, None]

    def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = args[0] if coefs.ndim == 1 else _in_rows(args[0], len(coefs), batch, module)
        inner = torch.nn.functional.linear(x.to(one.A.dtype), one.A) * columns  # (batch, seq, r)
        added = torch.nn.functional.linear(inner, one.B, None)
        added = added if constant is None else added + constant
        return output + added.to(output.dtype).reshape(output.shape)

    return add


def _in_rows(x: Tensor, n_rows: int, batch: list[torch.Size], module: nn.Module) -> Float[Tensor, "rows tokens d_in"]:
    """A module's input by row: as it is, or all tokens of the batch, row after row, as a shared expert gets them."""
    if x.ndim == 3 and len(x) == n_rows:
        return x
    if x.ndim == 2 and batch and len(batch[0]) == 3 and batch[0][0] == n_rows and len(x) == n_rows * batch[0][1]:
        return x.view(n_rows, -1, x.shape[-1])
    raise ValueError(
        f"{n_rows} rows have coefficients, and a {type(module).__name__} got an input of shape {tuple(x.shape)}; "
        "expected (rows, tokens, features), or (tokens, features) of all rows"
    )
