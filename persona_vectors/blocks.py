"""Find a model's decoder blocks, and read or replace their outputs.

`layer` is a hidden_states index: 0 is the embedding output, `layer` L is the output of block L-1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_BLOCK_LISTS = ("layers", "h", "blocks")  # Llama and most others; GPT-2 and Bloom; MPT
_DECODERS = (
    "",
    "model",
    "transformer",
    "gpt_neox",
    "decoder",
    "model.decoder",
    "language_model",
    "model.language_model",
    "language_model.model",
    "backbone",
)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DistributedDataParallel or DataParallel, and PEFT, in any nesting."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            inner = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        elif hasattr(model, "peft_config") and callable(getattr(model, "get_base_model", None)):
            inner = model.get_base_model()  # pyright: ignore[reportCallIssue]
        else:
            return model
        if inner is model or not isinstance(inner, nn.Module):
            return model
        model = inner


def inner_decoder(model: nn.Module) -> nn.Module:
    """The module that holds the blocks and is called with input ids, attention mask and cache.

    Raises:
        ValueError: no decoder with a list of blocks was found; names the class and what was looked for.
    """
    return _find(model)[0]


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, first to last, of a causal language model, wrapped or not.

    Raises:
        ValueError: no list of blocks was found; names the class and what was looked for.
    """
    return _find(model)[1]


def _find(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    base = unwrap(model)
    for decoder in _candidates(base):
        decoder = unwrap(decoder)
        for name in _BLOCK_LISTS:
            blocks = getattr(decoder, name, None)
            if isinstance(blocks, nn.ModuleList) and len(blocks) > 0:
                return decoder, blocks
    raise ValueError(
        f"no decoder blocks in {type(base).__name__}: looked for a ModuleList named {', '.join(_BLOCK_LISTS)} in "
        f"get_decoder() and in {', '.join(path or 'the model' for path in _DECODERS)}; pass a causal language model"
    )


def _candidates(base: nn.Module) -> Iterator[nn.Module]:
    get_decoder = getattr(base, "get_decoder", None)
    if callable(get_decoder):
        decoder = get_decoder()
        if isinstance(decoder, nn.Module):
            yield decoder
    for path in _DECODERS:
        module: Any = base
        for name in path.split(".") if path else ():
            module = unwrap(module) if isinstance(module, nn.Module) else module
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            yield module


def num_layers(model: nn.Module) -> int:
    """The number of decoder blocks: the highest `layer`."""
    return len(decoder_blocks(model))


def hidden_size(model: nn.Module) -> int:
    """The width of the residual stream, d_model.

    Raises:
        ValueError: the model has no config that states it.
    """
    base = unwrap(model)
    config: Any = getattr(base, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise ValueError(f"{type(base).__name__} has no config.hidden_size; pass a Hugging Face causal language model")
    return width


def model_label(model: nn.Module) -> str:
    """A short name of the model for messages: the last part of its id or folder, else its class."""
    base = unwrap(model)
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or getattr(base, "name_or_path", "")
    return str(name).rstrip("/").rsplit("/", 1)[-1] or type(base).__name__


def block_index(layer: int) -> int:
    """The index of the block whose output is `layer`: layer - 1.

    Raises:
        ValueError: layer 0 (the embedding output, made by no block) or less.
    """
    if layer <= 0:
        raise ValueError(f"layer {layer} is not the output of a block; layers are counted from 1 (0 is the embedding)")
    return layer - 1


def layer_of_block(block_idx: int) -> int:
    """The layer that a block's output is: block_idx + 1, the inverse of `block_index`."""
    return block_idx + 1


def check_layer(layer: int, n_layers: int, label: str = "the model", *, steering: bool = True) -> int:
    """`layer` itself, if a model of `n_layers` blocks has it. Reading (`steering=False`) also allows 0.

    Raises:
        ValueError: outside 1..n_layers (steering) or 0..n_layers (reading), or not a whole number.
    """
    verb, first = ("steering", 1) if steering else ("reading", 0)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ValueError(f"layer {layer!r} is not a whole number; {verb} needs {first}..{n_layers} for {label}")
    if layer == 0 and steering:
        raise ValueError(f"layer 0 is the embedding output; steering needs 1..{n_layers} for {label}")
    if not first <= layer <= n_layers:
        raise ValueError(f"layer {layer} does not exist; {verb} needs {first}..{n_layers} for {label}")
    return layer


def hidden_of(output: Any) -> Float[Tensor, "batch seq d_model"]:
    """The hidden state in a block's output: the tensor itself, or the first of a tuple (older releases).

    Raises:
        TypeError: the output is neither.
    """
    hidden = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(hidden, Tensor):
        raise TypeError(f"a decoder block returned {type(output).__name__}; expected a tensor or a tuple led by one")
    return hidden


def with_hidden(output: Any, hidden: Float[Tensor, "batch seq d_model"]) -> Any:
    """A block's output with its hidden state replaced, of the same type; the given output is not changed."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, tuple) and hasattr(output, "_fields"):  # a named tuple takes its fields one by one
        return type(output)(hidden, *output[1:])
    return type(output)((hidden, *output[1:]))


@contextmanager
def read_blocks(
    model: nn.Module, layers: Sequence[int] | None = None
) -> Iterator[dict[int, Float[Tensor, "batch seq d_model"]]]:
    """Hidden states by `layer` of the latest forward pass made in the context (layer 0 = the input of block 0).

    The last layer is the last block's own output, before the final norm. Hooks on a block run in the order they were
    added, so to see a steered layer enter this context inside the steerer's. The tensors are the model's own, not
    copies, in its dtype and on its devices; every forward pass replaces them.

    Args:
        layers: which layers; all of 0..n_layers by default.

    Raises:
        ValueError: a layer that the model does not have.
    """
    blocks = decoder_blocks(model)
    wanted = range(len(blocks) + 1) if layers is None else layers
    for layer in wanted:
        check_layer(layer, len(blocks), model_label(model), steering=False)
    hidden_states: dict[int, Tensor] = {}
    handles = []
    try:
        for layer in wanted:
            if layer == 0:
                handles.append(blocks[0].register_forward_pre_hook(_input_reader(hidden_states), with_kwargs=True))
            else:
                handles.append(blocks[block_index(layer)].register_forward_hook(_output_reader(hidden_states, layer)))
        yield hidden_states
    finally:
        for handle in handles:
            handle.remove()


def _input_reader(hidden_states: dict[int, Tensor]):
    def read(_block: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden_states[0] = args[0] if args else kwargs["hidden_states"]

    return read


def _output_reader(hidden_states: dict[int, Tensor], layer: int):
    def read(_block: nn.Module, _args: tuple, output: Any) -> None:
        hidden_states[layer] = hidden_of(output)

    return read


def device_of(model: nn.Module) -> torch.device:
    """The device that input ids go to: that of the input embeddings (the first shard of a sharded model)."""
    base = unwrap(model)
    get_embeddings = getattr(base, "get_input_embeddings", None)
    embeddings = get_embeddings() if callable(get_embeddings) else None
    return next((embeddings if isinstance(embeddings, nn.Module) else base).parameters()).device


def watch_hooks() -> None:
    """From now on compiled code is recompiled when hooks come or go; what was compiled before is dropped, once."""
    import torch._dynamo as dynamo

    if dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()
